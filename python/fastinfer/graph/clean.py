"""Passes that change only the form: in-place writes made plain, nodes without effect gone."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fastinfer.graph.match import Expr, arguments, aten, is_op, is_tensor, same_sizes, value


class MustStay(Exception):
    """Why a graph cannot be rewritten: it depends on where its tensors lie in memory."""


def check_constants(module: GraphModule) -> None:
    """Raises MustStay where tracing made a constant of something that has no numbers yet, as it
    does of what torch.vmap computes."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), FakeTensor):
            raise MustStay("a part of it cannot be traced (torch.vmap and the like)")


def check_memory(graph: Graph) -> None:
    """Raises MustStay where an operator reads memory by strides: rewriting changes strides."""
    for node in graph.nodes:
        if is_op(node, aten.as_strided.default, aten.set_.source_Tensor):
            raise MustStay(f"it reads memory by strides ({node.target})")


def remove_writes(graph: Graph) -> None:
    """`x.add_(y)` becomes `x + y` where x is a tensor of the graph's own that has no views.

    Raises MustStay where a write can be seen from elsewhere: such a graph is left as it is.
    """
    past: set[Node] = set()  # what written tensors held before: nothing reads it any more
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        target = node.args[0] if node.args else None
        plain = _out_of_place(node)
        if plain is None or not isinstance(target, Node) or _shared(graph, target, node, past):
            raise MustStay(f"it writes in place ({node.target})")
        with graph.inserting_before(node):
            result = graph.call_function(plain, node.args, node.kwargs)
        result.meta = dict(node.meta)
        if not _keeps_kind(result):
            raise MustStay(f"it writes in place and casts ({node.target})")
        node.replace_all_uses_with(result)
        seen = False
        for other in list(graph.nodes):
            if other is node:
                seen = True
            elif seen:
                other.replace_input_with(target, result)
        graph.erase_node(node)
        past.add(target)


def _out_of_place(node: Expr) -> Callable[..., Any] | None:
    """The operator that computes what `node` writes, or None."""
    packet, overload = str(node.target).removeprefix("aten.").split(".")[:2]
    if not packet.endswith("_") or packet.endswith("__"):
        return None
    found = getattr(aten, packet.removesuffix("_"), None)
    return getattr(found, overload, None) if found is not None else None


def _keeps_kind(node: Expr) -> bool:
    """Whether an operator gives the dtype and shape that its form in place had: x.add_(y) does not
    promote and x.gt_(y) is no bool."""
    want = value(node)
    with want.fake_mode:
        got = node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
    return got.dtype == want.dtype and same_sizes(got.shape, want.shape)


def _shared(graph: Graph, target: Expr, writer: Expr, past: set[Node]) -> bool:
    """Whether the memory of `target` has other names when `writer` writes to it."""
    if target.op != "call_function" or not is_tensor(target):
        return True
    storage = value(target).untyped_storage()._cdata
    before = itertools.takewhile(lambda node: node is not writer, graph.nodes)
    return any(
        other is not target
        and other not in past
        and isinstance(value(other), Tensor)
        and value(other).untyped_storage()._cdata == storage
        for other in before
    )


def remove_identities(graph: Graph) -> None:
    """Removes what gives back its input: dropout in eval mode, casts to the same dtype, slices of
    everything, views of the same shape."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if isinstance(source, Node) and is_tensor(source) and _is_identity(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _is_identity(node: Expr, source: Expr) -> bool:
    if is_op(node, aten.dropout.default, aten.feature_dropout.default):
        a = arguments(node)
        return not a["train"] or a["p"] == 0
    if is_op(node, aten.alias.default, aten.detach.default):
        return True
    if is_op(node, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.type_as.default):
        old, new = value(source), value(node)
        plain = not arguments(node).get("copy") and arguments(node).get("memory_format") is None
        return plain and old.dtype == new.dtype and old.device == new.device
    if is_op(
        node,
        *(aten.slice.Tensor, aten.expand.default, aten.view.default, aten.reshape.default),
        aten.unflatten.int,
    ):
        step = arguments(node).get("step", 1)
        return step == 1 and same_sizes(value(source).shape, value(node).shape)
    if is_op(node, aten.contiguous.default):
        a = arguments(node)
        plain = a.get("memory_format") in (None, torch.contiguous_format)
        return plain and bool(value(source).is_contiguous())
    return False


def allow_any_strides(graph: Graph) -> None:
    """Results of kernels lie in memory otherwise than those that they replace: a view of one may
    have to copy, and what the graph returns is made contiguous again where it was."""
    for node in graph.nodes:
        if is_op(node, aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.op == "output":
            for result in node.all_input_nodes:
                if result.op == "call_function" and is_tensor(result):
                    _make_contiguous(graph, result, node)


def _make_contiguous(graph: Graph, result: Expr, end: Expr) -> None:
    if value(result).layout == torch.strided and value(result).is_contiguous():
        with graph.inserting_before(end):
            plain = graph.call_function(aten.contiguous.default, (result,))
        plain.meta["val"] = value(result)
        end.replace_input_with(result, plain)
