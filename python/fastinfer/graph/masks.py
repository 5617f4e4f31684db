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
from torch.fx.node import map_arg

from fastinfer.graph.emit import fastinfer, set_argument
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    is_op,
    is_tensor,
    number_and_node,
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
    known: dict[Node, _Simple | None] = {}  # layers share a mask
    for node in list(graph.nodes):
        if not is_op(node, fastinfer.attention.default):
            continue
        mask = arguments(node)["mask"]
        if not _is_bool(mask):
            continue
        if mask not in known:
            known[mask] = _simplified(graph, mask, node)
        simple = known[mask]
        if simple is None or (simple.causal and not _is_square(node, mask)):
            continue
        set_argument(node, "mask", simple.mask)
        if simple.causal:
            set_argument(node, "causal", True)
        made += 1
    return {"attention mask": made}


def _is_square(attention: Expr, mask: Expr) -> bool:
    """Whether the mask has a row for each query and a column for each key, as many of both."""
    a = arguments(attention)
    tq, tk = value(a["q"]).shape[2], value(a["k"]).shape[2]
    return same_sizes(value(mask).shape[-2:], (tq, tk)) and statically_known_true(tq == tk)


def _simplified(graph: Graph, mask: Expr, attention: Expr) -> _Simple | None:
    """What the mask comes to, made in front of it; None if it stays as it is."""
    terms = _terms(mask)
    left = [t for t in terms if not _is_true(t)]
    # Where the attention is not square, the causal part stays in the mask.
    causal = [t for t in left if _is_square(attention, mask) and _is_causal(t)]
    left = [t for t in left if t not in causal]
    looked_up = {t: x for t in left if (x := _lookup(t)) is not None}
    if len(left) == len(terms) and not looked_up:
        return None
    with graph.inserting_before(mask):
        parts = [_rows(graph, *looked_up[t]) if t in looked_up else t for t in left]
        whole = None
        for part in parts:
            whole = part if whole is None else _call(graph, aten.__and__.Tensor, whole, part)
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


def _is_causal(term: Expr) -> bool:
    """Whether a mask says key <= query."""
    if is_op(term, aten.le.Tensor):
        key, query = (_ramp(a) for a in term.args)
    elif is_op(term, aten.ge.Tensor):
        query, key = (_ramp(a) for a in term.args)
    else:
        return False
    if key is None or query is None:
        return False
    places = (key.place, query.place) == (0, 1)
    return places and key.offset == query.offset and same_sizes([key.size], [query.size])


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
            x = _call(graph, aten.slice.Tensor, x, dim, 0, ramp.end)
    for _ in range(first.place - second.place - 1):
        x = _call(graph, aten.unsqueeze.default, x, 1)
    for _ in range(second.place):
        x = _call(graph, aten.unsqueeze.default, x, -1)
    return x


def _ramp(node: Expr) -> _Ramp | None:
    if not is_tensor(node):
        return None
    if is_op(node, aten.arange.default) and value(node).dtype == torch.int64:
        return _Ramp(node.args[0], value(node).shape[0], 0, 0, 1)
    if is_op(node, aten.unsqueeze.default):
        ramp = _ramp(node.args[0])
        if ramp is None:
            return None
        before = node.args[1] % (ramp.dims + 1) <= ramp.dims - 1 - ramp.place
        return replace(ramp, dims=ramp.dims + 1, place=ramp.place + (not before))
    found = number_and_node(node, aten.add.Tensor)
    if found is None or not found[0].is_integer():
        return None
    ramp = _ramp(found[1])
    return None if ramp is None else replace(ramp, offset=ramp.offset + int(found[0]))


def _call(graph: Graph, op: Any, *args: Any) -> Node:
    """A call with its value."""
    node = graph.call_function(op, args)
    tensor = next(value(a) for a in args if isinstance(a, Node))
    with tensor.fake_mode:
        node.meta["val"] = op(*map_arg(args, value))
    return node
