"""quantize_rows, and linear_w8a8 on rows that are int8 already or have a static scale."""

import numpy as np
import pytest
import torch

from fastinfer import _C, ops
from linears import FLOATS, Weight, opcheck, poisoned, random_weight, same_bits

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# M, N, K: around the tiles, K that fits a block of 64 and K that does not, several chunks of rows.
SHAPES = [(0, 17, 64), (1, 17, 64), (1, 1, 1), (5, 33, 70), (37, 50, 128), (130, 33, 200)]


def linear(x, weight: Weight, **options):
    return ops.linear_w8a8(x, *weight, **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_rows_is_the_kernel_with_an_offset(isa, dtype, randn):
    """Its formula is tested on every kernel in test_kernels.py and in C++."""
    x = poisoned(randn(6, 65), float("nan")).to(dtype)
    bits = x.numpy() if dtype == torch.float32 else x.view(torch.uint16).numpy()
    want = _C.quantize_rowwise("quantize_rowwise_generic", bits, NAMES[dtype], symmetric=False)
    shaped = x.view(2, 3, 65)
    for got, rows in zip(ops.quantize_rows(shaped), want, strict=True):
        assert got.is_contiguous()
        assert got.shape[:2] == (2, 3)
        assert same_bits(got.flatten(0, 1), torch.from_numpy(rows))


def test_quantize_rows_of_strided_input_and_with_threads(isa, randn):
    x = randn(300, 1000)
    want = ops.quantize_rows(x)
    torch.set_num_threads(2)
    for strided in (x, x.T.contiguous().T, x.repeat(1, 2)[:, :1000]):
        assert all(map(same_bits, ops.quantize_rows(strided), want))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_int8_rows_give_the_bits_of_the_float_rows(isa, m, n, k, dtype, rng, randn):
    weight = random_weight(rng, n, k)
    x = (randn(m, k) + 0.5).to(dtype)
    q, scale, offset = ops.quantize_rows(x)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        options = {"activation": "gelu", "residual": randn(m, n).to(dtype), "out_dtype": dtype}
        got = linear(q, weight, **options, x_scale=scale, x_offset=offset)
        assert same_bits(got, linear(x, weight, **options))


def test_int8_rows_in_many_chunks_and_tasks(isa, rng, randn):
    """4000 bytes a row: chunks of 256 rows."""
    weight = random_weight(rng, 100, 4000)
    x = randn(300, 4000)
    q, scale, offset = ops.quantize_rows(x)
    torch.set_num_threads(2)
    options = {"out_dtype": torch.float32, "x_scale": scale, "x_offset": offset}
    assert same_bits(linear(q, weight, **options), linear(x, weight))


@pytest.mark.parametrize("k", [64, 70])
def test_strides_of_int8_rows(isa, k, rng, randn):
    weight = random_weight(rng, 33, k)
    q, scale, offset = ops.quantize_rows(randn(2, 4, k))
    options = {"out_dtype": torch.float32}
    want = linear(q, weight, **options, x_scale=scale, x_offset=offset)
    wide = torch.cat([q, q], -1)[..., :k]
    columns = q.mT.contiguous().mT
    assert not wide.is_contiguous()
    assert not columns.is_contiguous()
    for strided in (wide, columns):
        assert same_bits(linear(strided, weight, **options, x_scale=scale, x_offset=offset), want)
    # One token of each sequence: rows and scales with a step.
    last = {"x_scale": scale[:, -1], "x_offset": offset[:, -1]}
    assert same_bits(linear(q[:, -1], weight, **options, **last), want[:, -1])
    one = {"x_scale": scale[0, 0], "x_offset": offset[0, 0]}  # x without a batch: scales [], or [1]
    assert same_bits(linear(q[0, 0], weight, **options, **one), want[0, 0])
    one = {name: t[None] for name, t in one.items()}
    assert same_bits(linear(q[0, 0], weight, **options, **one), want[0, 0])


@pytest.mark.parametrize("k", [64, 70])
def test_one_scale_for_all_int8_rows(isa, k, rng):
    weight = random_weight(rng, 33, k)
    q = torch.from_numpy(rng.integers(-128, 128, (40, k), dtype=np.int8))
    scale, offset = torch.tensor([0.03]), torch.tensor([-1.25])
    options = {"out_dtype": torch.float32}
    got = linear(q, weight, **options, x_scale=scale, x_offset=offset)
    each = {"x_scale": scale.expand(40), "x_offset": offset.expand(40)}
    assert same_bits(got, linear(q, weight, **options, **each))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_row_stays_one(isa, poison, dtype, rng, randn):
    weight = random_weight(rng, 33, 64)
    x = poisoned(randn(4, 64), poison).to(dtype)
    q, scale, offset = ops.quantize_rows(x)
    y = linear(q, weight, out_dtype=dtype, x_scale=scale, x_offset=offset)
    assert same_bits(y, linear(x, weight))
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


def static_rows(x, scale, offset):
    """The formula of quantize_rowwise.h in float32, step by step."""
    steps = (x.float() - offset) * (torch.ones(()) / scale)
    return steps.round().clamp(-127, 127).to(torch.int8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_static_scale(isa, m, n, k, dtype, rng, randn):
    """The bits of int8 rows quantised by the formula; a fifth of the elements saturate."""
    weight = random_weight(rng, n, k)
    x = randn(m, k).to(dtype)
    given = {"x_scale": torch.tensor([0.01]), "x_offset": torch.tensor([0.125])}
    q = static_rows(x, given["x_scale"], given["x_offset"])
    assert m * k < 100 or (q.abs() == 127).any()
    want = linear(q, weight, activation="silu", out_dtype=dtype, **given)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert same_bits(linear(x, weight, activation="silu", **given), want)


def test_static_scale_at_the_ends_of_float(isa, rng):
    """Differences that overflow and products of any size saturate; ties go to even."""
    weight = random_weight(rng, 33, 64)
    most = torch.finfo(torch.float32).max
    ends = torch.tensor([most, -most, 0.0, 1e-45, -1e-45, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5])
    x = ends.repeat(6)[:64].expand(3, 64)
    for scale in (2.0**-126, 1.0, most):
        for offset in (0.0, most, -most):
            given = {"x_scale": torch.tensor([scale]), "x_offset": torch.tensor([offset])}
            q = static_rows(x, given["x_scale"], given["x_offset"])
            want = linear(q, weight, out_dtype=torch.float32, **given)
            assert same_bits(linear(x, weight, **given), want), (scale, offset)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 37, 64, 200])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_static_scale_of_a_poisoned_row(isa, poison, k, dtype, rng, randn):
    weight = random_weight(rng, 33, k)
    x = randn(4, k).to(dtype)
    given = {"x_scale": torch.tensor([0.01]), "x_offset": torch.tensor([0.5])}
    y, clean = linear(poisoned(x, poison), weight, **given), linear(x, weight, **given)
    assert y[1].isnan().all()
    assert same_bits(y[[0, 2, 3]], clean[[0, 2, 3]])


X = torch.ones(2, 70)
Q = X.char()
WEIGHT = Weight(ops.pack_w8(torch.ones(33, 70, dtype=torch.int8)), torch.ones(33), None)
ROW, ONE = torch.ones(2), torch.ones(1)
F32 = torch.float32
BAD = {
    "int8 alone": (Q, {"out_dtype": F32}, ValueError, "x_scale and x_offset are None"),
    "no offset": (Q, {"x_scale": ROW, "out_dtype": F32}, ValueError, "x_offset is None"),
    "no scale": (X, {"x_offset": ONE}, ValueError, "x_scale is None"),
    "no dtype": (Q, {"x_scale": ROW, "x_offset": ROW}, TypeError, "out_dtype is None"),
    "scale shape": (
        Q,
        {"x_scale": torch.ones(3), "x_offset": ROW, "out_dtype": F32},
        ValueError,
        r"x_scale has shape \[3\], want \[2\] or \[1\]",
    ),
    "offset shape": (
        Q,
        {"x_scale": ROW, "x_offset": ONE, "out_dtype": F32},
        ValueError,
        r"x_offset has shape \[1\], want that of x_scale, \[2\]",
    ),
    "scale dtype": (
        Q,
        {"x_scale": ROW.half(), "x_offset": ROW, "out_dtype": F32},
        TypeError,
        "x_scale has dtype torch.float16",
    ),
    "offset device": (
        Q,
        {"x_scale": ROW, "x_offset": ROW.to("meta"), "out_dtype": F32},
        ValueError,
        "x_offset is on meta, want cpu",
    ),
    "static rows": (
        X,
        {"x_scale": ROW, "x_offset": ROW},
        ValueError,
        r"x_scale has shape \[2\], want \[1\]",
    ),
    **{
        f"static {scale}": (
            X,
            {"x_scale": torch.tensor([scale]), "x_offset": ONE},
            ValueError,
            "x_scale is .*, want a finite number >= 2",
        )
        for scale in (0.0, -1.0, 1e-40, float("nan"), float("inf"))
    },
    **{
        f"static offset {offset}": (
            X,
            {"x_scale": ONE, "x_offset": torch.tensor([offset])},
            ValueError,
            "x_offset is .*, want a finite number",
        )
        for offset in (float("nan"), -float("inf"))
    },
}


@pytest.mark.parametrize(("x", "options", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(x, options, error, match):
    with pytest.raises(error, match=f"^linear_w8a8: {match}"):
        linear(x, WEIGHT, **options)
    # The operator itself refuses too, whatever it raises.
    names = ("out_dtype", "x_scale", "x_offset")
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.ops.fastinfer.linear_w8a8(x, *WEIGHT, **{name: options.get(name) for name in names})


def test_opcheck(rng, randn):
    weight = random_weight(rng, 33, 70)
    x = randn(2, 3, 70)
    q, scale, offset = ops.quantize_rows(x)
    op = torch.ops.fastinfer.linear_w8a8
    opcheck(op, q, *weight, "relu", None, torch.float16, scale, offset)
    opcheck(op, q, *weight, "relu", randn(2, 3, 33), torch.float32, scale[0, :1], offset[0, :1])
    opcheck(op, x, *weight, "none", None, None, scale[0, :1], offset[0, :1])
    for t in (x, randn(0, 70).bfloat16(), randn(70), randn(70, 3).half().T):
        opcheck(torch.ops.fastinfer.quantize_rows, t)


def test_compiled_with_a_symbolic_batch(rng, randn):
    weight = random_weight(rng, 33, 70)
    fixed = torch.tensor([0.02]), torch.tensor([0.25])

    def model(x):
        q, scale, offset = ops.quantize_rows(x)
        options = {"x_scale": scale, "x_offset": offset, "out_dtype": x.dtype}
        static = linear(x, weight, x_scale=fixed[0], x_offset=fixed[1])
        return linear(q, weight, **options) + static

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in ((5,), (9,), (1,), (2, 3), (1, 4)):
        x = randn(*lead, 70)
        assert torch.equal(compiled(x), model(x)), lead


def test_exported_with_a_dynamic_batch(rng, randn):
    weight = random_weight(rng, 33, 70)

    class Model(torch.nn.Module):
        def forward(self, x):
            q, scale, offset = ops.quantize_rows(x)
            return linear(q, weight, out_dtype=x.dtype, x_scale=scale, x_offset=offset)

    program = torch.export.export(
        Model(), (randn(4, 70),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for m in (1, 2, 40):
        x = randn(m, 70)
        assert torch.equal(program.module()(x), Model()(x)), m
