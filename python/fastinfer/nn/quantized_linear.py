"""QuantizedLinear: an nn.Linear with an int8 weight, and the way from one to the other."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fastinfer import ops
from fastinfer.nn.packed_weight import PackedWeight, layout_on_cuda
from fastinfer.nn.plain import FLOATS, why_not_plain

_linear_w8a8 = torch.ops.fastinfer.linear_w8a8.default
_PLAIN = ("none", None, None)  # activation, residual, out_dtype
_PIECE = 32  # rows


class WithoutGradient(torch.autograd.Function):
    """An operator on an input that requires a gradient: a backward pass through it is an error
    and not a gradient with this layer left out."""

    @staticmethod
    def forward(ctx: Any, operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return operator(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "backward() reached an int8 linear layer, but it is for inference only and has no "
            "gradient: run the model under torch.inference_mode(), or train the float model"
        )


class QuantizedLinear(PackedWeight):
    """``y = x @ W.T + bias`` with an int8 weight and rows of ``x`` quantised as they come.

    Takes the place of a trained :class:`torch.nn.Linear` for inference, on a CPU or on CUDA. The
    weight is symmetric int8 with a scale an output channel; a row of ``x`` becomes int8 around an
    offset of its own
    (:func:`fastinfer.ops.linear_w8a8`), or around one offset for all, if the layer is static
    (:meth:`set_input_range`). The output has the dtype of ``x``. The layer's state is three
    buffers, five if it is static, which no cast of the module changes (``.half()``,
    ``.to(torch.bfloat16)``; moves to a device do):

    * ``weight_packed``: uint8 vector, see :func:`fastinfer.ops.pack_w8`;
    * ``weight_scale``: float32 ``[out_features]``;
    * ``bias``: float32 ``[out_features]``, or None;
    * ``input_scale``, ``input_offset``: float32 ``[1]``, or None: ``x ~= scale * q + offset``.

    The constructor makes an empty layer for :meth:`load_state_dict`; until then a call of it is an
    error. :meth:`from_linear` makes one from a trained layer.

    Args:
        in_features: K, at most 131071.
        out_features: N.
        bias: whether the layer has a bias.
        device: where the buffers live.
        static: whether the range of ``x`` is fixed.

    Raises:
        ValueError: ``in_features`` is too large for exact int32 sums, or a size is negative.
    """

    bias: Tensor | None
    input_scale: Tensor | None
    input_offset: Tensor | None

    # The operator with every check, and what it is called.
    _checked: ClassVar[Callable[..., Tensor]] = staticmethod(ops.linear_w8a8)
    _scheme: ClassVar[str] = "w8a8"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        static: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= in_features <= ops.MAX_K:
            raise ValueError(
                f"{type(self).__name__}: in_features is {in_features}, want 0 to {ops.MAX_K} "
                "(int32 sums stay exact up to there)"
            )
        if out_features < 0:
            raise ValueError(f"{type(self).__name__}: out_features is {out_features}, want >= 0")
        self.in_features = in_features
        self.out_features = out_features
        self._make_weight(device)
        self.register_buffer("bias", torch.zeros_like(self.weight_scale) if bias else None)
        for name in ("input_scale", "input_offset"):
            value = torch.zeros(1, dtype=torch.float32, device=device) if static else None
            self.register_buffer(name, value)

    @classmethod
    def from_linear(cls, linear: nn.Linear, layout: ops.Layout = "dense") -> Self:
        """Quantises a trained layer: symmetric int8, one scale an output channel.

        With ``a[n] = max(max_k |W[n, k]|, 2**-118)``, in float32: ``scale[n] = a[n] / 127`` and
        ``w[n, k] = round_half_even(W[n, k] * (127 / a[n]))``: zeros stay zeros. A layer on the
        meta device gives an empty one there.

        Args:
            linear: weight ``[N, K]`` float32, bfloat16 or float16, bias ``[N]`` or None.
            layout: how the weight is stored on a CPU, see :func:`fastinfer.ops.pack_w8`; the
                outputs have the same bits under each. On CUDA "sp24" is "cuda_sp24", each other
                one "cuda".

        Raises:
            TypeError: the weight has another dtype.
            ValueError: the weight holds NaN or Inf, K > 131071, or the weight has not the zeros
                that ``layout`` asks for.
        """
        if layout in ops.CUDA_LAYOUTS:
            raise ValueError(
                f"from_linear: layout is {layout!r}, want one of a CPU; the layer takes that of a "
                "GPU when it moves there"
            )
        weight, bias = linear.weight.detach(), linear.bias
        if weight.dtype not in FLOATS:
            raise TypeError(f"from_linear: weight has dtype {weight.dtype}, want one of {FLOATS}")
        layer = cls(linear.in_features, linear.out_features, bias is not None, device="meta")
        layer.train(linear.training)
        if weight.is_meta:
            return layer
        quantized, scale = _quantize(weight)
        if scale.isnan().any():
            row = int(scale.isnan().nonzero()[0])
            raise ValueError(
                f"from_linear: weight holds NaN or Inf (first in row {row}), want finite values"
            )
        if layout != "sp24":
            layer.host_layout = layout
        there: ops.Layout = layout_on_cuda(layout) if quantized.is_cuda else layout
        layer.weight_packed = ops.pack_w8(quantized, there)
        layer.weight_scale = scale
        if bias is not None:
            layer.bias = bias.detach().to(torch.float32, copy=True)
        return layer

    def set_input_range(self, low: float, high: float) -> None:
        """Fixes the range of ``x``, for all its rows: the layer becomes static, or stays so.

        In float32: ``offset = high / 2 + low / 2`` and
        ``scale = max(high - offset, offset - low, 2**-118) / 127``, as the operator has them for a
        row with these ends. What falls outside the range is clipped to it.

        Raises:
            ValueError: an end is not finite in float32, or ``low > high``.
        """
        scale, offset = scale_and_offset(low, high)
        device = self.weight_scale.device
        self.input_scale, self.input_offset = scale.to(device), offset.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` float32, bfloat16 or float16 -> ``[..., out_features]``.

        In evaluation mode an ``x`` that requires a gradient is multiplied like any other; a
        backward pass that reaches the layer is a RuntimeError.

        Raises:
            RuntimeError: in training mode, if ``x`` requires a gradient: the layer has none.
            TypeError, ValueError: as :func:`fastinfer.ops.linear_w8a8`.
        """
        buffers = self._buffers  # a third of the cost of three attributes of a Module
        packed, scale, bias = buffers["weight_packed"], buffers["weight_scale"], buffers["bias"]
        try:
            if x.requires_grad and torch.is_grad_enabled():
                self._check_not_training()
                if not torch.compiler.is_compiling():
                    fixed = buffers["input_scale"], buffers["input_offset"]
                    arguments = x, packed, scale, bias, *_PLAIN, *fixed
                    return WithoutGradient.apply(_linear_w8a8, *arguments)
            if buffers["input_scale"] is None:
                return _linear_w8a8(x, packed, scale, bias)
            fixed = buffers["input_scale"], buffers["input_offset"]
            return _linear_w8a8(x, packed, scale, bias, *_PLAIN, *fixed)
        except (RuntimeError, TypeError, AttributeError) as error:
            failure = error
        self._explain(x)
        raise failure

    def _check_not_training(self) -> None:
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__}: x requires a gradient and the layer is in training mode, "
                "but it is for inference only: call model.eval(), or run under "
                "torch.inference_mode()"
            )

    def _explain(self, x: Tensor) -> None:
        """Raises what is wrong with the arguments of a call that failed, if that was the cause."""
        if self.weight_packed.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # to look at a tensor would wait for the GPU, and hide the cause
        if isinstance(x, Tensor) and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"{type(self).__name__}: x has shape {list(x.shape)}, "
                f"want [..., {self.in_features}]"
            )
        self._check_not_empty()
        fixed = {"x_scale": self.input_scale, "x_offset": self.input_offset}
        given = {name: value for name, value in fixed.items() if value is not None}
        self._checked(x, self.weight_packed, self.weight_scale, self.bias, **given)

    @property
    def _weight_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:
        """:meth:`dequantize`, for code that reads the weight of a layer: costly, and read-only."""
        return self.dequantize()

    def extra_repr(self) -> str:
        layout = self.layout
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self._scheme}"
            + ("" if layout in (None, "dense") else f", {layout}")
            + (", static" if self.input_scale is not None else "")
        )

    def _try_weight(self, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        self._checked(torch.empty(0, self.in_features, device=packed.device), packed, scale, bias)

    def _why_not_loadable(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        problem = super()._why_not_loadable(state_dict, prefix)
        if problem is not None or f"{prefix}weight_packed" not in state_dict:
            return problem
        return self._why_not_input_range(state_dict, prefix)

    def _why_not_input_range(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        for name in ("input_scale", "input_offset"):
            value = state_dict.get(f"{prefix}{name}")
            if value is None and getattr(self, name) is None:
                continue
            if value is None:
                return (
                    f"{prefix}{name} is missing: the state is that of a dynamic layer, this one "
                    "is static; quantise the model with Int8Dynamic() for it"
                )
            if getattr(self, name) is None:
                return (
                    f"{prefix}{name} belongs to a static layer, this one is dynamic: quantise the "
                    "model with the Int8Static(calibration) of the state's"
                )
            if value.shape != (1,) or value.dtype != torch.float32:
                shape = f"shape {list(value.shape)} and dtype {value.dtype}"
                return f"{prefix}{name} has {shape}, want [1] and torch.float32"
            number = 1.0 if value.is_meta else float(value)
            if not math.isfinite(number) or (name == "input_scale" and number < 2.0**-126):
                return (
                    f"{prefix}{name} is {number}, want a finite number, a scale of 2**-126 or more"
                )
        return None


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight's rows. Of one that is turned round the operator makes a copy: a piece at a time."""
    if weight.is_contiguous():
        return ops.quantize_rowwise(weight)
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for first in range(0, weight.shape[0], _PIECE):
        rows = slice(first, first + _PIECE)
        values[rows], scales[rows] = ops.quantize_rowwise(weight[rows])
    return values, scales


def scale_and_offset(low: float, high: float) -> tuple[Tensor, Tensor]:
    """What :meth:`QuantizedLinear.set_input_range` sets: float32 ``[1]`` each, on the CPU."""
    ends = torch.tensor([low, high], dtype=torch.float32, device="cpu")
    if not ends.isfinite().all() or low > high:
        raise ValueError(f"set_input_range: got {low} to {high}, want finite, low <= high")
    offset = ends[1:] / 2 + ends[:1] / 2
    reach = torch.maximum(ends[1:] - offset, offset - ends[:1]).clamp(min=2.0**-118)
    return reach / 127, offset


def why_not_quantizable(module: nn.Module) -> str | None:
    """Why :func:`quantize_linear` refuses ``module``, as a sentence, or None if it does not."""
    reason = why_not_plain(module, nn.Linear, "weight", "bias")
    if reason is not None:
        return reason
    assert isinstance(module, nn.Linear)
    n, k = module.out_features, module.in_features
    if module.weight.shape != (n, k):
        return f"its weight has shape {list(module.weight.shape)}, not [{n}, {k}]"
    if module.bias is not None and module.bias.shape != (n,):
        return f"its bias has shape {list(module.bias.shape)}, not [{n}]"
    if k > ops.MAX_K:
        return f"its K = {k} is above {ops.MAX_K}"
    return None


def quantize_linear(linear: nn.Linear, config: Any = None) -> QuantizedLinear:
    """An int8 layer in place of a trained ``linear``, which stays as it is.

    Args:
        linear: exactly an :class:`torch.nn.Linear`, float32, bfloat16 or float16. Subclasses,
            parametrised and hooked layers may compute something else, so they are refused.
        config: ``Int8Dynamic()``, or None for it, or ``Int8WeightOnly()``.

    Returns:
        The layer, in the same training mode. See :meth:`QuantizedLinear.from_linear`.

    Raises:
        TypeError: ``linear`` is not such a layer, and the message says why, or ``config`` is
            another thing.
        ValueError: the weight holds NaN or Inf, or K > 131071.
    """
    kind = QuantizedLinear if config is None else getattr(config, "layer", None)
    if kind is None or isinstance(config, type):
        raise TypeError(
            f"quantize_linear: config is a {type(config).__name__}, want Int8Dynamic() or "
            "Int8WeightOnly()"
        )
    if isinstance(linear, nn.Linear) and linear.in_features > ops.MAX_K:
        raise ValueError(
            f"quantize_linear: linear has K = {linear.in_features}, want at most {ops.MAX_K}"
        )
    reason = why_not_quantizable(linear)
    if reason is not None:
        raise TypeError(f"quantize_linear: linear: {reason}; want a plain float nn.Linear")
    return kind.from_linear(linear)
