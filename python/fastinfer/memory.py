"""Whether a call fits compiled code whose guards have passed before, without asking them again."""

import re
from collections.abc import Callable, Iterable, Sequence
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


# What a call's inputs are, as far as guards look: a key of all but the numbers in the tensors; and
# the tensors, each once.
Signature = tuple[tuple[Any, ...], list[Tensor]]
_TENSORS = (Tensor, nn.Parameter)


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature | None:
    """None if the call is not to be remembered."""
    return _C.signature(args, kwargs, _TENSORS, torch.strided)


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
        state, (key, tensors) = self._state, call
        form = state.inputs.get(key) if state is not None else None
        if state is None or form is None or not form.check(*tensors):
            return False
        return state.has_settings() and self._holds(state) and state.has_weights(tensors)

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
        call = signature(args, kwargs)
        if call is None:
            return
        key, tensors = call
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
        if state.weights(tensors) is None or (is_new and not ask()):
            return
        if state.has_settings() and state.is_unchanged():
            if state.has_weights(tensors):
                state.add(key, tensors)
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
        self._weights = _form(self.weights([]) or ())
        self.inputs: dict[tuple[Any, ...], Any] = {}

    def has_settings(self) -> bool:
        return torch._C._len_torch_function_stack() == 0 and self._settings.check()

    def is_unchanged(self) -> bool:
        """Of Python's objects."""
        return _C.unchanged(self._held.places, self._versions)

    def weights(self, inputs: list[Tensor]) -> tuple[Any, ...] | None:
        """None if an input is one of them."""
        return _C.values_at(self._held.entries, self._held.tensors, inputs)

    def has_weights(self, inputs: list[Tensor]) -> bool:
        """Whether their form is what it was."""
        weights = self.weights(inputs)
        return weights is not None and self._weights.check(*weights)

    def add(self, key: tuple[Any, ...], inputs: list[Tensor]) -> None:
        if len(self.inputs) >= _MOST_SIGNATURES:
            self.inputs = {}
        self.inputs[key] = _form(inputs)


def _form(tensors: Sequence[Any]) -> Any:
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
        # Of an input its class decides: it has none of its own, see signature.cpp.
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
