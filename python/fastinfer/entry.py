"""Calling what torch.compile made of a function, without its entry.

The wrapper that torch.compile puts around a function saves and restores a dozen pieces of global
state, so that compiling cannot disturb them: some 40 us a call. Once the code for a call exists,
only what decides whether it fits is needed: the guards.
"""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch


class CompiledCode:
    """The compiled code of a function whose locals are `args` and `kwargs`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        self._function = function
        self._entries = _cache_entries()
        # By id; holding the code keeps it unique.
        self._whole: dict[int, tuple[CodeType, bool]] = {}
        names = function.__code__.co_freevars
        cells = function.__closure__ or ()
        self._free = {n: cell.cell_contents for n, cell in zip(names, cells, strict=True)}

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
        """What to call with `args` and `kwargs`, if code for them exists and all of it is compiled:
        its guards have been checked."""
        if self._entries is None:
            return None
        if torch._dynamo.eval_frame._stance.stance != "default":  # torch.compiler.set_stance
            return None
        given = {**self._free, "args": args, "kwargs": kwargs}
        for entry in self._entries(self._function.__code__):
            if entry.guard_manager.check(given):
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
            self._whole[id(code)] = found = (code, whole)
        f = self._function
        return FunctionType(code, f.__globals__, closure=f.__closure__) if found[1] else None


def _cache_entries() -> Callable[[CodeType], list[Any]] | None:
    """What torch keeps of a function's compiled code. It is private to torch: where it is gone,
    calls go through the entry. Imported here, since it takes a while."""
    try:
        from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
        from torch._dynamo.eval_frame import _stance  # noqa: F401  # as find() has it
    except ImportError:
        return None
    return _debug_get_cache_entry_list
