"""Rotary position embedding, half-split: x * cos + rotate_half(x) * sin."""

from torch.fx import Graph

from fastinfer.graph.emit import call, fastinfer, replace
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    both_orders,
    is_last,
    is_op,
    is_tensor,
    same_kind,
    same_sizes,
    value,
)
from fastinfer.graph.norms import FLOATS


def fuse_rope(graph: Graph) -> dict[str, int]:
    made = 0
    for node in list(graph.nodes):
        found = _match(node) if is_op(node, aten.add.Tensor) else None
        if found is not None:
            x, cos, sin = found
            rope = call(graph, node, node, fastinfer.rope.default, x, cos, sin)
            replace(graph, node, rope)
            made += 1
    return {"rotary embedding": made}


def _match(node: Expr) -> tuple[Expr, Expr, Expr] | None:
    """x [B, H, T, D], cos and sin [B or 1, T, D] or [T, D] of an addition, or None."""
    for straight, turned in both_orders(node, aten.add.Tensor):
        for half, sin in both_orders(turned, aten.mul.Tensor):
            x = _rotated(half)
            if x is None:
                continue
            for other, cos in both_orders(straight, aten.mul.Tensor):
                tables = [_without_heads(t, x) for t in (cos, sin)]
                if not all(tables) or value(tables[0]).dtype != value(tables[1]).dtype:
                    continue
                if other is x and same_kind(x, node):
                    return x, tables[0], tables[1]
    return None


def _rotated(node: Expr) -> Expr:
    """x if the node is cat([-x[..., D/2:], x[..., :D/2]], -1)."""
    if not is_op(node, aten.cat.default):
        return None
    a = arguments(node)
    parts = a["tensors"]
    if len(parts) != 2 or not is_last(a["dim"], node):
        return None
    if not is_op(parts[0], aten.neg.default):
        return None
    upper, lower = parts[0].args[0], parts[1]
    if not all(is_op(s, aten.slice.Tensor) for s in (upper, lower)):
        return None
    u, w = arguments(upper), arguments(lower)
    x = u["self"]
    size = value(x).shape[-1]
    plain = (
        w["self"] is x
        and value(x).dim() == 4
        and value(x).dtype in FLOATS
        and isinstance(size, int)
        and size % 2 == 0
        and all(is_last(s["dim"], x) and s["step"] == 1 for s in (u, w))
    )
    if not plain:
        return None
    half = size // 2
    halves = (u["start"], w["start"] or 0, w["end"]) == (half, 0, half)
    return x if halves and isinstance(u["end"], int) and u["end"] >= size else None


def _without_heads(table: Expr, x: Expr) -> Expr:
    """The table [.., T, D] behind one that was made to broadcast over the heads of x."""
    if not is_tensor(table) or value(table).dtype not in (*FLOATS[:1], value(x).dtype):
        return None
    batch, _, length, size = value(x).shape
    batches = [1]  # a table [B, T, D] that broadcasts as it is has one plane a head
    if is_op(table, aten.unsqueeze.default) and value(table).dim() == 4:
        inner, dim = table.args
        if dim != 1:
            return None
        table = inner
        batches.append(batch)
    shape = value(table).shape
    fits = same_sizes(shape, [length, size]) or any(
        same_sizes(shape, [b, length, size]) for b in batches
    )
    return table if fits else None
