"""The backend of torch.compile: `torch.compile(model, backend="fastinfer")`."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from fastinfer.graph.capture import normal_form, why_not
from fastinfer.graph.clean import WritesInPlace
from fastinfer.graph.rewrite import Rewritten, rewrite


def compile_graph(
    module: GraphModule, record: Callable[[Rewritten], None] | None = None
) -> Callable[..., Any]:
    """What to call in place of a captured graph; `record` hears what became of it.

    A graph that cannot be rewritten (it records gradients, runs under autocast, writes into
    tensors that others see) is run as it is.
    """
    reason = why_not(module)
    if reason is None:
        normal = normal_form(module)
        try:
            result = rewrite(normal)
        except WritesInPlace as error:
            reason = str(error)
    if record is not None:
        record(result if reason is None else Rewritten(why_not=reason))
    return module.forward if reason is not None else normal.forward


def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """`module` with norms, activations, attention, rotary embeddings and int8 linear layers on the
    kernels of fastinfer; registered with torch as the backend "fastinfer".

    The kernels exist already, so compiling takes as long as tracing the model. Sizes that
    torch.compile traces as symbols stay symbols. Float linear layers and whatever is not
    recognised stay torch's own operators.
    """
    return compile_graph(module)
