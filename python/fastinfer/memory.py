"""Whether a call fits compiled code whose guards have passed before, without asking them again."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer import _C
from fastinfer.places import Places, Question, Unclear

_MOST_SIGNATURES = 1024  # of inputs that are remembered for one compiled graph
_LONGEST_WAIT = 4096

# Guards that look at nothing but the sizes of tensors, hooks for what autograd saves, which is
# nothing here, and what GlobalStateGuard and the stack of modes tell.
_AMBIENT = {
    "AUTOGRAD_SAVED_TENSORS_HOOKS",
    "DEFAULT_DEVICE",
    "DETERMINISTIC_ALGORITHMS",
    "GLOBAL_STATE",
    "GRAD_MODE",
    "SHAPE_ENV",
    "TORCH_FUNCTION_STATE",
}
# Guards that ask nothing of a value but what `Places` hold, or of a tensor but its form.
_OF_VALUES = {
    "BOOL_MATCH",
    "BUILTIN_MATCH",
    "CLASS_MATCH",
    "CLOSURE_MATCH",
    "CONSTANT_MATCH",
    "DICT_KEYS_MATCH",
    "DUPLICATE_INPUT",
    "EQUALS_MATCH",
    "FUNCTION_MATCH",
    "ID_MATCH",
    "MODULE_MATCH",
    "NONE_MATCH",
    "NOT_NONE_MATCH",
    "SEQUENCE_LENGTH",
    "TENSOR_MATCH",
    "TYPE_MATCH",
}
_OF_ATTRIBUTES = "HASATTR"
_OF_OWN_ATTRIBUTES = "NOT_PRESENT_IN_GENERIC_DICT"
_OF_KEYS = {"DICT_CONTAINS", "DICT_NOT_CONTAINS"}
_OF_HOOKS = "EMPTY_NN_MODULE_HOOKS_DICT"  # fastinfer.hooks sees to those
# An input, or an entry of one.
_INPUT = re.compile(r"L\['(args|kwargs)'\](\[(\d+|'[^'\\]*')\])*")


class Signature:
    """What a call's inputs are, as far as guards look: all but the numbers in the tensors.

    key: empty if the call is not to be remembered. tensors: each once.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self._key: list[Any] = []
        self._places: dict[int, int] = {}  # of tensors, by id: one twice is told from two
        self._containers: set[int] = set()
        self.key = tuple(self._key) if self._add(args) and self._add(kwargs) else ()

    def _add(self, value: Any) -> bool:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            return self._add_tensor(value)
        if value is None or kind in (bool, int, str):
            self._key += (kind, value)
        elif kind is float:
            self._key += (kind, value.hex())
        elif kind in (dict, list, tuple) and id(value) not in self._containers:
            if value:  # the empty tuple is one
                self._containers.add(id(value))
            self._key += (kind, tuple(value) if kind is dict else len(value))
            return all(map(self._add, value.values() if kind is dict else value))
        else:
            return False
        return True

    def _add_tensor(self, value: Tensor) -> bool:
        if value.layout is not torch.strided or value.is_nested:
            return False
        if any("_dynamo_" not in name for name in value.__dict__):  # those are marks of sizes
            return False
        place = self._places.setdefault(id(value), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(value)
        self._key += (place, value.shape, value.dtype, value.storage_offset())
        return True


class Memory:
    """The calls and the state with which the guards of one compiled graph have passed."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._questions = tuple(questions)
        self._state: _State | None = None
        self._is_clear = True
        self._wait = 0  # calls until it is worth to look at the state again
        self._next_wait = 1

    def fits(self, call: Signature) -> bool:
        """Whether the guards would pass."""
        state = self._state
        form = state.inputs.get(call.key) if state is not None else None
        if state is None or form is None or not form.check(*call.tensors):
            return False
        return state.has_settings() and self._holds(state) and state.has_weights(call)

    def refresh(self) -> None:
        """Forgets the state if it is not what it was."""
        state = self._state
        if state is not None:
            self._holds(state)

    def _holds(self, state: "_State") -> bool:
        """Whether Python's objects are as they were. If not, the state is forgotten: modules that
        were replaced must not live on here. One that changes again and again is looked at less and
        less."""
        if state.is_unchanged():
            return True
        self._forget(state)
        return False

    def _forget(self, state: "_State") -> None:
        if self._state is state:
            self._state = None
            self._wait = self._next_wait
            self._next_wait = min(2 * self._next_wait, _LONGEST_WAIT)

    def learn(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        local: dict[str, Any],
        names: dict[str, Any],
        ask: Callable[[], bool],
    ) -> None:
        """Takes note of a call with which the guards have passed. local, names: what their
        expressions start from, see `Places`. ask: asks the guards once more: a state is what they
        passed with if it was read before and is unchanged after."""
        if not self._is_clear:
            return
        self._wait -= 1
        if self._state is None and self._wait >= 0:
            return
        call = Signature(args, kwargs)
        if not call.key:
            return
        try:
            state = self._state or _State(self._questions, local, names)
        except Unclear:
            self._is_clear = False
            return
        except Exception:
            # The model's own code computes attributes, and other threads may change what is read:
            # there is nothing that it could not raise, and nothing that must not go on.
            self._wait = _LONGEST_WAIT
            return
        is_new = state is not self._state
        if state.weights(call) is None or (is_new and not ask()):
            return
        if state.has_settings() and state.is_unchanged():
            if state.has_weights(call):
                state.add(call)
                self._state = state
            else:
                self._forget(state)


class _State:
    """What guards look at, as it is now: of Python's objects the `Places`, of torch's settings all.

    inputs: by signature, the form of the tensors of calls that passed while it was so.
    """

    def __init__(
        self, questions: Iterable[Question], local: dict[str, Any], names: dict[str, Any]
    ) -> None:
        self._held = Places(local, names).hold(questions)
        self._versions = bytearray(8 * (len(self._held.places) // 3))
        self._settings = torch._C._dynamo.guards.GlobalStateGuard()
        self._weights = _form([*(_C.values_at(self._held.entries, []) or ()), *self._held.tensors])
        self.inputs: dict[tuple[Any, ...], Any] = {}

    def has_settings(self) -> bool:
        return torch._C._len_torch_function_stack() == 0 and self._settings.check()

    def is_unchanged(self) -> bool:
        """Of Python's objects."""
        return _C.unchanged(self._held.places, self._versions)

    def weights(self, call: Signature) -> list[Any] | None:
        """None if an input is one of them."""
        found = _C.values_at(self._held.entries, call.tensors)
        if found is None or any(t is u for t in self._held.tensors for u in call.tensors):
            return None
        return [*found, *self._held.tensors]

    def has_weights(self, call: Signature) -> bool:
        """Whether their form is what it was."""
        weights = self.weights(call)
        return weights is not None and self._weights.check(*weights)

    def add(self, call: Signature) -> None:
        if len(self.inputs) >= _MOST_SIGNATURES:
            self.inputs = {}
        self.inputs[call.key] = _form(call.tensors)


def _form(tensors: list[Any]) -> Any:
    """torch's check that tensors have the dtypes, devices, sizes, strides, ... that these have now,
    and that no two are one. Raises Unclear."""
    if any(not isinstance(t, Tensor) or t.layout is not torch.strided for t in tensors):
        raise Unclear
    sizes: list[Any] = [list(t.shape) for t in tensors]
    strides: list[Any] = [list(t.stride()) for t in tensors]
    return torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    )


def remember(guards: Iterable[Any]) -> Memory | None:
    """For a graph with these guards (torch._dynamo.types.GuardFilterEntry); None if one of them is
    of a kind that is not known here."""
    questions = dict[Question, None]()
    for guard in guards:
        found = _questions(guard.guard_type, guard.orig_guard)
        if found is None:
            return None
        questions.update(dict.fromkeys(found))
    return Memory(questions)


def _questions(kind: str, guard: Any) -> list[Question] | None:
    """Of a torch._guards.Guard. None: they are not understood."""
    if kind in _AMBIENT or kind == _OF_HOOKS:
        return []
    if kind not in {*_OF_VALUES, *_OF_KEYS, _OF_ATTRIBUTES, _OF_OWN_ATTRIBUTES}:
        return None
    name = guard.name
    options = getattr(guard.create_fn, "keywords", {})
    if kind == _OF_ATTRIBUTES:
        # In torch 2.11 the attribute is a part of the name.
        owner, _, last = (name, "", options["attr"]) if "attr" in options else name.rpartition(".")
        # Of an input its class decides: it has none of its own, see Signature.
        return [Question("Tensor" if _INPUT.fullmatch(owner) else owner, last)]
    if _INPUT.fullmatch(name):
        return [] if kind in _OF_VALUES or kind in _OF_KEYS else None
    if name.startswith(("L['args']", "L['kwargs']")):
        return None
    if kind in _OF_VALUES:
        other = options.get("source_b")
        if other is None:
            return [Question(name)]
        other = other.name() if callable(other.name) else other.name
        return [Question(n) for n in (name, other) if not _INPUT.fullmatch(n)]
    if kind in _OF_KEYS:
        return [Question(name, key=options["key"])]
    return [Question(f"{name}.__dict__", key=options["attr"])]
