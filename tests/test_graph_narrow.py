"""Attention between int8 layers, written out by hand: in bfloat16 where all that stands between is
moved about only, in its own dtype elsewhere."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastinfer
from fastinfer.graph import narrow

WIDTH, HEADS = 64, 2
KIND = "attention in bfloat16"


class Attention(nn.Module):
    """`between` is what happens to q, k, v and, before the last layer, to the heads' output."""

    def __init__(self, between=None, last=True, residual=False):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.between, self.last, self.residual = between or (lambda x, name: x), last, residual

    def forward(self, x, mask=None):
        heads = [
            self.between(layer(x), name).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name, layer in (("q", self.q), ("k", self.k), ("v", self.v))
        ]
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        y = self.between(y, "out")
        if self.residual:
            return self.out(y) + y
        return self.out(y) if self.last else y


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(narrow, "_is_faster", lambda device, mask: True)
    with torch.inference_mode():
        yield


def check(module, wanted, *inputs, filter_fn=None, dtype=torch.float32):
    """How often the pass does its work; the answer is int8's in any case."""
    module = module.eval().to(dtype)
    x = torch.randn(2, 9, WIDTH, dtype=dtype)
    reference = module(x, *inputs)
    fusion = fastinfer.quantize_(
        module, fuse=True, progress=False, **({"filter_fn": filter_fn} if filter_fn else {})
    ).fusion
    got = module(x, *inputs)
    assert fusion.fused.get(KIND, 0) == wanted
    assert fusion.fused["attention"] == 1
    assert got.dtype == dtype
    # Three products with a step of 1/127 of the greatest in a row or column, about 4 sigma.
    assert (got - reference).norm() <= 0.05 * reference.norm()


def masks():
    additive = torch.zeros(2, 1, 9, 9)
    additive[1, :, :, 6:] = -torch.inf
    return {"none": (), "boolean": (additive == 0,), "additive": (additive,)}


@pytest.mark.parametrize("mask", masks())
def test_between_int8_layers(mask):
    check(Attention(), 1, *masks()[mask])


def test_one_layer_left_as_it_was():
    for name in ("q", "v", "out"):
        torch._dynamo.reset()
        check(Attention(), 0, filter_fn=lambda _, fqn, name=name: fqn != name)


@pytest.mark.parametrize("where", ["q", "v", "out"])
def test_arithmetic_between(where):
    check(Attention(lambda x, name: x.abs() if name == where else x), 0)


@pytest.mark.parametrize("factor", [0.3, -0.3])
def test_scaled_queries(factor):
    """A positive factor is the operator's scale."""
    scaled = Attention(lambda x, name: x * factor if name == "q" else x)
    check(scaled, 1 if factor > 0 else 0)


def test_other_readers():
    check(Attention(last=False), 0)
    torch._dynamo.reset()
    check(Attention(residual=True), 0)


def test_keys_that_are_returned():
    class Cached(Attention):
        def forward(self, x):
            k = self.k(x)
            heads = [
                y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (self.q(x), k, self.v(x))
            ]
            return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)), k

    module = Cached().eval()
    x = torch.randn(2, 9, WIDTH)
    k = module.k(x)
    fusion = fastinfer.quantize_(module, fuse=True, progress=False).fusion
    got = module(x)[1]
    assert KIND not in {kind for kind, count in fusion.fused.items() if count}
    assert got.dtype == torch.float32
    assert (got - k).norm() <= 0.05 * k.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_models_of_16_bits_keep_their_dtype(dtype):
    check(Attention(), 0, dtype=dtype)


def test_where_it_is_not_faster(monkeypatch):
    monkeypatch.setattr(narrow, "_is_faster", lambda device, mask: False)
    check(Attention(), 0)
