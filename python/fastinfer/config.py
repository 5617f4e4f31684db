"""What `quantize_` can do to a layer, one small frozen dataclass a scheme."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fastinfer.calibration import Calibration
from fastinfer.nn import QuantizedLinear, WeightOnlyLinear


@dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights and int8 activations, the activations quantised as they arrive.

    Weights: symmetric int8 with one float32 scale per output channel, fixed when the model is
    quantised. Activations: int8 around a float32 offset, with one float32 scale, per token (a row
    of the layer's input): ``x ~= scale * q + offset``, the offset halfway between the row's least
    and greatest element. Both are measured on every call, so nothing needs calibrating. Sums are
    exact in int32; the output has the input's dtype.

    Source of the method: LLM.int8(), Dettmers et al. 2022 (https://arxiv.org/abs/2208.07339),
    there called vector-wise quantisation; here with the offset, and without its float path for
    outlier channels.
    """

    label: ClassVar[str] = "int8 dynamic"  # in a summary
    layer: ClassVar[type[QuantizedLinear]] = QuantizedLinear

    def prepare(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Any]
    ) -> Callable[[nn.Linear], QuantizedLinear]:
        """See `Scheme`: what makes the int8 layer of a float one."""
        return self.layer.from_linear

    def code(self) -> str:
        """See `Scheme`: Python that quantises the layers of `model` which `filter_fn` takes."""
        return "fastinfer.quantize_(model, filter_fn=filter_fn)"


@dataclass(frozen=True)
class Int8WeightOnly:
    """int8 weights, activations as they are.

    Weights as with `Int8Dynamic`, a quarter of float32's bytes, half of bfloat16's. Products and
    sums are float32, so that the weights' rounding is the only error. Made for few rows, such as a
    language model that writes a token at a time, where a layer takes as long as reading its
    weights: faster than float32 and bfloat16 there, slower than `Int8Dynamic`. With many rows it is
    about as fast as the float layer.
    """

    label: ClassVar[str] = "int8 weight-only"
    layer: ClassVar[type[QuantizedLinear]] = WeightOnlyLinear

    def prepare(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Any]
    ) -> Callable[[nn.Linear], QuantizedLinear]:
        """See `Scheme`: what makes the int8 layer of a float one."""
        return self.layer.from_linear

    def code(self) -> str:
        """See `Scheme`: Python that quantises the layers of `model` which `filter_fn` takes."""
        return "fastinfer.quantize_(model, fastinfer.Int8WeightOnly(), filter_fn=filter_fn)"


@dataclass(frozen=True)
class Int8Static:
    """int8 weights and int8 activations, the activations in a range fixed beforehand.

    Weights and sums as with `Int8Dynamic`. Activations: int8 around one offset, with one scale, a
    layer, from the range that `fastinfer.calibrate` found; what falls outside is clipped to it.
    Nothing is measured at a call, but one scale serves every token, so the error is larger. A
    layer that calibration did not reach becomes int8 dynamic, and the summary says so.

    Source of the method: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", 2018 (https://arxiv.org/abs/1712.05877).

    Raises TypeError if `calibration` is not what `calibrate` returns.
    """

    calibration: Calibration

    label: ClassVar[str] = "int8 static"

    def __post_init__(self) -> None:
        if not isinstance(self.calibration, Calibration):
            raise TypeError(
                f"Int8Static: calibration is a {type(self.calibration).__name__}, want what "
                "fastinfer.calibrate(model, batches) returns"
            )
