"""embedding_w8: check, wrapper, fake kernel."""

import torch
from torch import Tensor
from torch.nn import functional

from fastinfer.ops._common import FLOATS, check_tensor, check_vector, run
from fastinfer.ops._pack import check_packed_size, packed_bytes


def embedding_w8(
    ids: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    k: int,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The embeddings of ``ids`` in an int8 weight: rows ``w_scale[id] * w[id]``, as floats.

    The product is rounded to float32, then to ``out_dtype``: the same bits everywhere.

    Args:
        ids: int32 or int64, any shape and strides, ``0 <= ids < N``.
        w_packed: uint8 vector, the int8 weight ``[N, K]`` as :func:`pack_w8` returns it in its
            layout "dense", or "cuda" on CUDA.
        w_scale: float32 ``[N]``.
        k: K, which fixes the shape of the output.
        out_dtype: float32, bfloat16 or float16; None for float32.

    Returns:
        ``[*ids.shape, k]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device, an id on a CPU is not that of a row
            (on CUDA torch stops the device, as with :class:`torch.nn.Embedding`), or ``w_packed``
            holds something else than a dense int8 weight packed for this device.
    """
    _check(ids, w_packed, w_scale, k, out_dtype)
    return run(torch.ops.fastinfer.embedding_w8.default, ids, w_packed, w_scale, k, out_dtype)


def _check(
    ids: Tensor, w_packed: Tensor, w_scale: Tensor, k: int, out_dtype: torch.dtype | None
) -> torch.dtype:
    """The dtype of the output."""
    op = "embedding_w8"
    check_tensor(op, "ids", ids, (torch.int32, torch.int64))
    check_vector(op, "w_packed", w_packed, torch.uint8, None)
    check_vector(op, "w_scale", w_scale, torch.float32, None)
    for name, t in {"w_packed": w_packed, "w_scale": w_scale}.items():
        if t.device != ids.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {ids.device}, where ids is")
    if k < 0:
        raise ValueError(f"{op}: k is {k}, want >= 0")
    out_dtype = torch.float32 if out_dtype is None else out_dtype
    if out_dtype not in FLOATS:
        want = " or ".join(str(dtype) for dtype in FLOATS)
        raise TypeError(f"{op}: out_dtype is {out_dtype}, want {want}")
    return out_dtype


@torch.library.register_fake("fastinfer::embedding_w8")
def _(
    ids: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    k: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = _check(ids, w_packed, w_scale, k, out_dtype)
    check_packed_size("embedding_w8", "w_packed", w_packed, w_scale.shape[0], k)
    return ids.new_empty((*ids.shape, k), dtype=dtype)


def rows_by_torch(
    ids: Tensor, w_packed: Tensor, w_scale: Tensor, k: int, out_dtype: torch.dtype | None = None
) -> Tensor:
    """By torch's own lookup: in the layout "cuda" the rows lie as a matrix at the end."""
    dtype = _check(ids, w_packed, w_scale, k, out_dtype)
    n = w_scale.shape[0]
    if w_packed.shape[0] != packed_bytes(n, k, "cuda"):
        raise ValueError(
            f"embedding_w8: w_packed has {w_packed.shape[0]} bytes, want the "
            f'{packed_bytes(n, k, "cuda")} of an int8 weight of layout "cuda" with N = {n} and '
            f"K = {k}"
        )
    padded = (n + 15) // 16 * 16, (k + 63) // 64 * 64
    rows = w_packed[packed_bytes(n, 0, "cuda") :].view(torch.int8).view(padded)
    found = functional.embedding(ids, rows[:n, :k]).float()
    return (found * functional.embedding(ids, w_scale[:, None])).to(dtype)


torch.library.impl("fastinfer::embedding_w8", "CUDA", rows_by_torch)
