"""Calling what torch.compile made of a function, without its entry.

The wrapper that torch.compile puts around a function saves and restores a dozen pieces of global
state, so that compiling cannot disturb them: some 40 us a call. Once the code for a call exists,
only what decides whether it fits is needed: the guards. These take longer still, ten times so when
a model has just gone through the caches; where nothing that they look at has changed since they
passed, they need not be asked (`Memory`).
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch

from fastinfer.memory import Memory, remember, signature


class CompiledCode:
    """The compiled code of a function whose locals are `args` and `kwargs`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        self._function = function
        self._entries = _cache_entries()
        # By id; holding the code keeps it unique.
        self._whole: dict[int, tuple[CodeType, Callable[..., Any] | None]] = {}
        names = function.__code__.co_freevars
        cells = function.__closure__ or ()
        self._free = {n: cell.cell_contents for n, cell in zip(names, cells, strict=True)}
        self._memories: dict[int, tuple[CodeType, Memory]] = {}  # by id, as above
        self.hear = _Guards()
        self._lock = threading.Lock()
        self._compiling = self._turn = 0  # calls that may compile: how many now, and so far

    def compile(self, compiled: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """`compiled(*args, **kwargs)`, where `compiled` is what torch.compile made of the function
        with `hear` as its guard_filter_fn. If that is how code for the call comes to exist, its
        guards are remembered."""
        if self._entries is None:
            return compiled(*args, **kwargs)
        before = self._codes()
        with self._lock:
            self._compiling += 1
            self._turn += 1
            turn, is_alone = self._turn, self._compiling == 1
        self.hear.memories.clear()
        try:
            return compiled(*args, **kwargs)
        finally:
            with self._lock:
                self._compiling -= 1
                is_alone = is_alone and turn == self._turn  # none has come meanwhile
            codes, heard = self._codes(), self.hear.memories.copy()
            self.hear.memories.clear()
            self._memories = {k: v for k, v in self._memories.items() if k in codes}
            new = [code for number, code in codes.items() if number not in before]
            if is_alone and len(new) == len(heard) == 1 and heard[0] is not None:
                self._memories[id(new[0])] = new[0], heard[0]

    def _codes(self) -> dict[int, CodeType]:
        entries = self._entries(self._function.__code__) if self._entries is not None else []
        return {id(entry.code): entry.code for entry in entries}

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
        """As `find`, of calls like those before alone, without asking the guards."""
        if self._entries is None or not self._memories or _stance() != "default":
            return None
        call = signature(args, kwargs)
        if call is None:
            return None
        for entry in self._entries(self._function.__code__):
            memory = self._memory(entry.code)
            if memory is not None and memory.fits(call):
                return self._call(entry.code)
        return None

    def _memory(self, code: CodeType) -> Memory | None:
        return self._memories.get(id(code), (code, None))[1]

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
        """What to call with `args` and `kwargs`, if code for them exists and all of it is compiled:
        its guards have been checked."""
        if self._entries is None:
            return None
        if _stance() != "default":
            return None
        given = {**self._free, "args": args, "kwargs": kwargs}
        for entry in self._entries(self._function.__code__):
            memory = self._memory(entry.code)
            if memory is not None:
                memory.refresh()
            if entry.guard_manager.check(given):
                if memory is not None:
                    ask = partial(entry.guard_manager.check, given)
                    memory.learn(args, kwargs, self._free, self._function.__globals__, ask)
                return self._call(entry.code)
        return None

    def _call(self, code: CodeType) -> Callable[..., Any] | None:
        found = self._whole.get(id(code))
        if found is None:
            # At a graph break the code calls plain functions, parts of which torch.compile would
            # have to find: those before it, and one that goes on after it.
            names = code.co_names
            whole = any(name.startswith("__compiled_fn") for name in names)
            whole = whole and not any("resume" in name for name in names)
            f = self._function
            run = FunctionType(code, f.__globals__, closure=f.__closure__) if whole else None
            self._whole[id(code)] = found = (code, run)
        return found[1]


class _Guards(threading.local):
    """A guard_filter_fn that takes note of the guards and keeps all of them. Of what one thread
    compiles, another hears nothing. It knows no model, since torch keeps it for long."""

    def __init__(self) -> None:
        self.memories: list[Memory | None] = []

    def __call__(self, guards: Sequence[Any]) -> list[bool]:
        self.memories.append(remember(guards))
        return [True] * len(guards)


def _stance() -> str:
    """What torch.compiler.set_stance has set."""
    return torch._dynamo.eval_frame._stance.stance


def _cache_entries() -> Callable[[CodeType], list[Any]] | None:
    """What torch keeps of a function's compiled code. It is private to torch: where it is gone,
    calls go through the entry. Imported here, since it takes a while."""
    try:
        from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
        from torch._dynamo.eval_frame import _stance  # noqa: F401  # as find() has it
    except ImportError:
        return None
    return _debug_get_cache_entry_list
