"""fastinfer::layer_norm and rms_norm: numbers, int8 rows, bits, shapes, errors, tracing."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from fastinfer import _C, ops
from test_ops import STRIDED, misaligned, opcheck, quantize_around_offset, same_bits

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
U = 2.0**-24  # unit roundoff of float32
OUT_U = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SIZES = [1, 15, 16, 17, 384, 1000, 4099]
EPS = 1e-5
KERNELS = [row for row in _C.kernels() if row["family"] == "norm"]


def run(kind, x, weight=None, bias=None, **options):
    if kind == "layer":
        return ops.layer_norm(x, weight, bias, EPS, **options)
    return ops.rms_norm(x, weight, EPS, **options)


def reference(kind, s, weight, bias):
    """y in float64 for what was normalised, and the bound on its float32 error.

    A sum of K terms rounds K / 32 + 5 times on the way to any of them, a term of it twice, the
    division once: 12 u K / 32 is enough for each mean. Half of that of the mean square reaches
    1 / sqrt, which rounds twice (and the sum with eps once).
    """
    s = s.double()
    k = s.shape[-1]
    depth = (k / 32 + 12) * U
    weight = torch.ones(k) if weight is None else weight
    bias = torch.zeros(k) if bias is None else bias
    mean = s.mean(-1, keepdim=True) if kind == "layer" else torch.zeros(())
    d = s - mean
    eps = torch.tensor(EPS).double()  # as float32
    square = (d * d).mean(-1, keepdim=True) + eps
    rstd = square.rsqrt()
    # The first mean is off by `first` at most, the corrected one by one rounding of it and what
    # the sum of s - c leaves.
    first = depth * s.abs().mean(-1, keepdim=True)
    off = U * mean.abs() + depth * (d.abs().mean(-1, keepdim=True) + first)
    relative = (depth + first**2 / square) / 2 + 3 * U
    if kind == "rms":
        off, relative = torch.zeros(()), depth / 2 + 3 * U
    y = d * rstd * weight.double() + bias.double()
    error = weight.double().abs() * rstd * (off + (d.abs() + off) * (relative + 2 * U))
    return y, (error + U * y.abs()) * (1 + 2.0**-9) + 2.0**-140


def parameters(randn, k, dtype):
    return 1 + randn(k).to(dtype) / 2, randn(k).to(dtype)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_against_float64_and_the_generic_isa(isa, force_isa, kind, dtype, k, randn):
    for turn, (with_residual, parameter_dtype) in enumerate(
        [(False, None), (True, torch.float32), (False, torch.bfloat16), (True, torch.float16)]
    ):
        x = randn(5, k) * 2.0**turn + torch.tensor([0, 0.5, 3, -300, 0]).view(5, 1)
        x[4] = 7.25  # constant
        x = x.to(dtype)
        residual = randn(5, k).to(dtype) if with_residual else None
        weight, bias = parameters(randn, k, parameter_dtype) if parameter_dtype else (None, None)
        bias = bias if kind == "layer" else None
        outputs = run(kind, x, weight, bias, residual=residual, emit_rows=True)
        total, y, q, scale, offset = outputs

        s = x + residual if with_residual else x
        if with_residual:
            assert same_bits(total, s)
        else:
            assert total.shape == (0,)
        want, bound = reference(kind, s, weight, bias)
        bound = bound + OUT_U[dtype] * (want.abs() + bound) + 2.0**-25 * (dtype == torch.float16)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert ((y.double() - want).abs() <= bound).all()
        for got, one in zip((q, scale, offset), quantize_around_offset(y), strict=True):
            assert same_bits(got, one)

        force_isa("generic")
        generic = run(kind, x, weight, bias, residual=residual, emit_rows=True)
        assert all(same_bits(a, b) for a, b in zip(outputs, generic, strict=True))
        force_isa(isa)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_as_torch(kind, dtype, randn):
    """torch's own functions, which round in another order: to a few units of the output."""
    x = randn(3, 5, 768).to(dtype)
    weight, bias = parameters(randn, 768, dtype)
    if kind == "layer":
        want = F.layer_norm(x, (768,), weight, bias, EPS)
    else:
        want, bias = F.rms_norm(x, (768,), weight, EPS), None
    torch.testing.assert_close(run(kind, x, weight, bias)[1], want)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_outputs_not_asked_for_are_empty_and_change_nothing(isa, kind, randn):
    x, residual = randn(2, 3, 100), randn(2, 3, 100)
    everything = run(kind, x, residual=residual, emit_rows=True)
    shapes = [(2, 3, 100)] * 3 + [(2, 3)] * 2
    dtypes = [torch.float32] * 2 + [torch.int8] + [torch.float32] * 2
    for emit_fp, emit_rows in [(True, False), (False, True), (True, True)]:
        asked = [True, emit_fp, emit_rows, emit_rows, emit_rows]
        got = run(kind, x, residual=residual, emit_fp=emit_fp, emit_rows=emit_rows)
        assert [t.dtype for t in got] == dtypes
        for t, want, shape, ask in zip(got, everything, shapes, asked, strict=True):
            assert t.shape == (shape if ask else (0,))
            assert not ask or same_bits(t, want)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_constant_row_gives_the_bias(isa, dtype, randn):
    """The mean is corrected for its own rounding."""
    _, bias = parameters(randn, 4099, dtype)
    x = torch.tensor([0.0, 0.1, -1234.5]).to(dtype).view(3, 1).expand(3, 4099)
    assert same_bits(ops.layer_norm(x, None, bias, EPS)[1], bias.expand(3, 4099))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_poisoned_row_poisons_no_other(isa, kind, dtype, poison, randn):
    x = randn(5, 70).to(dtype)
    x[2, 69] = poison
    _, y, q, scale, offset = run(kind, x, emit_rows=True)
    others = torch.arange(5) != 2
    alone = run(kind, x[others], emit_rows=True)
    for got, want in zip((y, q, scale, offset), alone[1:], strict=True):
        assert same_bits(got[others], want)
    assert y[others].isfinite().all()
    assert y[2, 69].isnan()
    if kind == "layer" or poison != poison:
        assert y[2].isnan().all()
    else:
        assert not y[2, :69].any()
    assert not q[2].any()
    assert scale[2].isnan()
    assert offset[2] == 0


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0, 0), (2, 0, 5), (7,), (0,)], ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_empty_and_one_dimensional(isa, kind, shape):
    x = torch.ones(shape)
    total, y, q, scale, offset = run(kind, x, residual=x, emit_rows=True)
    assert total.shape == y.shape == q.shape == shape
    assert scale.shape == offset.shape == shape[:-1]
    if shape == (3, 0):  # rows without elements, as quantize_rowwise has them
        assert same_bits(scale, torch.full((3,), 2.0**-118) / 127)
        assert not offset.any()


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(isa, strided, randn):
    x = strided(randn)
    plain = x.clone(memory_format=torch.contiguous_format)
    for kind in ("layer", "rms"):
        got = run(kind, x, residual=x, emit_rows=True)
        want = run(kind, plain, residual=plain, emit_rows=True)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
        assert all(t.is_contiguous() for t in got)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_threads_and_batch_change_nothing(isa, kind, dtype, randn):
    x, residual = randn(300, 1000).to(dtype), randn(300, 1000).to(dtype)
    weight = misaligned(randn(1000))
    whole = run(kind, x, weight, residual=residual, emit_rows=True)
    torch.set_num_threads(2)
    again = run(kind, x, weight, residual=residual, emit_rows=True)
    assert all(same_bits(a, b) for a, b in zip(whole, again, strict=True))
    parts = [
        run(kind, a, weight, residual=b, emit_rows=True)
        for a, b in zip(x.split(7), residual.split(7), strict=True)
    ]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        assert same_bits(torch.cat(got), want)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_outputs_larger_than_the_caches(kind, randn):
    """They are written past the caches: the bits of the same rows in small batches."""
    x = randn(1, 4096).expand(1100, 4096) + randn(1100, 1)
    whole = run(kind, x, residual=x, emit_rows=True)
    for rows in (slice(0, 10), slice(1090, 1100)):
        part = run(kind, x[rows], residual=x[rows], emit_rows=True)
        assert all(same_bits(a[rows], b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel["name"])
def test_kernels_by_name(kernel, rng):
    if not kernel["supported"]:
        pytest.skip(f"no {kernel['isa']} here")
    x, residual = (rng.standard_normal((3, 37), dtype="f4") for _ in range(2))
    weight, bias = (rng.standard_normal(37, dtype="f4") for _ in range(2))
    for kind in ("layer", "rms"):
        got = _C.norm(kernel["name"], x, kind, weight, bias, EPS, residual)
        want = _C.norm("norm_generic", x, kind, weight, bias, EPS, residual)
        assert all((a == b).all() for a, b in zip(got, want, strict=True))
        y, bound = reference(kind, *map(torch.from_numpy, (got[0], weight, bias)))
        assert ((torch.from_numpy(got[1]).double() - y).abs() <= bound).all()


X = torch.ones(2, 5)
BAD = {
    "x list": ({"x": [1.0]}, TypeError, "x is a list, want a torch.Tensor"),
    "x int": ({"x": X.int()}, TypeError, "x has dtype torch.int32, want torch.float32"),
    "x scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \[\], want \[..., K\]"),
    "weight shape": (
        {"weight": torch.ones(4)},
        ValueError,
        r"weight has shape \[4\], want \[5\]",
    ),
    "weight 2-D": ({"weight": X}, ValueError, r"weight has shape \[2, 5\], want \[5\]"),
    "weight int": ({"weight": X[0].int()}, TypeError, "weight has dtype torch.int32, want"),
    "weight strided": ({"weight": torch.ones(10)[::2]}, ValueError, "weight has stride 2, want"),
    "weight meta": ({"weight": X[0].to("meta")}, ValueError, "weight is on meta, want cpu"),
    "residual shape": (
        {"residual": torch.ones(1, 5)},
        ValueError,
        r"residual has shape \[1, 5\], want that of x, \[2, 5\]",
    ),
    "residual dtype": (
        {"residual": X.half()},
        TypeError,
        "residual has dtype torch.float16, want torch.float32",
    ),
    "nothing": ({"emit_fp": False}, ValueError, "emit_fp and emit_rows are False, want one"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_refusals(kind, change, error, match):
    arguments = {"x": X, "weight": None, "residual": None, **change}
    with pytest.raises(error, match=f"^{kind}_norm: {match}"):
        run(kind, arguments.pop("x"), arguments.pop("weight"), **arguments)


def test_the_bias_is_checked_too():
    with pytest.raises(ValueError, match=r"^layer_norm: bias has shape \[4\], want \[5\]"):
        ops.layer_norm(X, None, torch.ones(4), EPS)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "emit"),
    [
        (X, torch.ones(4), None, True),
        (X, torch.ones(10)[::2], None, True),
        (X, X[0].int(), None, True),
        (X, None, torch.ones(2, 4), True),
        (X, None, X.half(), True),
        (X.double(), None, None, True),
        (torch.tensor(1.0), None, None, True),
        (X, None, None, False),
    ],
)
def test_the_operator_itself_refuses(x, weight, residual, emit):
    with pytest.raises(RuntimeError, match=r"rms_norm: .* want"):
        torch.ops.fastinfer.rms_norm(x, weight, EPS, residual, emit, False)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_without_kernels_for_it_is_one_clear_error():
    with FakeTensorMode():
        x = torch.empty(2, 5, device="cuda")
        for kind in ("layer", "rms"):
            with pytest.raises(
                ValueError, match=r"x is on cuda:0, want cpu: torch .* is built without CUDA"
            ):
                run(kind, x)


@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3)], ids=str)
def test_opcheck(lead, randn):
    x, weight = randn(*lead, 33), randn(33).half()
    opcheck(torch.ops.fastinfer.layer_norm, x, weight, weight, EPS, x.clone(), True, True)
    opcheck(torch.ops.fastinfer.rms_norm, x.bfloat16(), None, EPS, None, False, True)
    opcheck(torch.ops.fastinfer.rms_norm, x, weight, EPS)


def test_compiled_graph_matches_eager_for_every_shape(randn):
    torch.compiler.reset()
    weight = randn(64)

    def block(x, residual):
        total, y, *_ = ops.layer_norm(x, weight, weight, EPS, residual=residual)
        return ops.rms_norm(y + total, weight, EPS, residual=total, emit_rows=True)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in [(5,), (2, 3), (1, 1), (40,), (0,)]:
        x, residual = randn(*lead, 64), randn(*lead, 64)
        got, want = compiled(x, residual), block(x, residual)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True)), lead
