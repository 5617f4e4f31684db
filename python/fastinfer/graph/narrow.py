"""Attention between int8 layers: in bfloat16, where that is faster.

Queries, keys and values that come from int8 products are off by about 2^-7 of themselves, and what
attention makes of them is rounded to int8 rows for the next product. bfloat16 is off by 2^-9, which
adds a few percent to that error; it halves the bytes between the kernels, and an instruction does
twice the products.
"""

from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from fastinfer import _C
from fastinfer.graph.emit import fastinfer, set_argument
from fastinfer.graph.linears import CAT, GATED, LINEAR
from fastinfer.graph.match import MOVES, Expr, arguments, aten, is_op, value

# Those that move elements, or some of them; a rotary embedding computes in float32 whatever it is
# given.
_PASSES = (
    *MOVES,
    getitem,
    aten.flatten.using_ints,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten._unsafe_view.default,
    fastinfer.rope.default,
)


def narrow_attention(graph: Graph) -> dict[str, int]:
    """Runs after the int8 layers have taken in what stands around them."""
    attentions = [n for n in graph.nodes if is_op(n, fastinfer.attention.default)]
    return {"attention in bfloat16": sum(_narrow(attention) for attention in attentions)}


def _narrow(attention: Expr) -> bool:
    a, out = arguments(attention), value(attention)
    if out.dtype != torch.float32 or not _is_faster(out.device, a["mask"]):
        return False
    before = _sources([a["q"], a["k"], a["v"]])
    after = _readers(attention)
    if before is None or after is None:
        return False
    if any(user not in before and user is not attention for n in before for user in n.users):
        return False
    for node in after:
        if is_op(node, LINEAR, CAT, GATED) and arguments(node)["out_dtype"] is None:
            set_argument(node, "out_dtype", torch.float32)
    for node in before:
        if is_op(node, LINEAR, CAT):
            set_argument(node, "out_dtype", torch.bfloat16)
    for node in (*before, attention, *after):
        if node in before or not is_op(node, LINEAR, CAT, GATED):
            node.meta["val"] = pytree.tree_map(_as_bfloat16, value(node))
    return True


def _is_faster(device: torch.device, mask: Expr) -> bool:
    """Whether attention of bfloat16 is faster than that of float32 with this mask."""
    if device.type == "cpu":
        return _C.attention_in_pairs()
    # Torch's kernels would want the mask in bfloat16, too.
    return mask is None or bool(value(mask).dtype == torch.bool)


def _sources(ends: list[Expr]) -> set[Node] | None:
    """The nodes between int8 layers and `ends`, all of these included; None where something else
    than an int8 layer is behind one of them."""
    found: set[Node] = set()
    for node in ends:
        while isinstance(node, Node) and node not in found:
            found.add(node)
            if is_op(node, LINEAR, CAT):
                if arguments(node).get("residual") is not None:
                    return None
                break
            if not is_op(node, *_PASSES):
                return None
            node = node.args[0]
    return found


def _readers(attention: Expr) -> list[Node] | None:
    """What the result passes through, and the int8 layers that quantise it; None where something
    else reads it."""
    found: list[Node] = []
    ahead = [(attention, user) for user in attention.users]
    while ahead:
        source, node = ahead.pop()
        if is_op(node, LINEAR, CAT, GATED):
            if node.args[0] is not source or arguments(node).get("residual") is source:
                return None
        elif is_op(node, *_PASSES) and node.args[0] is source:
            ahead += [(node, user) for user in node.users]
        else:
            return None
        found.append(node)
    return found


def _as_bfloat16(x: Any) -> Any:
    return x.to(torch.bfloat16) if isinstance(x, torch.Tensor) else x
