"""Activations: those written out in parts, and the products of gated MLPs."""

import math
from operator import getitem

from torch.fx import Graph

from fastinfer.graph.emit import call, fastinfer, output, replace
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    both_orders,
    is_op,
    is_tensor,
    number_and_node,
    only_user,
    same_kind,
    value,
)
from fastinfer.graph.norms import FLOATS

ACT_MUL = fastinfer.act_mul.default


def name_activations(graph: Graph) -> None:
    """Activations written out in parts become one node each, for the passes that look for them:
    GELU's tanh form and SiLU torch's operators, and the quick GELU, x sigmoid(1.702 x), ours."""
    for node in list(graph.nodes):
        if (x := _tanh_gelu(node)) is not None:
            replace(graph, node, call(graph, node, node, aten.gelu.default, x, approximate="tanh"))
        elif (found := _sigmoid_gate(node)) is not None:
            scale, x = found
            if scale == 1.0:
                replace(graph, node, call(graph, node, node, aten.silu.default, x))
            elif scale == 1.702 and _fits(x, node):
                _put_in(graph, node, x, None, "quick_gelu")
    graph.eliminate_dead_code()  # the parts, which read x as well


def _tanh_gelu(node: Expr) -> Expr:
    """x if the node is 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    for half, rest in both_orders(node, aten.mul.Tensor):
        scaled = number_and_node(half, aten.mul.Tensor)
        shifted = number_and_node(rest, aten.add.Tensor)
        if scaled is None or shifted is None or (scaled[0], shifted[0]) != (0.5, 1.0):
            continue
        x, tanh = scaled[1], shifted[1]
        if not is_op(tanh, aten.tanh.default):
            continue
        inner = number_and_node(tanh.args[0], aten.mul.Tensor)
        if inner is None or not math.isclose(inner[0], math.sqrt(2 / math.pi), rel_tol=1e-6):
            continue
        if any(a is x and _cubed(b, x) for a, b in both_orders(inner[1], aten.add.Tensor)):
            return x
    return None


def _sigmoid_gate(node: Expr) -> tuple[float, Expr] | None:
    """s and x if the node is x sigmoid(s x)."""
    for x, gate in both_orders(node, aten.mul.Tensor):
        if not is_op(gate, aten.sigmoid.default) or not is_tensor(x):
            continue
        scale, inner = number_and_node(gate.args[0], aten.mul.Tensor) or (1.0, gate.args[0])
        if inner is x and same_kind(x, node):  # not x of an integer dtype
            return scale, x
    return None


def _cubed(node: Expr, x: Expr) -> bool:
    """Whether the node is 0.044715 x^3."""
    scaled = number_and_node(node, aten.mul.Tensor)
    if scaled is None or not math.isclose(scaled[0], 0.044715, rel_tol=1e-6):
        return False
    power = scaled[1]
    return is_op(power, aten.pow.Tensor_Scalar) and power.args == (x, 3.0)


def activation_of(node: Expr) -> tuple[str, Expr] | None:
    """The name that the kernels know an activation by, and what it is applied to."""
    if is_op(node, aten.gelu.default):
        a = arguments(node)
        return ("gelu_tanh" if a["approximate"] == "tanh" else "gelu"), a["self"]
    if is_op(node, aten.silu.default):
        return "silu", node.args[0]
    if is_op(node, aten.relu.default):
        return "relu", node.args[0]
    if is_op(node, getitem) and is_op(node.args[0], ACT_MUL) and node.args[1] == 0:
        x, other, name = node.args[0].args
        return (name, x) if other is None else None
    return None


def _put_in(graph: Graph, node: Expr, x: Expr, other: Expr, name: str) -> None:
    act = call(graph, node, None, ACT_MUL, x, other, name)
    replace(graph, node, output(graph, act, 0, node))


def fuse_activations(graph: Graph) -> dict[str, int]:
    """What no linear layer took in: activation(x) * other, and GELU and SiLU alone."""
    made = {"activation": 0, "gate": 0}
    for node in list(graph.nodes):
        for gate, other in both_orders(node, aten.mul.Tensor):
            found = activation_of(gate)
            if found is None or only_user(gate) is None or not is_tensor(other):
                continue
            name, x = found
            if _fits(x, node) and same_kind(x, other) and same_kind(x, node):
                _put_in(graph, node, x, other, name)
                made["gate"] += 1
                break
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        found = activation_of(node)
        if found is not None and found[0] != "relu" and _fits(found[1], node):
            made["activation"] += 1
            if not is_op(node, getitem):
                _put_in(graph, node, found[1], None, found[0])
    return made


def _fits(x: Expr, result: Expr) -> bool:
    """Whether the kernel takes x; its results are contiguous, so others (channels last) stay."""
    return value(x).dtype in FLOATS and value(x).dim() > 0 and bool(value(result).is_contiguous())
