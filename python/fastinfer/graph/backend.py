"""The backend of torch.compile: `torch.compile(model, backend="fastinfer")`."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from fastinfer.graph.callable import callable_of
from fastinfer.graph.capture import normal_form, why_not
from fastinfer.graph.clean import MustStay
from fastinfer.graph.rewrite import rewrite
from fastinfer.graph.rewritten import Rewritten


def compile_graph(
    module: GraphModule, record: Callable[[Rewritten], None] | None = None
) -> Callable[..., Any]:
    """What to call in place of a captured graph; `record` hears what became of it.

    A graph that cannot be rewritten (it records gradients, runs under autocast, writes into
    tensors that others see) is run as it is; so is one on which the rewriting fails, with a
    warning.
    """
    reason = why_not(module)
    if reason is None:
        try:
            normal = normal_form(module)
            result = rewrite(normal)
            run = callable_of(normal)
        except MustStay as error:
            reason = str(error)
        except Exception as error:
            reason = f"it could not be rewritten ({type(error).__name__}: {error})"
            warnings.warn(f"a graph was left as it was: {reason}", stacklevel=2)
    if record is not None:
        record(result if reason is None else Rewritten(why_not=reason))
    return module.forward if reason is not None else run


def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """`module` with norms, activations, attention, rotary embeddings and int8 linear layers on the
    kernels of fastinfer; registered with torch as the backend "fastinfer".

    The kernels exist already, so compiling takes as long as tracing the model. Sizes that
    torch.compile traces as symbols stay symbols. Float linear layers and whatever is not
    recognised stay torch's own operators.
    """
    return compile_graph(module)
