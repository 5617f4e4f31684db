"""Attention: torch's own operator, and the same written out with a softmax."""

import math
from typing import Any

import torch
from torch import SymFloat
from torch.fx import Graph, Node

from fastinfer.graph.emit import call, call_with_value, fastinfer, replace
from fastinfer.graph.match import (
    MOVES,
    Expr,
    arguments,
    aten,
    is_last,
    is_op,
    is_tensor,
    number_and_node,
    only_user,
    operands,
    same_kind,
    same_sizes,
    value,
)
from fastinfer.graph.norms import FLOATS
from fastinfer.ops import MAX_HEAD_DIM


def fuse_attention(graph: Graph) -> dict[str, int]:
    made = 0
    sums: dict[tuple[Node, ...], Node] = {}
    for node in list(graph.nodes):
        if is_op(node, aten.scaled_dot_product_attention.default):
            made += _replace_operator(graph, node)
        elif is_op(node, aten.softmax.int, aten._softmax.default):
            made += _replace_parts(graph, node, sums)
    return {"attention": made}


def _replace_operator(graph: Graph, node: Expr) -> bool:
    a = arguments(node)
    if a["dropout_p"] != 0:
        return False
    q, k, v = a["query"], _plain_heads(a["key"]), _plain_heads(a["value"])
    mask = a["attn_mask"]
    if not _fits(q, k, v, mask) or not _heads_divide(q, k, v, node):
        return False
    q, scale = _unscaled(q, a["scale"])
    replace(
        graph,
        node,
        call(
            graph,
            *(node, node, fastinfer.attention.default, q, k, v),
            *(mask, scale, bool(a["is_causal"])),
        ),
    )
    return True


def _unscaled(q: Expr, scale: float | None) -> tuple[Expr, float | None]:
    """A query that is a number times something else, split into heads or not, as that, and the
    scale with the number in it (Whisper, BART, OPT)."""
    node = q
    while is_op(node, *MOVES) and only_user(node) is not None:
        node = node.args[0]
    found = number_and_node(node, aten.mul.Tensor)
    if found is None or only_user(node) is None:
        return q, scale
    number, source = found
    if not 0 < number < math.inf or not same_kind(node, source):
        return q, scale
    scale = value(q).shape[-1] ** -0.5 if scale is None else scale
    node.replace_all_uses_with(source)
    return source if q is node else q, number * scale


def _plain_heads(t: Any) -> Expr:
    """The keys or values behind copies made of them: for each query head of a group, or to make
    them contiguous; the kernel needs neither."""
    while isinstance(t, Node):
        if is_op(t, aten.contiguous.default, aten.clone.default) and not t.kwargs:
            t = t.args[0]
        elif is_op(t, aten.reshape.default, aten.view.default) and _repeated(t) is not None:
            t = _repeated(t)
        else:
            break
    return t


def _repeated(node: Expr) -> Expr:
    """x [B, H, T, D] if the node is x with each head n times in a row."""
    expand = node.args[0]
    if not is_op(expand, aten.expand.default):
        return None
    unsqueeze = expand.args[0]
    if not is_op(unsqueeze, aten.unsqueeze.default) or unsqueeze.args[1] != 2:
        return None
    x = unsqueeze.args[0]
    if value(x).dim() != 4 or value(node).dim() != 4:
        return None
    batch, heads, length, size = value(x).shape
    copies = value(expand).shape[2]
    same = same_sizes(value(node).shape, [batch, heads * copies, length, size])
    return x if same else None


def _fits(q: Expr, k: Expr, v: Expr, mask: Expr) -> bool:
    tensors = [value(t) for t in (q, k, v)]
    if any(t is None or t.dim() != 4 or t.dtype not in FLOATS for t in tensors):
        return False
    if len({t.dtype for t in tensors}) != 1:
        return False
    size = tensors[0].shape[-1]
    if not isinstance(size, int) or not 1 <= size <= MAX_HEAD_DIM:
        return False
    if any(not same_sizes([t.shape[-1]], [size]) for t in tensors):
        return False
    (*heads, keys), (*heads_of_v, values) = tensors[1].shape[:3], tensors[2].shape[:3]
    if not same_sizes(heads, heads_of_v):
        return False
    # In a cache that grows the lengths may be two symbols. That they are one number the model's own
    # product sees to; a 1, which would be spread over many, is no symbol.
    if not same_sizes([keys], [values]) and (isinstance(keys, int) or isinstance(values, int)):
        return False
    if mask is None:
        return True
    m = value(mask)
    return m is not None and m.dtype in (torch.bool, torch.float32, tensors[0].dtype)


def _heads_divide(q: Expr, k: Expr, v: Expr, out: Expr) -> bool:
    """Whether the batches are one and the heads of q a multiple of those of k."""
    a, b, o = value(q).shape, value(k).shape, value(out).shape
    plain = all(isinstance(n, int) and n > 0 for n in (a[1], b[1]))
    return plain and a[1] % b[1] == 0 and same_sizes(a[:1], b[:1]) and same_sizes(o, a)


def _replace_parts(graph: Graph, softmax: Expr, sums: dict[tuple[Node, ...], Node]) -> bool:
    """softmax(q k^T * scale + mask, -1) v, of [B, H, T, D] tensors, with nothing else reading the
    scores or the weights. The mask may come in terms: a bias by position, what hides padding. Their
    sum is made once for all layers that add the same (`sums`).

    A query from which -Inf hides every key gives zeros, as torch's own operator has it, and not
    the NaN of a softmax of nothing.
    """
    a = arguments(softmax)
    if not is_last(a["dim"], softmax) or value(softmax).dim() != 4:
        return False
    weights = softmax
    user = only_user(weights)
    while user is not None and _is_float_cast(user):
        weights, user = user, only_user(user)
    if user is None or not is_op(user, aten.matmul.default) or user.args[0] is not weights:
        return False
    scores = a["self"]
    while _is_float_cast(scores) and only_user(scores) is not None:
        scores = scores.args[0]
    found = _sum(scores)
    if found is None:
        return False
    (q, k, factor), masks = found
    v = _plain_heads(user.args[1])
    q, k = _plain_heads(q), _plain_heads(k)
    if not all(_fits(q, k, v, mask) for mask in masks or (None,)):
        return False
    kinds = {value(mask).dtype for mask in masks}
    if not _heads_divide(q, k, v, user) or len(kinds) > 1:
        return False
    if torch.bool in kinds:  # it adds 1, and hides nothing
        return False
    mask = None
    for term in masks:
        mask = term if mask is None else _added(graph, softmax, (mask, term), sums)
    q, scale = _unscaled(q, factor)
    made = call(graph, user, user, fastinfer.attention.default, q, k, v, mask, scale)
    replace(graph, user, made)
    return True


def _sum(scores: Expr) -> tuple[tuple[Expr, Expr, float], list[Node]] | None:
    """What `_product` finds, and the tensors that are added to it one after another."""
    found = _product(scores)
    if found is not None:
        return found, []
    pair = operands(scores, aten.add.Tensor)
    if pair is None or only_user(scores) is None or not all(is_tensor(p) for p in pair):
        return None
    sides = [(_sum(scores), mask) for scores, mask in (pair, pair[::-1])]
    sums = [(inner, mask) for inner, mask in sides if inner is not None]
    if len(sums) != 1:
        return None
    (found, masks), mask = sums[0]
    return found, [*masks, mask]


def _added(
    graph: Graph, before: Node, terms: tuple[Node, Node], sums: dict[tuple[Node, ...], Node]
) -> Node:
    if terms not in sums:
        with graph.inserting_before(before):
            sums[terms] = call_with_value(graph, aten.add.Tensor, *terms)
    return sums[terms]


def _is_float_cast(node: Expr) -> bool:
    return is_op(node, aten.to.dtype) and value(node).dtype in (*FLOATS, torch.float64)


def _product(node: Expr) -> tuple[Expr, Expr, float] | None:
    """q, k, scale of q k^T * scale, which only one other node reads."""
    if not isinstance(node, Node) or only_user(node) is None:
        return None
    scale: float = 1.0
    if is_op(node, aten.mul.Tensor):
        pair = number_and_node(node, aten.mul.Tensor)
        if pair is None:
            return None
        scale, node = pair
    elif is_op(node, aten.div.Tensor):
        by = node.args[1]
        if not isinstance(by, int | float) or isinstance(by, SymFloat) or by == 0:
            return None
        scale, node = 1.0 / by, node.args[0]
    if not is_op(node, aten.matmul.default):
        return None
    q, turned = node.args
    if not is_op(turned, aten.transpose.int) or value(turned).dim() != 4:
        return None
    dims = {d % 4 for d in turned.args[1:]}
    return (q, turned.args[0], scale) if dims == {2, 3} else None
