"""Boolean masks of attention in their least form.

Models put a mask together from positions: padding, looked up at every batch and key; keys not after
the query; whatever is true. Spelled out that is a byte for every query and key, which is made and
then read. What is true goes, the causal part becomes the operator's own, and a lookup at all
positions is the padding mask itself, a row a sequence.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastinfer.graph.emit import call_with_value, fastinfer, set_argument
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    both_orders,
    is_op,
    is_tensor,
    same_sizes,
    value,
)

_AND = (aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)
_ONES = (aten.new_ones.default, aten.ones.default)


@dataclass(frozen=True)
class _Ramp:
    """offset, offset + 1, ... along one dimension, the others being 1."""

    end: Any  # the node or number that says how many
    size: Any
    offset: int
    place: int  # of the dimension, counted from the last, which is 0
    dims: int


@dataclass(frozen=True)
class _Simple:
    mask: Node | None
    causal: bool


def simplify_masks(graph: Graph) -> dict[str, int]:
    """Runs after attention is fused."""
    made = 0
    known: dict[tuple[Node, str, str], _Simple | None] = {}  # layers share a mask
    for node in list(graph.nodes):
        if not is_op(node, fastinfer.attention.default):
            continue
        a = arguments(node)
        mask = a["mask"]
        if not _is_bool(mask):
            continue
        tq, tk = value(a["q"]).shape[2], value(a["k"]).shape[2]
        key = mask, str(tq), str(tk)
        if key not in known:
            known[key] = _simplified(graph, mask, tq, tk)
        simple = known[key]
        if simple is None:
            continue
        set_argument(node, "mask", simple.mask)
        if simple.causal:
            set_argument(node, "causal", True)
        made += 1
    return {"attention mask": made}


def _simplified(graph: Graph, mask: Expr, tq: Any, tk: Any) -> _Simple | None:
    """What the mask of `tq` queries and `tk` keys comes to, made in front of it; None if it stays
    as it is."""
    terms = _terms(mask)
    left = [t for t in terms if not _is_true(t)]
    causal = [t for t in left if _is_causal(t, tq, tk)]
    left = [t for t in left if t not in causal]
    looked_up = {t: x for t in left if (x := _lookup(t)) is not None}
    if len(left) == len(terms) and not looked_up:
        return None
    with graph.inserting_before(mask):
        parts = [_rows(graph, *looked_up[t]) if t in looked_up else t for t in left]
        whole = None
        for part in parts:
            whole = (
                part if whole is None else call_with_value(graph, aten.__and__.Tensor, whole, part)
            )
    return _Simple(whole, bool(causal))


def _terms(mask: Expr) -> list[Node]:
    """The masks of which all must be true; an expansion changes nothing: masks broadcast anyway."""
    if is_op(mask, aten.expand.default):
        return _terms(mask.args[0])
    if is_op(mask, *_AND) and all(_is_bool(a) for a in mask.args):
        return [term for a in mask.args for term in _terms(a)]
    return [mask]


def _is_bool(x: Expr) -> bool:
    return is_tensor(x) and bool(value(x).dtype == torch.bool)


def _is_true(term: Expr) -> bool:
    """Whether a mask is true everywhere."""
    if is_op(term, *_ONES):
        return True
    if not is_op(term, aten.ge.Scalar):
        return False
    ramp = _ramp(term.args[0])
    return ramp is not None and isinstance(term.args[1], int) and ramp.offset >= term.args[1]


def _is_causal(term: Expr, tq: Any, tk: Any) -> bool:
    """Whether a mask says key <= query, at as many keys as queries: the operator's causal is none
    of a key or a query that stands for all."""
    if is_op(term, aten.le.Tensor):
        key, query = (_ramp(a) for a in term.args)
    elif is_op(term, aten.ge.Tensor):
        query, key = (_ramp(a) for a in term.args)
    else:
        return False
    if key is None or query is None:
        return False
    if (key.place, query.place, key.offset) != (0, 1, query.offset):
        return False
    return same_sizes((key.size, query.size, tq), (tk, tq, tk))


def _lookup(term: Expr) -> tuple[Node, _Ramp, _Ramp] | None:
    """x [n, m] and its positions, if a mask is x looked up at the first of them."""
    if not is_op(term, aten.index.Tensor) or len(term.args[1]) != 2:
        return None
    x, (first, second) = term.args[0], (_ramp(i) for i in term.args[1])
    if value(x).dim() != 2 or first is None or second is None:
        return None
    if (first.offset, second.offset) != (0, 0) or first.place <= second.place:
        return None
    # The one row of x for several batches is an error of the lookup's, which must stay one.
    for ramp, size in zip((first, second), value(x).shape, strict=True):
        if statically_known_true(size == 1) and not same_sizes([size], [ramp.size]):
            return None
    return x, first, second


def _rows(graph: Graph, x: Node, first: _Ramp, second: _Ramp) -> Node:
    """x where its two dimensions belong among those of the mask."""
    for dim, ramp in enumerate((first, second)):
        if not same_sizes([value(x).shape[dim]], [ramp.size]):
            x = call_with_value(graph, aten.slice.Tensor, x, dim, 0, ramp.end)
    for _ in range(first.place - second.place - 1):
        x = call_with_value(graph, aten.unsqueeze.default, x, 1)
    for _ in range(second.place):
        x = call_with_value(graph, aten.unsqueeze.default, x, -1)
    return x


def _ramp(node: Expr) -> _Ramp | None:
    if not is_tensor(node) or value(node).dtype != torch.int64:
        return None
    if is_op(node, aten.arange.default):
        end = arguments(node)["end"]
        return None if isinstance(end, float) else _Ramp(end, value(node).shape[0], 0, 0, 1)
    if is_op(node, aten.unsqueeze.default):
        ramp = _ramp(node.args[0])
        if ramp is None:
            return None
        before = node.args[1] % (ramp.dims + 1) <= ramp.dims - 1 - ramp.place
        return replace(ramp, dims=ramp.dims + 1, place=ramp.place + (not before))
    for number, other in both_orders(node, aten.add.Tensor):
        ramp = _ramp(other)
        if type(number) is int and ramp is not None:
            return replace(ramp, offset=ramp.offset + number)
    return None
