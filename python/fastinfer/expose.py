"""nn.Linear layers in place of modules that multiply by matrices of their own."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fastinfer.candidates import Layer, Owners, check_container, list_modules, owners
from fastinfer.nn import QuantizedLinear, SplitAttention
from fastinfer.nn.plain import why_changed
from fastinfer.observe import call, observed
from fastinfer.projections import is_conv1d, linear_of, outputs_first
from fastinfer.swap import close_fused_paths, fused_paths, open_fused_paths


def expose_linears_(model: nn.Module) -> tuple[str, ...]:
    """Gives `model`, in place, nn.Linear layers where it multiplies by matrices held otherwise.

    An nn.MultiheadAttention becomes a `fastinfer.nn.SplitAttention`, with linear layers q_proj,
    k_proj, v_proj and out_proj; transformers' Conv1D (GPT-2) an nn.Linear, whose weight is that of
    before turned round. The model computes the same up to rounding, and what works on linear layers
    (`prune_`, `prepare_qat_`, `smooth_`) finds them. `quantize_`, `calibrate`, `optimize`,
    `sensitivity` and `search` do so by themselves, and put back what does not become int8. The
    parameters are new ones, shared where they were: make the optimizer afterwards. A state dict
    from before does not fit.

    Left alone: subclasses of either class, those with hooks, a forward of their own or parameters
    that another module holds too, attention with add_bias_kv or add_zero_attn, and `model` itself,
    which nothing can replace in place.

    Returns the names of the modules that were replaced, a module that stands in several places
    under its first. An exception leaves the model as it was. Raises TypeError if `model` is no
    nn.Module; ValueError if it is an nn.Linear.
    """
    check_container(model)
    exposures = find_exposures(model)
    paths = fused_paths(model)
    try:
        for exposure in exposures:
            exposure.open()
            exposure.own_memory_()
        close_fused_paths(model)
    except BaseException:
        for exposure in exposures:
            exposure.close()
        open_fused_paths(paths)
        raise
    return tuple(exposure.name for exposure in exposures)


@contextmanager
def exposed(model: nn.Module, inputs: Any = None) -> Iterator[None]:
    """Inside, `model` is as `expose_linears_` makes it; afterwards the modules are back in which
    nothing became int8 meanwhile.

    inputs: what it is called with. If it does not run on them so, as it may if it reads more of
    these modules than they have now, it is left as it was.
    """
    exposures = find_exposures(model)
    paths = fused_paths(model)
    try:
        for exposure in exposures:
            exposure.open()
        close_fused_paths(model)
        if exposures and inputs is not None and not runs(model, [inputs]):
            for exposure in exposures:
                exposure.close()
            open_fused_paths(paths)
        yield
    finally:
        open_fused_paths(paths)
        staying = [exposure for exposure in exposures if exposure.is_int8]
        for exposure in exposures:
            if exposure not in staying:
                exposure.close()
        close_fused_paths(model)
        for exposure in staying:
            exposure.own_memory_()


def runs(model: nn.Module, batches: Collection[Any]) -> bool:
    """Whether `model` can be called on `batches`."""
    try:
        for batch in batches:
            with observed(model):
                call(model, batch)
    except Exception:  # whatever a model raises
        return False
    return True


def expose_(model: nn.Module, names: Collection[str]) -> None:
    """`expose_linears_` of the modules called `names`, on the memory that they have.

    Raises ValueError if one is not such a module.
    """
    found = {exposure.name: exposure for exposure in find_exposures(model)}
    for name in names:
        if name not in found:
            raise ValueError(f"{name} is no nn.MultiheadAttention or Conv1D of the model")
        found[name].open()


@dataclass(eq=False)
class Exposure:
    """A module with the places where it stands, and what can take them, on the same memory."""

    layer: Layer
    twin: nn.Module

    def __post_init__(self) -> None:
        self.linears = {m for m in self.twin.modules() if isinstance(m, nn.Linear)}

    @property
    def name(self) -> str:
        return self.layer.name

    def open(self) -> None:
        self._put(self.twin)

    def close(self) -> None:
        self._put(self.layer.module)

    def _put(self, module: nn.Module) -> None:
        for parent, attribute in self.layer.places:
            setattr(parent, attribute, module)

    def _standing(self) -> nn.Module:
        parent, attribute = self.layer.places[0]
        found: nn.Module = getattr(parent, attribute)
        return found

    @property
    def is_int8(self) -> bool:
        """Whether something in it is."""
        return any(isinstance(module, QuantizedLinear) for module in self._standing().modules())

    def own_memory_(self) -> None:
        """Copies those parameters, of what stands in the model now, that are part of other tensors'
        memory, or turned round."""
        for parameter in self._standing().parameters():
            plain = parameter.is_contiguous()
            if not plain or parameter.untyped_storage().nbytes() != parameter.nbytes:
                with torch.inference_mode(parameter.is_inference()):
                    copy = parameter.detach().clone(memory_format=torch.contiguous_format)
                    parameter.data = copy


def find_exposures(model: nn.Module) -> list[Exposure]:
    """What can be exposed in `model`, not yet in place. Parameters that were one are one."""
    layers = list_modules(model, lambda module: can_split(module) or _is_plain_conv1d(module))
    if not layers:
        return []
    inside = {id(part) for layer in layers for part in layer.module.modules()}
    held = owners(model)
    parameters: dict[Any, nn.Parameter] = {}
    found = []
    for layer in layers:
        with torch.inference_mode(False):  # or nothing could be trained later
            twin = _linears_of(layer.module)
        if _held_elsewhere((layer.module, twin), held, inside):
            continue
        for module in twin.modules():
            for name, p in module.named_parameters(recurse=False):
                key = (p.data_ptr() or id(p), p.shape, p.stride())
                module.register_parameter(name, parameters.setdefault(key, p))
        found.append(Exposure(layer, twin))
    return found


def _held_elsewhere(modules: Collection[nn.Module], held: Owners, inside: set[int]) -> bool:
    addresses = {p.data_ptr() for module in modules for p in module.parameters()} - {0}
    holders = [holder for address in addresses for _, holder in held.get(address, [])]
    return any(id(holder) not in inside for holder in holders)


def can_split(module: nn.Module) -> bool:
    """Whether it is an nn.MultiheadAttention that a SplitAttention can take the place of."""
    if type(module) is not nn.MultiheadAttention:
        return False
    out = module.out_proj
    separate = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    weights = separate if module.in_proj_weight is None else [module.in_proj_weight]
    biases = [] if module.in_proj_bias is None else [module.in_proj_bias]
    given = [p for p in module._parameters.values() if p is not None]
    return (
        module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
        and why_changed(module) is None
        and type(out) is NonDynamicallyQuantizableLinear
        and why_changed(out) is None
        and list(module._modules) == ["out_proj"]
        and out._parameters.keys() == {"weight", "bias"}
        and not (module._buffers or out._modules or out._buffers)
        and all(w is not None and w.dim() == 2 for w in [*weights, out.weight])
        and {id(p) for p in given} == {id(p) for p in [*weights, *biases]}
    )


def _is_plain_conv1d(module: nn.Module) -> bool:
    return (
        is_conv1d(module)
        and why_changed(module) is None
        and module._parameters.keys() == {"weight", "bias"}
        and not (module._modules or module._buffers)
        and [p is not None and p.dim() for p in module._parameters.values()] == [2, 1]
    )


def _linears_of(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return SplitAttention.from_torch(module, copy=False)
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor = module.bias  # type: ignore[assignment]
    turned = outputs_first(module, weight)
    made = linear_of(turned, bias, weight.requires_grad, bias.requires_grad, copy=False)
    return made.train(module.training)
