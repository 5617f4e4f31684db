"""WeightOnlyLinear: an nn.Linear with an int8 weight and float activations."""

from typing import Self

import torch
from torch import Tensor, nn

from fastinfer import ops
from fastinfer.nn.quantized_linear import QuantizedLinear, WithoutGradient

_linear_w8a16 = torch.ops.fastinfer.linear_w8a16.default


class WeightOnlyLinear(QuantizedLinear):
    """``y = x @ W.T + bias`` with an int8 weight; ``x`` is not quantised.

    The weight and the state are those of a dynamic :class:`QuantizedLinear`, the weight in the
    layout "dense", so that either loads the other's state; products and sums are float32
    (:func:`fastinfer.ops.linear_w8a16`). The output has the dtype of ``x``.

    Args:
        in_features: K, at most 131071.
        out_features: N.
        bias: whether the layer has a bias.
        device: where the buffers live.

    Raises:
        ValueError: ``in_features`` is above 131071, or a size is negative.
    """

    _checked = staticmethod(ops.linear_w8a16)
    _scheme = "w8a16"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, layout: ops.Layout = "dense") -> Self:
        """:meth:`QuantizedLinear.from_linear`; a ValueError for a layout other than "dense"."""
        if layout != "dense":
            raise ValueError(f"from_linear: layout is {layout!r}, want 'dense' for {cls.__name__}")
        return super().from_linear(linear)

    def set_input_range(self, low: float, high: float) -> None:
        """Raises TypeError: the layer does not quantise its input."""
        raise TypeError(f"{type(self).__name__}: it quantises no input, so it takes no range")

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` float32, bfloat16 or float16 -> ``[..., out_features]``.

        In evaluation mode an ``x`` that requires a gradient is multiplied like any other; a
        backward pass that reaches the layer is a RuntimeError.

        Raises:
            RuntimeError: in training mode, if ``x`` requires a gradient: the layer has none.
            TypeError, ValueError: as :func:`fastinfer.ops.linear_w8a16`.
        """
        buffers = self._buffers
        packed, scale, bias = buffers["weight_packed"], buffers["weight_scale"], buffers["bias"]
        try:
            if x.requires_grad and torch.is_grad_enabled():
                self._check_not_training()
                if not torch.compiler.is_compiling():
                    return WithoutGradient.apply(_linear_w8a16, x, packed, scale, bias)
            return _linear_w8a16(x, packed, scale, bias)
        except (RuntimeError, TypeError, AttributeError) as error:
            failure = error
        self._explain(x)
        raise failure
