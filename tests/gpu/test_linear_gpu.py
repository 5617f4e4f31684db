"""The linears on a GPU against the CPU's: the same bits, at every M, dtype and form of x."""

import copy
import os
import pickle

import pytest
import torch
from torch import Tensor, nn

from fastinfer import ops, quantize_linear

DEVICE = torch.device(os.environ.get("FASTINFER_GPU_TESTS_ON", "cuda"))
LAYOUT: ops.Layout = "cuda" if DEVICE.type == "cuda" else "dense"
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="graphs and streams are CUDA's")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# On both sides of every step of the heuristics.
ROWS = (1, 2, 3, 4, 5, 8, 16, 17, 32, 33, 64, 65, 128, 129, 300)
SHAPES = ((1, 1), (37, 70), (64, 64), (768, 768), (130, 3072), (4096, 1024), (1000, 4100))


def weight(n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8 [N, K], scales, bias."""
    w = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return w, torch.rand(n) * 0.02 + 0.001, torch.randn(n)


def both(x: Tensor, w: Tensor, scale: Tensor, *args: Tensor, **options: object) -> list[Tensor]:
    """The answers of the CPU and of the GPU, on the CPU."""
    host = ops.linear_w8a8(x, ops.pack_w8(w), scale, *args, **options)
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    packed = ops.pack_w8(w, LAYOUT).to(DEVICE)
    there = ops.linear_w8a8(
        x.to(DEVICE), packed, scale.to(DEVICE), *(a.to(DEVICE) for a in args), **moved
    )
    assert there.device.type == DEVICE.type
    return [host, there.cpu()]


def assert_same(host: Tensor, there: Tensor) -> None:
    assert host.dtype == there.dtype
    assert host.shape == there.shape
    same = (host == there) | (host.isnan() & there.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()} differ"


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_w8a8_bits(m: int, n: int, k: int) -> None:
    w, scale, bias = weight(n, k)
    x = torch.randn(m, k, dtype=FLOATS[m % 3])
    assert_same(*both(x, w, scale, bias))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [2, 40, 130])
def test_w8a8_epilogue(activation: str, dtype: torch.dtype, m: int) -> None:
    w, scale, bias = weight(96, 200)
    x, residual = torch.randn(m, 200).to(dtype), torch.randn(m, 96).to(dtype)
    assert_same(*both(x, w, scale, bias, activation=activation, residual=residual))


@pytest.mark.parametrize("m", [1, 7, 70])
def test_w8a8_extremes(m: int) -> None:
    """Sums near the ends of int32, rows of zeros, NaN and Inf."""
    w = torch.full((40, 131071), 127, dtype=torch.int8)
    x = torch.ones(m, 131071)
    x[:, 0] = -1
    assert_same(*both(x, w, torch.full((40,), 1e-3)))
    w, scale, bias = weight(50, 300)
    x = torch.randn(m, 300)
    x[0] = 0
    if m > 2:
        x[1, 5], x[2, 299] = torch.nan, torch.inf
    host, there = both(x, w, scale, bias)
    assert_same(host, there)
    assert there.isnan().any(1).sum() == (2 if m > 2 else 0)


@pytest.mark.parametrize("m", [0, 3, 33])
def test_w8a8_forms_of_x(m: int) -> None:
    w, scale, bias = weight(48, 96)
    wide, added = torch.randn(2, m, 200), torch.randn(2, m, 96)
    packed = ops.pack_w8(w), ops.pack_w8(w, LAYOUT).to(DEVICE)
    for view in (
        lambda x: x[..., 3:99],  # misaligned rows
        lambda x: x[..., :192:2],  # strided columns
        lambda x: x[..., :96].transpose(0, 1),
        lambda x: x[0, :, :96],
        lambda x: x[0, 0, :96] if m else x[0, :, :96],
    ):
        host, there = (  # a view is one on either device: moving it would copy it
            ops.linear_w8a8(
                view(wide.to(device)), held, scale.to(device), bias.to(device),
                residual=view(added.to(device).repeat(1, 1, 3))[..., :48],
            )
            for device, held in zip((torch.device("cpu"), DEVICE), packed, strict=True)
        )  # fmt: skip
        assert_same(host, there.cpu())


# More rows than a kernel for few takes, of shapes that each of those for many is thought best at:
# 128 x 256 tiles, 128 x 128, and stream-K (csrc/cuda/gemm_s8s8s32/cutlass_heuristics.cpp); the last
# has a width that CUTLASS does not take.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1024, 4096, 1024), (2048, 768, 768), (128, 512, 3584), (256, 1024, 3584), (2048, 1100, 192)],
)
def test_w8a8_many_rows(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    w, scale, bias = weight(n, k)
    x, residual = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
    assert_same(*both(x, w, scale, bias, activation="gelu_tanh", residual=residual))


def test_w8a8_given_rows_and_static_scale() -> None:
    w, scale, bias = weight(64, 128)
    for k in (128, 100):
        q, x_scale, x_offset = ops.quantize_rows(torch.randn(9, k))
        part = w[:, :k].contiguous()
        options = {"x_scale": x_scale, "x_offset": x_offset, "out_dtype": torch.float32}
        assert_same(*both(q, part, scale, bias, **options))
        one = {"x_scale": torch.tensor([0.02]), "x_offset": torch.tensor([0.1])}
        assert_same(*both(torch.randn(9, k), part, scale, bias, **one))


def test_quantize_bits() -> None:
    for shape in ((0, 8), (1, 1), (3, 5, 77), (4, 4096), (2, 9000)):
        for dtype in FLOATS:
            x = torch.randn(shape).to(dtype)
            for op in (ops.quantize_rows, ops.quantize_rowwise):
                for host, there in zip(op(x), op(x.to(DEVICE)), strict=True):
                    assert_same(host, there.cpu())


@pytest.mark.parametrize("m", [1, 20, 200])
def test_cat_and_gated(m: int) -> None:
    parts = [weight(n, 192) for n in (64, 33, 80)]
    x = torch.randn(m, 192, dtype=torch.bfloat16)
    packed = [ops.pack_w8(w) for w, _, _ in parts]
    there = [ops.pack_w8(w, LAYOUT).to(DEVICE) for w, _, _ in parts]
    scales, biases = [p[1] for p in parts], [p[2] for p in parts]
    host = ops.linear_w8a8_cat(x, packed, scales, biases, activation="silu")
    gpu = ops.linear_w8a8_cat(
        x.to(DEVICE),
        there,
        [s.to(DEVICE) for s in scales],
        [b.to(DEVICE) for b in biases],
        activation="silu",
    )
    assert_same(host, gpu.cpu())
    gate, up = weight(72, 192), weight(72, 192)
    sides = []
    for device, layout in (("cpu", "dense"), (DEVICE, LAYOUT)):
        arguments = [
            t
            for w, scale, bias in (gate, up)
            for t in (
                ops.pack_w8(w, layout).to(device),
                scale.to(device),
                bias.to(device),
            )
        ]
        sides.append(ops.linear_w8a8_gated(x.to(device), *arguments, activation="silu").cpu())
    assert_same(*sides)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [0, 1, 8, 16, 17, 64, 65, 200])
@pytest.mark.parametrize(("n", "k"), [(37, 70), (768, 768), (100, 4096)])
def test_w8a16(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Float sums in another order than the CPU's: against float64."""
    w, scale, bias = weight(n, k)
    x = torch.randn(m, k).to(dtype)
    packed = ops.pack_w8(w, LAYOUT).to(DEVICE)
    y = ops.linear_w8a16(x.to(DEVICE), packed, scale.to(DEVICE), bias.to(DEVICE)).cpu().double()
    products = x.double()[:, None] * (w.double() * scale.double()[:, None])
    exact = products.sum(-1) + bias
    bound = (k + 4) * 2.0**-23 * (products.abs().sum(-1) + bias.abs())
    bound += torch.finfo(dtype).eps / 2 * (exact.abs() + bound)
    assert ((y - exact).abs() <= bound).all()


@needs_cuda
@pytest.mark.parametrize("m", [1, 30, 100])
def test_graph_on_a_side_stream(m: int) -> None:
    layer = quantize_linear(nn.Linear(512, 384)).to(DEVICE)
    stream = torch.cuda.Stream()
    x = torch.randn(m, 512, device=DEVICE)
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
            assert_same(layer(x).cpu(), y.cpu())


def test_layer_moves_and_copies() -> None:
    linear, x = nn.Linear(300, 70), torch.randn(5, 300)
    layer = quantize_linear(linear)
    want = layer(x)
    layer.to(DEVICE)
    assert layer.layout == LAYOUT
    assert_same(want, layer(x.to(DEVICE)).cpu())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(want, other(x.to(DEVICE)).cpu())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert layer(x.to(DEVICE)).shape == want.shape
    fresh = quantize_linear(nn.Linear(300, 70))
    fresh.load_state_dict(layer.state_dict())
    assert_same(want, fresh(x))
    assert_same(want, layer.cpu()(x))
    made_there = quantize_linear(linear.to(DEVICE))
    assert_same(want, made_there(x.to(DEVICE)).cpu())


def test_compile_and_opcheck() -> None:
    layer = quantize_linear(nn.Linear(96, 64)).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for m in (2, 5, 40):
            x = torch.randn(m, 96, device=DEVICE)
            assert_same(layer(x).cpu(), compiled(x).cpu())
    x = torch.randn(3, 96, device=DEVICE)
    arguments = (x, layer.weight_packed, layer.weight_scale, layer.bias)
    torch.library.opcheck(torch.ops.fastinfer.linear_w8a8.default, arguments)
    torch.library.opcheck(torch.ops.fastinfer.linear_w8a16.default, arguments)
    torch.library.opcheck(torch.ops.fastinfer.quantize_rows.default, (x,))


@needs_cuda
def test_refuses() -> None:
    layer = quantize_linear(nn.Linear(32, 16))
    x = torch.randn(2, 32, device=DEVICE)
    with pytest.raises(ValueError, match=r"w_packed is on cpu, want cuda:0, where x is"):
        ops.linear_w8a8(x, layer.weight_packed, layer.weight_scale)
    dense = layer.weight_packed.to(DEVICE)[:-64]
    with pytest.raises(ValueError, match="packed for CUDA"):
        ops.linear_w8a8(x, dense, layer.weight_scale.to(DEVICE))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_other_device() -> None:
    layer, x = quantize_linear(nn.Linear(64, 32)).to("cuda:1"), torch.randn(3, 64)
    want = quantize_linear(nn.Linear(64, 32))
    want.load_state_dict(layer.state_dict())
    assert_same(want(x), layer(x.to("cuda:1")).cpu())
