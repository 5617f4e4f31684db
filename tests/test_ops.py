"""torch.ops.fastinfer.* through their wrappers: numbers, shapes, strides, errors, tracing."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastinfer import _C, ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
U = 2.0**-24  # unit roundoff of float32
OUT_U = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = [
    # x without K, N, K
    ((0,), 96, 200),
    ((3,), 0, 64),
    ((1, 1), 64, 64),
    ((5,), 96, 200),
    ((2, 3), 17, 63),
    ((2, 1, 3), 33, 129),
    ((), 5, 7),
    ((4,), 1, 1),
    ((37,), 200, 65),
    ((130,), 300, 70),
]


def weights(rng, n, k):
    w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype=np.int8))
    scale = torch.from_numpy(rng.uniform(0.5, 2, n).astype(np.float32) / 127)
    bias = torch.from_numpy(rng.standard_normal(n, dtype=np.float32))
    return w, ops.pack_w8(w), scale, bias


def quantize_around_offset(x):
    """What linear_w8a8 makes of x [..., K]: int8 [..., K], scales [...], offsets [...]."""
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[x.dtype]
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    bits = rows.numpy() if name == "f32" else rows.view(torch.uint16).numpy()
    q, scale, offset = _C.quantize_rowwise("quantize_rowwise_generic", bits, name, symmetric=False)
    lead = x.shape[:-1]
    return (
        torch.from_numpy(q).view(x.shape),
        torch.from_numpy(scale).view(lead),
        torch.from_numpy(offset).view(lead),
    )


def same_bits(a, b):
    """Equal in dtype, shape and every bit (NaN included)."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("lead", "n", "k"), SHAPES, ids=str)
def test_linear_against_float64_and_the_generic_isa(isa, force_isa, lead, n, k, dtype, rng, randn):
    w, packed, scale, bias = weights(rng, n, k)
    x = randn(*lead, k).to(dtype)
    y = ops.linear_w8a8(x, packed, scale, bias)
    assert y.shape == (*lead, n)
    assert y.dtype == dtype
    assert y.is_contiguous()

    q, x_scale, x_offset = quantize_around_offset(x)
    acc = q.double() @ w.double().T
    product = acc * scale.double() * x_scale.double()[..., None]
    shift = w.double().sum(1) * scale.double() * x_offset.double()[..., None]
    want = product + shift + bias.double()
    # The formula of csrc/cpu/gemm_s8s8s32/gemm_s8s8s32.h: two roundings of each product, one of
    # each multiply-add, then the one of the output.
    bound = 2 * product.abs() + 2 * shift.abs() + (shift + bias.double()).abs() + want.abs()
    bound = U * bound * (1 + 2.0**-20)
    bound += OUT_U[dtype] * want.abs() * (1 + 2.0**-10) + 2.0**-25 * (dtype == torch.float16)
    assert ((y.double() - want).abs() <= bound).all()

    force_isa("generic")
    assert same_bits(y, ops.linear_w8a8(x, packed, scale, bias))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bits_do_not_depend_on_threads_or_the_batch(isa, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, 300, 200)
    x = randn(131, 200).to(dtype)
    whole = ops.linear_w8a8(x, packed, scale, bias, activation="gelu")
    for parts in [1, 7, 32, 64]:
        split = [ops.linear_w8a8(p, packed, scale, bias, activation="gelu") for p in x.split(parts)]
        assert same_bits(whole, torch.cat(split)), parts
    torch.set_num_threads(2)
    assert same_bits(whole, ops.linear_w8a8(x, packed, scale, bias, activation="gelu"))


def test_two_threads_share_large_products(isa, rng, randn):
    _, packed, scale, bias = weights(rng, 528, 1000)
    for m in (1, 3, 70):
        x = randn(m, 1000)
        one = ops.linear_w8a8(x, packed, scale, bias)
        torch.set_num_threads(2)
        assert same_bits(one, ops.linear_w8a8(x, packed, scale, bias))
        torch.set_num_threads(1)


def test_outputs_past_the_caches(isa, rng, randn):
    # So many that L2 holds them not, and few enough; on one thread and on two.
    _, packed, scale, bias = weights(rng, 800, 1040)
    for m in (500, 1000):
        x = randn(m, 1040)
        parts = [ops.linear_w8a8(part, packed, scale, bias) for part in x.split(100)]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert same_bits(ops.linear_w8a8(x, packed, scale, bias), torch.cat(parts))


def test_a_hundred_runs_are_identical(isa, rng, randn):
    _, packed, scale, bias = weights(rng, 96, 200)
    x = randn(40, 200)
    torch.set_num_threads(2)
    first = ops.linear_w8a8(x, packed, scale, bias, activation="silu")
    for _ in range(100):
        assert same_bits(first, ops.linear_w8a8(x, packed, scale, bias, activation="silu"))


def misaligned(t):
    """The same values one element past the start of a storage."""
    storage = t.new_empty(t.numel() + 1)
    out = storage[1:].view(t.shape)
    return out.copy_(t)


STRIDED = {
    "transposed": lambda randn: randn(70, 6).T,
    "transposed lead": lambda randn: randn(3, 4, 70).transpose(0, 1),
    "sliced rows": lambda randn: randn(12, 70)[::2],
    "sliced columns": lambda randn: randn(6, 140)[:, 35:105],
    "every other column": lambda randn: randn(6, 140)[:, ::2],
    "expanded row": lambda randn: randn(1, 70).expand(6, 70),
    "expanded column": lambda randn: randn(6, 1).expand(6, 70),
    "expanded lead": lambda randn: randn(1, 5, 70).expand(4, 5, 70),
    "channels last": lambda randn: randn(2, 3, 4, 70).contiguous(memory_format=torch.channels_last),
    "flipped": lambda randn: randn(6, 70).flip(0),
    "misaligned": lambda randn: misaligned(randn(6, 70)),
    "batch of columns": lambda randn: randn(2, 70, 6).mT,
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(isa, strided, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, 33, 70)
    x = strided(lambda *shape: randn(*shape).to(dtype))
    y = ops.linear_w8a8(x, packed, scale, bias)
    assert same_bits(
        y, ops.linear_w8a8(x.clone(memory_format=torch.contiguous_format), packed, scale, bias)
    )
    q, x_scale = ops.quantize_rowwise(x)
    q2, x_scale2 = ops.quantize_rowwise(x.clone(memory_format=torch.contiguous_format))
    assert same_bits(q, q2)
    assert same_bits(x_scale, x_scale2)


def test_misaligned_weights(isa, rng, randn):
    _, packed, scale, bias = weights(rng, 33, 70)
    x = randn(5, 70)
    y = ops.linear_w8a8(x, misaligned(packed), misaligned(scale), misaligned(bias))
    assert same_bits(y, ops.linear_w8a8(x, packed, scale, bias))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
def test_residual_and_out_dtype(isa, activation, out_dtype, rng, randn):
    """The residual is added in float32 before the one rounding to the output."""
    _, packed, scale, bias = weights(rng, 33, 70)
    x = randn(2, 5, 70).bfloat16()
    options = {"activation": activation, "out_dtype": out_dtype}
    residual = randn(5, 2, 33).to(out_dtype).transpose(0, 1)
    y = ops.linear_w8a8(x, packed, scale, bias, residual=residual, **options)
    inner = ops.linear_w8a8(x, packed, scale, bias, activation=activation, out_dtype=torch.float32)
    assert same_bits(y, (inner + residual.float()).to(out_dtype))


def poisoned(poison, randn, dtype=torch.float32):
    x = randn(40, 200)
    x[7, 199] = poison
    return x.to(dtype)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_row_is_nan_and_poisons_no_other(isa, poison, dtype, activation, rng, randn):
    _, packed, scale, bias = weights(rng, 96, 200)
    x = poisoned(poison, randn, dtype)
    y = ops.linear_w8a8(x, packed, scale, bias, activation=activation)
    assert y[7].isnan().all()
    others = torch.arange(40) != 7
    alone = ops.linear_w8a8(x[others], packed, scale, bias, activation=activation)
    assert same_bits(y[others], alone)
    assert alone.isfinite().all()


def test_a_zero_row_gives_the_bias(isa, rng, randn):
    _, packed, scale, bias = weights(rng, 96, 200)
    x = randn(5, 200)
    x[3] = 0
    assert same_bits(ops.linear_w8a8(x, packed, scale, bias)[3], bias)
    assert not ops.linear_w8a8(x, packed, scale)[3].any()


def test_no_columns_give_the_bias(isa, rng):
    _, packed, scale, bias = weights(rng, 96, 0)
    y = ops.linear_w8a8(torch.empty(3, 0), packed, scale, bias)
    assert same_bits(y, bias.expand(3, 96))


@pytest.mark.parametrize(("outliers", "most"), [(0, 0.0125), (64, 0.055)])
def test_relative_error(outliers, most, randn, rng):
    """K = N = 4096, Gaussian, and with 64 channels of x thirty times as large.

    A rounding error is uniform in a step of 2 max / 254, so its variance is step^2 / 12. Relative
    to the mean squares of the operands, the variances of both add up.
    """
    n = k = 4096
    x, w = randn(32, k), randn(n, k)
    x[:, torch.from_numpy(rng.permutation(k)[:outliers].copy())] *= 30
    q, scale = ops.quantize_rowwise(w)
    y = ops.linear_w8a8(x, ops.pack_w8(q), scale)
    want = x.double() @ w.double().T
    error = (y - want).norm() / want.norm()
    variances = [((t.abs().amax(1) / 127) ** 2 / 12).mean() / (t**2).mean() for t in (x, w)]
    assert error <= 1.02 * (variances[0] + variances[1]).sqrt()
    assert error <= most


@pytest.mark.parametrize(
    ("n", "k"), [(0, 0), (0, 5), (5, 0), (1, 1), (16, 64), (17, 65), (96, 200)]
)
def test_pack_and_unpack_are_inverse(n, k, rng):
    w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype=np.int8))
    packed = ops.pack_w8(w)
    assert packed.shape == (ops.packed_bytes(n, k),)
    assert torch.equal(ops.unpack_w8(packed, n, k), w)
    assert torch.equal(ops.pack_w8(w.T.contiguous().T), packed)


def test_packed_layout_is_the_documented_one(rng):
    """byte(n, k) = panels[(n / 16) 16 k_pad + (k / 4) 64 + (n % 16) 4 + k % 4], zeros elsewhere."""
    n, k = 21, 70
    n_pad, k_pad = 32, 128
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    packed = ops.pack_w8(torch.from_numpy(w)).numpy()
    assert packed[:24].tobytes() == b"FASTINFRs8_n16k4" + bytes(8)
    full = np.zeros((n_pad, k_pad), np.int8)
    full[:n, :k] = w
    compensation = packed[64 : 64 + 4 * n_pad].view(np.int32)
    np.testing.assert_array_equal(compensation, -128 * full.sum(axis=1, dtype=np.int32))
    panels = packed[64 + 4 * n_pad :].view(np.int8).reshape(n_pad // 16, k_pad // 4, 16, 4)
    np.testing.assert_array_equal(panels.transpose(0, 2, 1, 3).reshape(n_pad, k_pad), full)


def altered(packed, offset):
    packed = packed.clone()
    packed[offset] ^= 1
    return packed


X, N, K = torch.ones(2, 200), 96, 200
PACKED = ops.pack_w8(torch.ones(N, K, dtype=torch.int8))
SCALE = torch.ones(N)
BAD_LINEAR = {
    "x list": ({"x": [1.0]}, TypeError, "x is a list, want a torch.Tensor"),
    "x float64": ({"x": X.double()}, TypeError, "x has dtype torch.float64, want torch.float32"),
    "x int": ({"x": X.int()}, TypeError, "x has dtype torch.int32, want torch.float32"),
    "x scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \[\], want \[..., K\]"),
    "x sparse": ({"x": X.to_sparse()}, TypeError, "x is sparse"),
    "x meta": ({"x": X.to("meta")}, ValueError, "w_packed is on cpu, want meta"),
    "K": ({"x": X[:, :100]}, ValueError, r"x has shape \[2, 100\], want .* K = 200"),
    "K padded alike": ({"x": X[:, :199]}, ValueError, r"x has shape \[2, 199\], want .* K = 200"),
    "packed float": ({"w_packed": SCALE}, TypeError, "w_packed has dtype torch.float32, want"),
    "packed 2-D": ({"w_packed": PACKED[None]}, ValueError, "w_packed has shape .*one dimension"),
    "packed strided": ({"w_packed": PACKED[::2]}, ValueError, "w_packed has stride 2"),
    "packed cut": ({"w_packed": PACKED[:-1].clone()}, ValueError, "w_packed: its size"),
    "packed short": ({"w_packed": PACKED[:9].clone()}, ValueError, "w_packed: .*too short"),
    "packed magic": ({"w_packed": altered(PACKED, 0)}, ValueError, "w_packed: .*not a packed"),
    "packed tag": (
        {"w_packed": altered(PACKED, 9)},
        ValueError,
        "w_packed: .*layout tag is none of the int8 layouts",
    ),
    "packed version": ({"w_packed": altered(PACKED, 24)}, ValueError, "w_packed: .*version"),
    "packed meta": ({"w_packed": PACKED.to("meta")}, ValueError, "w_packed is on meta, want cpu"),
    "scale N": ({"w_scale": SCALE[:95]}, ValueError, r"w_scale has shape \[95\], want \[96\]"),
    "scale half": ({"w_scale": SCALE.half()}, TypeError, "w_scale has dtype torch.float16, want"),
    "scale strided": ({"w_scale": torch.ones(192)[::2]}, ValueError, "w_scale has stride 2"),
    "bias N": ({"bias": torch.ones(1)}, ValueError, r"bias has shape \[1\], want \[96\]"),
    "bias half": ({"bias": SCALE.half()}, TypeError, "bias has dtype torch.float16, want"),
    "bias meta": ({"bias": SCALE.to("meta")}, ValueError, "bias is on meta, want cpu"),
    "activation": ({"activation": "tanh"}, ValueError, "activation is 'tanh', want one of none"),
    "residual shape": (
        {"residual": torch.ones(1, N)},
        ValueError,
        r"residual has shape \[1, 96\], want .* \[2, 96\]",
    ),
    "residual dtype": (
        {"residual": torch.ones(2, N), "out_dtype": torch.float16},
        TypeError,
        "residual has dtype torch.float32, want torch.float16",
    ),
    "out_dtype": ({"out_dtype": torch.int8}, TypeError, "out_dtype is torch.int8, want"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD_LINEAR.values(), ids=BAD_LINEAR)
def test_linear_refuses(change, error, match):
    arguments = {"x": X, "w_packed": PACKED, "w_scale": SCALE, "bias": None, **change}
    with pytest.raises(error, match=f"^linear_w8a8: {match}"):
        ops.linear_w8a8(**arguments)


BAD_OTHERS = {
    "quantize int": (ops.quantize_rowwise, (X.int(),), TypeError, "x has dtype torch.int32"),
    "quantize scalar": (
        ops.quantize_rowwise,
        (torch.tensor(1.0),),
        ValueError,
        r"x has shape \[\]",
    ),
    "pack float": (ops.pack_w8, (X,), TypeError, "w has dtype torch.float32, want torch.int8"),
    "pack 1-D": (ops.pack_w8, (X[0].char(),), ValueError, r"w has shape \[200\], want \[N, K\]"),
    "pack long": (
        ops.pack_w8,
        (torch.zeros(1, 131072, dtype=torch.int8),),
        ValueError,
        "w has K = 131072, want at most 131071",
    ),
    "unpack shape": (
        ops.unpack_w8,
        (PACKED, K, N),
        ValueError,
        r"w_packed holds \[96, 200\], want",
    ),
    "unpack negative": (ops.unpack_w8, (PACKED, -1, K), ValueError, "n, k are -1, 200, want >= 0"),
    "unpack zeros": (ops.unpack_w8, (PACKED * 0, N, K), ValueError, "w_packed: .*not a packed"),
}


@pytest.mark.parametrize(("op", "arguments", "error", "match"), BAD_OTHERS.values(), ids=BAD_OTHERS)
def test_others_refuse(op, arguments, error, match):
    with pytest.raises(error, match=f"^{op.__name__}: {match}"):
        op(*arguments)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_without_kernels_for_it_is_one_clear_error():
    with FakeTensorMode():
        x = torch.empty(2, K, device="cuda")
        packed = torch.empty(PACKED.shape, dtype=torch.uint8, device="cuda")
        w = torch.empty(N, K, dtype=torch.int8, device="cuda")
        want = r"is on cuda:0, want cpu: torch .* is built without CUDA"
        for call in (
            lambda: ops.linear_w8a8(x, packed, torch.empty(N, device="cuda")),
            lambda: ops.quantize_rowwise(x),
            lambda: ops.pack_w8(w),
            lambda: ops.unpack_w8(packed, N, K),
        ):
            with pytest.raises(ValueError, match=want):
                call()


def test_meta_tensors_give_shapes():
    x, w = torch.empty(2, 3, K, device="meta"), torch.empty(N, K, dtype=torch.int8, device="meta")
    packed = ops.pack_w8(w)
    assert packed.shape == PACKED.shape
    y = ops.linear_w8a8(x, packed, SCALE.to("meta"), out_dtype=torch.float16)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, N), torch.float16, "meta")
    assert ops.unpack_w8(packed, N, K).shape == (N, K)
    with pytest.raises(ValueError, match=r"^linear_w8a8: w_packed has \d+ bytes, want the "):
        ops.linear_w8a8(x[..., :100], packed, SCALE.to("meta"))


def opcheck(op, *arguments):
    results = torch.library.opcheck(op.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lead", [(), (0,), (5,), (1, 1), (2, 3)], ids=str)
def test_opcheck_linear(lead, dtype, rng, randn):
    _, packed, scale, bias = weights(rng, N, K)
    x = randn(*lead, K).to(dtype)
    linear = torch.ops.fastinfer.linear_w8a8
    opcheck(linear, x, packed, scale)
    opcheck(linear, x, packed, scale, bias, "gelu", randn(*lead, N), torch.float32)


def test_opcheck_others(rng, randn):
    w, packed, _, _ = weights(rng, 17, 65)
    opcheck(torch.ops.fastinfer.quantize_rowwise, randn(2, 3, 65))
    opcheck(torch.ops.fastinfer.quantize_rowwise, randn(65, 3).half().T)
    opcheck(torch.ops.fastinfer.pack_w8, w)
    opcheck(torch.ops.fastinfer.unpack_w8, packed, 17, 65)
