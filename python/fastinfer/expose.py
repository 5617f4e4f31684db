"""nn.Linear layers in place of modules that multiply by matrices of their own."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fastinfer.candidates import Layer, check_container, list_modules
from fastinfer.nn import QuantizedLinear, SplitAttention
from fastinfer.nn.plain import why_changed
from fastinfer.projections import is_conv1d, linear_of, outputs_first
from fastinfer.swap import FusedPath, close_fused_paths, open_fused_paths


def expose_linears_(model: nn.Module) -> tuple[str, ...]:
    """Gives `model`, in place, nn.Linear layers where it multiplies by matrices held otherwise.

    An nn.MultiheadAttention becomes a `fastinfer.nn.SplitAttention`, with linear layers q_proj,
    k_proj, v_proj and out_proj; transformers' Conv1D (GPT-2) an nn.Linear. The model computes the
    same up to rounding, and what works on linear layers (`prune_`, `prepare_qat_`, `smooth_`) finds
    them. `quantize_`, `calibrate`, `optimize`, `sensitivity` and `search` do so by themselves, and
    put back what does not become int8. The parameters are new ones: make the optimizer afterwards.

    Left alone: subclasses of either class, those with hooks or a forward of their own, attention
    with add_bias_kv or add_zero_attn, and `model` itself, which nothing can replace in place.

    Returns the names of the modules that were replaced, a module that stands in several places
    under its first. Raises TypeError if `model` is no nn.Module; ValueError if it is an nn.Linear.
    """
    check_container(model)
    with torch.inference_mode(False):  # or nothing could be trained later
        exposures = Exposures(model)
        exposures.open()
        exposures.keep_()
    close_fused_paths(model)
    return exposures.names


@contextmanager
def exposed(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is as `expose_linears_` makes it; afterwards the modules are back in which
    nothing became int8 meanwhile."""
    with torch.inference_mode(False):
        exposures = Exposures(model)
    closed: list[FusedPath] = []
    try:
        exposures.open()
        closed = close_fused_paths(model)
        yield
    finally:
        open_fused_paths(closed)
        exposures.close()
        close_fused_paths(model)


def expose_(model: nn.Module, names: Collection[str]) -> None:
    """`expose_linears_` for those modules alone that are, or whose linear layers are, in `names`,
    on the memory of those that they replace."""
    for exposure in Exposures(model).all:
        below = exposure.twin.named_modules(prefix=exposure.layer.name)
        if any(name in names for name, _ in below):
            exposure.put(exposure.twin)


@dataclass
class _Exposure:
    """A module with the places where it stands, and what takes them, on the same memory."""

    layer: Layer
    twin: nn.Module

    def put(self, module: nn.Module) -> None:
        for parent, attribute in self.layer.places:
            setattr(parent, attribute, module)

    @property
    def is_int8(self) -> bool:
        parent, attribute = self.layer.places[0]
        return any(isinstance(m, QuantizedLinear) for m in getattr(parent, attribute).modules())


class Exposures:
    """The modules of `model` that can be nn.Linear layers, and those layers, made at once and put
    in place by `open`. They share the memory of the modules until `keep_`."""

    def __init__(self, model: nn.Module) -> None:
        self.all = [
            _Exposure(layer, _linear_of(layer.module))
            for layer in list_modules(model, lambda m: can_split(m) or _is_plain_conv1d(m))
        ]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(exposure.layer.name for exposure in self.all)

    def open(self) -> None:
        """Puts the linear layers in place."""
        for exposure in self.all:
            exposure.put(exposure.twin)

    def close(self) -> None:
        """Puts the modules back in which nothing is int8; the others stay as they are, for good."""
        for exposure in self.all:
            if exposure.is_int8:
                _own_memory_(exposure.twin)
            else:
                exposure.put(exposure.layer.module)

    def keep_(self) -> None:
        """Leaves the linear layers, in memory of their own."""
        for exposure in self.all:
            _own_memory_(exposure.twin)


def can_split(module: nn.Module) -> bool:
    """Whether it is an nn.MultiheadAttention that a SplitAttention can take the place of."""
    if type(module) is not nn.MultiheadAttention:
        return False
    out = module.out_proj
    return (
        module.bias_k is None
        and not module.add_zero_attn
        and why_changed(module) is None
        and type(out) is NonDynamicallyQuantizableLinear
        and why_changed(out) is None
        and list(module._modules) == ["out_proj"]
        and not (module._buffers or out._modules or out._buffers)
    )


def _is_plain_conv1d(module: nn.Module) -> bool:
    return (
        is_conv1d(module)
        and why_changed(module) is None
        and module._parameters.keys() == {"weight", "bias"}
        and not (module._modules or module._buffers)
    )


def _linear_of(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return SplitAttention.from_torch(module, copy=False)
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor = module.bias  # type: ignore[assignment]
    made = linear_of(outputs_first(module, weight), bias, weight, copy=False)
    return made.train(module.training)


def _own_memory_(module: nn.Module) -> None:
    """Copies the parameters that are part of other tensors' memory, or turned."""
    for parameter in module.parameters():
        plain = parameter.is_contiguous()
        if not plain or parameter.untyped_storage().nbytes() != parameter.nbytes:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
