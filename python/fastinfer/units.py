"""Units of a model that can go as a whole (channels, heads): scored, proven on a copy, cut out."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.candidates import FilterFn, Layer, check_filter_fn, list_layers, owners
from fastinfer.compare import float_tensors
from fastinfer.criteria import AnyScore
from fastinfer.masked import mask_of
from fastinfer.narrowing import NarrowedRow
from fastinfer.observe import call, check_inputs, observed
from fastinfer.projections import output_dim, outputs_first, set_sizes
from fastinfer.prune import check_finite, check_needed, why_left


@dataclass
class Units:
    """`count` units between the linear layers `before` and the layer `after`.

    before: by name of a layer, the unit of each of its outputs; columns: the unit of each input of
    `after`, both int64. numbers: attributes, (module's name, attribute), that are in proportion to
    how many units there are. reason: why all of them stay.
    """

    name: str
    before: dict[str, Tensor]
    after: str
    columns: Tensor
    count: int
    numbers: list[tuple[str, str]] = field(default_factory=list)
    reason: str | None = None
    kept: Tensor = field(default_factory=lambda: torch.empty(0))  # bool [count]

    @property
    def layers(self) -> list[str]:
        return [*self.before, self.after]

    def scores(self, model: nn.Module, scores: dict[str, Tensor]) -> Tensor:
        """[count]: the sum of the scores of all weights of a unit."""
        sums = []
        for name, unit in [*self.before.items(), (self.after, self.columns)]:
            each = outputs_first(model.get_submodule(name), scores[name])
            each = each.sum(0 if name == self.after else 1)
            zeros = each.new_zeros(self.count)
            sums.append(zeros.index_add(0, unit.to(each.device), each))
        return torch.stack(sums).sum(0)

    def keep(self, kept: Tensor) -> None:
        """Takes note of which units stay, bool [count]; if all do, that is a reason."""
        if kept.all():
            self.reason = f"all {self.count} would stay"
        else:
            self.kept = kept

    def row(self) -> NarrowedRow:
        after = self.count if self.reason else int(self.kept.sum())
        return NarrowedRow(self.name, tuple(self.before), self.count, after, self.reason)

    def cut_(self, model: nn.Module) -> None:
        """Takes out what does not stay: new parameters, smaller ones."""
        for name, unit in self.before.items():
            layer: Any = model.get_submodule(name)
            kept = self.kept[unit]
            layer.weight = _part(layer.weight, kept, output_dim(layer))
            if layer.bias is not None:
                layer.bias = _part(layer.bias, kept, 0)
            set_sizes(layer)
        layer = model.get_submodule(self.after)
        layer.weight = _part(layer.weight, self.kept[self.columns], 1 - output_dim(layer))
        set_sizes(layer)
        for name, attribute in self.numbers:
            module = model.get_submodule(name)
            number = getattr(module, attribute)
            setattr(module, attribute, number * int(self.kept.sum()) // self.count)


def prove_(trial: nn.Module, found: Iterable[Units], inputs: Any) -> None:
    """Cuts `trial` wherever that changes nothing but what it should; the others get a reason.

    All together first, which three runs decide; one by one if that fails.
    """
    open_ = [units for units in found if units.reason is None]
    if len(open_) > 1 and _try(trial, open_, inputs) is None:
        return
    for units in open_:
        units.reason = _try(trial, [units], inputs)


def _try(trial: nn.Module, found: list[Units], inputs: Any) -> str | None:
    """Cuts `trial`; if that changes more than it should, says so and undoes it."""
    afters: list[Any] = [trial.get_submodule(units.after) for units in found]
    weights = [after.weight.clone() for after in afters]
    for after, units in zip(afters, found, strict=True):
        outputs_first(after, after.weight)[:, ~units.kept[units.columns]] = 0
    want = float_outputs(trial, inputs)
    noise = torch.Generator(weights[0].device).manual_seed(0)

    def disturb(kept: Tensor, output: Tensor) -> Tensor:
        size = 1 + output.float().square().mean().sqrt()
        random = size * torch.randn(output.shape, generator=noise, device=output.device)
        return torch.where(kept, output, random.to(output.dtype))

    with ExitStack() as stack:
        for units in found:
            for name, unit in units.before.items():
                hook = trial.get_submodule(name).register_forward_hook(
                    lambda _, args, output, kept=units.kept[unit]: disturb(kept, output)
                )
                stack.callback(hook.remove)
        disturbed = float_outputs(trial, inputs)
    for after, weight in zip(afters, weights, strict=True):
        after.weight.copy_(weight)
    if not all(map(torch.equal, want, disturbed)):
        return f"they reach more than {found[0].after}"

    touched = {name for u in found for name in (*u.layers, *(owner for owner, _ in u.numbers))}
    saved = [
        (module, module.__dict__ | {"_parameters": dict(module._parameters)})
        for module in map(trial.get_submodule, touched)
    ]
    for units in found:
        units.cut_(trial)
    try:
        if all(map(close_outputs, want, float_outputs(trial, inputs))):
            return None
    except Exception:  # whatever a model raises on a width that it does not expect
        pass
    for module, attributes in saved:
        module.__dict__.update(attributes)
    return "the model counts on their number"


def check_shared(
    model: object, example_inputs: object, criterion: object, batches: object, filter_fn: object
) -> None:
    """Raises TypeError or ValueError on arguments that every pruning of units takes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_inputs("example_inputs", example_inputs)
    if not isinstance(criterion, AnyScore):
        raise TypeError(
            f"criterion: got {type(criterion).__name__}, want Magnitude(), Taylor(loss_fn), "
            "Wanda() or Random(seed)"
        )
    check_filter_fn(filter_fn)
    check_needed(criterion, batches)


def check_keep(name: str, keep: object) -> None:
    """Raises TypeError or ValueError unless `keep` is a share, above 0 to below 1."""
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise TypeError(f"{name}: got {type(keep).__name__}, want a number")
    if not 0 < keep < 1:
        raise ValueError(f"{name}: got {keep}, want above 0 to below 1")


def check_multiple(multiple: object) -> None:
    """Raises TypeError or ValueError unless `multiple` is an int of at least 1."""
    if type(multiple) is not int:
        raise TypeError(f"multiple: got {type(multiple).__name__}, want an int")
    if multiple < 1:
        raise ValueError(f"multiple: got {multiple}, want at least 1")


def find_layers(model: nn.Module, filter_fn: FilterFn | None) -> list[Layer]:
    """The nn.Linear and Conv1D layers, in the model's order; those that cannot be cut say why."""
    held = owners(model)
    layers = list_layers(model, conv1d_too=True)
    for layer in layers:
        layer.reason = why_left(layer, filter_fn, held)
        if mask_of(layer.module) is not None:
            layer.reason = "it has a mask, which finalize_pruning_ takes off"
    return layers


def score(
    model: nn.Module,
    found: Iterable[Units],
    criterion: AnyScore,
    batches: Iterable[Any],
    progress: bool | None,
) -> dict[str, Tensor]:
    """By name of the units, the score of each; units that batches did not reach get a reason."""
    open_ = [units for units in found if units.reason is None]
    layers: dict[str, Any] = {name: model.get_submodule(name) for u in open_ for name in u.layers}
    scores = criterion.scores(model, layers, batches, progress) if layers else {}
    check_finite("scores", scores)
    for units in open_:
        if not scores.keys() >= set(units.layers):
            units.reason = "not reached by batches"
    return {u.name: u.scores(model, scores) for u in open_ if u.reason is None}


def float_outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What the model returns in eval mode. Raises ValueError if there is no float tensor in it."""
    with observed(model):
        tensors = [tensor.clone() for _, tensor in float_tensors(call(model, inputs), "output")]
    if not tensors:
        raise ValueError("model: it returns no float tensor, by which to see what units reach")
    return tensors


def close_outputs(want: Tensor, got: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    if want.shape != got.shape:
        return False
    distance = torch.linalg.vector_norm(want - got)
    return bool(distance <= torch.finfo(want.dtype).eps ** 0.5 * torch.linalg.vector_norm(want))


def _part(whole: Tensor, kept: Tensor, dim: int) -> nn.Parameter:
    part = whole.detach().index_select(dim, kept.nonzero().flatten())
    return nn.Parameter(part, requires_grad=whole.requires_grad)
