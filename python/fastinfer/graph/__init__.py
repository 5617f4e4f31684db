"""Rewriting captured graphs so that they call the kernels of this package.

`capture` brings a graph into one normal form; `clean` removes what has no effect; `norms`, `rope`,
`attention`, `activations` and `linears` each find one kind of block by the operators it is made of;
`rewrite` runs them; `backend` is what torch.compile calls.
"""

from fastinfer.graph.backend import backend, compile_graph
from fastinfer.graph.rewrite import Rewritten

__all__ = ["Rewritten", "backend", "compile_graph"]
