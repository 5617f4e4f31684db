"""linear_w8a8_cat: the bits of the single linears side by side."""

import pytest
import torch

from fastinfer import ops
from linears import FLOATS, opcheck, poisoned, random_weight, same_bits


def cat(x, weights, **options):
    return ops.linear_w8a8_cat(x, *map(list, zip(*weights, strict=True)), **options)


def singles(x, weights, **options):
    return torch.cat([ops.linear_w8a8(x, *weight, **options) for weight in weights], -1)


# Widths that are no multiple of 16, less than a panel, zero; one weight alone.
WIDTHS = [(33,), (48, 16), (5, 7, 33), (0, 17, 0, 64), (100, 1)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_equals_singles(isa, widths, dtype, rng, randn):
    for m, k in [(1, 64), (5, 70), (33, 200), (0, 70), (4, 0)]:
        weights = [random_weight(rng, n, k, bias=i != 1) for i, n in enumerate(widths)]
        x = randn(m, k).to(dtype)
        options = {"activation": "gelu_tanh", "out_dtype": torch.float16}
        got = cat(x, weights, **options)
        assert got.is_contiguous()
        assert same_bits(got, singles(x, weights, **options)), (m, k)


@pytest.mark.parametrize("widths", [(896, 896, 896), (1000, 40, 500), (24, 24, 1500)], ids=str)
def test_threads_share_the_columns_of_all(isa, widths, rng, randn):
    """Column ranges of tasks begin and end inside weights and cross them."""
    weights = [random_weight(rng, n, 600) for n in widths]
    for m in (1, 3, 70):
        x = randn(m, 600)
        want = singles(x, weights)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert same_bits(cat(x, weights), want), (m, threads)


def test_many_weights(isa, rng, randn):
    weights = [random_weight(rng, n, 70) for n in range(1, 41)]
    x = randn(9, 70)
    assert same_bits(cat(x, weights), singles(x, weights))


def test_int8_rows_and_a_static_scale(isa, rng, randn):
    weights = [random_weight(rng, n, 70) for n in (33, 16, 50)]
    x = randn(2, 20, 70)
    q, scale, offset = ops.quantize_rows(x)
    rows = {"x_scale": scale, "x_offset": offset, "out_dtype": torch.float32}
    assert same_bits(cat(q, weights, **rows), cat(x, weights))
    static = {"x_scale": torch.tensor([0.02]), "x_offset": torch.tensor([0.25])}
    assert same_bits(cat(x, weights, **static), singles(x, weights, **static))


def test_strides_and_poison(isa, rng, randn):
    weights = [random_weight(rng, n, 70) for n in (33, 17)]
    for x in (randn(70, 6).T, randn(6, 140)[:, ::2], randn(1, 70).expand(6, 70)):
        assert same_bits(cat(x, weights), singles(x.contiguous(), weights))
    x = poisoned(randn(4, 70), float("inf"))
    y = cat(x, weights)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


X = torch.ones(2, 70)
PACKED = [ops.pack_w8(torch.ones(n, 70, dtype=torch.int8)) for n in (33, 17)]
SCALE = [torch.ones(33), torch.ones(17)]
BIAS = [None, torch.ones(17)]
SHORT = ops.pack_w8(torch.ones(17, 69, dtype=torch.int8))
OTHER = ops.pack_w8(torch.ones(17, 7, dtype=torch.int8))
BAD = {
    "none": ([], [], [], ValueError, "w_packed is empty"),
    "lengths": (PACKED, SCALE, [None], ValueError, ".* have lengths 2, 2, 1, want equal ones"),
    "tensor": (PACKED[0], SCALE, BIAS, TypeError, "w_packed is a Tensor, want a list"),
    "packed dtype": ([PACKED[0], X], SCALE, BIAS, TypeError, r"w_packed\[1\] has dtype"),
    "packed cut": (
        [PACKED[0], PACKED[1][:-1].clone()],
        SCALE,
        BIAS,
        ValueError,
        r"w_packed\[1\]: its size",
    ),
    "K of x": ([SHORT, SHORT], [SCALE[1]] * 2, BIAS, ValueError, r"x has shape \[2, 70\], want"),
    "K of one": ([PACKED[0], OTHER], SCALE, BIAS, ValueError, r"w_packed\[1\] has K = 7, want"),
    "scale": (PACKED, SCALE[::-1], [None, None], ValueError, r"w_scale\[0\] has shape \[17\]"),
    "bias": (PACKED, SCALE, [BIAS[1], None], ValueError, r"bias\[0\] has shape \[17\], want"),
    "device": (
        [PACKED[0], PACKED[1].to("meta")],
        SCALE,
        BIAS,
        ValueError,
        r"w_packed\[1\] is on meta",
    ),
}


@pytest.mark.parametrize(("packed", "scale", "bias", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(packed, scale, bias, error, match):
    with pytest.raises(error, match=f"^linear_w8a8_cat: {match}"):
        ops.linear_w8a8_cat(X, packed, scale, bias)
    if isinstance(packed, list):  # the operator itself refuses too
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            torch.ops.fastinfer.linear_w8a8_cat(X, packed, scale, bias)


def test_refuses_options():
    for options, match in [({"activation": "tanh"}, "activation"), ({"x_scale": X[0]}, "x_offset")]:
        with pytest.raises(ValueError, match=f"^linear_w8a8_cat: {match} is"):
            ops.linear_w8a8_cat(X, PACKED, SCALE, BIAS, **options)


def test_opcheck(rng, randn):
    op = torch.ops.fastinfer.linear_w8a8_cat
    q, scale, offset = ops.quantize_rows(X)
    for x in (X, randn(0, 70).half(), randn(2, 3, 70).bfloat16(), randn(70)):
        opcheck(op, x, PACKED, SCALE, BIAS)
        opcheck(op, x, PACKED[:1], SCALE[:1], BIAS[:1], "silu", torch.float32)
    opcheck(op, q, PACKED, SCALE, BIAS, "none", torch.bfloat16, scale, offset)


def test_compiled_with_a_symbolic_batch(rng, randn):
    weights = [random_weight(rng, n, 70, bias=n > 16) for n in (33, 16, 50)]

    def model(x):
        return cat(x, weights, activation="relu").split([33, 16, 50], -1)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in ((5,), (9,), (1,), (2, 3)):
        x = randn(*lead, 70)
        assert all(map(torch.equal, compiled(x), model(x))), lead


def test_meta_gives_shapes():
    meta = [[None if t is None else t.to("meta") for t in ts] for ts in (PACKED, SCALE, BIAS)]
    y = ops.linear_w8a8_cat(X.to("meta"), *meta)
    assert (y.shape, y.dtype) == ((2, 50), torch.float32)
    for i in range(2):
        cut = list(meta[0])
        cut[i] = PACKED[i][:63].to("meta")
        with pytest.raises(ValueError, match=rf"^linear_w8a8_cat: w_packed\[{i}\] has \d+ bytes"):
            ops.linear_w8a8_cat(X.to("meta"), cut, *meta[1:])
