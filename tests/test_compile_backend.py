"""torch.compile(model, backend="fastinfer"): whole graphs, right answers, few of them."""

import pytest
import torch

from families import answer, inputs, make
from fastinfer.graph.backend import backend, compile_graph
from fastinfer.graph.rewritten import Rewritten


@pytest.mark.parametrize(
    ("name", "dynamic"), [("bert", True), ("llama", True), ("llama", None), ("vit", True)]
)
@torch.no_grad()
def test_whole_graphs(name, dynamic):
    torch._dynamo.reset()
    model, seen = make(name), list[Rewritten]()
    compiled = torch.compile(
        make(name),
        backend=lambda graph, _: compile_graph(graph, seen.append),
        dynamic=dynamic,
        fullgraph=True,
    )
    for size in ((2, 9), (3, 16), (4, 5), (2, 7)):
        given = inputs(name, *size)
        got, want = answer(compiled, given), answer(model, given)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert len(seen) <= (1 if dynamic else 3)
    assert all(graph.why_not is None for graph in seen)
    assert all(graph.fused["attention"] == 1 for graph in seen)


@torch.no_grad()
def test_registered():
    torch._dynamo.reset()
    model, x = make("mlp"), torch.randn(2, 5, 64)
    for name in ("fastinfer", backend):
        compiled = torch.compile(make("mlp"), backend=name)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
