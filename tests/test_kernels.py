"""Every kernel of the registry by name, without torch's operators in between."""

import itertools
import math

import numpy as np
import pytest

from fastinfer import _C

KERNELS = _C.kernels()
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"]
U = 2.0**-24  # unit roundoff of float32


def rows(family):
    """A test parameter for each kernel of a family; what cannot run here is skipped by name."""
    return [
        pytest.param(
            kernel,
            id=kernel["name"],
            marks=pytest.mark.skipif(not kernel["supported"], reason=f"no {kernel['isa']} here"),
        )
        for kernel in KERNELS
        if kernel["family"] == family
    ]


def around(tile):
    return sorted({1, tile - 1, tile, tile + 1, 2 * tile + 3} - {0})


def int8(rng, *shape):
    """Full range, -128 included, a third of it at the extremes."""
    q = rng.integers(-128, 128, shape, dtype=np.int8)
    extremes = rng.choice(np.array([-128, -127, 127], np.int8), shape)
    return np.where(rng.random(shape) < 1 / 3, extremes, q)


def sums(kernel, a, w):
    one_m, one_n = np.ones(len(a), np.float32), np.ones(len(w), np.float32)
    return _C.gemm_s8s8s32(kernel["name"], a, w, one_m, one_n, out_dtype="s32")


@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_sums_are_exact_around_the_tiles(kernel, rng):
    sizes = itertools.product(*(around(kernel[tile]) for tile in ("mr", "nr", "kr")))
    for m, n, k in sizes:
        a, w = int8(rng, m, k), int8(rng, n, k)
        want = a.astype(np.int64) @ w.astype(np.int64).T
        np.testing.assert_array_equal(sums(kernel, a, w), want, err_msg=f"M, N, K = {m}, {n}, {k}")


@pytest.mark.parametrize("k", [0, 1, 63, 65, 200, 4097, 131071])
@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_sums_are_exact_from_empty_to_the_longest_row(kernel, k, rng):
    m, n = kernel["mr"] + 1, kernel["nr"] + 1
    a, w = int8(rng, m, k), int8(rng, n, k)
    # Whole rows at the extremes: the largest sums there are, of both signs.
    a[0], w[0] = 127, -128
    a[-1], w[-1] = -128, -128
    want = a.astype(np.float64) @ w.astype(np.float64).T  # exact: every sum is below 2**53
    np.testing.assert_array_equal(sums(kernel, a, w), want)


@pytest.mark.parametrize("x", [-127, 127])
@pytest.mark.parametrize("y", [-128, -127, 127])
@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_sums_of_extremes_do_not_saturate(kernel, x, y):
    m, n, k = kernel["mr"] + 1, kernel["nr"] + 1, 2 * kernel["kr"] + 3
    got = sums(kernel, np.full((m, k), x, np.int8), np.full((n, k), y, np.int8))
    np.testing.assert_array_equal(got, np.full((m, n), x * y * k))


@pytest.mark.parametrize("center", [0, -112, 100])
@pytest.mark.parametrize("deviation", [5, 20, 40])
@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_sums_of_rows_with_outliers_are_exact(kernel, deviation, center, rng):
    """Rows as models have them: close around a value, some far off it, neighbours among them."""
    for m, n, k in [(7, 33, 100), (400, 17, 768), (60, 40, 3072), (9, 20, 40000)]:
        a = np.clip(np.rint(rng.normal(center, deviation, (m, k))), -128, 127).astype(np.int8)
        a[rng.random(a.shape) < 0.01] = 127
        a[rng.random(a.shape) < 0.01] = -128
        for row in range(0, m, 5):
            start = rng.integers(0, k - 1)
            a[row, start : start + 9] = rng.choice([-128, 127])
        w = int8(rng, n, k)
        want = a.astype(np.float64) @ w.astype(np.float64).T  # exact: every sum is below 2**53
        np.testing.assert_array_equal(sums(kernel, a, w), want, err_msg=f"M, N, K = {m}, {n}, {k}")


def to_float64(a, dtype):
    if dtype == "bf16":
        return (a.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return (a.view(np.float16) if dtype == "f16" else a).astype(np.float64)


def from_float32(a, dtype):
    """Any rounding will do: the result is an input."""
    if dtype == "bf16":
        return (a.view(np.uint32) >> 16).astype(np.uint16)
    return a.astype(np.float16).view(np.uint16) if dtype == "f16" else a


def activate(name, z):
    if name == "relu":
        return np.maximum(z, 0)
    if name == "gelu":
        return z * 0.5 * np.vectorize(math.erfc)(-z / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    if name == "silu":
        return z / (1 + np.exp(-z))
    if name == "quick_gelu":
        return z / (1 + np.exp(-1.702 * z))
    return z


# |error of the activation itself| <= ACTIVATION_U |z| u. GELU (erf): its fit and three roundings.
# SiLU: exp 1.3, addition 1, division 1. GELU (tanh): the same on top of an exponent t with four
# roundings, whose effect is |t s(t) (1 - s(t))| <= 0.224 of each, s the logistic function.
# Quick GELU: as SiLU, with t = 1.702 x off by 1.22 u, its rounding and that of the constant.
ACTIVATION_U = {"none": 0, "relu": 0, "gelu": 4, "silu": 4, "gelu_tanh": 5, "quick_gelu": 4}
# The steepest slope, by which the error of z passes through.
SLOPE = {"none": 1, "relu": 1, "gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1, "quick_gelu": 1.1}
OUT_U = {"f32": 0.0, "bf16": 2.0**-8, "f16": 2.0**-11}


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_epilogue(kernel, activation, dtype, with_bias, with_residual, rng):
    """Within the roundings of its formula of float64, and the reference's bits."""
    for m, n in [(1, 1), (kernel["mr"] + 1, 2 * kernel["nr"] + 3)]:
        k = 2 * kernel["kr"] + 3
        a, w = int8(rng, m, k), int8(rng, n, k)
        a_scale = rng.uniform(0.5, 2, m).astype(np.float32) / 127
        w_scale = rng.uniform(0.5, 2, n).astype(np.float32) / 127
        a_offset = rng.standard_normal(m, dtype=np.float32)
        bias = rng.standard_normal(n, dtype=np.float32) if with_bias else None
        residual = rng.standard_normal((m, n), dtype=np.float32) if with_residual else None
        arguments = (
            *(a, w, a_scale, w_scale, bias, ACTIVATIONS.index(activation)),
            None if residual is None else from_float32(residual, dtype),
            dtype,
            a_offset,
        )
        got = _C.gemm_s8s8s32(kernel["name"], *arguments)
        generic = _C.gemm_s8s8s32("gemm_s8s8s32_1x16x4_generic", *arguments)
        np.testing.assert_array_equal(got, generic)

        acc = a.astype(np.float64) @ w.astype(np.float64).T
        product = acc * w_scale.astype(np.float64) * a_scale.astype(np.float64)[:, None]
        # float(sum) * w_scale: two roundings; then one of the inner multiply-add.
        shift = w.astype(np.float64).sum(1) * w_scale * a_offset.astype(np.float64)[:, None]
        inner = shift + (0 if bias is None else bias.astype(np.float64))
        z = product + inner
        y = activate(activation, z)
        bound = U * (
            SLOPE[activation] * (2 * abs(product) + 2 * abs(shift) + abs(inner) + abs(z))
            + ACTIVATION_U[activation] * abs(z)
        )
        if residual is not None:
            y = y + to_float64(arguments[6], dtype)
            bound += U * abs(y)
        # Second-order terms; what exp's clamp at 88 leaves; float16's subnormal step.
        bound = bound * (1 + 2.0**-18) + OUT_U[dtype] * abs(y) * (1 + 2.0**-10) + 1e-35
        bound += 2.0**-25 if dtype == "f16" else 0
        assert (abs(to_float64(got, dtype) - y) <= bound).all()


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", rows("gemm_s8s8s32"))
def test_multiplier(kernel, activation, with_residual, rng):
    """A product and a sum in float32, each rounded once, after the activation."""
    m, n, k = kernel["mr"] + 1, 2 * kernel["nr"] + 3, 2 * kernel["kr"] + 3
    a, w = int8(rng, m, k), int8(rng, n, k)
    scales = (np.full(m, 1 / 127, np.float32), rng.uniform(0.5, 2, n).astype(np.float32) / 127)
    multiplier = rng.standard_normal((m, n), dtype=np.float32)
    residual = rng.standard_normal((m, n), dtype=np.float32) if with_residual else None
    arguments = kernel["name"], a, w, *scales, None, ACTIVATIONS.index(activation)
    got = _C.gemm_s8s8s32(*arguments, residual, multiplier=multiplier)
    want = _C.gemm_s8s8s32(*arguments) * multiplier
    np.testing.assert_array_equal(got, want if residual is None else want + residual)


SUM_K = 256  # products of a chain, gemm_f32s8f32.h


@pytest.mark.parametrize("k", [0, 6, 257, 1030])
@pytest.mark.parametrize("out_dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kernel", rows("gemm_f32s8f32"))
def test_float_times_int8(kernel, dtype, out_dtype, k, rng):
    """Within the roundings of the formula of float64, and the reference's bits."""
    for m, n in itertools.product(around(kernel["mr"]), [1, 2 * kernel["nr"] + 3]):
        x = from_float32(rng.standard_normal((m, k), dtype=np.float32), dtype)
        w = int8(rng, n, k)
        w_scale = rng.uniform(0.5, 2, n).astype(np.float32) / 127
        bias = rng.standard_normal(n, dtype=np.float32)
        activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
        residual = from_float32(rng.standard_normal((m, n), dtype=np.float32), out_dtype)
        options = {"dtype": dtype, "out_dtype": out_dtype}
        arguments = x, w, w_scale, bias, ACTIVATIONS.index(activation), residual
        got = _C.gemm_f32s8f32(kernel["name"], *arguments, **options)
        generic = _C.gemm_f32s8f32("gemm_f32s8f32_generic", *arguments, **options)
        np.testing.assert_array_equal(got, generic)

        exact, scale = to_float64(x, dtype), w_scale.astype(np.float64)
        z = exact @ w.T * scale + bias
        y = activate(activation, z) + to_float64(residual, out_dtype)
        roundings = min(k, SUM_K) + math.ceil(k / SUM_K)  # of a sum; then one of z, one of y
        bound = U * SLOPE[activation] * (roundings * (abs(exact) @ abs(w.T.astype(float))) * scale)
        bound += U * ((SLOPE[activation] + ACTIVATION_U[activation]) * abs(z) + abs(y))
        bound = bound * (1 + 2.0**-13) + OUT_U[out_dtype] * abs(y) * (1 + 2.0**-10) + 1e-35
        bound += 2.0**-25 if out_dtype == "f16" else 0
        assert (abs(to_float64(got, out_dtype) - y) <= bound).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kernel", rows("gemm_f32s8f32"))
def test_float_times_int8_keeps_to_ieee_754(kernel, dtype, poison, rng):
    """NaN wherever x holds one, or an Inf meets a zero; Inf of the weight's sign elsewhere."""
    x = rng.standard_normal((2 * kernel["mr"] + 3, 70), dtype=np.float32)
    w, hit = int8(rng, 40, 70), kernel["mr"]
    w[:9, 33] = 0

    def run():
        one = np.ones(40, np.float32)
        return _C.gemm_f32s8f32(kernel["name"], from_float32(x, dtype), w, one, dtype=dtype)

    clean = run()
    x[hit, 33] = poison
    got = run()
    with np.errstate(invalid="ignore"):
        want = poison * w[:, 33].astype(np.float32)
    np.testing.assert_array_equal(got[hit], want)
    others = np.arange(len(x)) != hit
    np.testing.assert_array_equal(got[others], clean[others])


@pytest.mark.parametrize("magnitude", [2.0**-133, 2.0**-126, 2.0**-120, 2.0**-119])
@pytest.mark.parametrize("kernel", rows("gemm_f32s8f32"))
def test_subnormal_sums_are_kept(kernel, magnitude, rng):
    """Where vdpbf16ps would take products or sums for zero: exact, and the same in every row."""
    signs = rng.choice([-1, 1], (kernel["mr"] + 1, 2)).astype(np.float32)
    x = signs * np.array([1, 1.5], np.float32) * np.float32(magnitude)
    w = np.array([[3, -2], [2, -1], [1, 1]], np.int8)
    got = _C.gemm_f32s8f32(
        kernel["name"], from_float32(x, "bf16"), w, np.ones(3, np.float32), dtype="bf16"
    )
    exact = to_float64(from_float32(x, "bf16"), "bf16")
    np.testing.assert_array_equal(got, exact @ w.T)


@pytest.mark.parametrize("k", [0, 1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 131, 200, 1000])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernel", rows("quantize_rowwise"))
def test_quantize_rowwise_bits(kernel, symmetric, dtype, k, rng):
    """The formula in float32 with numpy, bit for bit, over rows of all magnitudes."""
    x = rng.standard_normal((9, k), dtype=np.float32)
    x *= np.float32(2) ** rng.integers(-12, 12, (9, 1)).astype(np.float32)
    x[3] = 0
    x[4:7] += np.float32(3)
    bits = from_float32(x, dtype)
    x = to_float64(bits, dtype).astype(np.float32)
    half = np.float32(0.5)
    low, high = (x.min(1), x.max(1)) if k else (np.zeros(9, np.float32), np.zeros(9, np.float32))
    middle = np.zeros(9, np.float32) if symmetric else high * half + low * half
    a = np.maximum(np.maximum(high - middle, middle - low), np.float32(2.0**-118))
    q, scale, *offset = _C.quantize_rowwise(kernel["name"], bits, dtype, symmetric)
    np.testing.assert_array_equal(offset, [] if symmetric else [middle])
    np.testing.assert_array_equal(scale, a / np.float32(127))
    want = np.rint((x - middle[:, None]) * (np.float32(127) / a)[:, None])
    np.testing.assert_array_equal(q, want)


@pytest.mark.parametrize("k", [0, 1, 7, 15, 17, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernel", rows("quantize_rowwise"))
def test_quantize_rowwise_static_bits(kernel, symmetric, dtype, k, rng):
    """The static formula in float32 with numpy, bit for bit; wide rows saturate."""
    x = rng.standard_normal((9, k), dtype=np.float32)
    x *= np.float32(2) ** np.arange(-4, 5, dtype=np.float32)[:, None]
    bits = from_float32(x, dtype)
    x = to_float64(bits, dtype).astype(np.float32)
    scale, offset = np.float32(0.03), np.float32(0 if symmetric else -0.7)
    given = {"static_scale": scale, "static_offset": -0.7}
    q, scales, *offsets = _C.quantize_rowwise(kernel["name"], bits, dtype, symmetric, **given)
    np.testing.assert_array_equal(offsets, [] if symmetric else [np.full(9, offset)])
    np.testing.assert_array_equal(scales, np.full(9, scale))
    want = np.clip(np.rint((x - offset) * (np.float32(1) / scale)), -127, 127)
    np.testing.assert_array_equal(q, want)
    assert k < 7 or (abs(want[-1]) == 127).any()


@pytest.mark.parametrize("static_scale", [0.0, 0.03])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 16, 36])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernel", rows("quantize_rowwise"))
def test_quantize_rowwise_poisoned_row(kernel, symmetric, where, poison, static_scale, rng):
    x = rng.standard_normal((3, 37), dtype=np.float32)
    x[1, where] = poison
    x[[0, 2], 5] = 100  # saturates
    options = {"symmetric": symmetric, "static_scale": static_scale}
    q, scale, *offset = _C.quantize_rowwise(kernel["name"], x, **options)
    assert np.isnan(scale).tolist() == [False, True, False]
    assert all(o[1] == 0 and np.isfinite(o).all() for o in offset)
    assert not q[1].any()
    assert abs(q[[0, 2]]).max(axis=1).tolist() == [127, 127]


def test_a_kernel_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match='got "gemm_nowhere"'):
        sums({"name": "gemm_nowhere"}, np.ones((1, 1), np.int8), np.ones((1, 1), np.int8))


@pytest.mark.parametrize("scale", [-1.0, 1e-40, np.inf, np.nan])
def test_static_scales_that_are_no_normal_numbers_are_refused(scale):
    x = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match=r"static_scale: want a finite number >= 2\^-126"):
        _C.quantize_rowwise("quantize_rowwise_generic", x, static_scale=scale)


def test_rows_longer_than_int32_allows_are_refused():
    a = np.zeros((1, 131072), np.int8)
    with pytest.raises(ValueError, match="131071"):
        sums(next(k for k in KERNELS if k["family"] == "gemm_s8s8s32"), a, a)
