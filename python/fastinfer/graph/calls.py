"""The last pass: views and linear layers by the functions of torch that cost least to call.

An operator of torch.ops goes through a schema and a list of boxed values, 2 us a call; a method of
Tensor goes straight to the same code, for a quarter of that. Where a model runs one token, that is
what its views cost.
"""

import torch
from torch.fx import Graph
from torch.nn import functional

from fastinfer.graph.match import aten

METHODS = {
    aten.contiguous.default: "contiguous",
    aten.expand.default: "expand",
    aten.flatten.using_ints: "flatten",
    aten.permute.default: "permute",
    aten.reshape.default: "reshape",
    aten.select.int: "select",
    aten.squeeze.dim: "squeeze",
    aten.transpose.int: "transpose",
    aten.unflatten.int: "unflatten",
    aten.unsqueeze.default: "unsqueeze",
}
FUNCTIONS = {
    aten.linear.default: functional.linear,
    aten.split_with_sizes.default: torch.split_with_sizes,
}


def call_plainly(graph: Graph) -> None:
    """Replaces operators by methods and functions with the same arguments in the same order."""
    for node in graph.nodes:
        if node.op != "call_function" or node.kwargs:
            continue
        if node.target in METHODS:
            node.op, node.target = "call_method", METHODS[node.target]
        elif node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
