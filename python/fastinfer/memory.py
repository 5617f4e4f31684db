"""Whether a call fits compiled code whose guards have passed before, without asking them again."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastinfer import _C
from fastinfer.places import Places, Unclear

_MOST_SIGNATURES = 64  # of inputs that are remembered for one compiled graph
_LONGEST_WAIT = 4096

# What guards without an expression look at: the sizes of the inputs, which a signature has; hooks
# for what autograd saves, which is nothing; what GlobalStateGuard and the stack of modes tell.
_AMBIENT = {
    "AUTOGRAD_SAVED_TENSORS_HOOKS",
    "DEFAULT_DEVICE",
    "DETERMINISTIC_ALGORITHMS",
    "GLOBAL_STATE",
    "GRAD_MODE",
    "SHAPE_ENV",
    "TORCH_FUNCTION_STATE",
}
_INPUTS = ("args", "kwargs")  # the names that a call's inputs have in guards
_HOOKS = "EMPTY_NN_MODULE_HOOKS_DICT"  # fastinfer.hooks sees to those


class Signature:
    """What a call's inputs are, as far as guards look: all but the numbers in the tensors."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self.key: tuple[Any, ...] = ()  # empty: not to be remembered
        key: list[Any] = [tuple(kwargs)]
        places: dict[int, int] = {}  # of tensors, by id: one that comes twice is told from two
        for value in (*args, *kwargs.values()):
            if type(value) is Tensor:
                place = places.setdefault(id(value), len(places))
                if place == len(self.tensors):
                    self.tensors.append(value)
                key += (place, value.shape, value.dtype)
            elif value is None or type(value) in (bool, int, str):
                key += (type(value), value)
            else:
                return
        self.key = tuple(key)


class Memory:
    """The calls and the state with which the guards of one compiled graph have passed.

    expressions: what its guards look at, as torch.compile names it.
    """

    def __init__(self, expressions: Iterable[str]) -> None:
        self._expressions = tuple(expressions)
        self._state: _State | None = None
        self._wait = 0  # calls until it is worth to look at the state again
        self._next_wait = 1

    def fits(self, call: Signature) -> bool:
        """Whether the guards would pass."""
        state = self._state
        if state is None or call.key not in state.forms:
            return False
        return self._is_unchanged(state) and state.forms[call.key].check(*state.tensors(call))

    def learn(self, call: Signature, names: Mapping[str, Any]) -> None:
        """Takes note that the guards have just passed. `names`: what expressions start from."""
        state = self._state
        if state is None:
            self._wait -= 1
            if self._wait >= 0:
                return
            try:
                state = self._state = _State(self._expressions, names)
            except Unclear:
                self._wait = sys.maxsize
                return
        elif not self._is_unchanged(state):
            return
        state.learn(call)

    def _is_unchanged(self, state: "_State") -> bool:
        if not state.has_settings():
            return False
        if not state.is_unchanged():
            # Modules that were replaced must not live on here. A state that changes again and again
            # is looked at less and less.
            self._state = None
            self._wait = self._next_wait
            self._next_wait = min(2 * self._next_wait, _LONGEST_WAIT)
            return False
        return True


class _State:
    """What guards look at, as it is now: of Python's objects the `Places`, of torch's settings all.

    forms: by signature, what tensors, the weights and the call's, passed while it was so.
    """

    def __init__(self, expressions: Iterable[str], names: Mapping[str, Any]) -> None:
        self._held = Places(names).hold(expressions)
        self._versions = bytearray(8 * (len(self._held.places) // 3))
        self._settings = torch._C._dynamo.guards.GlobalStateGuard()
        self.forms: dict[tuple[Any, ...], Any] = {}

    def has_settings(self) -> bool:
        return torch._C._len_torch_function_stack() == 0 and self._settings.check()

    def is_unchanged(self) -> bool:
        """Of Python's objects."""
        return _C.unchanged(self._held.places, self._versions)

    def learn(self, call: Signature) -> None:
        tensors = self.tensors(call)
        are_different = len(set(map(id, tensors))) == len(tensors)  # no input is a weight
        if not call.key or not are_different or not self.has_settings():
            return
        if any(not isinstance(t, Tensor) for t in tensors):  # replaced meanwhile by another thread
            return
        if len(self.forms) >= _MOST_SIGNATURES:
            self.forms.clear()
        self.forms[call.key] = _form(tensors)

    def tensors(self, call: Signature) -> list[Any]:
        return [*_C.values_at(self._held.entries), *self._held.tensors, *call.tensors]


def remember(guards: Iterable[Any]) -> Memory | None:
    """For a graph with these guards (torch._dynamo.types.GuardFilterEntry); None if one of them is
    of a kind that is not known here."""
    expressions = dict[str, None]()
    for guard in guards:
        if not guard.name:
            if guard.guard_type not in _AMBIENT:
                return None
            continue
        if guard.name.startswith(_INPUTS) or guard.guard_type == _HOOKS:
            continue
        expressions[guard.name] = None
        if guard.guard_type == "HASATTR":  # its class might have it, too
            expressions[f"type({guard.name}).__mro__"] = None
    return Memory(expressions)


def _form(tensors: list[Any]) -> Any:
    """torch's check that tensors have the dtypes, devices, sizes, strides, ... of these, and that
    no two are one."""
    sizes: list[Any] = [list(t.shape) for t in tensors]
    strides: list[Any] = [list(t.stride()) for t in tensors]
    return torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    )
