"""fastinfer::quantize_rowwise against its formula in float64."""

import numpy as np
import pytest
import torch

from fastinfer import ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FLOOR = 2.0**-118
FLT_MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(9, 200), (2, 3, 65), (7,), (4, 1), (3, 1000)], ids=str)
def test_against_float64(isa, shape, dtype, randn):
    x = randn(*shape).to(dtype)
    q, scale = ops.quantize_rowwise(x)
    assert (q.dtype, q.shape) == (torch.int8, x.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, x.shape[:-1])
    a = x.double().abs().amax(-1).clamp(min=FLOOR)
    assert torch.equal(scale, (a / 127).float())
    # 127 / a and the product round once each: 127 * 2 * 2^-24 beside the half of a step.
    exact = x.double() * (127 / a)[..., None]
    assert ((q.double() - exact).abs() <= 0.5 + 2.0**-16).all()
    assert (q.abs().amax(-1) == 127).all()


def test_ties_go_to_even(isa):
    """With an absolute maximum of 127 the factor is 1, so halves are ties."""
    halves = torch.arange(-126.5, 127, 1)
    q, scale = ops.quantize_rowwise(torch.cat([halves, torch.tensor([127.0])]))
    assert scale == 1
    assert torch.equal(q[:-1], torch.from_numpy(np.rint(halves.numpy())).char())
    assert (q[:-1] % 2 == 0).all()


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1e-38, FLOOR / 2, FLOOR])
def test_tiny_rows_keep_a_normal_scale(isa, largest, rng):
    x = torch.from_numpy(rng.uniform(-1, 1, (3, 50)) * largest).float()
    q, scale = ops.quantize_rowwise(x)
    assert torch.equal(scale, torch.full((3,), FLOOR / 127))
    assert ((q.double() * scale.double()[:, None] - x.double()).abs() <= 2.0**-125 * 0.51).all()


def test_the_largest_rows(isa, randn):
    x = randn(3, 50).clamp(-1, 1) * FLT_MAX
    x[:, 11] = torch.tensor([FLT_MAX, -FLT_MAX, FLT_MAX])
    q, scale = ops.quantize_rowwise(x)
    assert torch.equal(scale, torch.full((3,), FLT_MAX) / 127)
    assert q[:, 11].tolist() == [127, -127, 127]
    # 127 / FLT_MAX is subnormal, 2^-121.01 with a step of 2^-149: an error of at most 2^-28 of it.
    exact = x.double() * (127 / FLT_MAX)
    assert ((q.double() - exact).abs() <= 0.5 + 2.0**-16).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_row(isa, poison, randn):
    x = randn(4, 50)
    x[2, 49] = poison
    q, scale = ops.quantize_rowwise(x)
    assert scale.isnan().tolist() == [False, False, True, False]
    assert not q[2].any()


def test_no_rows_and_no_columns(isa):
    q, scale = ops.quantize_rowwise(torch.empty(0, 7))
    assert (q.shape, scale.shape) == ((0, 7), (0,))
    q, scale = ops.quantize_rowwise(torch.empty(3, 0))
    assert q.shape == (3, 0)
    assert torch.equal(scale, torch.full((3,), FLOOR / 127))


def test_threads_share_rows(isa, randn):
    x = randn(300, 1000)
    one = ops.quantize_rowwise(x)
    torch.set_num_threads(2)
    two = ops.quantize_rowwise(x)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
