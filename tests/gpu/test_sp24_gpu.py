"""2:4 weights on a GPU against the CPU's: the same bits, at every M, beside dense ones."""

import os

import pytest
import torch
from torch import Tensor, nn

from fastinfer import ops, quantize_linear
from fastinfer.nn import QuantizedLinear

# What does not ask for CUDA itself can be tried on a CPU: FASTINFER_GPU_TESTS_ON=cpu.
DEVICE = torch.device(os.environ.get("FASTINFER_GPU_TESTS_ON", "cuda"))
DENSE: ops.Layout = "cuda" if DEVICE.type == "cuda" else "dense"
SP24: ops.Layout = "cuda_sp24" if DEVICE.type == "cuda" else "sp24"
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="asks for CUDA itself")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# On both sides of every step of the heuristics.
ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 129, 300)
SHAPES = ((1, 1), (37, 70), (64, 64), (768, 768), (130, 3072), (4096, 1024), (1000, 4100))

Weight = tuple[Tensor, Tensor, Tensor]


def weight(n: int, k: int) -> Weight:
    """int8 [N, K], of every 4 along K at most 2 not zero; scales, bias."""
    groups = torch.randint(-127, 128, (n, -(-k // 4), 4), dtype=torch.int8)
    groups.scatter_(2, torch.rand(groups.shape).argsort(2)[..., :2], 0)
    w = groups.view(n, -1)[:, :k].contiguous()
    return w, torch.rand(n) * 0.02 + 0.001, torch.randn(n)


def packed(part: Weight, layout: ops.Layout, device: torch.device | str = DEVICE) -> Weight:
    w, scale, bias = part
    return ops.pack_w8(w, layout).to(device), scale.to(device), bias.to(device)


def assert_same(host: Tensor, there: Tensor) -> None:
    there = there.cpu()
    assert host.dtype == there.dtype
    assert host.shape == there.shape
    same = (host == there) | (host.isnan() & there.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()} differ"


def pruned_layer(n: int, k: int, layout: ops.Layout) -> QuantizedLinear:
    linear = nn.Linear(k, n)
    with torch.no_grad():
        linear.weight[:, 1::2] = 0
    return QuantizedLinear.from_linear(linear, layout)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_bits(m: int, n: int, k: int) -> None:
    part, x = weight(n, k), torch.randn(m, k, dtype=FLOATS[m % 3])
    there = ops.linear_w8a8(x.to(DEVICE), *packed(part, SP24))
    assert_same(ops.linear_w8a8(x, *packed(part, "dense", "cpu")), there)


@pytest.mark.parametrize("m", [2, 12, 40])
def test_epilogue(m: int) -> None:
    part = weight(96, 200)
    x, residual = torch.randn(m, 200), torch.randn(m, 96)
    want, got = (
        ops.linear_w8a8(
            x.to(device),
            *packed(part, layout, device),
            activation="gelu",
            residual=residual.to(device),
        )
        for device, layout in ((torch.device("cpu"), "dense"), (DEVICE, SP24))
    )
    assert_same(want, got)


@pytest.mark.parametrize("m", [1, 9, 70])
def test_extremes(m: int) -> None:
    """The longest K, NaN, Inf, a row of zeros."""
    w = torch.zeros(40, 131071, dtype=torch.int8)
    w[:, ::4] = w[:, 3::4] = 127
    x = torch.ones(m, 131071)
    x[:, 0] = -1
    if m > 2:
        x[0] = 0
        x[1, 5], x[2, 299] = torch.nan, torch.inf
    part = w, torch.full((40,), 1e-3), torch.randn(40)
    want = ops.linear_w8a8(x, *packed(part, "dense", "cpu"))
    assert_same(want, ops.linear_w8a8(x.to(DEVICE), *packed(part, SP24)))
    assert want.isnan().any(1).sum() == (2 if m > 2 else 0)


@pytest.mark.parametrize("m", [1, 9, 20, 200])
@pytest.mark.parametrize("layouts", [(SP24, SP24, SP24), (SP24, DENSE, SP24)])
def test_cat(m: int, layouts: tuple[ops.Layout, ...]) -> None:
    """Weights that share x, the workspace and the stream."""
    x, parts = torch.randn(m, 192, dtype=torch.bfloat16), [weight(n, 192) for n in (64, 33, 80)]
    want, got = (
        ops.linear_w8a8_cat(
            x.to(device),
            *(
                [packed(part, layout, device)[i] for part, layout in zip(parts, own, strict=True)]
                for i in range(3)
            ),
        )
        for device, own in ((torch.device("cpu"), ("dense",) * 3), (DEVICE, layouts))
    )
    assert_same(want, got)


@pytest.mark.parametrize("m", [1, 9, 20, 200])
@pytest.mark.parametrize("layouts", [(SP24, SP24), (DENSE, SP24)])
def test_gated(m: int, layouts: tuple[ops.Layout, ...]) -> None:
    x, parts = torch.randn(m, 192, dtype=torch.bfloat16), [weight(72, 192) for _ in range(2)]
    want, got = (
        ops.linear_w8a8_gated(
            x.to(device),
            *packed(parts[0], own[0], device),
            *packed(parts[1], own[1], device),
            activation="silu",
        )
        for device, own in ((torch.device("cpu"), ("dense", "dense")), (DEVICE, layouts))
    )
    assert_same(want, got)


@needs_cuda
@pytest.mark.parametrize("m", [1, 17])
@pytest.mark.parametrize("k", [64, 70])
def test_w8a16(m: int, k: int) -> None:
    """The weight as rows, and the kernels of those: their bits."""
    part, x = weight(37, k), torch.randn(m, k, dtype=torch.bfloat16, device=DEVICE)
    dense, sparse = (ops.linear_w8a16(x, *packed(part, layout)) for layout in (DENSE, SP24))
    assert_same(dense.cpu(), sparse)


@needs_cuda
@pytest.mark.parametrize("m", [1, 10, 30, 100])
def test_graph_on_a_side_stream(m: int) -> None:
    layer = pruned_layer(384, 512, "sp24").to(DEVICE)
    stream, x = torch.cuda.Stream(), torch.randn(m, 512, device=DEVICE)
    with torch.inference_mode(), torch.cuda.stream(stream):
        layer(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = layer(x)
    with torch.inference_mode():
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            torch.cuda.synchronize()
            y.zero_()
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()
            assert_same(layer(x).cpu(), y)


def test_layer_moves() -> None:
    layer, x = pruned_layer(70, 300, "sp24"), torch.randn(5, 300)
    want, had = layer(x), layer.weight_packed
    layer.to(DEVICE)
    assert layer.layout == SP24
    assert_same(want, layer(x.to(DEVICE)))
    fresh = quantize_linear(nn.Linear(300, 70)).to(DEVICE)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.layout == SP24
    assert_same(want, fresh(x.to(DEVICE)))
    fresh = quantize_linear(nn.Linear(300, 70))
    fresh.load_state_dict(layer.state_dict())
    assert fresh.layout == "sp24"
    assert_same(want, fresh(x))
    assert torch.equal(layer.cpu().weight_packed, had)


def test_layer_made_there() -> None:
    linear, x = nn.Linear(300, 70), torch.randn(5, 300)
    with torch.no_grad():
        linear.weight[:, ::2] = 0
    want = quantize_linear(linear)(x)
    layer = QuantizedLinear.from_linear(linear.to(DEVICE), "sp24")
    assert layer.layout == SP24
    assert_same(want, layer(x.to(DEVICE)))


def test_opcheck() -> None:
    layer, x = pruned_layer(64, 96, "sp24").to(DEVICE), torch.randn(3, 96, device=DEVICE)
    arguments = (x, layer.weight_packed, layer.weight_scale, layer.bias)
    torch.library.opcheck(torch.ops.fastinfer.linear_w8a8.default, arguments)
