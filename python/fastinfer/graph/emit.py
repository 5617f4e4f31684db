"""Putting this package's operators into a graph."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fastinfer.graph.match import value

fastinfer = torch.ops.fastinfer


def call(
    graph: Graph, before: Node, like: Node | None, op: Callable[..., Any], *args: Any, **kwargs: Any
) -> Node:
    """A call of `op` in front of `before`; its result has the shape and dtype of `like`, or is not
    one tensor."""
    with graph.inserting_before(before):
        node = graph.call_function(op, args, kwargs)
    if like is not None:
        node.meta["val"] = like.meta["val"]
    return node


def call_with_value(graph: Graph, op: Callable[..., Any], *args: Any) -> Node:
    """A call where the graph is being written to, with the fake tensor that it gives."""
    node = graph.call_function(op, args)
    tensor = next(value(a) for a in args if isinstance(a, Node))
    with tensor.fake_mode:
        node.meta["val"] = op(*map_arg(args, value))
    return node


def output(graph: Graph, node: Node, index: int, like: Node | None = None) -> Node:
    """Output `index` of an operator with several, made once."""
    for user in node.users:
        if user.target is getitem and user.args[1] == index:
            return user
    with graph.inserting_after(node):
        result = graph.call_function(getitem, (node, index))
    if like is not None:
        result.meta["val"] = like.meta["val"]
    return result


def replace(graph: Graph, old: Node, new: Node) -> None:
    """Every use of `old` becomes one of `new`; `old` goes."""
    old.replace_all_uses_with(new)
    graph.erase_node(old)


def set_argument(node: Node, name: str, new: Any) -> None:
    """Sets an argument of an operator's node by its name in the schema."""
    schema: Any = node.target
    names = [a.name for a in schema._schema.arguments]
    index = names.index(name)
    if index < len(node.args):
        node.update_arg(index, new)
    else:
        node.update_kwarg(name, new)
