"""Weights packed sparsely: every layout there and back, the bits of the dense weight with the same
zeros in every operator, and QuantizedLinear with them."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from torch import nn

import fastinfer
from fastinfer import _C, ops
from fastinfer.nn import QuantizedLinear
from linears import FLOATS, opcheck, poisoned, same_bits

SPARSE = ["sp24", "bitmask", "bsr"]
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (16, 64), (17, 65), (96, 200), (130, 322)]
BSR = [k for k in _C.kernels() if k["family"] == "gemm_bsr_s8s8s32"]
MASKED = [k for k in _C.kernels() if k["family"] in ("expand_s8", "gemm_masked_s8s8s32")]


def mask(rng, layout, n, k):
    """bool [n, k] with the zeros that a layout is for."""
    if layout == "bitmask":
        return torch.from_numpy(rng.random((n, k)) < 0.3)
    if layout == "bsr":
        tiles = torch.from_numpy(rng.random((-(-n // 16), -(-k // 64))) < 0.4)
        return tiles.repeat_interleave(16, 0).repeat_interleave(64, 1)[:n, :k]
    groups = torch.from_numpy(rng.random((n, -(-k // 4), 4)))
    return (groups.argsort(-1).argsort(-1) < 2).flatten(1)[:, :k]


def sparse(rng, layout, n, k):
    w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype=np.int8))
    return w * mask(rng, layout, n, k)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("layout", SPARSE)
def test_pack_and_unpack_are_inverse(layout, n, k, rng):
    w = sparse(rng, layout, n, k)
    packed = ops.pack_w8(w, layout)
    assert ops.layout_of(packed) == layout
    assert torch.equal(ops.unpack_w8(packed, n, k), w)
    assert torch.equal(ops.pack_w8(w.T.contiguous().T, layout), packed)


def test_sizes(rng):
    n, k = 256, 512
    fixed = 64 + 4 * n + 2048  # header, sums, indices and what may be read ahead
    assert len(ops.pack_w8(sparse(rng, "sp24", n, k), "sp24")) <= fixed + 0.625 * n * k
    w = sparse(rng, "bitmask", n, k)
    assert len(ops.pack_w8(w, "bitmask")) <= fixed + n * k / 8 + int((w != 0).sum())
    w = sparse(rng, "bsr", n, k)
    tiles = int((w.view(n // 16, 16, k // 64, 64) != 0).any(3).any(1).sum())
    assert len(ops.pack_w8(w, "bsr")) <= fixed + 1024 * tiles


def test_a_weight_that_is_not_2_of_4_is_refused(rng):
    w = sparse(rng, "sp24", 20, 64)
    w[7, 12:15] = 1
    with pytest.raises(ValueError, match=r"^pack_w8: w keeps more than 2 .* row 7 .* column 12"):
        ops.pack_w8(w, "sp24")


def test_a_weight_of_another_version_is_refused(rng):
    packed = ops.pack_w8(sparse(rng, "sp24", 20, 64), "sp24")
    assert packed[24] == 2
    packed[24] = 1
    with pytest.raises(ValueError, match="layout version is not the one that this build reads"):
        ops.unpack_w8(packed, 20, 64)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"^pack_w8: layout is 'coo', want one of dense, sp24, "):
        ops.pack_w8(torch.ones(4, 4, dtype=torch.int8), "coo")
    with pytest.raises(RuntimeError, match='pack_w8: layout is "coo", want dense, sp24, '):
        torch.ops.fastinfer.pack_w8(torch.ones(4, 4, dtype=torch.int8), "coo")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", SPARSE)
def test_linear_has_the_bits_of_the_dense_weight(isa, layout, dtype, rng, randn):
    for n, k in SHAPES[3:]:
        w = sparse(rng, layout, n, k)
        scale, bias = torch.rand(n) + 0.5, torch.randn(n)
        dense, packed = ops.pack_w8(w), ops.pack_w8(w, layout)
        for m in (0, 1, 2, 8, 9, 40):
            x, r = randn(m, k).to(dtype), randn(m, n).to(dtype)
            want = ops.linear_w8a8(x, dense, scale, bias, activation="gelu", residual=r)
            got = ops.linear_w8a8(x, packed, scale, bias, activation="gelu", residual=r)
            assert same_bits(got, want), (n, k, m)
    x = poisoned(randn(5, k), float("inf"))
    y = ops.linear_w8a8(x, packed, scale)
    assert y[1].isnan().all()
    assert same_bits(y, ops.linear_w8a8(x, dense, scale))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", SPARSE)
def test_several_weights_gates_and_int8_rows(layout, threads, rng, randn):
    torch.set_num_threads(threads)
    n, k = 200, 320
    ws = [sparse(rng, layout, n, k), sparse(rng, layout, n, k)]
    scale = torch.rand(n) + 0.5
    dense = [ops.pack_w8(w) for w in ws]
    packed = [ops.pack_w8(w, layout) for w in ws]
    for m in (1, 6, 33, 300):
        x = randn(m, k)
        q, x_scale, x_offset = ops.quantize_rows(x)
        for weights in (packed, [dense[0], packed[1]], [packed[0], dense[1]]):
            want = ops.linear_w8a8_cat(x, dense, [scale] * 2, [None] * 2)
            assert same_bits(ops.linear_w8a8_cat(x, weights, [scale] * 2, [None] * 2), want)
            rows = {"x_scale": x_scale, "x_offset": x_offset, "out_dtype": torch.float32}
            assert same_bits(ops.linear_w8a8_cat(q, weights, [scale] * 2, [None] * 2, **rows), want)
            gated = [
                ops.linear_w8a8_gated(x, gate, scale, None, up, scale, None, activation="silu")
                for gate, up in (dense, weights)
            ]
            assert same_bits(*gated)


@pytest.mark.parametrize("layout", SPARSE)
def test_any_bytes_behind_a_good_header_are_read_safely(layout, rng, randn):
    """Nothing but the numbers can be wrong; the C++ tests do the same on guarded memory."""
    packed = ops.pack_w8(sparse(rng, layout, 40, 130), layout)
    for _ in range(50):
        damaged = packed.clone()
        where = torch.from_numpy(rng.integers(64 + 4 * 48, len(packed), 200))
        damaged[where] = torch.from_numpy(rng.integers(0, 256, 200, dtype=np.uint8))
        for m in (1, 20):
            try:
                assert ops.linear_w8a8(randn(m, 130), damaged, torch.ones(40)).shape == (m, 40)
            except ValueError as error:
                assert re.match("linear_w8a8: w_packed: its size", str(error))  # noqa: PT017


@pytest.mark.parametrize("layout", SPARSE)
def test_opcheck(layout, rng, randn):
    w = sparse(rng, layout, 17, 65)
    opcheck(torch.ops.fastinfer.pack_w8, w, layout)
    packed = ops.pack_w8(w, layout)
    opcheck(torch.ops.fastinfer.unpack_w8, packed, 17, 65)
    opcheck(torch.ops.fastinfer.linear_w8a8, randn(3, 65), packed, torch.ones(17))


def pruned_linear(rng, layout, n=96, k=200):
    linear = nn.Linear(k, n).eval()
    with torch.no_grad():
        linear.weight *= mask(rng, layout, n, k)
        linear.weight[0, 0] = -0.0  # a zero, too
    return linear


@pytest.mark.parametrize("layout", SPARSE)
def test_layers_keep_their_bits_on_every_way(layout, rng, randn, tmp_path):
    from safetensors.torch import load_model, save_model

    linear = pruned_linear(rng, layout)
    layer, x = QuantizedLinear.from_linear(linear, layout), randn(3, 200)
    want = QuantizedLinear.from_linear(linear)(x)
    assert layer.layout == layout
    assert f"scheme=w8a8, {layout})" in repr(layer)
    assert torch.equal(layer(x), want)
    assert torch.equal(layer.weight, QuantizedLinear.from_linear(linear).weight)
    assert torch.equal(copy.deepcopy(layer)(x), want)

    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = QuantizedLinear(200, 96).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.layout, torch.equal(other(x), want)) == (layout, True)
    save_model(nn.Sequential(layer), str(tmp_path / "m.safetensors"))
    again = nn.Sequential(QuantizedLinear(200, 96)).eval()
    # load_model compares no shapes of its own
    load_model(again, str(tmp_path / "m.safetensors"))
    assert torch.equal(again(x), want)

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), want)


def test_a_state_of_another_shape_is_refused_whatever_its_layout(rng):
    layer = QuantizedLinear.from_linear(pruned_linear(rng, "bsr"), "bsr")
    other = QuantizedLinear(200, 112)
    with pytest.raises(RuntimeError, match=r"weight_scale has shape \[96\], want \[112\]"):
        other.load_state_dict(layer.state_dict())
    assert other.layout is None


@pytest.mark.parametrize("kernel", MASKED, ids=lambda k: k["name"])
@pytest.mark.parametrize("layout", ["sp24", "bitmask"])
def test_kernels_by_name(kernel, layout, rng):
    if not kernel["supported"]:
        pytest.skip(f"no {kernel['isa']} here")
    for n, k in SHAPES:
        w = sparse(rng, layout, n, k).numpy()
        if kernel["family"] == "expand_s8":
            panels = _C.expand_s8(kernel["name"], w, layout)
            packed = ops.pack_w8(torch.from_numpy(w)).numpy()
            dense = packed[64 + 64 * len(panels) :].view(np.int8)
            np.testing.assert_array_equal(panels.ravel(), dense)
            continue
        step = 32 if kernel["isa"] == "amx" else 1
        if step > 1:
            with pytest.raises(ValueError, match="a: want a multiple of 32 rows for this kernel"):
                _C.gemm_masked_s8s8s32(kernel["name"], np.zeros((33, k), np.int8), w, layout)
        for m in (0, 32, 96) if step > 1 else (*range(13), 16, 39, 130):
            a = rng.integers(-128, 128, (m, k), dtype=np.int8)
            got = _C.gemm_masked_s8s8s32(kernel["name"], a, w, layout)
            np.testing.assert_array_equal(got, a.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize(
    "kernel",
    [k for k in _C.kernels() if k["family"] == "gemm_bsr_s8s8s32"],
    ids=lambda k: k["name"],
)
def test_bsr_kernels_by_name(kernel, rng):
    if not kernel["supported"]:
        pytest.skip(f"no {kernel['isa']} here")
    for n, k in SHAPES:
        w = sparse(rng, "bsr", n, k).numpy()
        for m in (*range(18), 130):
            a = rng.integers(-128, 128, (m, k), dtype=np.int8)
            got = _C.gemm_bsr_s8s8s32(kernel["name"], a, w)
            np.testing.assert_array_equal(got, a.astype(np.int64) @ w.astype(np.int64).T)


def test_fused_models_take_sparse_layers(rng, randn):
    """fuse_ knows linear_w8a8, whatever its weight holds."""
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).eval()
    for linear in (model[0], model[2]):
        with torch.no_grad():
            linear.weight *= mask(rng, "sp24", *linear.weight.shape)
    x = randn(5, 64)
    dense = copy.deepcopy(model)
    fastinfer.quantize_(dense, fuse=True)
    for i in (0, 2):
        model[i] = QuantizedLinear.from_linear(model[i], "sp24")
    fusion = fastinfer.fuse_(model, x)
    assert fusion.fused
    with torch.inference_mode():
        assert torch.equal(model(x), dense(x))
