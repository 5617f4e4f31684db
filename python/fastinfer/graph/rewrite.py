"""The passes in order, and what they did."""

from collections import Counter

from torch.fx import Graph, GraphModule

from fastinfer.graph.activations import fuse_activations, name_activations
from fastinfer.graph.attention import fuse_attention
from fastinfer.graph.clean import (
    allow_any_strides,
    check_constants,
    check_memory,
    remove_identities,
    remove_writes,
)
from fastinfer.graph.emit import fastinfer
from fastinfer.graph.linears import fuse_linears, hand_over_rows
from fastinfer.graph.masks import simplify_masks
from fastinfer.graph.match import is_op
from fastinfer.graph.narrow import narrow_attention
from fastinfer.graph.norms import fuse_norms
from fastinfer.graph.rewritten import Rewritten
from fastinfer.graph.rope import fuse_rope


def rewrite(module: GraphModule) -> Rewritten:
    """Rewrites a graph in normal form, in place.

    Raises MustStay if the graph depends on where its tensors lie in memory, or holds constants
    without numbers; it is of no use then.
    """
    graph = module.graph
    check_constants(module)
    check_memory(graph)
    remove_writes(graph)
    remove_identities(graph)
    name_activations(graph)
    result = Rewritten()
    for fuse in (
        *(fuse_rope, fuse_attention, simplify_masks, fuse_linears, fuse_norms),
        *(hand_over_rows, fuse_activations, narrow_attention),
    ):
        result.fused.update(fuse(graph))
        graph.eliminate_dead_code()
    result.fused = +result.fused
    result.left = _computations(graph)
    allow_any_strides(graph)
    return result


def _computations(graph: Graph) -> Counter[str]:
    """The aten operators that still compute, and the weight-only layers, by name."""
    names = Counter[str]()
    for node in graph.nodes:
        target = node.target
        if is_op(node, fastinfer.linear_w8a16.default):
            names["linear_w8a16"] += 1
        if getattr(target, "namespace", None) != "aten":
            continue
        if not any(r.alias_info for r in target._schema.returns):  # a view computes nothing
            names[str(target).split(".")[1]] += 1
    return names
