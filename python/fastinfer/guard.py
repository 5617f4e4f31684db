"""The never-slower guard: times each quantised layer beside its original, on this machine, on the
inputs that really reach it."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.nn import QuantizedLinear
from fastinfer.observe import call, observed

# Each layer is timed for a moment as it is called, the like layers of a model in all for so long.
_BURST_SECONDS, _BURST_FEWEST = 0.02, 3
_SECONDS, _MOST = 0.1, 200
_CALLS_ON_GPU = 10

Look = Callable[[nn.Module, Tensor, Tensor], None]


@dataclass
class Timing:
    """Milliseconds a layer takes over all its calls in one run of the model."""

    ms_before: float = 0.0
    ms_after: float = 0.0
    error: str | None = None  # why the quantised layer could not take an input of the float one


def time_layers(
    model: nn.Module,
    batches: Sequence[Any],
    pairs: Mapping[nn.Module, Any],
    look: Look | None = None,
) -> dict[nn.Module, Timing]:
    """Runs `model` once on each of `batches`; a layer of `pairs` that is not called has no entry,
    nor has an embedding, which takes next to no time in float and in int8.

    look(linear, y, y_int8) sees what a layer and its twin return, at every call.

    When a layer is called, it and its quantised twin are timed there and then on that very input,
    with the weights hot, in turns. Layers of one shape and dtype, called with inputs of one shape,
    dtype and strides, share their samples and the median: time does not depend on the values, a
    disturbance hits few of the samples, and like layers get like verdicts.
    """
    samples: dict[Hashable, _Samples] = {}
    calls: dict[nn.Module, Counter[Hashable]] = {}
    errors: dict[nn.Module, str] = {}

    def time_call(linear: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else kwargs["input"]
        reached = calls.setdefault(linear, Counter())
        try:
            twin = pairs[linear]
            key = (_kind(linear), _kind(twin), x.shape, x.stride(), x.dtype)
            y, got = samples.setdefault(key, _Samples()).add(linear.forward, twin.forward, x)
            reached[key] += 1
            if look is not None:
                look(linear, y, got)
        except (RuntimeError, TypeError, ValueError) as error:
            errors[linear] = str(error).splitlines()[0]

    linears = [module for module in pairs if not isinstance(module, nn.Embedding)]
    hooks = [m.register_forward_pre_hook(time_call, with_kwargs=True) for m in linears]
    try:
        for batch in batches:
            with observed(model):
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        linear: Timing(error=errors[linear])
        if linear in errors
        else Timing(
            ms_before=sum(n * samples[key].ms_before for key, n in keys.items()),
            ms_after=sum(n * samples[key].ms_after for key, n in keys.items()),
        )
        for linear, keys in calls.items()
    }


def verdict(timings: Sequence[Timing]) -> str | None:
    """Why the layers with these timings, which stand or fall together, stay float; None to swap."""
    if not timings:
        return "not reached by example_inputs"
    for timing in timings:
        if timing.error is not None:
            return f"int8 cannot take its input: {timing.error}"
    before = sum(timing.ms_before for timing in timings)
    after = sum(timing.ms_after for timing in timings)
    return "int8 is slower here" if after > before else None


def _kind(linear: Any) -> Hashable:
    """What the time of a linear layer depends on, its input apart."""
    shape = linear.in_features, linear.out_features, linear.bias is None
    if isinstance(linear, QuantizedLinear):
        return *shape, type(linear), linear.input_scale is None, linear.weight_packed.shape
    return *shape, linear.weight.dtype


class _Samples:
    """Seconds of the float and the int8 layers of one kind."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []
        self.spent = 0.0

    def add(
        self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Calls both in turns for a burst, unless there are samples enough; what they return."""
        if self.spent <= _SECONDS and len(self.before) < _MOST:
            self._burst(before, after, x)
        return before(x), after(x)

    def _burst(
        self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], x: Tensor
    ) -> None:
        """No output is kept meanwhile: that of a language model is as large as a layer."""
        for forward in (before, after):
            forward(x)  # brings in the weights
        start, burst = perf_counter(), 0
        while burst < _BURST_FEWEST or perf_counter() - start < _BURST_SECONDS:
            self.before.append(_seconds(before, x))
            self.after.append(_seconds(after, x))
            burst += 1
        self.spent += perf_counter() - start

    @property
    def ms_before(self) -> float:
        return 1e3 * median(self.before)

    @property
    def ms_after(self) -> float:
        return 1e3 * median(self.after)


def _seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    if x.is_cuda:
        return _seconds_on_gpu(forward, x)
    start = perf_counter()
    forward(x)
    return perf_counter() - start


def _seconds_on_gpu(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Between events, over calls enough that the GPU and not the launches set the pace."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(x.device):
        begin.record()
        for _ in range(_CALLS_ON_GPU):
            forward(x)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / _CALLS_ON_GPU
