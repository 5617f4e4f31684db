"""fastinfer::attention against float64, beside torch, and across instruction sets."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastinfer import _C, ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
U = 2.0**-24  # unit roundoff of float32
OUT_U = {torch.float32: U, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
INF = float("inf")
NAN = float("nan")


def visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, window: int) -> Tensor:
    """Which scores count: bool [B, Hq, Tq, Tk]."""
    tq, tk = q.shape[2], k.shape[2]
    seen = torch.ones(*q.shape[:3], tk, dtype=torch.bool)
    distance = torch.arange(tq)[:, None] - torch.arange(tk)
    if causal:
        seen &= distance >= 0
    if window:
        seen &= distance < window
    if mask is not None:
        seen &= mask if mask.dtype == torch.bool else mask != -INF
    return seen


def in_pairs(dtype):
    """Whether the kernel in use takes inputs of this dtype in pairs (cpu/attention/attention.h)."""
    return _C.attention_in_pairs() and dtype == torch.bfloat16


def exact(q, k, v, mask=None, *, scale=None, causal=False, window=0):
    """The formula in float64, and a bound on the error of float32 arithmetic.

    A score carries D + 1 roundings of the sum of |q k| and one of the mask; exp one of its argument
    and 2 of its own, and at most 5 more a block of 256 keys for the factor that rescales; the sums
    of n probabilities n roundings, once in the denominator and once in the values, each relative to
    a sum of terms of one sign; the reciprocal, its product and the
    output one each. In pairs of bfloat16 a score has D + 2, the argument of exp 3 and exp 50 (its
    polynomial), and probabilities round to bfloat16, in the sum as well.
    """
    pairs = in_pairs(q.dtype)
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    seen = visible(q, k, mask, causal, window)
    scores = (q * scale) @ k.mT
    sizes = (q * scale).abs() @ k.abs().mT
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.double()
    scores = torch.where(seen, scores, -INF)
    p = torch.where(seen.any(-1, keepdim=True), scores.softmax(-1), 0.0)
    most = scores.amax(-1, keepdim=True)
    apart = torch.where(seen, most - scores, 0.0).amax(-1, keepdim=True)
    rounded = U * ((q.shape[3] + pairs + 1.001) * sizes + scores.abs())
    worst = torch.where(seen, rounded, 0.0).amax(-1, keepdim=True)
    n = seen.sum(-1, keepdim=True)
    blocks = (k.shape[2] + 255) // 256
    if pairs:
        of_one = 2.0**-8 + 2 * worst + U * (3 * apart + 50 + 5 * blocks + n)
    else:
        of_one = 2 * worst + U * (2 * apart + 8 + 5 * blocks + n)
    relative = 2 * of_one + 4 * U
    return p @ v, relative * (p @ v.abs()) * 1.01


def check_close(y, q, k, v, mask=None, **options):
    want, bound = exact(q, k, v, mask, **options)
    assert (y.dtype, y.shape) == (q.dtype, q.shape)
    assert y.transpose(1, 2).is_contiguous()
    bound = bound + OUT_U[q.dtype] * want.abs() * 1.01 + (2.0**-25 if q.dtype == FLOATS[2] else 0)
    assert ((y.double() - want).abs() <= bound).all()


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def packed(randn, b, heads, kv_heads, t, d, dtype=torch.float32):
    """q, k, v as views of one projection [B, T, (heads + 2 kv_heads) D]."""
    qkv = randn(b, t, heads + 2 * kv_heads, d).to(dtype)
    return [x.transpose(1, 2) for x in qkv.split([heads, kv_heads, kv_heads], 2)]


def apart(randn, b, heads, kv_heads, tq, tk, d, dtype=torch.float32):
    return (
        randn(b, heads, tq, d).to(dtype),
        randn(b, kv_heads, tk, d).to(dtype),
        randn(b, kv_heads, tk, d).to(dtype),
    )


@pytest.fixture
def both(isa, force_isa):
    """``both(*arguments)``: attention under the instruction set, after comparing its bits with the
    generic ones where they must be the same."""

    def call(*arguments, **options):
        y = ops.attention(*arguments, **options)
        if in_pairs(y.dtype):
            return y
        force_isa("generic")
        assert same_bits(y, ops.attention(*arguments, **options))
        force_isa(isa)
        return y

    return call


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("d", [1, 31, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("tq", "tk"), [(1, 1), (7, 33), (37, 7), (1, 301)], ids=str)
def test_against_float64(both, tq, tk, d, dtype, randn):
    q, k, v = apart(randn, 2, 2, 1, tq, tk, d, dtype)
    check_close(both(q, k, v), q, k, v)
    check_close(both(q, k, v, causal=True), q, k, v, causal=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)], ids=str)
def test_views_of_a_packed_projection(both, heads, kv_heads, dtype, randn):
    q, k, v = packed(randn, 2, heads, kv_heads, 21, 20, dtype)
    y = both(q, k, v)
    check_close(y, q, k, v)
    assert same_bits(y, ops.attention(q.contiguous(), k.contiguous(), v.contiguous()))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("window", [1, 2, 17, 100, 10**6])
@pytest.mark.parametrize(("tq", "tk"), [(60, 60), (90, 40), (20, 70), (300, 300)], ids=str)
def test_sliding_window(both, tq, tk, window, dtype, randn):
    q, k, v = apart(randn, 1, 2, 1, tq, tk, 16, dtype)
    y = both(q, k, v, causal=True, window=window)
    check_close(y, q, k, v, causal=True, window=window)
    hidden = torch.arange(tq) - window + 1 >= tk
    assert not y[:, :, hidden].any()


def masks(randn, b, heads, tq, tk):
    lengths = torch.arange(tk) < torch.tensor([tk // 2, tk - 1])[:b, None]
    some = randn(b, heads, tq, tk) > 0.5
    some[..., 5] = True
    return {
        "padding": lengths[:, None, None],
        "rows": some[:1, :1],
        "heads": some[:1],
        "all": some,
        "one key of each row": randn(tq, 1) > 0,
        "expanded": some[:, :, :1].expand(b, heads, tq, tk),
        "transposed": some.mT.contiguous().mT,
        "sliced": torch.cat([some, some], -1)[..., :tk],
        "one dimension": some[0, 0, 0],
        "scalar": torch.tensor(True),
        "left padding": lengths.flip(-1)[:, None, None],
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "same", "f32"])
@pytest.mark.parametrize("name", masks(torch.randn, 2, 4, 45, 150))
def test_masks(both, name, kind, causal, randn):
    dtype = torch.float32 if kind == "f32" else torch.bfloat16
    q, k, v = apart(randn, 2, 4, 2, 45, 150, 24, dtype)
    mask = masks(randn, 2, 4, 45, 150)[name]
    if kind != "bool":
        added = (mask * 3.0).to(torch.float32 if kind == "f32" else dtype)
        mask = torch.where(mask, added, -INF) if mask.dim() == 0 else added.masked_fill(~mask, -INF)
    y = both(q, k, v, mask, causal=causal)
    check_close(y, q, k, v, mask, causal=causal)


def test_a_bias_shared_by_strides(both, randn):
    """A relative position bias, [1, H, T, T] cut from a longer table."""
    q, k, v = apart(randn, 2, 3, 3, 50, 70, 32)
    bias = randn(3, 2 * 120).as_strided((1, 3, 50, 70), (0, 240, 1, 1))
    check_close(both(q, k, v, bias), q, k, v, bias)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["bool", "-inf", "least"])
def test_rows_that_see_nothing_are_those_of_torch(both, kind, dtype, randn):
    """Zeros where all is hidden; with the least finite number nothing is, and the row is a mean."""
    q, k, v = apart(randn, 1, 2, 2, 40, 40, 8, dtype)
    seen = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    seen[:, :, [1, 39]] = False
    seen[:, :, :, 30:] = False
    least = {"-inf": -INF, "least": torch.finfo(dtype).min}.get(kind)
    mask = seen if least is None else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, least)
    y, theirs = both(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask)
    # Of 40 keys and D = 8 each result is within 2 (40 + 8 + 12) roundings (see `exact`), and rounds
    # its output; torch rounds probabilities to dtype as well, and so do pairs.
    limit = 240 * U + 4 * OUT_U[dtype] + (200 * U + 2 * 2.0**-8) * in_pairs(dtype)
    torch.testing.assert_close(y, theirs, atol=limit, rtol=limit)
    if kind != "least":
        assert not y[:, :, [1, 39]].any()
        assert not theirs[:, :, [1, 39]].any()
    elif dtype == torch.float32:
        mean = v.double().mean(2, keepdim=True).expand(1, 2, 2, 8)
        torch.testing.assert_close(y[:, :, [1, 39]].double(), mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 3, 3), (2, 0, 0)], ids=str)
def test_empty(isa, shape, randn):
    b, tq, tk = shape
    q, k, v = apart(randn, b, 4, 2, tq, tk, 8)
    y = ops.attention(q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(y, theirs)
    assert y.shape == (b, 4, tq, 8)
    assert ops.attention(q[:, :0], k[:, :0], v[:, :0]).shape == (b, 0, tq, 8)


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_hidden_keys_may_hold_anything(both, poison, dtype, randn):
    q, k, v = apart(randn, 2, 2, 1, 40, 70, 24, dtype)
    mask = torch.ones(2, 1, 1, 70, dtype=torch.bool)
    mask[0, ..., 50:] = False
    mask[1, ..., 3] = False
    want = ops.attention(q, k, v, mask), ops.attention(q, k, v, causal=True)
    k[0, :, 50:], v[0, :, 50:], k[1, :, 3], v[1, :, 3] = poison, poison, poison, poison
    assert same_bits(both(q, k, v, mask), want[0])
    additive = torch.zeros(mask.shape).masked_fill(~mask, -INF)
    assert same_bits(both(q, k, v, additive), want[0])
    causal = both(q, k, v, causal=True)
    assert same_bits(causal[0], want[1][0])  # 40 queries see none of keys 50 and on
    assert same_bits(causal[1, :, :3], want[1][1, :, :3])


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_visible_poison_spreads_as_the_formula_says(both, dtype, randn):
    q, k, v = apart(randn, 2, 2, 2, 20, 30, 24, dtype)
    want = ops.attention(q, k, v)
    bad_q, bad_k, bad_v = q.clone(), k.clone(), v.clone()
    bad_q[1, 0, 7, 3] = NAN
    y = both(bad_q, k, v)
    assert y[1, 0, 7].isnan().all()
    bad_k[0, 1, 29, 0] = NAN
    assert ops.attention(q, bad_k, v)[0, 1].isnan().all()
    bad_v[0, 0, 2, 5] = INF
    column = both(q, k, bad_v)
    assert (column[0, 0, :, 5] == INF).all()
    for got in (y, column, both(q, bad_k, v)):
        fine = got.isfinite()
        assert same_bits(got[fine], want[fine])
        assert fine.sum() in (want.numel() - 24, want.numel() - 20, want.numel() - 20 * 24)


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_scale(both, dtype, randn):
    q, k, v = apart(randn, 1, 2, 2, 9, 40, 32, dtype)
    for scale in (0.0, 1.0, 0.3, -0.5):
        check_close(both(q, k, v, scale=scale), q, k, v, scale=scale)
    assert same_bits(ops.attention(q, k, v), ops.attention(q, k, v, scale=32**-0.5))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_scores_far_apart(both, dtype, randn):
    """One key takes it all; the others underflow, also when it comes in a later block."""
    q, k, v = apart(randn, 1, 1, 1, 5, 600, 16, dtype)
    k[0, 0, 400] = q[0, 0, 2] * 300
    check_close(both(q, k, v, scale=1.0), q, k, v, scale=1.0)
    assert same_bits(ops.attention(q, k, v, scale=1.0)[0, 0, 2], v[0, 0, 400])


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("d", [64, 80, 128])
def test_huge_scores(both, d, dtype, randn):
    """Half a unit of a score of 10^9 and more is over 100, so the greatest takes it all: its own
    distance from the maximum must not be rounded."""
    q, k, v = apart(randn, 1, 2, 2, 16, 300, d, dtype)
    q, k = q * 1e5, k * 1e5
    greatest = (q.double() @ k.double().transpose(-1, -2)).topk(2, dim=-1)
    clear = greatest.values[..., 0] > greatest.values[..., 1] * (1 + 1e-5)
    y = both(q, k, v)
    want = v.gather(2, greatest.indices[..., :1].expand(*y.shape))
    assert clear.any()
    torch.testing.assert_close(y[clear], want[clear])


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("poison", [NAN, INF])
def test_poison_under_a_probability_of_nothing(both, poison, dtype):
    """A key that is seen, however little: 2^-288 beside the first."""
    q, k, v = (torch.zeros(1, 1, t, 64, dtype=dtype) for t in (4, 8, 8))
    q[..., 0] = k[0, 0, 0, 0] = 40.0
    v[:] = 1.0
    v[0, 0, 3] = poison
    y = both(q, k, v)
    assert y.isnan().all() if math.isnan(poison) else (y == INF).all()


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 4, 128, 64), (1, 2, 512, 64), (1, 3, 200, 80), (1, 2, 300, 128)], ids=str
)
def test_error_beside_that_of_torch(shape, causal, dtype, randn):
    """At most twice the float32 error of torch; for bfloat16 no more than torch's.

    In pairs both round probabilities and outputs to bfloat16, so the errors differ by chance: of N
    independent ones the norm varies by about 0.5 / sqrt(N), and a few more times is allowed."""
    b, h, t, d = shape
    q, k, v = apart(randn, b, h, h, t, t, d, dtype)
    want, _ = exact(q, k, v, causal=causal)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    error, limit = (
        (y.double() - want).norm() for y in (ops.attention(q, k, v, causal=causal), theirs)
    )
    chance = 4 / math.sqrt(want.numel()) if in_pairs(dtype) else 0.0
    assert error <= (2 if dtype == torch.float32 else 1 + chance) * limit


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_threads_change_nothing(isa, causal, dtype, randn):
    q, k, v = packed(randn, 1, 6, 2, 130, 40, dtype)
    one = ops.attention(q, k, v, causal=causal)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert same_bits(one, ops.attention(q, k, v, causal=causal)), threads


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_a_query_does_not_depend_on_the_others(isa, dtype, randn):
    q, k, v = apart(randn, 2, 4, 2, 100, 90, 40, dtype)
    whole = ops.attention(q, k, v)
    for step in (1, 7, 64):
        parts = [ops.attention(part, k, v) for part in q.split(step, 2)]
        assert same_bits(whole, torch.cat(parts, 2)), step
    assert same_bits(whole[1:], ops.attention(q[1:], k[1:], v[1:]))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_strides(isa, dtype, randn):
    q, k, v = apart(randn, 2, 4, 2, 30, 50, 24, dtype)
    want = ops.attention(q, k, v)
    views = [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.mT.contiguous().mT,  # copied: no unit stride along D
        lambda x: torch.cat([x, x], -1)[..., :24],
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
        lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    ]
    for view in views:
        assert same_bits(want, ops.attention(view(q), view(k), view(v)))
    one_head = k[:, :1].expand(2, 4, 50, 24)
    assert same_bits(ops.attention(q, one_head, one_head), ops.attention(q, k[:, :1], k[:, :1]))


Q = torch.ones(2, 4, 5, 8)
K = torch.ones(2, 2, 6, 8)
BAD = {
    "q list": ({"q": [1.0]}, TypeError, "q is a list, want a torch.Tensor"),
    "q int": ({"q": Q.int()}, TypeError, "q has dtype torch.int32, want torch.float32 or"),
    "q 3-D": ({"q": Q[0]}, ValueError, r"q has shape \[4, 5, 8\], want \[B, H, T, D\]"),
    "D 0": ({"q": Q[..., :0]}, ValueError, r"q has shape \[2, 4, 5, 0\], want .* 1 to 256"),
    "D 257": ({"q": torch.ones(1, 1, 1, 257)}, ValueError, r"q has shape .* D from 1 to 256"),
    "k dtype": ({"k": K.half()}, TypeError, "k has dtype torch.float16, want torch.float32"),
    "v dtype": ({"v": K.half()}, TypeError, "v has dtype torch.float16, want torch.float32"),
    "k batch": ({"k": K[:1]}, ValueError, r"k has shape \[1, 2, 6, 8\], want .* B = 2 and D = 8"),
    "k D": ({"k": K[..., :7]}, ValueError, r"k has shape \[2, 2, 6, 7\], want .* B = 2 and D = 8"),
    "k heads": ({"k": K.repeat(1, 3, 1, 1)}, ValueError, "k has 6 heads, want a divisor of the 4"),
    "no heads": ({"k": K[:, :0]}, ValueError, "k has 0 heads, want a divisor of the 4"),
    "v shape": ({"v": K[:, :, :5]}, ValueError, r"v has shape \[2, 2, 5, 8\], want that of k"),
    "mask shape": (
        {"mask": torch.ones(2, 3, 5, 6)},
        ValueError,
        r"mask has shape \[2, 3, 5, 6\], want one that broadcasts to \[2, 4, 5, 6\]",
    ),
    "mask 5-D": ({"mask": torch.ones(1, 1, 1, 1, 6)}, ValueError, "mask has shape .* broadcasts"),
    "mask int": (
        {"mask": torch.ones(5, 6, dtype=torch.int32)},
        TypeError,
        "mask has dtype torch.int32, want torch.bool or torch.float32",
    ),
    "mask half": (
        {"mask": torch.ones(5, 6).half()},
        TypeError,
        "mask has dtype torch.float16, want torch.bool or torch.float32",
    ),
    "window": ({"window": -1, "causal": True}, ValueError, "window is -1, want >= 0"),
    "window alone": ({"window": 3}, ValueError, "window is 3 and causal is False, want"),
    "meta": ({"k": K.to("meta")}, ValueError, "k is on meta, want cpu"),
    "sparse": ({"q": Q.to_sparse()}, TypeError, "q is sparse"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    with pytest.raises(error, match=f"^attention: {match}"):
        ops.attention(**{"q": Q, "k": K, "v": K, **change})


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("q list", "meta", "sparse")])
def test_the_operator_refuses_too(name):
    change = BAD[name][0]
    with pytest.raises(RuntimeError, match="attention: "):
        torch.ops.fastinfer.attention(**{"q": Q, "k": K, "v": K, **change})


def test_opcheck(randn):
    for dtype, rest in (
        (torch.float32, (torch.ones(2, 1, 1, 9, dtype=torch.bool), 0.5, True, 4)),
        (torch.bfloat16, ()),
        (torch.float16, (torch.zeros(9, 9, dtype=torch.float16),)),
    ):
        q, k, v = packed(randn, 2, 4, 2, 9, 16, dtype)
        results = torch.library.opcheck(torch.ops.fastinfer.attention.default, (q, k, v, *rest))
        assert set(results.values()) == {"SUCCESS"}


def test_shapes_without_values():
    q, k = torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 2, 0, 8, device="meta")
    y = ops.attention(q, k, k)
    assert (y.shape, y.stride()) == ((2, 4, 5, 8), ops.attention(Q, K, K).stride())


def test_compile_with_dynamic_shapes(randn):
    def block(x, mask):
        q, k, v = (t.transpose(1, 2) for t in x.unflatten(-1, (3, 4, 8)).unbind(2))
        y = ops.attention(q, k, v, mask, causal=True)
        return y.transpose(1, 2).flatten(2)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for b, t in ((2, 9), (3, 17)):
        x, mask = randn(b, t, 96), torch.rand(b, 1, 1, t) < 0.7
        assert same_bits(compiled(x, mask), block(x, mask))


def test_every_row_is_listed():
    rows = [row for row in _C.kernels() if row["family"] == "attention"]
    assert rows[0]["name"] == "attention_generic"
    assert all(row["name"].startswith("attention_") for row in rows)
