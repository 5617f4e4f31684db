"""Masks of attention, written out by hand as models make them: the graph has them in their least
form where that says the same, and the answers are those of the model as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastinfer
from fastinfer.graph import masks

pytestmark = pytest.mark.usefixtures("fresh_inference")

HEADS, SIZE = 2, 32
KIND = "attention mask"


class Attention(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.qkv = nn.Linear(HEADS * SIZE, HEADS * SIZE)

    def forward(self, x, *given):
        q = k = v = self.qkv(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x, *given))
        return y.transpose(1, 2).flatten(2)


def positions(x, dim=1, start=0):
    return torch.arange(x.shape[dim]) + start


def keys(x, start=0):
    return positions(x, 1, start)[None, None, None, :]


def queries(x, start=0):
    return positions(x, 1, start)[None, None, :, None]


def batches(x, start=0):
    return positions(x, 0, start)[:, None, None, None]


def padding(x, seen):
    return seen[batches(x), keys(x)]


def true(x):
    return x.new_ones((), dtype=torch.bool) & (queries(x) >= 0)


# What is left of a mask: its shape behind [batch, 1, length, length] as letters, and causal.
SIMPLE = {
    "nothing": (lambda x, seen: true(x), None, False),
    "padding": (lambda x, seen: padding(x, seen), "b11t", False),
    "padding and true": (lambda x, seen: true(x) & padding(x, seen), "b11t", False),
    "expanded": (
        lambda x, seen: (true(x) & padding(x, seen)).expand(x.shape[0], 1, x.shape[1], x.shape[1]),
        "b11t",
        False,
    ),
    "causal": (lambda x, seen: true(x) & (keys(x) <= queries(x)), None, True),
    "causal, the other way": (lambda x, seen: queries(x) >= keys(x), None, True),
    "causal from 3 on": (lambda x, seen: keys(x, 3) <= queries(x, 3), None, True),
    "causal and padding": (
        lambda x, seen: (keys(x) <= queries(x)) & padding(x, seen),
        "b11t",
        True,
    ),
    "causal and another": (
        lambda x, seen: (keys(x) <= queries(x)) & (queries(x) - keys(x) < 3),
        "11tt",
        True,
    ),
    "rows of padding": (lambda x, seen: seen[batches(x), queries(x)], "b1t1", False),
}
SAME = {  # masks that look like those and are not
    "later keys": lambda x, seen: keys(x) >= queries(x),
    "earlier keys alone": lambda x, seen: keys(x) < queries(x) + 1,
    "keys one further": lambda x, seen: keys(x, 1) <= queries(x) + 2,
    "not at first": lambda x, seen: queries(x) >= 1,
    "transposed": lambda x, seen: seen[
        positions(x, 0)[None, None, None, :] % seen.shape[0], queries(x)
    ][..., :1],
    "shifted": lambda x, seen: seen[batches(x), (keys(x, 1)) % seen.shape[1]],
    "either": lambda x, seen: (keys(x) <= queries(x)) | padding(x, seen),
    "one key and query for all": lambda x, seen: (
        seen[:, None, :, None] & (keys(x[:, :1]) <= queries(x[:, :1]))
    ),
    "one for all, expanded": lambda x, seen: (keys(x[:, :1]) <= queries(x[:, :1])).expand(
        x.shape[0], 1, x.shape[1], x.shape[1]
    ),
    "floats that are equal": lambda x, seen: keys(x, 2.0**24) <= queries(x, 2.0**24),
    "given": lambda x, seen: seen[:, None, None, :],
}


@pytest.fixture
def attentions(monkeypatch):
    """The arguments of every attention after the pass."""
    seen = []

    def spy(graph):
        made = original(graph)
        for node in graph.nodes:
            if masks.is_op(node, masks.fastinfer.attention.default):
                seen.append(masks.arguments(node))
        return made

    original = masks.simplify_masks
    monkeypatch.setattr("fastinfer.graph.rewrite.simplify_masks", spy)
    return seen


def answers(mask, *inputs):
    """Fused and not, for one set of inputs."""
    module = Attention(mask).eval()
    want = module(*inputs)
    fusion = fastinfer.fuse_(module)
    return module(*inputs), want, fusion


def some_inputs(batch=3, length=7):
    seen = torch.rand(batch, length) < 0.6
    seen[:, 0] = True  # no query without a key: torch's kernels differ there
    return torch.randn(batch, length, HEADS * SIZE), seen


def close(got, want):
    return (got - want).abs().max() <= 1e-5


@pytest.mark.parametrize("name", SIMPLE)
def test_simple(name, attentions):
    mask, shape, causal = SIMPLE[name]
    x, seen = some_inputs()
    if "rows" in name:
        seen[:] = True
    got, want, fusion = answers(mask, x, seen)
    assert fusion.fused[KIND] == 1
    assert close(got, want)
    (a,) = attentions
    assert a["causal"] is causal
    letters = {"b": 3, "t": 7, "1": 1}
    if shape is None:
        assert a["mask"] is None
    else:
        got_shape = [1, 1, 1, 1, *map(int, masks.value(a["mask"]).shape)][-4:]
        assert got_shape == [letters[c] for c in shape]


@pytest.mark.parametrize("name", SAME)
def test_stays(name, attentions):
    x, seen = some_inputs()
    if name.startswith("one key"):
        seen[:] = True
    got, want, fusion = answers(SAME[name], x, seen)
    assert KIND not in fusion.fused
    assert torch.equal(got.isnan(), want.isnan())
    assert close(got.nan_to_num(), want.nan_to_num())
    (a,) = attentions
    assert a["mask"] is not None
    assert not a["causal"]


def test_sizes_vary():
    """One graph: other batches and lengths, and a padding mask that is longer than the batch."""
    mask = SIMPLE["causal and padding"][0]
    module = Attention(mask).eval()
    plain = copy.deepcopy(module)
    fusion = fastinfer.fuse_(module)
    for batch, length in ((2, 5), (4, 9), (3, 2)):
        x, seen = some_inputs(batch, length)
        assert close(module(x, seen), plain(x, seen))
        more = torch.cat([seen, torch.zeros(2, length, dtype=torch.bool)])
        more = torch.cat([more, torch.zeros(batch + 2, 3, dtype=torch.bool)], 1)
        assert close(module(x, more), plain(x, seen))
    assert all(g.fused[KIND] == 1 for g in fusion.graphs)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_of_padding_stay_an_error(rows):
    """One row would broadcast."""
    module = Attention(SIMPLE["padding"][0]).eval()
    fastinfer.fuse_(module)
    x, seen = some_inputs(4, 6)
    module(x, seen)
    with pytest.raises((IndexError, RuntimeError)):
        module(x, seen[:rows])


def test_cross_attention_is_not_causal(attentions):
    """More keys than queries: positions compare otherwise."""

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk = nn.Linear(HEADS * SIZE, HEADS * SIZE)

        def forward(self, x, y):
            q, k = (self.qk(t).unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (x, y))
            mask = torch.arange(y.shape[1])[None, :] <= torch.arange(x.shape[1])[:, None]
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)

    module = Cross().eval()
    x, y = torch.randn(2, 5, HEADS * SIZE), torch.randn(2, 8, HEADS * SIZE)
    want = module(x, y)
    fastinfer.fuse_(module)
    assert close(module(x, y), want)
    assert not attentions[0]["causal"]


def test_a_mask_forgotten_is_seen(monkeypatch):
    """The answers of these tests tell masks apart."""
    monkeypatch.setattr(masks, "_is_true", lambda term: True)
    got, want, _ = answers(SIMPLE["causal and padding"][0], *some_inputs())
    assert not close(got, want)
