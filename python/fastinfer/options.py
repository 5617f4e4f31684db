"""What each scheme does to each linear layer of a model on trial: its time, its error."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastinfer.candidates import FilterFn, Layer, find_layers, group_tied
from fastinfer.observe import call, observed
from fastinfer.pairs import Pair, make_pairs
from fastinfer.schemes import Scheme
from fastinfer.spill import Spill
from fastinfer.trial import Trial

Say = Callable[[str], None]


@dataclass(eq=False)
class Option:
    """Layers that share a weight, and a scheme that they can be put into together."""

    layers: list[Layer]
    scheme: Scheme
    pair: Pair
    ms_before: float = 0.0  # over all calls of all the layers, in float
    ms_after: float = 0.0  # the same in the scheme
    own_error: float = math.nan  # of the layers' outputs, on what reaches them in the float model
    error: float = math.nan  # of the model's output with these layers alone in the scheme
    failed: str | None = None  # why its layers cannot take their input

    @property
    def gains(self) -> bool:
        """Whether the layers are faster in the scheme."""
        return self.failed is None and self.ms_after < self.ms_before


def find_options(
    trial: Trial,
    spill: Spill,
    batches: Sequence[Any],
    schemes: Iterable[Scheme],
    filter_fn: FilterFn | None,
    say: Say,
) -> tuple[list[Layer], list[list[Option]]]:
    """Every linear layer of the model, with a reason if it stays float; and of the others, a list
    for those that share a weight: an option a scheme, timed. Layers are made and put into the file
    one by one. The trial is in its opened form.

    Raises ValueError if no layer can be put into a scheme.
    """
    layers = find_layers(trial.model, filter_fn)
    groups = _reached(trial.model, batches, group_tied(trial.model, layers))
    if not groups:
        why = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:3])
        raise ValueError(f"model: no linear layer in it can change ({why or 'it has none'})")
    linears = {group[0].name: group[0].module for group in groups}
    float_pairs = make_pairs(trial.model, groups, spill, trial.replaced)
    found: list[list[Option]] = [[] for _ in groups]
    for scheme in schemes:
        say(f"Making and timing the layers: {scheme.label}")
        make = scheme.prepare(trial.model, linears, batches)
        pairs = [pair.beside(make) for pair in float_pairs]
        trial.pairs += pairs
        timings, own_errors = trial.time_pairs(pairs)
        for group, pair, options in zip(groups, pairs, found, strict=True):
            option = Option(group, scheme, pair, own_error=own_errors[pair])
            options.append(option)
            for timing in (timings[m.module] for m in group if m.module in timings):
                option.failed = option.failed or timing.error
                option.ms_before += timing.ms_before
                option.ms_after += timing.ms_after
    return layers, found


def measure_errors(trial: Trial, options: Sequence[Option], say: Say) -> None:
    """The error of the model's output with the layers of each option alone in its scheme."""
    for number, option in enumerate(options, 1):
        say(f"Each layer alone in its schemes, {number} of {len(options)}")
        trial.become(trial.int8_form([option.pair]))
        option.error = trial.error()
    trial.become(trial.given)


def _reached(
    model: nn.Module, batches: Sequence[Any], groups: list[list[Layer]]
) -> list[list[Layer]]:
    """Of `groups`, those that are called, what is called first; the others get that as a reason."""
    called: set[nn.Module] = set()
    hooks = [
        layer.module.register_forward_pre_hook(lambda module, _: called.add(module))
        for group in groups
        for layer in group
    ]
    try:
        for batch in batches:
            with observed(model):
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    reached = []
    for group in groups:
        group.sort(key=lambda layer: layer.module not in called)
        if group[0].module in called:
            reached.append(group)
        else:
            for layer in group:
                layer.reason = "not reached by batches"
    return reached
