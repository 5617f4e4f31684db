"""`prune_channels_`: narrower layers between two linear ones, in true shapes."""

import copy
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.candidates import FilterFn
from fastinfer.criteria import AnyScore, Magnitude
from fastinfer.narrowing import ChannelPruning
from fastinfer.observe import call, observed
from fastinfer.projections import outputs_first
from fastinfer.sparsity import largest
from fastinfer.units import (
    Units,
    check_keep,
    check_multiple,
    check_shared,
    find_layers,
    prove_,
    score,
)

_AGAIN = "they are called more than once"
_MAGNITUDE = Magnitude()


def prune_channels_(
    model: nn.Module,
    example_inputs: Any,
    keep: float = 0.75,
    criterion: AnyScore = _MAGNITUDE,
    *,
    batches: Iterable[Any] | None = None,
    multiple: int = 16,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> ChannelPruning:
    """Makes the inner layers of MLPs narrower, in place: fewer rows before, fewer columns after.

    Found where one linear layer, or several of one input (a gated MLP), widen and the next linear
    layer that is called narrows again; gate and up may be the halves of one layer. A channel's
    score is the sum of those of its weights, on both sides; the largest stay. Before anything
    changes, a copy of the model shows on example_inputs that the channels reach nothing but that
    next layer: with its columns for them at zero, noise in them must leave every bit of the
    outputs; and without them the outputs must be the same within sqrt(eps) of their dtype. Where
    they are not, the layers stay, with the reason.

    model: a float model; it runs in eval mode. example_inputs: what it is called with: a tensor, a
    tuple of positional arguments or a dict of keyword arguments; every path of a model that has
    several must be taken. keep: the share of the channels that stay, above 0 to below 1, rounded to
    a `multiple` of channels, one multiple at the least. criterion: Magnitude(), Taylor(loss_fn),
    Wanda() or Random(seed). batches: what it runs, as for `prune_`. filter_fn(module, name) ->
    bool: False leaves that layer as it is. progress: True or False shows or hides a bar; None shows
    it on a terminal.

    The narrowed parameters are new objects: make the optimizer afterwards. A config of the model
    that holds the width is not changed.

    An exception leaves the model as it was. Raises TypeError on arguments of other types;
    ValueError on values out of their range, if the criterion needs batches and there are none, if
    the model returns no float tensor, or, naming the layer, if an input or a score is NaN or Inf.
    What the model raises on its inputs comes through.
    """
    check_keep("keep", keep)
    check_multiple(multiple)
    check_shared(model, example_inputs, criterion, batches, filter_fn)
    with torch.inference_mode(False), torch.no_grad():  # or nothing could be trained later
        trial = copy.deepcopy(model)
        mlps = _find(trial, example_inputs, filter_fn)
        scores = score(model, mlps, criterion, () if batches is None else batches, progress)
        for mlp in mlps:
            if mlp.reason is None:
                count = max(1, round(keep * mlp.count / multiple)) * multiple
                mlp.keep(largest(scores[mlp.name], min(count, mlp.count)))
        prove_(trial, mlps, example_inputs)
        for mlp in mlps:
            if mlp.reason is None:
                mlp.cut_(model)
    return ChannelPruning(tuple(mlp.row() for mlp in mlps), criterion.label)


def _find(model: nn.Module, inputs: Any, filter_fn: FilterFn | None) -> list[Units]:
    layers = {
        layer.name: layer.module for layer in find_layers(model, filter_fn) if not layer.reason
    }
    calls: list[tuple[str, Tensor]] = []  # inputs are held, so that no two share an identity

    def look(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((name, args[0] if args else kwargs["input"]))

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: look(name, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        stack.enter_context(observed(model))
        call(model, inputs)

    times = Counter(name for name, _ in calls)
    sizes = {name: outputs_first(m, m.weight).shape for name, m in layers.items()}
    found: dict[str, Units] = {}
    for i, (name, _) in enumerate(calls[1:], 1):
        first = i - 1
        while first and calls[first - 1][1] is calls[i - 1][1]:
            first -= 1
        before = [member for member, _ in calls[first:i]]
        narrow = max(sizes[name][0], *(sizes[member][1] for member in before))
        width = sizes[name][1]
        packed = {member: sizes[member][0] // width for member in before}  # gate and up in one
        if width > narrow and all(sizes[m][0] == n * width > 0 for m, n in packed.items()):
            each = torch.arange(width, device=layers[name].weight.device)
            units = {member: each.repeat(count) for member, count in packed.items()}
            found[name] = Units(name, units, name, each, width)
            if any(times[member] > 1 for member in (*before, name)):
                found[name].reason = _AGAIN
    return list(found.values())
