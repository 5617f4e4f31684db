"""`prune_channels_`: narrower layers between two linear ones, in true shapes."""

import copy
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.candidates import FilterFn, check_filter_fn, list_layers, owners
from fastinfer.channel_pruning import ChannelPruning, ChannelRow
from fastinfer.compare import float_tensors
from fastinfer.criteria import Magnitude, Random, Taylor, Wanda
from fastinfer.masked import mask_of
from fastinfer.observe import call, check_inputs, observed
from fastinfer.prune import check_finite, check_needed, why_left
from fastinfer.sparsity import largest

AnyScore = Magnitude | Random | Taylor | Wanda

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
    layer that is called narrows again. A channel's score is the sum of those of its weights, on
    both sides; the largest stay. Before anything changes, a copy of the model shows on
    example_inputs that the channels reach nothing but that next layer: with its columns for them at
    zero, noise in them must leave every bit of the outputs; and without them the outputs must be
    the same within sqrt(eps) of their dtype. Where they are not, the layers stay, with the reason.

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
    _check(model, example_inputs, keep, criterion, batches, multiple, filter_fn)
    with torch.inference_mode(False), torch.no_grad():  # or nothing could be trained later
        trial = copy.deepcopy(model)
        mlps = _find(trial, example_inputs, filter_fn)
        names = {name for mlp in mlps if mlp.reason is None for name in mlp.names}
        linears: dict[str, Any] = {name: model.get_submodule(name) for name in names}
        given = () if batches is None else batches
        scores = criterion.scores(model, linears, given, progress) if linears else {}
        check_finite("scores", scores)
        for mlp in mlps:
            mlp.choose(scores, keep, multiple)
            if mlp.reason is None:
                mlp.reason = _try(trial, mlp, example_inputs)
        for mlp in mlps:
            if mlp.reason is None:
                _narrow(model, mlp)
    return ChannelPruning(tuple(mlp.row() for mlp in mlps), criterion.label)


@dataclass
class _Mlp:
    """The linear layers, by name, before and after the channels; why these stay, or None."""

    before: list[str]
    after: str
    width: int
    reason: str | None
    kept: Tensor = field(default_factory=lambda: torch.empty(0))  # bool [width]

    @property
    def names(self) -> list[str]:
        return [*self.before, self.after]

    def choose(self, scores: dict[str, Tensor], keep: float, multiple: int) -> None:
        count = max(1, round(keep * self.width / multiple)) * multiple
        if self.reason is None and not scores.keys() >= set(self.names):
            self.reason = "not reached by batches"
        if self.reason is None and count >= self.width:
            self.reason = f"{count} channels would stay"
        if self.reason is None:
            rows = [scores[name].sum(1) for name in self.before]
            self.kept = largest(torch.stack([*rows, scores[self.after].sum(0)]).sum(0), count)

    def row(self) -> ChannelRow:
        after = self.width if self.reason else int(self.kept.sum())
        return ChannelRow(self.after, tuple(self.before), self.width, after, self.reason)


def _find(model: nn.Module, inputs: Any, filter_fn: FilterFn | None) -> list[_Mlp]:
    held = owners(model)
    layers: dict[str, Any] = {
        layer.name: layer.module
        for layer in list_layers(model)
        if why_left(layer, filter_fn, held) is None and mask_of(layer.module) is None
    }
    calls: list[tuple[str, Tensor]] = []  # inputs are held, so that no two share an identity

    def look(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((name, args[0] if args else kwargs["input"]))

    with ExitStack() as stack:
        for name, linear in layers.items():
            handle = linear.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: look(name, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        stack.enter_context(observed(model))
        call(model, inputs)

    times = Counter(name for name, _ in calls)
    found: dict[str, _Mlp] = {}
    for i, (name, _) in enumerate(calls[1:], 1):
        first = i - 1
        while first and calls[first - 1][1] is calls[i - 1][1]:
            first -= 1
        before = [member for member, _ in calls[first:i]]
        narrow = max(layers[name].out_features, *(layers[m].in_features for m in before))
        width = layers[name].in_features
        if width > narrow and {layers[member].out_features for member in before} == {width}:
            again = any(times[member] > 1 for member in (*before, name))
            found[name] = _Mlp(before, name, width, _AGAIN if again else None)
    return list(found.values())


def _try(trial: nn.Module, mlp: _Mlp, inputs: Any) -> str | None:
    """Narrows `mlp` in `trial`; if that changes more than it should, says so and undoes it."""
    after: Any = trial.get_submodule(mlp.after)
    before = [trial.get_submodule(name) for name in mlp.before]
    weight = after.weight.clone()
    after.weight[:, ~mlp.kept] = 0
    want = _outputs(trial, inputs)
    noise = torch.Generator(mlp.kept.device).manual_seed(0)

    def disturb(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        size = 1 + output.float().square().mean().sqrt()
        random = size * torch.randn(output.shape, generator=noise, device=output.device)
        return torch.where(mlp.kept, output, random.to(output.dtype))

    with ExitStack() as stack:
        for linear in before:
            stack.callback(linear.register_forward_hook(disturb).remove)
        disturbed = _outputs(trial, inputs)
    after.weight.copy_(weight)
    if not all(map(torch.equal, want, disturbed)):
        return "its channels reach more than the linear layer after them"

    saved = [
        (module, module.__dict__ | {"_parameters": dict(module._parameters)})
        for module in (*before, after)
    ]
    _narrow(trial, mlp)
    try:
        if all(map(_close, want, _outputs(trial, inputs))):
            return None
    except Exception:  # whatever a model raises on a width that it does not expect
        pass
    for module, attributes in saved:
        module.__dict__.update(attributes)
    return "the model counts on its width"


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with observed(model):
        tensors = [tensor.clone() for _, tensor in float_tensors(call(model, inputs), "output")]
    if not tensors:
        raise ValueError("model: it returns no float tensor, by which to see what channels reach")
    return tensors


def _close(want: Tensor, got: Tensor) -> bool:
    if want.shape != got.shape:
        return False
    distance = torch.linalg.vector_norm(want - got)
    return bool(distance <= torch.finfo(want.dtype).eps ** 0.5 * torch.linalg.vector_norm(want))


def _narrow(model: nn.Module, mlp: _Mlp) -> None:
    kept, count = mlp.kept, int(mlp.kept.sum())
    for name in mlp.before:
        linear: Any = model.get_submodule(name)
        linear.weight = _part(linear.weight, linear.weight[kept])
        if linear.bias is not None:
            linear.bias = _part(linear.bias, linear.bias[kept])
        linear.out_features = count
    linear = model.get_submodule(mlp.after)
    linear.weight = _part(linear.weight, linear.weight[:, kept])
    linear.in_features = count


def _part(whole: Tensor, part: Tensor) -> nn.Parameter:
    return nn.Parameter(part.contiguous(), requires_grad=whole.requires_grad)


def _check(
    model: object,
    example_inputs: object,
    keep: object,
    criterion: object,
    batches: object,
    multiple: object,
    filter_fn: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_inputs("example_inputs", example_inputs)
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise TypeError(f"keep: got {type(keep).__name__}, want a number")
    if not 0 < keep < 1:
        raise ValueError(f"keep: got {keep}, want above 0 to below 1")
    if not isinstance(criterion, AnyScore):
        raise TypeError(
            f"criterion: got {type(criterion).__name__}, want Magnitude(), Taylor(loss_fn), "
            "Wanda() or Random(seed)"
        )
    if type(multiple) is not int:
        raise TypeError(f"multiple: got {type(multiple).__name__}, want an int")
    if multiple < 1:
        raise ValueError(f"multiple: got {multiple}, want at least 1")
    check_filter_fn(filter_fn)
    check_needed(criterion, batches)
