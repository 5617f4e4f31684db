"""From a rewritten graph to what is called."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from fastinfer.graph.calls import call_plainly
from fastinfer.graph.program import with_programs


def callable_of(module: GraphModule) -> Callable[..., Any]:
    """What computes a rewritten graph, with its runs of operators as programs. Where a profiler or
    a dispatch mode looks on, it goes operator by operator, so that these see each."""
    programs = with_programs(module)
    for graph_module in filter(None, (module, programs)):
        call_plainly(graph_module.graph)
        graph_module.graph.lint()
        graph_module.recompile()
    if programs is None:
        return module.forward
    one_by_one, whole = module.forward, programs.forward

    def run(*inputs: Any) -> Any:
        watched = torch.autograd._profiler_enabled() or torch._C._len_torch_dispatch_stack()
        return one_by_one(*inputs) if watched else whole(*inputs)

    return run
