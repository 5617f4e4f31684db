"""fastinfer::act_mul against float64 with a derived bound; its rows against quantize_rows."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastinfer import _C, ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
U = 2.0**-24  # unit roundoff of float32
OUT_U = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# |error of the activation itself| <= ACTIVATION_U |x| u: csrc/cpu/vec/math.h. GELU (erf): its fit
# and three roundings. SiLU: exp 1.3, addition 1, division 1. GELU (tanh): the same on top of an
# exponent t with four roundings, whose effect is at most 0.224 of each. Quick GELU: the same, where
# t is off by 1.22, one rounding and that of its constant.
ACTIVATION_U = {"none": 0, "relu": 0, "gelu": 4, "silu": 4, "gelu_tanh": 5, "quick_gelu": 4}
SHAPES = [(9, 200), (2, 3, 65), (7,), (4, 1), (3, 1000), (1, 16), (33, 17)]


def activate(name, z):
    if name == "relu":
        return z.clamp(min=0)
    if name == "gelu":
        return z * 0.5 * torch.special.erfc(-z / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    if name == "quick_gelu":
        return z * torch.sigmoid(1.702 * z)
    return z * torch.sigmoid(z) if name == "silu" else z


def same_bits(a, b):
    """Equal in dtype, shape and every bit (NaN included)."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    # Flat, as a scalar (the scale of a one-dimensional x) has no view of another size.
    return torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))


def all_same_bits(a, b):
    return len(a) == len(b) and all(same_bits(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64_and_the_generic_isa(isa, force_isa, dtype, activation, gated, randn):
    for shape in SHAPES:
        x = (4 * randn(*shape)).to(dtype)
        other = randn(*shape).to(dtype) if gated else None
        y, *rows = ops.act_mul(x, other, activation=activation)
        assert (y.shape, y.dtype, y.is_contiguous()) == (x.shape, dtype, True)
        assert [tuple(t.shape) for t in rows] == [(0,)] * 3
        z, factor = x.double(), 1 if other is None else other.double()
        want = activate(activation, z) * factor
        # The activation's own error times the factor; one rounding of the product.
        bound = U * (ACTIVATION_U[activation] * (z * factor).abs() + want.abs()) * (1 + 2.0**-18)
        bound += OUT_U[dtype] * want.abs() * (1 + 2.0**-10)
        bound += 2.0**-25 if dtype == torch.float16 else 0
        assert ((y.double() - want).abs() <= bound).all()
        force_isa("generic")
        assert same_bits(y, ops.act_mul(x, other, activation=activation)[0])
        force_isa(isa)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_are_those_of_the_float_output(isa, dtype, activation, randn):
    """Rows that share a chunk of the scratch, and rows longer than it."""
    for shape in [*SHAPES, (0, 5), (3, 0), (90, 300), (3, 9000)]:
        x, other = randn(*shape).to(dtype), randn(*shape).to(dtype)
        y, *none = ops.act_mul(x, other, activation=activation)
        assert not any(t.numel() for t in none)
        want = ops.quantize_rows(y)
        none, *rows = ops.act_mul(x, other, activation=activation, emit_fp=False, emit_rows=True)
        assert none.shape == (0,)
        assert all_same_bits(rows, want)
        assert [t.shape for t in rows] == [x.shape, x.shape[:-1], x.shape[:-1]]
        both = ops.act_mul(x, other, activation=activation, emit_rows=True)
        assert all_same_bits(both, (y, *want))


def test_the_longest_rows(isa, randn):
    x = randn(3, ops.MAX_K)
    y = ops.act_mul(x, activation="silu")[0]
    rows = ops.act_mul(x, activation="silu", emit_fp=False, emit_rows=True)[1:]
    assert all_same_bits(rows, ops.quantize_rows(y))


STRIDED = {
    "halves of gate_up": lambda randn: randn(6, 140).chunk(2, -1),
    "halves of a batch": lambda randn: randn(2, 3, 140).chunk(2, -1),
    "transposed": lambda randn: (randn(70, 6).T, randn(6, 70)),
    "transposed lead": lambda randn: (randn(3, 4, 70).transpose(0, 1), randn(4, 3, 70)),
    "every other column": lambda randn: (randn(6, 140)[:, ::2], randn(6, 140)[:, 1::2]),
    "every other row": lambda randn: (randn(12, 70)[::2], randn(12, 70)[1::2]),
    "expanded": lambda randn: (randn(70).expand(6, 70), randn(6, 1).expand(6, 70)),
    "misaligned": lambda randn: (randn(421)[1:].view(6, 70), randn(423)[3:].view(6, 70)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(isa, strided, dtype, randn):
    x, other = strided(lambda *shape: randn(*shape).to(dtype))
    got = ops.act_mul(x, other, activation="gelu_tanh", emit_rows=True)
    plain = [t.clone(memory_format=torch.contiguous_format) for t in (x, other)]
    assert all_same_bits(got, ops.act_mul(*plain, activation="gelu_tanh", emit_rows=True))


def test_threads_share_rows(isa, randn):
    x, other = randn(300, 2000).chunk(2, -1)
    one = ops.act_mul(x, other, activation="silu", emit_rows=True)
    torch.set_num_threads(2)
    two = ops.act_mul(x, other, activation="silu", emit_rows=True)
    rows = ops.act_mul(x, other, activation="silu", emit_fp=False, emit_rows=True)[1:]
    assert all_same_bits(one, two)
    assert all_same_bits(rows, one[1:])


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_inf_stay_where_they_are(isa, dtype, activation, randn):
    x, other = randn(4, 50).to(dtype), randn(4, 50).to(dtype)
    clean = ops.act_mul(x, other, activation=activation, emit_rows=True)
    x[1, 49], other[2, 3] = float("nan"), float("inf")
    x[2, 3] = 1
    y, q, scale, offset = ops.act_mul(x, other, activation=activation, emit_rows=True)
    assert y[1, 49].isnan()
    assert y[2, 3] == float("inf")
    assert scale.isnan().tolist() == [False, True, True, False]
    assert not q[1:3].any()
    touched = torch.zeros(4, 50, dtype=torch.bool)
    touched[1, 49] = touched[2, 3] = True
    assert torch.equal(y[~touched], clean[0][~touched])
    assert torch.equal(q[[0, 3]], clean[1][[0, 3]])
    assert torch.equal(offset[[0, 3]], clean[3][[0, 3]])


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_kernel_by_name(dtype, activation, randn):
    x, other = randn(3, 37).to(dtype), randn(3, 37).to(dtype)

    def bits(t):
        return t.numpy() if t.dtype == torch.float32 else t.view(torch.uint16).numpy()

    index = ops.ACTIVATIONS.index(activation)
    want = bits(ops.act_mul(x, other, activation=activation)[0])
    alone = bits(ops.act_mul(x, activation=activation)[0])
    kernels = [k for k in _C.kernels() if k["family"] == "act_mul" and k["supported"]]
    assert kernels
    for kernel in kernels:
        arguments = (index, NAMES[dtype])
        got = _C.act_mul(kernel["name"], bits(x), bits(other), *arguments)
        np.testing.assert_array_equal(got, want)
        got = _C.act_mul(kernel["name"], bits(x), None, *arguments)
        np.testing.assert_array_equal(got, alone)


def test_compiled_for_every_shape(randn):
    def gated(gate_up):
        x, other = gate_up.chunk(2, -1)
        return torch.ops.fastinfer.act_mul(x, other, "silu", True, True)

    torch.compiler.reset()
    compiled = torch.compile(gated, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in [(5,), (1, 1), (2, 3), (0,), (7,)]:
        gate_up = randn(*lead, 96)
        assert all_same_bits(compiled(gate_up), gated(gate_up))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("emit", [(True, False), (False, True), (True, True)], ids=str)
def test_opcheck(emit, dtype, randn):
    for x, other in [(randn(2, 3, 65), None), (randn(0, 8), randn(0, 8)), randn(5, 34).chunk(2, 1)]:
        other = None if other is None else other.to(dtype)
        arguments = (x.to(dtype), other, "gelu", *emit)
        results = torch.library.opcheck(torch.ops.fastinfer.act_mul.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_is_one_clear_error():
    with FakeTensorMode():
        x = torch.empty(2, 8, device="cuda")
        with pytest.raises(
            ValueError, match=r"^act_mul: x is on cuda:0, want cpu: torch .* is built without CUDA"
        ):
            ops.act_mul(x, activation="relu")


X = torch.ones(2, 3)
BAD = {
    "x list": ({"x": [1.0]}, TypeError, "x is a list, want a torch.Tensor"),
    "x double": ({"x": X.double()}, TypeError, "x has dtype torch.float64, want torch.float32"),
    "x scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \[\], want \[..., K\]"),
    "other list": ({"other": [1.0]}, TypeError, "other is a list, want a torch.Tensor"),
    "other half": ({"other": X.half()}, TypeError, "other has dtype torch.float16, want"),
    "other short": ({"other": X[:1]}, ValueError, r"other has shape \[1, 3\], want .* \[2, 3\]"),
    "other meta": ({"other": X.to("meta")}, ValueError, "other is on meta, want cpu"),
    "activation": ({"activation": "tanh"}, ValueError, "activation is 'tanh', want one of none"),
    "nothing": ({"emit_fp": False}, ValueError, "emit_fp and emit_rows are False, want one"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    arguments = {"x": X, "other": X, "activation": "none", **change}
    with pytest.raises(error, match=f"^act_mul: {match}"):
        ops.act_mul(**arguments)
    tensors = (arguments["x"], arguments["other"])
    if all(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in tensors):
        # The operator itself, without the wrapper, never reads what is not there.
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.ops.fastinfer.act_mul(**arguments)
