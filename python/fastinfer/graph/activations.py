"""Activations: those written out in parts, and the products of gated MLPs."""

import math

from torch.fx import Graph

from fastinfer.graph.emit import call, fastinfer, output, replace
from fastinfer.graph.match import (
    Expr,
    arguments,
    aten,
    is_op,
    is_tensor,
    number_and_node,
    only_user,
    operands,
    same_kind,
    value,
)
from fastinfer.graph.norms import FLOATS


def name_activations(graph: Graph) -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) becomes aten.gelu."""
    for node in list(graph.nodes):
        x = _tanh_gelu(node) if is_op(node, aten.mul.Tensor) else None
        if x is not None:
            gelu = call(graph, node, node, aten.gelu.default, x, approximate="tanh")
            replace(graph, node, gelu)


def _tanh_gelu(node: Expr) -> Expr:
    pair = operands(node, aten.mul.Tensor)
    for half, rest in (pair, pair[::-1]) if pair is not None else ():
        scaled = number_and_node(half, aten.mul.Tensor)
        shifted = number_and_node(rest, aten.add.Tensor)
        if scaled is None or shifted is None or (scaled[0], shifted[0]) != (0.5, 1.0):
            continue
        x, tanh = scaled[1], shifted[1]
        inner = (
            number_and_node(tanh.args[0], aten.mul.Tensor)
            if is_op(tanh, aten.tanh.default)
            else None
        )
        if inner is not None and math.isclose(inner[0], math.sqrt(2 / math.pi), rel_tol=1e-6):
            total = operands(inner[1], aten.add.Tensor)
            if total is not None and any(a is x and _cubed(b, x) for a, b in (total, total[::-1])):
                return x
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
    return None


def fuse_activations(graph: Graph) -> dict[str, int]:
    """What no linear layer took in: activation(x) * other, and GELU and SiLU alone."""
    made = {"activation": 0, "gate": 0}
    for node in list(graph.nodes):
        pair = operands(node, aten.mul.Tensor)
        for gate, other in (pair, pair[::-1]) if pair is not None else ():
            found = activation_of(gate)
            if found is None or only_user(gate) is None or not is_tensor(other):
                continue
            name, x = found
            if value(x).dtype in FLOATS and same_kind(x, other) and same_kind(x, node):
                act = call(graph, node, None, fastinfer.act_mul.default, x, other, name)
                replace(graph, node, output(graph, act, 0, node))
                made["gate"] += 1
                break
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        found = activation_of(node)
        if found is not None and found[0] != "relu" and value(node).dtype in FLOATS:
            act = call(graph, node, None, fastinfer.act_mul.default, found[1], None, found[0])
            replace(graph, node, output(graph, act, 0, node))
            made["activation"] += 1
    return made
