"""QuantizedEmbedding: an nn.Embedding that reads the int8 weight of a linear layer."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from fastinfer import ops
from fastinfer.nn.packed_weight import PackedWeight
from fastinfer.nn.plain import FLOATS, why_not_plain
from fastinfer.nn.quantized_linear import QuantizedLinear

_embedding_w8 = torch.ops.fastinfer.embedding_w8.default


class QuantizedEmbedding(PackedWeight):
    """Rows of an int8 weight by their numbers, in place of a :class:`torch.nn.Embedding`.

    Language models often have one weight for the embedding of their tokens and for the linear layer
    that scores them. This is the embedding beside a :class:`QuantizedLinear`: both hold the same
    two tensors, as the float ones held one parameter, and a state dict has both names.

    * ``weight_packed``: uint8 vector, see :func:`fastinfer.ops.pack_w8`, layout "dense";
    * ``weight_scale``: float32 ``[num_embeddings]``.

    A cast of the module (``.half()``, ``.to(torch.bfloat16)``) leaves these as they are and changes
    ``dtype``, that of the rows. A move to another device gives each of the two layers tensors of
    its own, as it does with all buffers that are shared.

    The constructor makes an empty layer for :meth:`load_state_dict`; until then a call of it is an
    error. :meth:`from_embedding` makes one from a trained embedding and the int8 form of its linear
    layer.

    Args:
        num_embeddings: N.
        embedding_dim: K, at most 131071.
        padding_idx: kept for those who ask; it has a meaning in training alone.
        device: where the buffers live.
        dtype: of the rows, float32, bfloat16 or float16.

    Raises:
        TypeError: ``dtype`` is another.
        ValueError: ``embedding_dim`` is above 131071, or a size is negative.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not 0 <= embedding_dim <= ops.MAX_K:
            raise ValueError(
                f"{type(self).__name__}: embedding_dim is {embedding_dim}, want 0 to {ops.MAX_K}"
            )
        if num_embeddings < 0:
            raise ValueError(
                f"{type(self).__name__}: num_embeddings is {num_embeddings}, want >= 0"
            )
        if dtype not in FLOATS:
            want = " or ".join(str(dtype) for dtype in FLOATS)
            raise TypeError(f"{type(self).__name__}: dtype is {dtype}, want {want}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.dtype = dtype
        self._make_weight(device)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, linear: QuantizedLinear) -> Self:
        """The embedding whose weight is that of ``linear``.

        Args:
            embedding: plain, see :func:`why_not_quantizable_embedding`.
            linear: the int8 form of a layer with the same weight, in the layout "dense".

        Raises:
            ValueError: ``linear`` has another shape or layout.
        """
        shape = linear.out_features, linear.in_features
        if shape != (embedding.num_embeddings, embedding.embedding_dim):
            raise ValueError(
                f"from_embedding: linear has a weight of shape {list(shape)}, want "
                f"[{embedding.num_embeddings}, {embedding.embedding_dim}], as embedding has"
            )
        if linear.layout not in ("dense", "cuda", None):
            raise ValueError(f"from_embedding: linear has the layout {linear.layout}, want dense")
        layer = cls(*shape, embedding.padding_idx, device="meta", dtype=embedding.weight.dtype)
        layer.train(embedding.training)
        layer.weight_packed = linear.weight_packed
        layer.weight_scale = linear.weight_scale
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Ids ``[...]``, int32 or int64 -> ``[..., embedding_dim]`` of :attr:`dtype`.

        Raises:
            TypeError, ValueError: as :func:`fastinfer.ops.embedding_w8`.
        """
        buffers = self._buffers
        packed, scale = buffers["weight_packed"], buffers["weight_scale"]
        try:
            return _embedding_w8(input, packed, scale, self.embedding_dim, self.dtype)
        except (RuntimeError, TypeError, AttributeError) as error:
            failure = error
        self._explain(input)
        raise failure

    def _explain(self, ids: Tensor) -> None:
        """Raises what is wrong with the arguments of a call that failed, if that was the cause."""
        if self.weight_packed.is_cuda:
            return  # to look at a tensor would wait for the GPU, and hide the cause
        self._check_not_empty()
        arguments = self.weight_packed, self.weight_scale, self.embedding_dim
        ops.embedding_w8(ids, *arguments, out_dtype=self.dtype)

    @property
    def _weight_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    @property
    def weight(self) -> Tensor:
        """:meth:`dequantize` in :attr:`dtype`, the rows that calls give, for code that reads the
        weight of a layer: costly, and read-only."""
        return self.dequantize().to(self.dtype)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, scheme=w8, {self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight_scale.device)).dtype
        return self

    def _try_weight(self, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        ids = torch.empty(0, dtype=torch.int64, device=packed.device)
        ops.embedding_w8(ids, packed, scale, self.embedding_dim)


def why_not_quantizable_embedding(module: nn.Module) -> str | None:
    """Why a :class:`QuantizedEmbedding` cannot stand for ``module``, as a sentence, or None if it
    can."""
    reason = why_not_plain(module, nn.Embedding, "weight")
    if reason is not None:
        return reason
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None:
        return "it renormalises its weight (max_norm)"
    if module.sparse:
        return "its gradients are sparse"
    if module.scale_grad_by_freq:
        return "its gradients are scaled by frequency"
    n, k = module.num_embeddings, module.embedding_dim
    if module.weight.shape != (n, k):
        return f"its weight has shape {list(module.weight.shape)}, not [{n}, {k}]"
    return None
