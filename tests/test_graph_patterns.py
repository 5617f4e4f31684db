"""Blocks written out by hand: those that are the pattern are fused, near-misses stay as they are.

A near-miss must give the bits of eager torch. A fused block is as near to float64 as eager torch
is, within a factor of four (its sums run in another order), and one rounding of its dtype.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfer.graph.backend import compile_graph
from fastinfer.graph.rewritten import Rewritten
from fastinfer.nn import quantize_linear

B, H, T, S, D = 2, 4, 5, 6, 8  # batch, heads, queries, keys, size of a head
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def compiled(function, *inputs):
    """What the function gives when compiled, and what became of its graph."""
    seen: list[Rewritten] = []
    run = torch.compile(
        function, backend=lambda g, _: compile_graph(g, seen.append), dynamic=False, fullgraph=True
    )
    got = run(*(x.clone() for x in inputs))
    assert len(seen) == 1
    return got, seen[0]


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def fuses(function, inputs, want):
    got, result = compiled(function, *inputs)
    eager = function(*inputs)
    assert dict(result.fused) == want
    assert (got.dtype, got.shape, got.stride()) == (eager.dtype, eager.shape, eager.stride())
    exact = function(*(x.double() if x.is_floating_point() else x for x in inputs)).double()
    assert error(got, exact) <= 4 * error(eager, exact) + torch.finfo(got.dtype).eps


def stays(function, inputs, reason=None):
    got, result = compiled(function, *inputs)
    eager = function(*(x.clone() for x in inputs))
    assert not result.fused
    assert result.why_not is None if reason is None else reason in result.why_not
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, eager)), strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def r(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


# --- rotary embedding ----------------------------------------------------------------------------


def turn(x):
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rope(x, cos, sin):
    return x * cos + turn(x) * sin


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rope(dtype):
    x = r(B, H, T, D, dtype=dtype)
    made = {"rotary embedding": 1}
    # Contiguous, as x * cos was: the kernel writes [B, T, H, D].
    fuses(rope, (x, *r(2, 1, T, D, dtype=dtype)), made)
    fuses(rope, (x, *r(2, T, D, dtype=dtype)), made)
    per_batch = r(2, B, T, D, dtype=dtype)
    fuses(lambda x, c, s: rope(x, c.unsqueeze(1), s.unsqueeze(1)), (x, *per_batch), made)


NOT_ROPE = {
    "sign": lambda x, c, s: x * c + torch.cat([x[..., 4:], -x[..., :4]], -1) * s,
    "halves": lambda x, c, s: x * c + torch.cat([-x[..., :4], x[..., 4:]], -1) * s,
    "minus": lambda x, c, s: x * c - turn(x) * s,
    "neighbours": lambda x, c, s: (
        x * c + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * s
    ),
    "other x": lambda x, c, s: x * c + turn(x + 1) * s,
    "dtypes": lambda x, c, s: (x * c + turn(x) * s.float()).to(x.dtype),
}


@pytest.mark.parametrize("name", NOT_ROPE)
def test_not_rope(name):
    dtype = torch.bfloat16 if name == "dtypes" else torch.float32
    stays(NOT_ROPE[name], (r(B, H, T, D, dtype=dtype), *r(2, T, D, dtype=dtype)))


def test_rope_tables_of_heads():
    """[H, T, D] broadcasts over the heads, even where there are as many sequences."""
    stays(rope, (r(H, H, T, D), *r(2, H, T, D)))


# --- norms ---------------------------------------------------------------------------------------


def rms(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


RMS = {
    "weight": lambda x, w: w * rms(x),
    "weight after the cast": lambda x, w: w * rms(x.float()).to(x.dtype),
    "weight before the cast": lambda x, w: (rms(x.float()) * (1 + w.float())).to(x.dtype),
    "operator": lambda x, w: F.rms_norm(x, (16,), w, 1e-5),
    "operator, own eps": lambda x, w: F.rms_norm(0.003 * x, (16,), w),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", RMS)
def test_rms_norm(name, dtype):
    fuses(RMS[name], (r(3, 7, 16, dtype=dtype), r(16, dtype=dtype)), {"RMS norm": 1})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_addition_in_a_norm(dtype):
    x, y, w = r(3, 7, 16, dtype=dtype), r(3, 7, 16, dtype=dtype), r(16, dtype=dtype)
    made = {"layer norm": 1, "addition in a norm": 1}
    fuses(lambda x, y, w: F.layer_norm(x + y, (16,), w, w) * (x + y).sigmoid(), (x, y, w), made)
    for other in (lambda x, y: torch.add(x, y, alpha=2), lambda x, y: x + y[0, 0]):
        fuses(
            lambda x, y, w, f=other: F.layer_norm(f(x, y), (16,), w), (x, y, w), {"layer norm": 1}
        )


NOT_NORM = {
    "other dim": lambda x, w: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "no eps": lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
    "cube": lambda x, w: x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + 1e-6),
    "another": lambda x, w: w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "one weight": lambda x, w: rms(x) * w[:1],
    "strided weight": lambda x, w: F.layer_norm(x, (16,), w.expand(2, 16).T.contiguous()[:, 0]),
    "expanded weight": lambda x, w: rms(x) * w[:1].expand(16),
    "two dims": lambda x, w: F.layer_norm(x, (7, 16)),
    "double": lambda x, w: F.layer_norm(x.double(), (16,)),
    "dtype changes": lambda x, w: w * rms(x.double()),
}


@pytest.mark.parametrize("name", NOT_NORM)
def test_not_norm(name):
    stays(NOT_NORM[name], (r(3, 7, 16), r(16)))


# --- activations ---------------------------------------------------------------------------------


def tanh_gelu(x, a=0.5, b=0.044715, c=0.7978845608028654):  # c = sqrt(2 / pi)
    return a * x * (1 + torch.tanh(c * (x + b * torch.pow(x, 3))))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_activations(dtype):
    x, y = r(2, 3, 7, 16, dtype=dtype)
    fuses(tanh_gelu, (x,), {"activation": 1})
    fuses(lambda x, y: F.silu(x) * y, (x, y), {"gate": 1})
    fuses(lambda x: F.silu(x) * x, (x,), {"gate": 1})


NOT_ACTIVATION = {
    "a": lambda x: tanh_gelu(x, a=0.51),
    "b": lambda x: tanh_gelu(x, b=0.0447),
    "c": lambda x: tanh_gelu(x, c=0.79),
    "no dimension": lambda x: F.silu(x.sum()) * F.gelu(x.mean()),
    "double": lambda x: F.silu(x.double()) * x,
    "integers": lambda x: (n := x.long()) * torch.sigmoid(n),
    "quick, no dimension": lambda x: (n := x.sum()) * torch.sigmoid(1.702 * n),
    "quick, channels last": lambda x: (
        (n := x[None].to(memory_format=torch.channels_last)) * torch.sigmoid(1.702 * n)
    ),
    "channels last": lambda x: F.gelu(x[None].to(memory_format=torch.channels_last)),
    "turned": lambda x: F.gelu(x.transpose(1, 2)).transpose(1, 2).view(3, -1),
}


@pytest.mark.parametrize("name", NOT_ACTIVATION)
def test_not_an_activation(name):
    stays(NOT_ACTIVATION[name], (r(3, 7, 16),))


# --- attention -----------------------------------------------------------------------------------


def qkv(dtype=torch.float32):
    return (
        r(B, H, T, D, dtype=dtype),
        r(B, H, S, D, dtype=dtype),
        r(B, H, S, D, dtype=dtype),
    )


def scores(q, k):
    return q @ k.transpose(-1, -2)


def softmax(x):
    return torch.softmax(x, -1)


ATTENTION = {
    "divided": lambda q, k, v, m: softmax(scores(q, k) / math.sqrt(D)) @ v,
    "multiplied, masked": lambda q, k, v, m: softmax(scores(q, k) * 0.3 + m) @ v,
    "mask in two terms": lambda q, k, v, m: (
        softmax((scores(q, k) * 0.3).add_(k[:, :, None, :, 1]) + m) @ v
    ),
    "mask in three terms": lambda q, k, v, m: (
        softmax(m + (k[:, :, None, :, 1] + scores(q, k) * 0.3) + k[:, :, None, :, 0]) @ v
    ),
    "scaled query": lambda q, k, v, m: softmax(scores(q * 0.3, k)) @ v,
    "scaled query, scores too": lambda q, k, v, m: softmax(scores(q * 0.3, k) / 2 + m) @ v,
    "scaled query of the operator": lambda q, k, v, m: (
        F.scaled_dot_product_attention((0.3 * q.transpose(1, 2)).transpose(1, 2), k, v, m) + 0
    ),
    "negative query": lambda q, k, v, m: softmax(scores(q * -2, k)) @ v,
    "joined heads": lambda q, k, v, m: (softmax(scores(q, k)) @ v).view(B * H, T, D),
    "float32 softmax": lambda q, k, v, m: (
        torch.softmax(scores(q, k), -1, dtype=torch.float32).to(q.dtype) @ v
    ),
    "operator": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.7) + 0,
    "causal": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True) + 0,
    "hidden": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m > 0) + 0,
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in ATTENTION if name != "float32 softmax"]
    + [(name, d) for name in ("divided", "float32 softmax") for d in FLOATS[1:]],
    ids=str,
)
def test_attention(name, dtype):
    mask = r(B, 1, 1, S, dtype=dtype)
    inputs = (*qkv(dtype), mask)
    got, result = compiled(ATTENTION[name], *inputs)
    assert dict(result.fused) == {"attention": 1}
    eager = ATTENTION[name](*inputs)
    if name == "float32 softmax":
        exact = ATTENTION["joined heads"](*(x.double() for x in inputs)).view(B, H, T, D)
    else:
        exact = ATTENTION[name](*(x.double() for x in inputs))
    assert got.shape == eager.shape
    assert error(got, exact) <= 4 * error(eager, exact) + torch.finfo(dtype).eps


NOT_ATTENTION = {
    "mask before the scale": lambda q, k, v: (
        softmax((scores(q, k) + k[:, :, None, :, 0]) * 0.3) @ v
    ),
    "bool mask added": lambda q, k, v: softmax(scores(q, k) + (k[:, :1, None, :, 0] > 0)) @ v,
    "int mask": lambda q, k, v: softmax(scores(q, k) + k[:, :1, None, :, 0].long()) @ v,
    "bool mask in two terms": lambda q, k, v: (
        softmax(scores(q, k) + k[:, :1, None, :, 1] + (k[:, :1, None, :, 0] > 0)) @ v
    ),
    "terms of two kinds": lambda q, k, v: (
        softmax(scores(q, k) + k[:, :1, None, :, 1] + k[:, :1, None, :, 0].half()) @ v
    ),
    "two products": lambda q, k, v: softmax(scores(q, k) + scores(q * 2, k)) @ v,
    "a sum returned": lambda q, k, v: (
        softmax((w := scores(q, k) + k[:, :, None, :, 1]) + 1) @ v,
        w,
    ),
    "alpha": lambda q, k, v: softmax(torch.add(scores(q, k), k[:, :, None, :, 0], alpha=2)) @ v,
    "rounded scores": lambda q, k, v: softmax((3 * scores(q, k)).to(torch.int32).float()) @ v,
    "rounded weights": lambda q, k, v: softmax(9 * scores(q, k)).to(torch.int32).float() @ v,
    "weights returned": lambda q, k, v: ((w := softmax(scores(q, k))) @ v, w),
    "scores returned": lambda q, k, v: (softmax(w := scores(q, k)) @ v, w),
    "other dim": lambda q, k, v: torch.softmax(scores(q, k), -2) @ v,
    "narrow v": lambda q, k, v: softmax(scores(q, k)) @ v[..., :4],
    "one sequence of keys": lambda q, k, v: softmax(scores(q, k[:1])) @ v[:1],
    "one key, many values": lambda q, k, v: (
        softmax(scores(q, k[:, :, :1]) + k[:, :, None, :, 0]) @ v
    ),
    "3-D": lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0]),
    "operator, narrow v": lambda q, k, v: F.scaled_dot_product_attention(q, k, v[..., :4]),
    "wide": lambda q, k, v: F.scaled_dot_product_attention(
        *(x.repeat(1, 1, 1, 40) for x in (q, k, v))
    ),
}


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_not_attention(name):
    stays(NOT_ATTENTION[name], qkv())


# --- int8 layers ---------------------------------------------------------------------------------


def test_linears_whose_readers_need_their_memory():
    """A layer added to itself; columns side by side of which a reader merges more than its own."""
    layers = [quantize_linear(torch.nn.Linear(16, 32, bias=b)) for b in (True, False, True)]
    x = r(2, 4, 16)

    def twice(x):
        y = layers[0](x)
        return y + y

    stays(twice, (x,))

    def merged(x):
        q, k, v = (layer(x) for layer in layers)
        return q.view(2, 4, 4, 8) + k.view(2, 4, 4, 8) + v.view(2, 2, 8, 8).view(2, 4, 4, 8)

    got, result = compiled(merged, x)
    assert result.fused == {"linears of one input": 1}
    assert torch.equal(got, merged(x))


# --- writes in place and memory ------------------------------------------------------------------

WRITES = {
    "promotes": (lambda x, y: (x.bfloat16() * 2).add_(y), "casts"),
    "compares": (lambda x, y: (x * 2).gt_(y), "casts"),
    "an input": (lambda x, y: (x.mul_(2), F.gelu(x))[1], "in place"),
    "under a view": (lambda x, y: (u := x * 2, w := u[0], u.mul_(y), F.gelu(w))[3], "in place"),
    "out": (lambda x, y: torch.add(x, y, out=torch.empty_like(x)), "in place"),
    "strides": (lambda x, y: F.gelu(x.transpose(0, 1)).as_strided((4, 4), (1, 4)), "by strides"),
    "vmap": (lambda x, y: torch.vmap(lambda a, b: a * b.sum())(F.gelu(x), y), "cannot be traced"),
    "a constant": (lambda x, y: x + torch.tensor(1.0).mul_(2), None),
    "under a later view": (
        lambda x, y: (u := (x * 2).add_(y), w := u[0], u.mul_(y), F.gelu(w))[3],
        "in place",
    ),
    "own": (lambda x, y: (x * 2).add_(y).clamp_(0), None),
    "used before": (lambda x, y: (u := x * 2, w := u + 1, u.mul_(3) + w)[2], None),
    "copy": (lambda x, y: torch.zeros_like(x).copy_(y.double()), None),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name):
    function, reason = WRITES[name]
    stays(function, tuple(r(2, 3, 7, 16)), reason)


def test_a_switch_to_gradients_is_left():
    def function(x):
        with torch.enable_grad():
            y = x.clone().requires_grad_()
            return torch.autograd.grad(F.gelu(y).sum(), y)[0]

    x = r(3, 7)
    run = torch.compile(function, backend="fastinfer")
    assert torch.equal(run(x), function(x))


def test_autocast_is_left():
    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            return F.gelu(x @ x.mT)

    stays(function, (r(3, 7, 16),), "autocast")
