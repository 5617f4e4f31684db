"""fastinfer::rope against its formula: float64 with a derived bound, and torch's float32 bits."""

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastinfer import _C, ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
U = 2.0**-24  # unit roundoff of float32
OUT_U = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Of x, and of cos and sin.
DTYPES = [(dtype, dtype) for dtype in FLOATS] + [(dtype, torch.float32) for dtype in FLOATS[1:]]
SHAPES = [
    # B, H, T, D, R
    (1, 1, 1, 2, 2),
    (2, 3, 5, 64, 64),
    (1, 4, 7, 33, 30),
    (3, 1, 2, 80, 32),
    (2, 2, 3, 5, 0),
    (1, 2, 4, 256, 64),
    (2, 5, 1, 18, 18),
]


def rotate_half(x):
    """As transformers writes it for Llama: (-second half, first half)."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_every_two(x):
    """As transformers writes it for GPT-J: (-x1, x0, -x3, x2, ...)."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def products(x, cos, sin, interleaved, dtype):
    """x cos and rotate(x) sin of the first R elements, in ``dtype``."""
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    head = x[..., : cos.shape[-1]].to(dtype)
    rotated = rotate_every_two(head) if interleaved else rotate_half(head)
    return head * cos.to(dtype), rotated * sin.to(dtype)


def formula(x, cos, sin, interleaved, dtype=torch.float32):
    a, b = products(x, cos, sin, interleaved, dtype)
    return torch.cat((a + b, x[..., cos.shape[-1] :].to(dtype)), dim=-1)


def same_bits(a, b):
    """Equal in dtype, shape and every bit (NaN included)."""
    a, b = a.contiguous(), b.contiguous()
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def example(randn, shape, dtype=torch.float32, table_dtype=torch.float32, lead=()):
    """x [B, H, T, D], a view of rows [B, T, H D]; cos and sin [*lead, T, R]."""
    b, h, t, d, r = shape
    x = randn(b, t, h * d).to(dtype).view(b, t, h, d).transpose(1, 2)
    return x, randn(*lead, t, r).to(table_dtype), randn(*lead, t, r).to(table_dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dtype", "table_dtype"), DTYPES, ids=str)
def test_against_float64_and_the_bits_of_torch(isa, dtype, table_dtype, interleaved, randn):
    for shape, lead in [(s, lead) for s in SHAPES for lead in [(), (1,), s[:1]]]:
        x, cos, sin = example(randn, shape, dtype, table_dtype, lead)
        y = ops.rope(x, cos, sin, interleaved=interleaved)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert y.transpose(1, 2).is_contiguous()
        want = formula(x, cos, sin, interleaved, torch.float64)
        # Each product and the sum round to float32, the result to the output; what passes through
        # (no product) does not round at all.
        a, b = products(x, cos, sin, interleaved, torch.float64)
        rotated, r = want[..., : cos.shape[-1]], cos.shape[-1]
        bound = U * (a.abs() + b.abs() + rotated.abs()) * (1 + 2.0**-20)
        bound += OUT_U[dtype] * rotated.abs() * (1 + 2.0**-10)
        bound += 2.0**-25 if dtype == torch.float16 else 0
        assert ((y[..., :r].double() - rotated).abs() <= bound).all()
        assert same_bits(y[..., r:], x[..., r:])
        # torch's own operators on float32 round in the same places.
        assert same_bits(y, formula(x, cos, sin, interleaved).to(dtype))


def rotary_tables(t, r, interleaved):
    """cos and sin of positions 0 .. t - 1 as the two models of transformers have them."""
    frequency = 1.0 / 10000 ** (torch.arange(0, r, 2).float() / r)
    angle = torch.arange(t).float()[:, None] * frequency
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_alone(isa, interleaved, randn):
    """What the embedding is for: q at position m times k at n depends on m - n.

    A rotation in float32 is off by at most 3 u |x| an element (two products, one sum, each a part
    of |x| sqrt(2)) and the tables by u each, so a score by less than 16 u |q| |k|; the angles round
    by u of up to 40 radians.
    """
    t, d = 40, 64
    cos, sin = rotary_tables(t, d, interleaved)
    q, k = randn(d), randn(d)
    q_rows = ops.rope(q.expand(1, 1, t, d), cos, sin, interleaved=interleaved)[0, 0].double()
    k_rows = ops.rope(k.expand(1, 1, t, d), cos, sin, interleaved=interleaved)[0, 0].double()
    scores = q_rows @ k_rows.T
    bound = (16 + 2 * t) * U * q.double().norm() * k.double().norm()
    for distance in range(-t + 1, t):
        diagonal = scores.diagonal(distance)
        assert ((diagonal - diagonal[0]).abs() <= 2 * bound).all()
    assert (scores[0] - scores[0, 0]).abs().max() > 1  # and it does depend on that


STRIDED = {
    "contiguous": lambda randn: randn(2, 3, 5, 16),
    "rows": lambda randn: randn(2, 5, 3 * 16).view(2, 5, 3, 16).transpose(1, 2),
    "part of qkv": lambda randn: randn(2, 5, 3 * 48)[..., 48:96].view(2, 5, 3, 16).transpose(1, 2),
    "interleaved qkv": lambda randn: randn(2, 5, 3, 48)[..., 16:32].transpose(1, 2),
    "heads expanded": lambda randn: randn(2, 1, 5, 16).expand(2, 3, 5, 16),
    "tokens sliced": lambda randn: randn(2, 3, 10, 16)[:, :, ::2],
    "batch outermost of nothing": lambda randn: randn(3, 5, 2, 16).permute(2, 0, 1, 3),
    "not of unit stride": lambda randn: randn(2, 3, 16, 5).mT,
    "every other element": lambda randn: randn(2, 3, 5, 32)[..., ::2],
    "misaligned": lambda randn: randn(2 * 3 * 5 * 16 + 1)[1:].view(2, 3, 5, 16),
}
TABLES = {
    "expanded over tokens": lambda randn: randn(1, 12).expand(5, 12),
    "expanded over the batch": lambda randn: randn(1, 5, 12).expand(2, 5, 12),
    "part of a wider table": lambda randn: randn(9, 16)[2:7, 3:15],
    "repeated halves": lambda randn: randn(2, 5, 6).repeat(1, 1, 2),
    "not of unit stride": lambda randn: randn(2, 12, 5).mT,
    "constant row": lambda randn: randn(5, 1).expand(5, 12),
}


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_change_nothing(isa, strided, randn):
    tables = [(table(randn), table(randn)) for table in TABLES.values()]
    for dtype, interleaved in itertools.product(FLOATS, [False, True]):
        x = strided(lambda *shape, dtype=dtype: randn(*shape).to(dtype))
        for cos, sin in tables:
            y = ops.rope(x, cos, sin, interleaved=interleaved)
            assert same_bits(y, formula(x, cos, sin, interleaved).to(dtype))
            assert y.transpose(1, 2).is_contiguous()


def test_x_is_not_copied(randn):
    x = randn(1, 256, 3 * 1024)[..., :1024].view(1, 256, 8, 128).transpose(1, 2)
    cos, sin = randn(256, 128), randn(256, 128)
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        ops.rope(x, cos, sin)
    names = {event.key for event in profile.key_averages()}
    assert "fastinfer::rope" in names
    assert not names & {"aten::contiguous", "aten::clone", "aten::copy_"}


def test_the_input_is_left_as_it_was(isa, randn):
    arguments = example(randn, (2, 3, 5, 64, 64))
    before = [t.clone() for t in arguments]
    ops.rope(*arguments)
    assert all(same_bits(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
def test_threads_share_tokens(isa, interleaved, randn):
    """More than one batch to a thread, and a batch to more than one."""
    for shape in [(3, 8, 41, 64, 64), (1, 4, 600, 64, 32), (130, 8, 1, 64, 64)]:
        x, cos, sin = example(randn, shape, lead=shape[:1])
        one = ops.rope(x, cos, sin, interleaved=interleaved)
        torch.set_num_threads(2)
        two = ops.rope(x, cos, sin, interleaved=interleaved)
        torch.set_num_threads(1)
        assert same_bits(one, two)
        assert same_bits(one, formula(x, cos, sin, interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_inf_stay_within_their_pair(isa, dtype, interleaved, randn):
    x, cos, sin = example(randn, (2, 3, 5, 40, 36), dtype)
    clean = ops.rope(x, cos, sin, interleaved=interleaved)
    touched = torch.zeros(x.shape, dtype=torch.bool)
    touched[1, 2, 3, [4, 5] if interleaved else [5, 23]] = True
    touched[0, 0, 0, 38] = True
    for poison in [float("nan"), float("inf"), -float("inf")]:
        x[1, 2, 3, 5], x[0, 0, 0, 38] = poison, poison
        y = ops.rope(x, cos, sin, interleaved=interleaved)
        assert torch.equal(~y.isfinite(), touched)
        assert torch.equal(y[~touched], clean[~touched])
        want = formula(x, cos, sin, interleaved).to(dtype)
        assert torch.equal(y.nan_to_num(1.5), want.nan_to_num(1.5))


@pytest.mark.parametrize("shape", [(0, 2, 3, 8, 8), (2, 0, 3, 8, 8), (2, 2, 0, 8, 8)], ids=str)
def test_empty(isa, shape, randn):
    x, cos, sin = example(randn, shape)
    y = ops.rope(x, cos, sin)
    assert y.shape == x.shape
    assert y.stride() == torch.empty(y.transpose(1, 2).shape).transpose(1, 2).stride()
    assert ops.rope(torch.empty(2, 2, 3, 0), torch.empty(3, 0), torch.empty(3, 0)).numel() == 0


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dtype", "table_dtype"), DTYPES, ids=str)
def test_every_kernel_by_name(dtype, table_dtype, interleaved, randn):
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    x, cos, sin = example(randn, (1, 3, 4, 22, 18), dtype, table_dtype)

    def bits(t):
        t = t.contiguous()
        return t.numpy() if t.dtype == torch.float32 else t.view(torch.uint16).numpy()

    rows = x.transpose(1, 2).reshape(4, 66)
    want = bits(formula(x, cos, sin, interleaved).to(dtype).transpose(1, 2).reshape(4, 66))
    ran = 0
    for kernel in _C.kernels():
        if kernel["family"] != "rope" or not kernel["supported"]:
            continue
        got = _C.rope(
            *(kernel["name"], bits(rows), bits(cos), bits(sin), 3, interleaved),
            *(names[dtype], names[table_dtype]),
        )
        assert (got == want).all(), kernel["name"]
        ran += 1
    assert ran >= 1


def rotate(x, cos, sin):
    """A view in front and behind, as in a model."""
    b, t, _ = x.shape
    y = torch.ops.fastinfer.rope(x.view(b, t, -1, 16).transpose(1, 2), cos, sin)
    return y.transpose(1, 2).reshape(b, t, -1)


def test_compiled_for_every_shape(randn):
    torch.compiler.reset()
    compiled = torch.compile(rotate, fullgraph=True, dynamic=True, backend="aot_eager")
    for b, t in [(2, 5), (3, 7), (1, 1)]:
        x, cos, sin = randn(b, t, 48), randn(t, 12), randn(t, 12)
        assert same_bits(compiled(x, cos, sin), rotate(x, cos, sin))


@pytest.mark.parametrize(
    ("shape", "dtype", "lead"),
    [
        ((2, 3, 5, 24, 16), torch.float32, ()),
        ((2, 0, 3, 8, 8), torch.bfloat16, ()),
        ((2, 2, 1, 8, 6), torch.float16, (2,)),
    ],
    ids=str,
)
def test_opcheck(shape, dtype, lead, randn):
    arguments = (*example(randn, shape, dtype, lead=lead), lead == ())
    results = torch.library.opcheck(torch.ops.fastinfer.rope.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_meta(randn):
    x, cos, sin = (t.to("meta") for t in example(randn, (2, 3, 5, 64, 64)))
    y = ops.rope(x, cos, sin)
    assert y.device.type == "meta"
    assert y.stride() == (5 * 192, 64, 192, 1)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_is_one_clear_error():
    with FakeTensorMode():
        x, cos = torch.empty(1, 2, 3, 8, device="cuda"), torch.empty(3, 8, device="cuda")
        with pytest.raises(
            ValueError, match=r"^rope: x is on cuda:0, want cpu: torch .* is built without CUDA"
        ):
            ops.rope(x, cos, cos)


X, TABLE = torch.ones(2, 3, 5, 8), torch.ones(5, 8)
WANT = (
    r"want \[T, R\], \[1, T, R\] or \[B, T, R\] with an even R <= D, where x is .* \[2, 3, 5, 8\]"
)
BAD = {
    "x list": ({"x": [1.0]}, TypeError, "x is a list, want a torch.Tensor"),
    "x double": ({"x": X.double()}, TypeError, "x has dtype torch.float64, want torch.float32"),
    "x 3-D": ({"x": X[0]}, ValueError, r"x has shape \[3, 5, 8\], want \[B, H, T, D\]"),
    "x sparse": ({"x": X.to_sparse()}, TypeError, "x is sparse"),
    "cos list": ({"cos": [1.0]}, TypeError, "cos is a list, want a torch.Tensor"),
    "cos half": ({"cos": TABLE.half()}, TypeError, "cos has dtype torch.float16, want .*float32$"),
    "cos 1-D": ({"cos": TABLE[0]}, ValueError, rf"cos has shape \[8\], {WANT}"),
    "cos 4-D": ({"cos": TABLE[None, None]}, ValueError, rf"cos has shape .*, {WANT}"),
    "cos T": ({"cos": TABLE[:4]}, ValueError, rf"cos has shape \[4, 8\], {WANT}"),
    "cos odd": ({"cos": TABLE[:, :7]}, ValueError, rf"cos has shape \[5, 7\], {WANT}"),
    "cos wide": ({"cos": torch.ones(5, 10)}, ValueError, rf"cos has shape \[5, 10\], {WANT}"),
    "cos B": ({"cos": torch.ones(3, 5, 8)}, ValueError, rf"cos has shape \[3, 5, 8\], {WANT}"),
    "cos meta": ({"cos": TABLE.to("meta")}, ValueError, "cos is on meta, want cpu, where x is"),
    "sin T": ({"sin": TABLE[:1]}, ValueError, rf"sin has shape \[1, 8\], {WANT}"),
    "sin R": ({"sin": TABLE[:, :6]}, ValueError, r"sin has shape \[5, 6\], want R = 8, as cos has"),
    "sin dtype": (
        {"x": X.half(), "sin": TABLE.half()},
        TypeError,
        "sin has dtype torch.float16, want that of cos, torch.float32",
    ),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    arguments = {"x": X, "cos": TABLE, "sin": TABLE, **change}
    with pytest.raises(error, match=f"^rope: {match}"):
        ops.rope(**arguments)
    if all(isinstance(t, torch.Tensor) and t.device.type == "cpu" for t in arguments.values()):
        # The operator itself, without the wrapper, never reads what is not there.
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.ops.fastinfer.rope(*arguments.values())
