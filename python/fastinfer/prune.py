"""`prune_`: zeros in the weights of linear layers, in a structure, that stay through training."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastinfer.candidates import (
    ALREADY,
    LEFT_OUT,
    FilterFn,
    Layer,
    Owners,
    all_finite,
    check_filter_fn,
    is_chosen,
    list_layers,
    owners,
)
from fastinfer.criteria import Magnitude, Random, Taylor, Wanda
from fastinfer.masked import mask_of, parameter_of, set_mask_
from fastinfer.nn import QuantizedLinear
from fastinfer.observe import check_batches
from fastinfer.projections import is_conv1d
from fastinfer.pruning import PrunedRow, Pruning
from fastinfer.sparsegpt import SparseGPT
from fastinfer.sparsity import BlockSparse, Sparse24, Structure, Unstructured, largest

Scope = Literal["uniform", "global"]
AnyCriterion = Magnitude | Random | Taylor | Wanda | SparseGPT

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAGNITUDE = Magnitude()
_NOT_REACHED = "not reached by batches"


def prune_(
    model: nn.Module,
    structure: Structure,
    criterion: AnyCriterion = _MAGNITUDE,
    *,
    batches: Iterable[Any] | None = None,
    scope: Scope = "uniform",
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> Pruning:
    """Sets weights of the nn.Linear layers of `model` to zero, in place; says how many of each.

    structure: which weights may go together: Sparse24(), BlockSparse(block, sparsity) or
    Unstructured(density). criterion: which of them do: Magnitude(), Taylor(loss_fn), Wanda(),
    SparseGPT() or, as a control, Random(seed). batches: an iterable of what the model is called
    with, a tensor, a tuple of positional arguments or a dict of keyword arguments each; for
    Taylor, of what its loss_fn takes. Magnitude and Random read none. scope: "uniform", each layer
    loses the share that the structure says; "global", all of them together do, by one threshold
    (BlockSparse or Unstructured, by Magnitude, Taylor or Random). filter_fn(module, name) -> bool:
    False leaves that layer as it is. progress: True or False shows or hides a bar; None shows it
    on a terminal.

    A pruned layer has a mask on its weight (a parametrisation of torch.nn.utils.parametrize): what
    is masked is +0 and gets no gradient, whatever the optimizer does. The parameters stay the same
    objects, under the name `parametrizations.weight.original` in the state dict, with the mask
    beside them; `finalize_pruning_` makes them plain weights again. `sparsity_of(layer)` has the
    structure and the mask. A layer that has a mask gets a new one, chosen by its present weights,
    whose zeros score 0: so sparsity can rise during training (`CubicSchedule`).

    Left alone, each with its reason in the result: subclasses of nn.Linear, int8 layers, layers
    parametrised otherwise, weights tied to others, weights with NaN or Inf, layers that filter_fn
    rejects, and those that no batch reached. For the projections of nn.MultiheadAttention and for
    transformers' Conv1D call `expose_linears_` first.

    An exception leaves the model as it was. Raises TypeError on arguments of other types;
    ValueError if the criterion needs batches and there are none, if it does not go with the
    structure or the scope, if no layer can be pruned, if `model` is itself an nn.Linear, or,
    naming the layer, if an input or a score is NaN or Inf. What the model raises on a batch comes
    through.
    """
    _check(model, structure, criterion, batches, scope, filter_fn)
    layers = list_layers(model)
    held = owners(model)
    for layer in layers:
        layer.reason = why_left(layer, filter_fn, held)
    linears = {layer.name: layer.module for layer in layers if layer.reason is None}
    if not linears:
        why = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:3])
        raise ValueError(f"model: no linear layer in it can be pruned ({why or 'it has none'})")

    given = () if batches is None else batches
    made = choose(model, linears, structure, criterion, given, scope, progress)
    if not made:
        raise ValueError("batches: no linear layer that can be pruned was reached by them")
    with torch.inference_mode(False), torch.no_grad():  # or nothing could be trained later
        for name, (mask, weight) in made.items():
            set_mask_(linears[name], structure, mask, weight)
    return Pruning(tuple(_row(layer, structure, made) for layer in layers), criterion.label)


def choose(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    structure: Structure,
    criterion: AnyCriterion,
    batches: Iterable[Any],
    scope: Scope = "uniform",
    progress: bool | None = None,
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """By name, of those of `linears` that were reached: the mask, True where a weight stays, and
    the new weight, or None where the present one stays. Changes nothing."""
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(criterion, SparseGPT):
            assert isinstance(structure, Sparse24 | Unstructured)
            updated = criterion.prune(model, linears, structure, batches, progress)
            check_finite("new weights", {name: weight for name, (_, weight) in updated.items()})
            return dict(updated)
        scores = criterion.scores(model, linears, batches, progress)
        check_finite("scores", scores)
        masks = _masks(structure, scores, scope, criterion.within_rows)
        return {name: (mask, None) for name, mask in masks.items()}


def _check(
    model: object,
    structure: object,
    criterion: object,
    batches: object,
    scope: object,
    filter_fn: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    if isinstance(model, nn.Linear):
        raise ValueError(
            "model: got an nn.Linear, want a module that holds it, such as nn.Sequential(linear)"
        )
    check_method(structure, criterion)
    assert isinstance(criterion, AnyCriterion)
    if scope not in get_args(Scope):
        raise ValueError(f"scope: got {scope!r}, want one of {', '.join(get_args(Scope))}")
    if scope == "global" and isinstance(structure, Sparse24):
        raise ValueError("scope: got 'global' with Sparse24, of which every layer loses half")
    if scope == "global" and not criterion.across_layers:
        raise ValueError(
            f"scope: got 'global' with {criterion.label}, which compares weights within a layer"
        )
    check_filter_fn(filter_fn)
    check_needed(criterion, batches)


def check_method(structure: object, criterion: object) -> None:
    """Raises TypeError unless the two are of their kinds, ValueError if they do not go together."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"structure: got {_said(structure)}, want Sparse24(), BlockSparse(block, sparsity) or "
            "Unstructured(density)"
        )
    if not isinstance(criterion, AnyCriterion):
        raise TypeError(
            f"criterion: got {_said(criterion)}, want Magnitude(), Taylor(loss_fn), Wanda(), "
            "SparseGPT() or Random(seed)"
        )
    if isinstance(criterion, SparseGPT):
        criterion.check(structure)


def check_needed(criterion: AnyCriterion, batches: object) -> None:
    """Raises ValueError or TypeError if `criterion` needs batches and these are none."""
    if criterion.needs_batches:
        if batches is None:
            raise ValueError(f"batches: got None, but {criterion.label} needs them")
        check_batches(batches)


def _said(value: object) -> str:
    """The type of a value; a class given in place of its instance is named."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def why_left(layer: Layer, filter_fn: FilterFn | None, held: Owners) -> str | None:
    """Why a layer cannot be pruned, as a sentence, or None if it can."""
    module = layer.module
    if isinstance(module, QuantizedLinear):
        return ALREADY
    if mask_of(module) is None:
        if parametrize.is_parametrized(module):
            return "it is parametrised (torch.nn.utils.parametrize)"
        if type(module) is not nn.Linear and not is_conv1d(module):
            return f"it is a {type(module).__name__}, a subclass of nn.Linear"
        if "weight" not in module._parameters:
            return "its weight is not a parameter"
    if filter_fn is not None and not is_chosen(layer, filter_fn):
        return LEFT_OUT
    weight = parameter_of(module)
    if weight.is_meta:
        return "it is on the meta device, without values"
    if weight.dtype not in _FLOATS:
        return f"its weight has dtype {weight.dtype}"
    if weight.is_inference():
        return "its weight was made under torch.inference_mode"
    if not weight.numel():
        return "its weight is empty"
    if not all_finite(weight):
        return "its weight holds NaN or Inf"
    others = [name for name, _ in held[weight.data_ptr()] if not name.startswith(layer.name + ".")]
    return f"its weight is tied to {others[0]}" if others else None


def check_finite(what: str, values: dict[str, Tensor]) -> None:
    """Raises ValueError, naming the layer, if one of its `values` is NaN or Inf."""
    for name, value in values.items():
        if not all_finite(value):
            raise ValueError(f"criterion: its {what} of layer {name} hold NaN or Inf")


def _masks(
    structure: Structure, scores: dict[str, Tensor], scope: Scope, within_rows: bool
) -> dict[str, Tensor]:
    if scope == "global" and not isinstance(structure, Sparse24):
        return _global_masks(structure, scores)
    if isinstance(structure, Unstructured):
        return {name: structure.mask(score, within_rows) for name, score in scores.items()}
    return {name: structure.mask(score) for name, score in scores.items()}


def _global_masks(
    structure: BlockSparse | Unstructured, scores: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The largest of all layers' units together."""
    units = {name: structure.units(score) for name, score in scores.items()}
    everything = torch.cat([unit.flatten().cpu() for unit in units.values()])
    kept = largest(everything, round(structure.kept * everything.numel()))
    shares = kept.split([unit.numel() for unit in units.values()])
    return {
        name: structure.spread(share.view_as(units[name]).to(score.device), score.shape)
        for (name, score), share in zip(scores.items(), shares, strict=True)
    }


def _row(
    layer: Layer, structure: Structure, made: dict[str, tuple[Tensor, Tensor | None]]
) -> PrunedRow:
    shape = layer.module.in_features, layer.module.out_features
    if layer.name not in made:
        return PrunedRow(layer.name, *shape, reason=layer.reason or _NOT_REACHED)
    zeros = int((~made[layer.name][0]).sum())
    return PrunedRow(layer.name, *shape, structure.label, zeros)
