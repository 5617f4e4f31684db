"""Looking at nodes of a captured graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

# Operators that move all elements of their first argument and do no arithmetic.
MOVES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.permute.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.unflatten.int,
    aten.view.default,
)

# A node, or whatever else stands among a node's arguments, or None: torch.fx types that as a union
# of a dozen types, which helps nobody who looks for a pattern.
Expr = Any


def is_op(node: Expr, *targets: Callable[..., Any]) -> bool:
    """Whether `node` calls one of the operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def arguments(node: Expr) -> dict[str, Any]:
    """The arguments of an operator's node by their names in its schema, defaults filled in."""
    schema = node.target._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update({a.name: v for a, v in zip(schema, node.args, strict=False)})
    values.update(node.kwargs)
    return values


def value(node: Expr) -> Any:
    """The fake tensor (or the fake tensors) that stands for what `node` computes, or None."""
    return node.meta.get("val") if isinstance(node, Node) else None


def is_tensor(node: Expr) -> bool:
    return isinstance(value(node), Tensor)


def same_sizes(a: Any, b: Any) -> bool:
    """Whether two shapes are known to be the same at every size that the graph may see."""
    return len(a) == len(b) and all(
        statically_known_true(x == y) for x, y in zip(a, b, strict=True)
    )


def same_kind(a: Expr, b: Expr) -> bool:
    """Whether two tensors have the same shape, dtype and device."""
    x, y = value(a), value(b)
    return x.dtype == y.dtype and x.device == y.device and same_sizes(x.shape, y.shape)


def is_last(dim: int, node: Expr) -> bool:
    """Whether `dim` is the last dimension of what `node` computes."""
    return dim in (-1, value(node).dim() - 1)


def only_user(node: Expr) -> Expr:
    """The node that alone uses `node`, if there is one."""
    if isinstance(node, Node) and len(node.users) == 1:
        return next(iter(node.users))
    return None


def operands(node: Expr, *targets: Callable[..., Any]) -> tuple[Any, Any] | None:
    """Both operands of a commutative operator with two tensors or a tensor and a number, plain:
    not one of add's with alpha."""
    if not is_op(node, *targets) or len(node.args) != 2 or node.kwargs:
        return None
    return node.args[0], node.args[1]


def both_orders(node: Expr, *targets: Callable[..., Any]) -> tuple[tuple[Expr, Expr], ...]:
    """The operands of a commutative operator, in either order; nothing if it is another node."""
    pair = operands(node, *targets)
    return () if pair is None else (pair, pair[::-1])


def number_and_node(node: Expr, *targets: Callable[..., Any]) -> tuple[float, Expr] | None:
    """The number and the tensor of a commutative operator."""
    for number, other in both_orders(node, *targets):
        if isinstance(number, int | float) and isinstance(other, Node):
            return float(number), other
    return None
