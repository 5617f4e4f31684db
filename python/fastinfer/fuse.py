"""`fuse_`: a model's blocks on fused kernels, without a change to the model's code."""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from fastinfer.entry import CompiledCode
from fastinfer.graph.rewritten import Rewritten
from fastinfer.hooks import Hooks
from fastinfer.observe import call, check_inputs
from fastinfer.render import Printable

_MOST_LEFT = 12  # kinds of operators that the table names


class Fusion(Printable):
    """What `fuse_` found in a model: filled when the model is first called, and after that when it
    is called in a way that needs another graph (batch or length 1, another dtype, other options).

    `graphs`: one :class:`fastinfer.graph.rewritten.Rewritten` a captured graph, in the order of
    capture.
    """

    def __init__(self) -> None:
        self.graphs: list[Rewritten] = []

    @property
    def fused(self) -> dict[str, int]:
        """Fusions by kind, in the last call that was captured in full."""
        return dict(self._last.fused)

    @property
    def left(self) -> dict[str, int]:
        """Operators that were not recognised and stayed torch's own, and weight-only int8 layers,
        which nothing is fused into, by name."""
        return dict(self._last.left)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why whole graphs stayed as they were."""
        return tuple(dict.fromkeys(g.why_not for g in self.graphs if g.why_not is not None))

    @property
    def _last(self) -> Rewritten:
        return max(self.graphs, key=lambda g: sum(g.fused.values()), default=Rewritten())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return {
            "graphs": len(self.graphs),
            "fused": self.fused,
            "left": self.left,
            "reasons": list(self.reasons),
        }

    def __repr__(self) -> str:
        if not self.graphs:
            return "<Fusion: the model has not been called yet>"
        return f"<Fusion: {sum(self.fused.values())} fusions in {len(self.graphs)} graphs>"

    def __rich__(self) -> RenderableType:
        if not self.graphs:
            return Text("Fusions: none yet; they are made when the model is first called")
        table = Table(title="Fusions", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("block")
        table.add_column("count", justify="right")
        for kind, count in sorted(self.fused.items(), key=lambda item: -item[1]):
            table.add_row(kind, str(count))
        lines = []
        if self.left:
            names = Counter(self.left).most_common()
            shown = ", ".join(f"{name} {count}" for name, count in names[:_MOST_LEFT])
            more = f" and {len(names) - _MOST_LEFT} more" if len(names) > _MOST_LEFT else ""
            lines.append(f"Left as they were: {shown}{more}")
        lines += [f"A graph was left as it was: {reason}" for reason in self.reasons]
        return Group(table, Text("\n".join(lines)))


def fuse_(model: nn.Module, example_inputs: Any = None) -> Fusion:
    """Makes a model call fused kernels for its blocks, in place; the modules stay what they are.

    Attention, norms with the additions in front of them, rotary embeddings, activations and gated
    products run in one kernel each; int8 layers (see quantize_) take in the activation, gate and
    addition around them, layers that read one input quantise it once, and a norm hands its rows
    over as int8. Blocks are found by the operators that the model runs, not by the names of its
    classes: the model is traced by torch.compile (Ansel et al., "PyTorch 2", 2024) when it is
    first called, which takes seconds, and the graph is rewritten. Calls that differ (training mode,
    other options, hooks added) are noticed and traced anew.
    Batch and length may vary freely; 1 and more than 1 are different graphs. Where another tracer
    is at work (torch.compile, torch.export, torch.jit.trace), or hooks on all modules are set, the
    model runs as it is. nn.TransformerEncoder's own fused path is not taken: positions that are
    masked as padding hold numbers like any other, where that path wrote zeros.

    model: on the CPU, in eval mode, to be called under torch.inference_mode() or torch.no_grad():
    a call that records gradients runs as it did before, with a warning.
    example_inputs: what the model is called with (a tensor, a tuple of positional arguments or a
    dict of keyword arguments), to trace it now rather than at its first call.

    The state dict is as before. A copy or a pickle of the model is one without fusions: call fuse_
    on it. Returns the Fusion, which says what was found and what was left.

    Raises TypeError on arguments of other types. What the model raises comes through.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    if example_inputs is not None:
        check_inputs("example_inputs", example_inputs)
    fusion = Fusion()
    model._compiled_call_impl = _FusedCall(model, fusion)
    if example_inputs is not None:
        with torch.inference_mode():
            call(model, example_inputs)
    return fusion


def _is_traced() -> bool:
    """Whether a tracer other than that of fuse_ looks at this call: it sees the model as it is."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_fx_symbolic_tracing()


class _Traced:
    """A model with certain hooks, under torch.compile. Its guards notice when one of them goes, but
    others that come only if told to look at every kind of hook of every module, which is a fifth
    of their time: `Hooks` sees to that. (What would halve the time of the rest,
    use_recursive_dict_tags_for_guards, has crashed, and torch turned it off:
    https://github.com/pytorch/pytorch/pull/181873.)"""

    def __init__(self, model: nn.Module, fusion: Fusion) -> None:
        def backend(module: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
            from fastinfer.graph.backend import compile_graph  # a second, and only at a call

            return compile_graph(module, fusion.graphs.append)

        # A frame of this file: torch.compile does not trace from those of torch.nn.
        def run(*args: Any, **kwargs: Any) -> Any:
            return model._call_impl(*args, **kwargs)

        # torch.compile keeps what it made, up to a limit, by code object: one for each model.
        run.__code__ = run.__code__.replace()
        self.code = CompiledCode(run)
        self._compiled = torch.compile(
            run, backend=backend, options={"guard_filter_fn": self.code.hear}
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Nothing for a profiler in the code that fetches weights: two calls of Python less a call.
        config = torch._dynamo.config
        known = hasattr(config, "record_runtime_overhead")
        with config.patch(record_runtime_overhead=False) if known else nullcontext():
            return self.code.compile(self._compiled, args, kwargs)


class _FusedCall:
    """Stands where nn.Module.compile() keeps the compiled call of a module."""

    def __init__(self, model: nn.Module, fusion: Fusion) -> None:
        self._model, self._fusion = model, fusion
        self._hooks = Hooks(model)
        self._traced: dict[tuple[int, ...], _Traced] = {}  # by hooks: none, and the last others
        self._last: _Traced | None = None
        self._warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _is_traced() or _has_any_global_hook():
            return self._model._call_impl(*args, **kwargs)
        if torch.is_grad_enabled():
            self._warn()
            return self._model._call_impl(*args, **kwargs)
        direct = None
        if self._last is not None and not self._hooks.any_added():
            direct = self._last.code.recall(args, kwargs)
        if direct is None:
            self._last = self._with(self._hooks.ids())
            direct = self._last.code.find(args, kwargs)
        if direct is not None:
            return direct(*args, **kwargs)
        # Sizes of the inputs become symbols at the first trace instead of the second.
        for t in pytree.tree_leaves((args, kwargs)):
            if isinstance(t, Tensor):
                torch._dynamo.maybe_mark_dynamic(t, list(range(t.dim())))
        self._last = self._with(self._hooks.read())
        return self._last(*args, **kwargs)

    def _with(self, hooks: tuple[int, ...]) -> _Traced:
        traced = self._traced.get(hooks)
        if traced is None:
            traced = _Traced(self._model, self._fusion)
            self._traced = {k: v for k, v in self._traced.items() if not k} | {hooks: traced}
        return traced

    def _warn(self) -> None:
        if not self._warned and not self._model.training:
            self._warned = True
            warnings.warn(
                "a fused model was called with gradients enabled and ran unfused: call it under "
                "torch.inference_mode()",
                stacklevel=4,
            )
