"""linear_w8a8_gated: the product of two linears, formed in the epilogue."""

import pytest
import torch

from fastinfer import ops
from linears import FLOATS, opcheck, poisoned, random_weight, same_bits


def gated(x, gate, up, **options):
    return ops.linear_w8a8_gated(x, *gate, *up, **options)


def composed(x, gate, up, activation="none", out_dtype=None, **given):
    """Both factors in float32, their product rounded once more to the output."""
    options = {"out_dtype": torch.float32, **given}
    factor = ops.linear_w8a8(x, *gate, activation=activation, **options)
    product = factor * ops.linear_w8a8(x, *up, **options)
    return product.to(x.dtype if out_dtype is None else out_dtype)


SHAPES = [(0, 17, 70), (1, 16, 64), (1, 1, 1), (5, 33, 70), (37, 65, 128), (4, 17, 0), (3, 0, 64)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_equals_the_composition(isa, activation, dtype, rng, randn):
    for m, n, k in SHAPES:
        gate, up = random_weight(rng, n, k), random_weight(rng, n, k, bias=m % 2 == 0)
        x = randn(m, k).to(dtype)
        got = gated(x, gate, up, activation=activation)
        assert got.is_contiguous()
        assert same_bits(got, composed(x, gate, up, activation)), (m, n, k)


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
def test_out_dtype(isa, out_dtype, rng, randn):
    gate, up = random_weight(rng, 33, 70), random_weight(rng, 33, 70)
    x = randn(2, 5, 70).bfloat16()
    got = gated(x, gate, up, activation="silu", out_dtype=out_dtype)
    assert same_bits(got, composed(x, gate, up, "silu", out_dtype))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 2000, 600), (170, 400, 64), (400, 250, 70)])
def test_tiles_of_the_gate_and_threads(isa, m, n, k, rng, randn):
    """More rows and columns than a tile of the gate holds (160 x 192), shared by two threads."""
    gate, up = random_weight(rng, n, k), random_weight(rng, n, k)
    x = randn(m, k)
    want = composed(x, gate, up, "silu")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert same_bits(gated(x, gate, up, activation="silu"), want), threads


def test_chunks_of_rows(isa, rng, randn):
    """4000 bytes a row: chunks of 256 rows, the second shorter than the first."""
    gate, up = random_weight(rng, 33, 4000), random_weight(rng, 33, 4000)
    x = randn(300, 4000)
    assert same_bits(gated(x, gate, up, activation="gelu"), composed(x, gate, up, "gelu"))


def test_int8_rows_and_a_static_scale(isa, rng, randn):
    for m, k in ((200, 128), (7, 70)):
        gate, up = random_weight(rng, 50, k), random_weight(rng, 50, k)
        x = randn(m, k)
        q, scale, offset = ops.quantize_rows(x)
        rows = {"x_scale": scale, "x_offset": offset, "out_dtype": torch.float32}
        got = gated(q, gate, up, activation="silu", **rows)
        assert same_bits(got, gated(x, gate, up, activation="silu"))
        static = {"x_scale": torch.tensor([0.02]), "x_offset": torch.tensor([0.25])}
        got = gated(x, gate, up, activation="silu", **static)
        assert same_bits(got, composed(x, gate, up, "silu", **static))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_row(isa, poison, dtype, rng, randn):
    gate, up = random_weight(rng, 33, 70), random_weight(rng, 33, 70)
    y = gated(poisoned(randn(4, 70), poison).to(dtype), gate, up, activation="relu")
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


def test_strides(isa, rng, randn):
    gate, up = random_weight(rng, 33, 70), random_weight(rng, 33, 70)
    for x in (randn(70, 6).T, randn(6, 140)[:, ::2], randn(1, 5, 70).expand(4, 5, 70)):
        got = gated(x, gate, up, activation="silu")
        assert same_bits(got, gated(x.contiguous(), gate, up, activation="silu"))


X = torch.ones(2, 70)
PACKED, SCALE = ops.pack_w8(torch.ones(33, 70, dtype=torch.int8)), torch.ones(33)
NARROW = ops.pack_w8(torch.ones(32, 70, dtype=torch.int8))
SHORT = ops.pack_w8(torch.ones(33, 7, dtype=torch.int8))
GOOD = {
    "x": X,
    **{"gate_packed": PACKED, "gate_scale": SCALE, "gate_bias": None},
    **{"up_packed": PACKED, "up_scale": SCALE, "up_bias": None},
    "activation": "silu",
}
BAD = {
    "x": ({"x": X.int()}, TypeError, "x has dtype torch.int32"),
    "K": ({"x": X[:, :69]}, ValueError, r"x has shape \[2, 69\], want"),
    "gate": ({"gate_packed": SCALE}, TypeError, "gate_packed has dtype"),
    "gate scale": ({"gate_scale": SCALE[:32]}, ValueError, "up_scale has shape|gate_scale has"),
    "gate bias": ({"gate_bias": SCALE[:32]}, ValueError, r"gate_bias has shape \[32\]"),
    "up cut": ({"up_packed": PACKED[:-1].clone()}, ValueError, "up_packed: its size"),
    "up bias": ({"up_bias": SCALE[:32]}, ValueError, r"up_bias has shape \[32\]"),
    "up N": (
        {"up_packed": NARROW, "up_scale": SCALE[:32]},
        ValueError,
        r"up_scale has shape \[32\], want that of gate_scale, \[33\]",
    ),
    "up K": ({"up_packed": SHORT}, ValueError, r"up_packed holds \[33, 7\], want"),
    "up device": ({"up_packed": PACKED.to("meta")}, ValueError, "up_packed is on meta"),
    "activation": ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
    "out_dtype": ({"out_dtype": torch.int8}, TypeError, "out_dtype is torch.int8"),
    "scale": ({"x_scale": torch.ones(1)}, ValueError, "x_offset is None"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    arguments = {**GOOD, **change}
    with pytest.raises(error, match=f"^linear_w8a8_gated: ({match})"):
        ops.linear_w8a8_gated(**arguments)
    with pytest.raises((RuntimeError, ValueError, TypeError)):  # the operator itself too
        torch.ops.fastinfer.linear_w8a8_gated(**arguments)


def test_opcheck(rng, randn):
    op = torch.ops.fastinfer.linear_w8a8_gated
    gate, up = random_weight(rng, 33, 70), random_weight(rng, 33, 70, bias=False)
    for x in (X, randn(0, 70).half(), randn(2, 3, 70).bfloat16(), randn(70)):
        opcheck(op, x, *gate, *up, "silu")
    q, scale, offset = ops.quantize_rows(X)
    opcheck(op, q, *gate, *up, "none", torch.float16, scale, offset)


def test_compiled_with_a_symbolic_batch(rng, randn):
    gate, up = random_weight(rng, 33, 70), random_weight(rng, 33, 70)

    def model(x):
        return gated(x, gate, up, activation="silu") * 2

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in ((5,), (9,), (1,), (2, 3)):
        x = randn(*lead, 70)
        assert torch.equal(compiled(x), model(x)), lead
