"""int8 linear layers: what stands around them becomes theirs, and what they read comes as int8.

In order: gated pairs, activations, additions, layers that read one input, norms that hand over
int8 rows. Each looks only at nodes that nothing else reads.
"""

from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from fastinfer.graph.activations import activation_of
from fastinfer.graph.emit import call, fastinfer, output, replace, set_argument
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    both_orders,
    is_op,
    is_tensor,
    only_user,
    same_kind,
    value,
)
from fastinfer.graph.norms import OFFSET, SCALE, Q, Y

LINEAR = fastinfer.linear_w8a8.default
CAT = fastinfer.linear_w8a8_cat.default
GATED = fastinfer.linear_w8a8_gated.default
NORMS = (fastinfer.layer_norm.default, fastinfer.rms_norm.default)


def fuse_linears(graph: Graph) -> dict[str, int]:
    made = {
        "gated linear": _each(graph, _gated),
        "linear + activation": _each(graph, _activation),
        "linear + addition": _each(graph, _addition),
    }
    made["linears of one input"] = _side_by_side(graph)
    return made


def hand_over_rows(graph: Graph) -> dict[str, int]:
    """Norms quantise for the int8 layers that read them: runs after the norms are fused."""
    made = 0
    for node in list(graph.nodes):
        if is_op(node, LINEAR, CAT, GATED) and arguments(node)["x_scale"] is None:
            made += _rows_from_norm(graph, node)
    for norm in graph.nodes:
        if is_op(norm, *NORMS) and norm.kwargs.get("emit_rows"):
            float_users = [u for u in norm.users if u.args[1] == Y and u.users]
            norm.update_kwarg("emit_fp", bool(float_users))
    return {"norm to int8": made}


def _each(graph: Graph, rewrite: Callable[[Graph, Node], bool]) -> int:
    made = sum(rewrite(graph, node) for node in list(graph.nodes))
    graph.eliminate_dead_code()  # for the next one, which asks who reads what
    return made


def _is_bare(node: Expr) -> bool:
    """Whether the node is an int8 linear layer that nothing was added to, read by one node."""
    if not is_op(node, LINEAR) or only_user(node) is None:
        return False
    a = arguments(node)
    return a["activation"] == "none" and a["residual"] is None


def _weights(node: Expr) -> tuple[Any, Any, Any]:
    a = arguments(node)
    return a["w_packed"], a["w_scale"], a["bias"]


def _input(node: Expr) -> dict[str, Any]:
    """The arguments that say what a layer reads and writes, as keywords."""
    a = arguments(node)
    return {name: a[name] for name in ("out_dtype", "x_scale", "x_offset")}


def _gated(graph: Graph, node: Expr) -> bool:
    """activation(x Wg^T + bg) * (x Wu^T + bu)"""
    for gate, up in both_orders(node, aten.mul.Tensor):
        found = activation_of(gate)
        if found is None or only_user(gate) is None:
            continue
        name, linear = found
        if not _is_bare(linear) or not _is_bare(up) or linear.args[0] is not up.args[0]:
            continue
        if not same_kind(linear, up) or _input(linear) != _input(up):
            continue
        fused = call(
            graph,
            *(node, node, GATED, linear.args[0]),
            *_weights(linear),
            *_weights(up),
            name,
            **_input(linear),
        )
        replace(graph, node, fused)
        return True
    return False


def _activation(graph: Graph, node: Expr) -> bool:
    found = activation_of(node)
    if found is None or not _is_bare(found[1]):
        return False
    name, linear = found
    set_argument(linear, "activation", name)
    replace(graph, node, linear)
    return True


def _addition(graph: Graph, node: Expr) -> bool:
    for linear, other in both_orders(node, aten.add.Tensor):
        if not is_op(linear, LINEAR) or only_user(linear) is None or not is_tensor(other):
            continue
        if other is linear:
            continue
        if arguments(linear)["residual"] is not None:
            continue
        if not same_kind(linear, other) or not same_kind(linear, node):
            continue
        set_argument(linear, "residual", other)
        node.prepend(linear)  # after `other`
        replace(graph, node, linear)
        return True
    return False


def _side_by_side(graph: Graph) -> int:
    """Layers of one input, such as queries, keys and values, in one call that quantises once.

    The results become views of the columns of one tensor, so every reader must take such a view.
    """
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes:
        if not is_op(node, LINEAR) or not _reads_columns(node):
            continue
        a = arguments(node)
        given = all(v is None or v.op in ("placeholder", "get_attr") for v in _weights(node))
        if a["residual"] is None and given and isinstance(value(node).shape[-1], int):
            key = (a["x"], a["activation"], *_input(node).values(), value(node).dtype)
            groups.setdefault(key, []).append(node)
    groups = {key: nodes for key, nodes in groups.items() if len(nodes) > 1}
    for nodes in groups.values():
        first = nodes[0]
        a = arguments(first)
        packed, scales, biases = (
            list(column) for column in zip(*map(_weights, nodes), strict=True)
        )
        with graph.inserting_before(first):
            cat = graph.call_function(
                CAT, (a["x"], packed, scales, biases, a["activation"]), _input(first)
            )
            widths = [value(node).shape[-1] for node in nodes]
            parts = graph.call_function(aten.split_with_sizes.default, (cat, widths, -1))
        for i, node in enumerate(nodes):
            replace(graph, node, output(graph, parts, i, node))
    return len(groups)


def _reads_columns(node: Expr) -> bool:
    """Whether all that reads the node splits its last dimension into heads, keeping the others."""
    size = value(node).dim()
    return all(
        is_op(user, aten.view.default, aten.reshape.default, aten.unflatten.int)
        and value(user).dim() == size + 1
        for user in node.users
    )


def _rows_from_norm(graph: Graph, linear: Expr) -> bool:
    x: Expr = linear.args[0]
    norm: Expr = x.args[0] if isinstance(x, Node) and x.args else None
    if not is_op(norm, *NORMS) or x.args[1] != Y:
        return False
    norm.update_kwarg("emit_rows", True)
    if arguments(linear)["out_dtype"] is None:
        set_argument(linear, "out_dtype", value(x).dtype)
    linear.update_arg(0, output(graph, norm, Q))
    set_argument(linear, "x_scale", output(graph, norm, SCALE))
    set_argument(linear, "x_offset", output(graph, norm, OFFSET))
    return True
