"""The attention operator as torch's kernels do it on a GPU, tried here on the CPU's tensors."""

import pytest
import torch

from fastinfer import ops
from fastinfer.ops._attention_by_torch import attention_by_torch
from test_attention import FLOATS, INF, OUT_U, apart, exact, masks, packed


def limits(q, k, v, mask=None, *, product=1, **options):
    """Float64's answer, and how far from it a kernel of torch may be.

    Beside what `exact` allows: q and k may each get a factor sqrt(scale), four more roundings of a
    score beside its D + 1; probabilities of 16-bit inputs are rounded to 16 bits, at 2^-25 if they
    are subnormal float16 (the row's greatest is 1, so the sum that divides them is at least 1).
    `product` is the error of one product in units of 2^-24: 1 if it is rounded once."""
    want, bound = exact(q, k, v, mask, **options)
    sizes, _ = exact(q, k, v.abs(), mask, **options)
    d, tk, extra = q.shape[3], k.shape[2], product - 1
    bound = bound * (d + 5.01 + extra) / (d + 1) + 2.0**-24 * extra * sizes
    bound = bound + OUT_U[q.dtype] * want.abs() * 1.01
    if q.dtype != torch.float32:
        bound = bound + OUT_U[q.dtype] * sizes * 1.01
    if q.dtype == torch.float16:
        bound = bound + (tk + 1) * 2.0**-25 * v.double().abs().max()
    return want, bound


def check(q, k, v, mask=None, **options):
    y = attention_by_torch(q, k, v, mask, **options)
    want, bound = limits(q, k, v, mask, **options)
    assert (y.dtype, y.shape) == (q.dtype, q.shape)
    assert y.transpose(1, 2).is_contiguous()
    assert ((y.double() - want).abs() <= bound).all()
    return y


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_heads(heads, kv_heads, causal, dtype, randn):
    check(*packed(randn, 2, heads, kv_heads, 21, 20, dtype), causal=causal)
    check(*apart(randn, 2, heads, kv_heads, 7, 33, 16, dtype), causal=causal)
    check(*apart(randn, 1, heads, kv_heads, 33, 7, 16, dtype), causal=causal)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("window", [1, 2, 17, 100])
@pytest.mark.parametrize(("tq", "tk"), [(60, 60), (90, 40), (20, 70)], ids=str)
def test_sliding_window(tq, tk, window, dtype, randn):
    y = check(*apart(randn, 1, 2, 1, tq, tk, 16, dtype), causal=True, window=window)
    hidden = torch.arange(tq) - window + 1 >= tk
    assert not y[:, :, hidden].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "same", "wider"])
@pytest.mark.parametrize("name", masks(torch.randn, 2, 4, 45, 150))
def test_masks(name, kind, causal, randn):
    q, k, v = apart(randn, 2, 4, 2, 45, 150, 24, torch.bfloat16)
    mask = masks(randn, 2, 4, 45, 150)[name]
    if kind != "bool":
        added = (mask * 3.0).to(torch.float32 if kind == "wider" else q.dtype)
        mask = torch.where(mask, added, -INF) if mask.dim() == 0 else added.masked_fill(~mask, -INF)
    before = mask.clone()
    check(q, k, v, mask, causal=causal)
    check(q, k, v, mask, causal=True, window=9)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("least", [None, -INF])
def test_rows_that_see_nothing_are_zero(least, dtype, randn):
    seen = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    seen[:, :, [1, 39]] = False
    mask = seen if least is None else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, least)
    y = check(*apart(randn, 1, 2, 2, 40, 40, 8, dtype), mask)
    assert not y[:, :, [1, 39]].any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_least_finite_number_of_float32_hides_nothing(dtype, randn):
    """Rounded to 16 bits it would be -Inf, and its rows zeros instead of the mean of v."""
    q, k, v = apart(randn, 1, 2, 2, 4, 40, 8, dtype)
    mask = torch.full((4, 40), torch.finfo(torch.float32).min)
    mean = v.double().mean(2, keepdim=True).expand(1, 2, 4, 8)
    y = attention_by_torch(q, k, v, mask)
    torch.testing.assert_close(y.double(), mean, atol=2e-6 + OUT_U[dtype], rtol=OUT_U[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_float32_bias_is_not_rounded(dtype, randn):
    """Its values differ by less than 16 bits tell apart, and by enough to choose a key."""
    q, k, v = apart(randn, 1, 1, 1, 3, 2, 8, dtype)
    check(q * 0, k, v, torch.tensor([[1024.0, 1025.0]] * 3))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 0.3, -0.5])
def test_scale(scale, dtype, randn):
    q, k, v = apart(randn, 1, 2, 2, 9, 40, 32, dtype)
    check(q, k, v, scale=scale)
    check(q, k, v, scale=scale, causal=True)


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 3, 3), (2, 0, 0)], ids=str)
def test_empty(shape, randn):
    b, tq, tk = shape
    q, k, v = apart(randn, b, 4, 2, tq, tk, 8)
    y, ours = attention_by_torch(q, k, v), ops.attention(q, k, v)
    assert torch.equal(y, ours)
    assert y.stride() == ours.stride()
    assert attention_by_torch(q[:, :0], k[:, :0], v[:, :0]).shape == (b, 0, tq, 8)


def test_it_is_what_runs_on_cuda():
    name = "fastinfer::attention"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
