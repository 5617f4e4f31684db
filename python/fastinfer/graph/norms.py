"""layer_norm and RMS norm, with the addition in front of them."""

import torch
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
    same_sizes,
    value,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SUM, Y, Q, SCALE, OFFSET = range(5)  # the outputs of fastinfer::layer_norm and ::rms_norm


def fuse_norms(graph: Graph) -> dict[str, int]:
    """Replaces every norm over the last dimension; says how many of which kind."""
    made = {"layer norm": 0, "RMS norm": 0, "addition in a norm": 0}
    for node in list(graph.nodes):
        if is_op(node, aten.layer_norm.default) and _layer_norm(graph, node):
            made["layer norm"] += 1
        elif (is_op(node, aten.rms_norm.default) and _rms_norm_operator(graph, node)) or (
            is_op(node, aten.rsqrt.default) and _rms_norm_from_parts(graph, node)
        ):
            made["RMS norm"] += 1
    graph.eliminate_dead_code()  # the parts, which read the additions as well
    for node in list(graph.nodes):
        if is_op(node, fastinfer.layer_norm.default, fastinfer.rms_norm.default):
            made["addition in a norm"] += _take_in_addition(graph, node)
    return made


def _fits(x: Expr, *vectors: Expr) -> bool:
    """x [..., n] and contiguous vectors [n] (or None) of dtypes that the kernels take."""
    n = value(x).shape[-1]
    return value(x).dtype in FLOATS and all(
        v is None
        or (
            is_tensor(v)
            and value(v).dtype in FLOATS
            and same_sizes(value(v).shape, [n])
            and value(v).is_contiguous()
        )
        for v in vectors
    )


def _layer_norm(graph: Graph, node: Expr) -> bool:
    a = arguments(node)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if len(a["normalized_shape"]) != 1 or not _fits(x, weight, bias):
        return False
    norm = call(graph, node, None, fastinfer.layer_norm.default, x, weight, bias, a["eps"])
    replace(graph, node, output(graph, norm, Y, node))
    return True


def _rms_norm_operator(graph: Graph, node: Expr) -> bool:
    a = arguments(node)
    x, weight, eps = a["input"], a["weight"], a["eps"]
    if len(a["normalized_shape"]) != 1 or not _fits(x, weight):
        return False
    if eps is None:  # torch takes that of the dtype it computes in
        eps = torch.finfo(torch.float32).eps
    norm = call(graph, node, None, fastinfer.rms_norm.default, x, weight, eps)
    replace(graph, node, output(graph, norm, Y, node))
    return True


def _rms_norm_from_parts(graph: Graph, rsqrt: Expr) -> bool:
    """x * rsqrt(mean(x^2) + eps), in float32 between casts of a shorter x, then by a weight.

    The weight may come before or after the cast back; the kernel computes in float32 throughout
    and rounds once, at the end.
    """
    shifted = number_and_node(rsqrt.args[0], aten.add.Tensor)
    if shifted is None or not is_op(shifted[1], aten.mean.dim):
        return False
    eps, mean = shifted
    m = arguments(mean)
    x = _squared(m["self"])
    if x is None or not m["keepdim"] or m["dtype"] is not None:
        return False
    if list(m["dim"]) not in ([-1], [value(x).dim() - 1]):
        return False
    end = only_user(rsqrt)
    if end is None or set(operands(end, aten.mul.Tensor) or ()) != {x, rsqrt}:
        return False
    source = x
    if is_op(x, aten.to.dtype) and value(x).dtype == torch.float32:
        source = x.args[0]
    end, weight = _weight_after(end, value(source).dtype)
    if value(end).dtype != value(source).dtype or not _fits(source, weight):
        return False
    # In front of `end`, where the weight exists as well.
    norm = call(graph, end, None, fastinfer.rms_norm.default, source, weight, eps)
    replace(graph, end, output(graph, norm, Y, end))
    return True


def _squared(node: Expr) -> Expr:
    """x if the node is x ** 2 or x * x."""
    if is_op(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return node.args[0]
    pair = operands(node, aten.mul.Tensor)
    return pair[0] if pair is not None and pair[0] is pair[1] else None


def _weight_after(end: Expr, dtype: torch.dtype) -> tuple[Expr, Expr]:
    """Follows a normalised tensor through a cast to `dtype` and one multiplication by a vector."""
    weight = None
    while True:
        user = only_user(end)
        if user is None:
            return end, weight
        if is_op(user, aten.to.dtype, aten.type_as.default) and user.args[0] is end:
            if value(user).dtype != dtype:
                return end, weight
        elif weight is None and is_op(user, aten.mul.Tensor):
            a, b = user.args
            other = b if a is end else a
            if not is_tensor(other) or value(other).dim() != 1 or not is_tensor(user):
                return end, weight
            if not same_sizes(value(user).shape, value(end).shape):
                return end, weight
            weight = other
        else:
            return end, weight
        end = user


def _take_in_addition(graph: Graph, norm: Expr) -> bool:
    """x + residual in front of a norm becomes the norm's own, which hands on the sum as well."""
    total = norm.args[0]
    pair = operands(total, aten.add.Tensor)
    if pair is None or not all(is_tensor(t) and same_kind(t, total) for t in pair):
        return False
    norm.update_arg(0, pair[0])
    norm.update_kwarg("residual", pair[1])
    if total.users:
        # Users between the addition and the norm keep the addition.
        order = {n: i for i, n in enumerate(graph.nodes)}
        if any(order[user] < order[norm] for user in total.users):
            norm.update_arg(0, total)
            norm.kwargs = {k: v for k, v in norm.kwargs.items() if k != "residual"}
            return False
        total.replace_all_uses_with(output(graph, norm, SUM, total))
    graph.erase_node(total)
    return True
