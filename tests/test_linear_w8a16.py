"""torch.ops.fastinfer.linear_w8a16 through its wrapper: numbers, bits, strides, errors, tracing."""

import math

import pytest
import torch

from fastinfer import ops
from test_ops import BAD_LINEAR, FLOATS, OUT_U, SHAPES, STRIDED, U, misaligned, same_bits, weights

N, K = 96, 200
PACKED = ops.pack_w8(torch.ones(N, K, dtype=torch.int8))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("lead", "n", "k"), SHAPES, ids=str)
def test_against_float64_and_the_generic_isa(isa, force_isa, lead, n, k, dtype, rng, randn):
    w, packed, scale, bias = weights(rng, n, k)
    x = randn(*lead, k).to(dtype)
    y = ops.linear_w8a16(x, packed, scale, bias)
    assert y.shape == (*lead, n)
    assert y.dtype == dtype
    assert y.is_contiguous()

    want = x.double() @ w.double().T * scale.double() + bias.double()
    # The formula of csrc/cpu/gemm_f32s8f32/gemm_f32s8f32.h: min(K, 256) roundings of a chain and
    # one a block, one of the scaled sum with the bias, then the one of the output.
    magnitude = x.double().abs() @ w.double().abs().T * scale.double()
    bound = U * ((min(k, 256) + math.ceil(k / 256)) * magnitude + want.abs()) * (1 + 2.0**-13)
    bound += OUT_U[dtype] * want.abs() * (1 + 2.0**-10) + 2.0**-25 * (dtype == torch.float16)
    assert ((y.double() - want).abs() <= bound).all()

    force_isa("generic")
    assert same_bits(y, ops.linear_w8a16(x, packed, scale, bias))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bits_do_not_depend_on_threads_or_the_batch(isa, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, 130, 300)
    x = randn(131, 300).to(dtype)
    whole = ops.linear_w8a16(x, packed, scale, bias, activation="gelu")
    for parts in [1, 7, 64]:
        split = [
            ops.linear_w8a16(p, packed, scale, bias, activation="gelu") for p in x.split(parts)
        ]
        assert same_bits(whole, torch.cat(split)), parts
    torch.set_num_threads(2)
    for _ in range(3):
        assert same_bits(whole, ops.linear_w8a16(x, packed, scale, bias, activation="gelu"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(isa, strided, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, 33, 70)
    x = strided(lambda *shape: randn(*shape).to(dtype))
    y = ops.linear_w8a16(x, packed, scale, bias)
    plain = x.clone(memory_format=torch.contiguous_format)
    assert same_bits(y, ops.linear_w8a16(plain, packed, scale, bias))
    moved = misaligned(packed), misaligned(scale), misaligned(bias)
    assert same_bits(y, ops.linear_w8a16(x, *moved))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
def test_residual_and_out_dtype(isa, activation, out_dtype, rng, randn):
    """The residual is added in float32 before the one rounding to the output."""
    _, packed, scale, bias = weights(rng, 33, 70)
    x = randn(2, 5, 70).bfloat16()
    options = {"activation": activation, "out_dtype": out_dtype}
    residual = randn(5, 2, 33).to(out_dtype).transpose(0, 1)
    y = ops.linear_w8a16(x, packed, scale, bias, residual=residual, **options)
    options["out_dtype"] = torch.float32
    inner = ops.linear_w8a16(x, packed, scale, bias, **options)
    assert same_bits(y, (inner + residual.float()).to(out_dtype))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_row_poisons_no_other(isa, poison, rng, randn):
    _, packed, scale, bias = weights(rng, 96, 200)
    x = randn(40, 200).bfloat16()
    clean = ops.linear_w8a16(x, packed, scale, bias)
    x[7, 199] = poison
    y = ops.linear_w8a16(x, packed, scale, bias)
    assert not y[7].isfinite().any()
    others = torch.arange(40) != 7
    assert same_bits(y[others], clean[others])


BAD = {
    **{k: v for k, v in BAD_LINEAR.items() if k != "out_dtype"},
    "x int8": (
        {"x": torch.ones(2, K, dtype=torch.int8)},
        TypeError,
        "x has dtype torch.int8, want torch.float32",
    ),
    "sparse": (
        {"w_packed": ops.pack_w8(torch.ones(N, K, dtype=torch.int8), "bitmask")},
        ValueError,
        "w_packed has the layout bitmask, want dense",
    ),
    "out_dtype": ({"out_dtype": torch.float64}, TypeError, "out_dtype is torch.float64, want"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    arguments = {"x": torch.ones(2, K), "w_packed": PACKED, "w_scale": torch.ones(N), **change}
    with pytest.raises(error, match=f"^linear_w8a16: {match}"):
        ops.linear_w8a16(**arguments)


def test_meta_tensors_give_shapes():
    packed, scale = PACKED.to("meta"), torch.ones(N, device="meta")
    x = torch.empty(2, 3, K, device="meta")
    y = ops.linear_w8a16(x, packed, scale, out_dtype=torch.float16)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, N), torch.float16, "meta")
    with pytest.raises(ValueError, match=r"^linear_w8a16: w_packed has \d+ bytes, want the "):
        ops.linear_w8a16(x[..., :100], packed, scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3)], ids=str)
def test_opcheck(lead, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, N, K)
    x = randn(*lead, K).to(dtype)
    linear = torch.ops.fastinfer.linear_w8a16.default
    for arguments in (
        (x, packed, scale),
        (x, packed, scale, bias, "gelu", randn(*lead, N), torch.float32),
    ):
        results = torch.library.opcheck(linear, arguments)
        assert set(results.values()) == {"SUCCESS"}
