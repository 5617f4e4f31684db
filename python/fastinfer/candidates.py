"""Which layers of a model `quantize_` may replace, and why not the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastinfer.nn import (
    QuantizedLinear,
    WeightOnlyLinear,
    why_not_quantizable,
    why_not_quantizable_embedding,
)
from fastinfer.ops._common import why_not_on
from fastinfer.projections import is_conv1d

FilterFn = Callable[[nn.Module, str], bool]
Owners = dict[int, list[tuple[str, nn.Module]]]  # by address: (name of the tensor, its module)

ALREADY = "it is quantised already"
LEFT_OUT = "filter_fn left it out"


@dataclass
class Layer:
    """A linear module, every place in the model where it stands, and why it stays (or None).

    Beside linear layers of the same weight, an nn.Embedding; or whatever `list_modules` looks for.
    """

    module: Any  # nn.Linear, a subclass of it, QuantizedLinear or, where asked for, Conv1D
    names: list[str]
    places: list[tuple[nn.Module, str]] = field(default_factory=list)  # (parent, attribute)
    reason: str | None = None
    embeddings: tuple[str, ...] = ()  # first names of those that are quantised together with it

    @property
    def name(self) -> str:
        return self.names[0]


def check_container(model: object) -> None:
    """Raises TypeError or ValueError unless `model` is a module that can hold linear layers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    if isinstance(model, nn.Linear):
        raise ValueError(
            "model: got an nn.Linear, which cannot be replaced in place; want a model that holds it"
        )


def check_filter_fn(filter_fn: object) -> None:
    """Raises TypeError unless `filter_fn` is None or can be called."""
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn: got {type(filter_fn).__name__}, want a function (module, name) -> bool"
        )


def find_layers(
    model: nn.Module,
    filter_fn: FilterFn | None,
    quantized_too: bool = False,
    parametrized_too: bool = False,
) -> list[Layer]:
    """Every linear module below `model`, in the model's order, each once, with its reason.

    quantized_too, parametrized_too: to be that is no reason (weight-only is: it takes no range).
    """
    layers = list_layers(model)
    for layer in layers:
        layer.reason = _why_left(layer, filter_fn, quantized_too, parametrized_too)
    return layers


def list_layers(model: nn.Module, conv1d_too: bool = False) -> list[Layer]:
    """Every linear module below `model`, in the model's order, each once, without reasons."""
    return list_modules(
        model,
        lambda module: (
            isinstance(module, nn.Linear | QuantizedLinear) or (conv1d_too and is_conv1d(module))
        ),
    )


def list_modules(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[Layer]:
    """Every module below `model` that is `wanted`, in the model's order, each once."""
    layers = {
        id(module): Layer(module, [name])
        for name, module in model.named_modules()
        if name and wanted(module)
    }
    for prefix, parent in model.named_modules():
        for attribute, child in parent._modules.items():  # named_children() hides repetitions
            if id(child) in layers:
                layer = layers[id(child)]
                layer.places.append((parent, attribute))
                name = f"{prefix}.{attribute}" if prefix else attribute
                if name not in layer.names:
                    layer.names.append(name)
    return list(layers.values())


def group_tied(
    model: nn.Module, layers: Iterable[Layer], embeddings_too: bool = False
) -> list[list[Layer]]:
    """The float layers without a reason, those that share a weight together.

    A group is quantised as a whole or not at all, so that tied weights stay tied. A layer whose
    weight is also held by a module that stays float (an nn.Embedding, as in many language models;
    a layer that is left) gets that as its reason: quantising it would add an int8 copy to a float
    weight that must stay.

    embeddings_too: plain nn.Embedding modules join the group of their weight, behind its linear
    layers.
    """
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        if layer.reason is None and not isinstance(layer.module, QuantizedLinear):
            groups.setdefault(layer.module.weight.data_ptr(), []).append(layer)
    if embeddings_too:
        _join_embeddings(model, groups)
    held = owners(model)
    for address, group in groups.items():
        if address == 0:  # an empty weight is tied to nothing
            continue
        members = {id(layer.module) for layer in group}
        weights = {(layer.module.weight.shape, layer.module.weight.stride()) for layer in group}
        outsiders = [(name, module) for name, module in held[address] if id(module) not in members]
        for layer in group:
            if outsiders:
                layer.reason = _tied_to(*outsiders[0], embeddings_too)
            elif len(weights) > 1:
                layer.reason = "its weight is tied to another view of the same numbers"
    tied = [group for address, group in groups.items() if address]
    empty = [[layer] for layer in groups.get(0, [])]
    return [group for group in tied + empty if group[0].reason is None]


def _join_embeddings(model: nn.Module, groups: dict[int, list[Layer]]) -> None:
    """Appends plain embeddings to the groups of their weights, by address."""
    for embedding in list_modules(model, lambda m: why_not_quantizable_embedding(m) is None):
        address = embedding.module.weight.data_ptr()
        if address in groups and address != 0:
            for layer in groups[address]:
                layer.embeddings += (embedding.name,)
            groups[address].append(embedding)


def _tied_to(name: str, module: nn.Module, embeddings_too: bool) -> str:
    """Why a layer stays float whose weight is also called `name`, in `module`."""
    why = ""
    if embeddings_too and isinstance(module, nn.Embedding):
        why = f", and {why_not_quantizable_embedding(module)}"
    return f"its weight is tied to {name}{why}"


def group_layers(model: nn.Module, layers: list[Layer]) -> list[list[Layer]]:
    """`group_tied`, with parametrised layers too: each alone, or with a reason if it is tied."""
    plain, alone = [], []
    held = owners(model)
    for layer in layers:
        if not parametrize.is_parametrized(layer.module):
            plain.append(layer)
        elif layer.reason is None:
            names = _shared_names(layer.module, held)
            layer.reason = f"its weight is tied to {names[1]}" if names else None
            if layer.reason is None:
                alone.append([layer])
    return group_tied(model, plain) + alone


def _shared_names(module: nn.Module, held: Any) -> list[str]:
    """All names of a parameter of `module` and below that has several."""
    for parameter in module.parameters():
        names = [name for name, _ in held[parameter.data_ptr()]]
        if parameter.numel() and len(names) > 1:
            return names
    return []


def bare(module: nn.Linear, kind: type[nn.Linear]) -> nn.Linear:
    """`module` as a `kind` without parametrisations, with the weight and bias that these give."""
    twin = kind.__new__(kind)
    twin.__dict__ = module.__dict__ | {
        "_parameters": {
            name: None if value is None else nn.Parameter(value.detach(), requires_grad=False)
            for name, value in (("weight", module.weight), ("bias", module.bias))
        },
        "_modules": {k: m for k, m in module._modules.items() if k != "parametrizations"},
    }
    return twin


def _why_left(
    layer: Layer, filter_fn: FilterFn | None, quantized_too: bool, parametrized_too: bool
) -> str | None:
    module = layer.module
    quantized = isinstance(module, QuantizedLinear)
    if isinstance(module, WeightOnlyLinear) or (quantized and not quantized_too):
        return ALREADY
    if parametrize.is_parametrized(module):
        if not parametrized_too:
            return "it is parametrised (torch.nn.utils.parametrize)"
        module = bare(module, parametrize.type_before_parametrizations(module))
    reason = None if quantized else why_not_quantizable(module)
    if reason is not None:
        return reason
    if filter_fn is not None and not is_chosen(layer, filter_fn):
        return LEFT_OUT
    if quantized:
        return None
    if module.weight.is_meta:
        return "it is on the meta device, without values"
    no_kernels = why_not_on(module.weight.device)
    if no_kernels is not None:
        return f"it is on {module.weight.device}; {no_kernels}"
    if not all_finite(module.weight):
        return "its weight holds NaN or Inf"
    return None


@torch.no_grad()
def all_finite(weight: Tensor) -> bool:
    """Without the temporaries, twice the weight's size, of torch.isfinite(weight).all(), or the
    copy that torch.aminmax makes of one that is turned round."""
    turned = weight.dim() == 2 and weight.t().is_contiguous()
    plain = weight.t() if turned else weight
    return not weight.numel() or all(end.isfinite() for end in torch.aminmax(plain))


def is_chosen(layer: Layer, filter_fn: FilterFn) -> bool:
    """Whether filter_fn takes the layer under all of its names."""
    return all(takes(filter_fn, layer.module, name) for name in layer.names)


def takes(filter_fn: FilterFn, module: nn.Module, name: str) -> bool:
    """What filter_fn says of a module. Raises TypeError if that is not True or False."""
    chosen = filter_fn(module, name)
    if not isinstance(chosen, bool):
        raise TypeError(f"filter_fn: returned {chosen!r} for {name}, want True or False")
    return chosen


def owners(model: nn.Module) -> Owners:
    """Every module that holds a tensor at an address, with the tensor's name."""
    held: Owners = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                full_name = f"{prefix}.{name}" if prefix else name
                held.setdefault(tensor.data_ptr(), []).append((full_name, module))
    return held
