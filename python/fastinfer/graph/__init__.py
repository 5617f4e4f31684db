"""Rewriting captured graphs so that they call the kernels of this package.

`capture` brings a graph into one normal form; `clean` removes what has no effect; `norms`, `rope`,
`attention`, `activations` and `linears` each find one kind of block by the operators it is made of;
`calls` picks the cheapest way to call what is left; `rewrite` runs them and `rewritten` says what
they did; `backend` is what torch.compile calls.
"""
