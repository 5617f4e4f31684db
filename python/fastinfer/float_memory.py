"""Memory of float weights that goes to a file while none of them is needed."""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinfer.candidates import Layer
from fastinfer.spill import Spill, Stored, trim


class _View(NamedTuple):
    """How a parameter lies in its storage."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class FloatMemory:
    """One storage and the parameters that view it: weights of linear layers, and of what these
    stand for.

    It is in memory as long as one of its `users` needs it; else the parameters are empty. Those
    are the same objects all the time, and afterwards view it as before.

    whole: the parameter that is all of it; without one, it stays where it is.
    """

    def __init__(
        self,
        spill: Spill,
        users: Iterable[nn.Module],
        parameters: Iterable[Tensor],
        whole: Tensor | None,
    ) -> None:
        self._spill = spill
        self._users = set(users)
        self._views = [(p, _View(p.size(), p.stride(), p.storage_offset())) for p in parameters]
        self._released: list[tuple[weakref.ref[Tensor], _View]] = []
        self._whole = whole
        self._stored: Stored | None = None
        self._is_out = False

    def leave(self, user: nn.Module) -> None:
        """The user needs it no more. What storing raises leaves it in memory."""
        self._users.discard(user)
        if self._users or self._whole is None or self._is_out:
            return
        if self._stored is None:
            self._stored = self._spill.store(self._whole.detach())
        self._is_out = True
        with torch.inference_mode(False):
            for parameter, _ in self._views:
                parameter.data = torch.empty(0, dtype=self._stored.dtype)
        trim()

    def enter(self, user: nn.Module) -> None:
        """The user needs it again."""
        self._users.add(user)
        if self._is_out:
            self._load(self._views)

    def release(self) -> None:
        """Forgets the parameters. Those that are held elsewhere get back what they had. If that
        fails, it may be called again."""
        self._released += [(weakref.ref(parameter), view) for parameter, view in self._views]
        self._views, self._whole = [], None
        held = [(p, view) for ref, view in self._released if (p := ref()) is not None]
        if self._is_out and held:
            self._load(held)

    def _load(self, views: Sequence[tuple[Tensor, _View]]) -> None:
        assert self._stored is not None
        whole = self._spill.load(self._stored)
        with torch.inference_mode(False):
            for parameter, view in views:
                parameter.data = whole.as_strided(*view)
        self._is_out = False


def float_memories(
    model: nn.Module, groups: Sequence[Sequence[Layer]], spill: Spill, others: Iterable[nn.Module]
) -> list[FloatMemory]:
    """The memory of each group of layers that share a weight.

    It stays where it is if it is not plain memory of these weights alone: a part of a larger
    storage, shared between processes, mapped from a file, viewed by what is in the model besides.

    others: modules that are not in the model now but will be again.
    """
    weights = {id(layer.module.weight) for group in groups for layer in group}
    holders: dict[int, dict[int, Tensor]] = defaultdict(dict)
    fixed = {0}
    for module in (model, *others):
        for tensor in (*module.parameters(), *module.buffers()):
            if is_lazy(tensor) or tensor.layout is not torch.strided:
                continue
            address = _address(tensor)
            holders[address][id(tensor)] = tensor
            of_layers = id(tensor) in weights or module is not model
            if not of_layers or not isinstance(tensor, nn.Parameter):
                fixed.add(address)
    users: dict[int, list[nn.Module]] = defaultdict(list)
    for group in groups:
        users[_address(group[0].module.weight)].append(group[0].module)
    memories = {}
    for address, modules in users.items():
        parameters = holders[address].values()
        whole = None if address in fixed else _whole(parameters)
        memories[address] = FloatMemory(spill, modules, parameters, whole)
    return [memories[_address(group[0].module.weight)] for group in groups]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensors: Iterable[Tensor]) -> Tensor | None:
    """Of tensors that view one storage, that which is all of it, if they can be moved."""
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if not storage.resizable() or tensor.is_shared() or tensor.is_inference():
            return None
    dtypes = {tensor.dtype for tensor in tensors}
    whole = (t for t in tensors if t.is_contiguous() and t.nbytes == t.untyped_storage().nbytes())
    return next(whole, None) if len(dtypes) == 1 else None
