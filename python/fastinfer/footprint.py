"""How many bytes a model's parameters and buffers take."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinfer.nn import QuantizedLinear


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of `module` and below, shared ones once."""
    return _distinct_bytes((*module.parameters(), *module.buffers()))


def other_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes held by the modules that are not linear layers, and by none of these, by the name of
    their type."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | QuantizedLinear)]
    of_linears = {_key(tensor) for linear in linears for tensor in _own(linear)}
    held: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear | QuantizedLinear):
            tensors = [tensor for tensor in _own(module) if _key(tensor) not in of_linears]
            if tensors:
                held.setdefault(type(module).__name__, []).extend(tensors)
    return {kind: _distinct_bytes(tensors) for kind, tensors in held.items()}


def _own(module: nn.Module) -> list[Tensor]:
    """The tensors of a module itself that exist."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return [tensor for tensor in tensors if not is_lazy(tensor)]


def _key(tensor: Tensor) -> int:
    return tensor.data_ptr() or id(tensor)  # meta tensors have no address


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if not is_lazy(tensor):
            sizes[_key(tensor)] = max(sizes.get(_key(tensor), 0), tensor.nbytes)
    return sum(sizes.values())
