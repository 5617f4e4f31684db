"""Whole models on a GPU: moved there in int8, quantised there, fused there."""

import copy

import pytest
import torch
from torch import Tensor, nn

import fastinfer


class Block(nn.Module):
    """A gated feed-forward with RMSNorm, and attention beside it: what fusion looks for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            p(h).view(*h.shape[:2], self.heads, -1).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(128, 4) for _ in range(2)), nn.Linear(128, 77)).eval()


def close(y: Tensor, want: Tensor, limit: float = 5e-3) -> None:
    """Attention and float sums differ in order; int8 steps that this moves stay few."""
    assert ((y.cpu() - want).norm() / want.norm()).item() < limit


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (4, 64)])
def test_int8_model_moves(model: nn.Module, shape: tuple[int, int], device: torch.device) -> None:
    x = torch.randn(*shape, 128)
    fastinfer.quantize_(model)
    with torch.inference_mode():
        want = model(x)
        close(model.to(device)(x.to(device)), want)
        assert torch.equal(model.to("cpu")(x), want)


def test_quantised_there(model: nn.Module, device: torch.device) -> None:
    x = torch.randn(2, 9, 128)
    host = copy.deepcopy(model)
    fastinfer.quantize_(host)
    model.to(device)
    summary = fastinfer.quantize_(model)
    assert summary.quantized
    with torch.inference_mode():
        close(model(x.to(device)), host(x))


def test_guard_says_what_is_slower(model: nn.Module, device: torch.device) -> None:
    model.to(device, torch.bfloat16)
    x = torch.randn(2, 9, 128, device=device, dtype=torch.bfloat16)
    print(fastinfer.quantize_(model, example_inputs=x))
    with torch.inference_mode():
        assert model(x).isfinite().all()


@pytest.mark.parametrize("int8", [False, True])
def test_fused_there(model: nn.Module, int8: bool, device: torch.device) -> None:
    if int8:
        fastinfer.quantize_(model)
    model.to(device)
    x = torch.randn(2, 9, 128, device=device)
    with torch.inference_mode():
        want = model(x).cpu()
        fastinfer.fuse_(model)
        for length in (9, 5):
            y = model(x[:, :length])
            if length == 9:
                # Attention between int8 layers goes over to bfloat16: 0.0085 apart on a CPU.
                close(y, want, 2e-2 if int8 else 5e-3)
            assert y.shape == (2, length, 77)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_embedding(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(77, 130), nn.Linear(130, 77, bias=False)).eval().to(dtype)
    model[1].weight = model[0].weight
    there = copy.deepcopy(model).to(device)
    fastinfer.quantize_(model)
    fastinfer.quantize_(there)
    ids = torch.randint(0, 77, (3, 5))
    with torch.inference_mode():
        want, rows = model(ids), model[0](ids)
        for moved in (there, copy.deepcopy(model).to(device)):
            assert torch.equal(moved[0](ids.to(device)).cpu(), rows)
            assert torch.equal(moved(ids.to(device)).cpu(), want)
        assert torch.equal(moved.to("cpu")(ids), want)
