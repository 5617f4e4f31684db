"""`calibrate`: runs a model on batches and finds the range of what arrives at each linear layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastinfer.calibration import Calibration, InputRange
from fastinfer.candidates import find_layers, group_tied
from fastinfer.expose import exposed
from fastinfer.histogram import Histogram
from fastinfer.observe import check_batches, run_batches

Method = Literal["absmax", "percentile", "mse"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method = "absmax",
    percentile: float = 99.99,
    *,
    progress: bool | None = None,
) -> Calibration:
    """Finds, for `Int8Static`, the range of the input of each linear layer that can be int8.

    model: the float model, or one that `quantize_` has been through. It runs once a batch, in eval
    mode and without gradients, and is not changed. batches: an iterable of what it is called with:
    a tensor, a tuple of positional arguments or a dict of keyword arguments each. Take some dozens
    to hundreds of inputs like those of later: what falls outside the range is clipped to it.

    method:
      "absmax": the least and the greatest element seen. No inputs of the batches are clipped; one
        outlier makes all steps coarse.
      "percentile": leaves out the fraction 1 - percentile / 100 of the elements at either end.
      "mse": the range with the least expected squared error, rounding and clipping together, after
        Banner, Nahshan and Soudry, 2019 (https://arxiv.org/abs/1810.05723).
    The last two work on a histogram of 8192 bins whose width grows with the range, by doubling: the
    ends are exact to a bin, at most 1 / 4094 of the range seen. percentile: above 50, up to 100;
    for that method alone. progress: True or False shows or hides a bar; None shows it on a
    terminal.

    Scale and offset that come of a range: `QuantizedLinear.set_input_range`. A layer that no batch
    reached has no range. After `smooth_`, if that is used, not before.

    Raises TypeError on arguments of other types; ValueError on an unknown method, a percentile out
    of its range, no batches, no linear layer that is reached, or if a layer's input holds NaN or
    Inf: the message names the layer. What the model raises on a batch comes through.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_batches(batches)
    if method not in get_args(Method):
        raise ValueError(f"method: got {method!r}, want one of {', '.join(get_args(Method))}")
    if not isinstance(percentile, int | float):
        raise TypeError(f"percentile: got {type(percentile).__name__}, want a number")
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile: got {percentile}, want above 50, up to 100")

    first = batches[0] if isinstance(batches, Sequence) and batches else None
    with exposed(model, first):
        seen = _watch(model, batches, method, progress)
    ranges = [layer.input_range(method, percentile) for layer in seen if layer.elements]
    if not ranges:
        raise ValueError("model: no linear layer that can be int8 was reached by batches")
    return Calibration(tuple(ranges))


def _watch(
    model: nn.Module, batches: Iterable[Any], method: Method, progress: bool | None
) -> list["_Seen"]:
    """What arrives at each layer that can be int8 as `model` runs."""
    layers = find_layers(model, None, quantized_too=True)
    group_tied(model, layers, embeddings_too=True)  # gives its reason to what stays float anyway
    seen = {
        layer.module: _Seen(layer.name, method != "absmax")
        for layer in layers
        if layer.reason is None
    }

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        if len(values) == 1 and isinstance(values[0], Tensor):  # else the layer's call will fail
            seen[layer].add(values[0])

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in seen]
    try:
        for _ in run_batches(model, batches, progress):
            for layer in seen.values():
                layer.end_batch()
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.values())


@dataclass
class _Seen:
    """What arrived at one layer."""

    name: str
    counted: bool  # into a histogram
    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    batches: int = 0
    _counted_before: int = 0
    _histogram: Histogram = field(default_factory=Histogram)

    def add(self, x: Tensor) -> None:
        if not x.numel() or not x.is_floating_point():
            return
        low, high = (float(end) for end in torch.aminmax(x.detach()))  # NaN if x holds one
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                f"batches: the input of layer {self.name} holds NaN or Inf, want finite values"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements += x.numel()
        if self.counted:
            self._histogram.add(x, low, high)

    def end_batch(self) -> None:
        self.batches += self.elements > self._counted_before
        self._counted_before = self.elements

    def input_range(self, method: Method, percentile: float) -> InputRange:
        low, high = self.low, self.high
        if method == "percentile":
            low, high = self._histogram.percentile_range(percentile)
        elif method == "mse":
            low, high = self._histogram.mse_range()
        label = f"percentile {percentile:g}" if method == "percentile" else method
        return InputRange(self.name, label, low, high, self.elements, self.batches)
