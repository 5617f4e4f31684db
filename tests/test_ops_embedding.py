"""torch.ops.fastinfer.embedding_w8 through its wrapper: numbers, bits, strides, errors, tracing."""

import pytest
import torch

from fastinfer import ops
from fastinfer.ops._embedding import rows_by_torch
from linears import FLOATS, opcheck, random_weight, same_bits

N, K = 50, 70
PACKED = ops.pack_w8(torch.ones(N, K, dtype=torch.int8))


def want(ids, weight, n, k, dtype=torch.float32):
    rows = ops.unpack_w8(weight.packed, n, k)[ids.long()]
    return (rows.float() * weight.scale[ids.long()][..., None]).to(dtype)


def random_ids(rng, n, shape, dtype=torch.int64):
    return torch.from_numpy(rng.integers(0, n, shape)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (17, 3), (33, 0), (50, 70), (131, 257)])
def test_against_torch(n, k, shape, id_dtype, dtype, rng):
    weight = random_weight(rng, n, k)
    ids = random_ids(rng, n, shape, id_dtype)
    y = ops.embedding_w8(ids, weight.packed, weight.scale, k, out_dtype=dtype)
    assert y.is_contiguous()
    assert same_bits(y, want(ids, weight, n, k, dtype))


def test_every_row(rng):
    weight = random_weight(rng, 100, 70)
    ids = torch.arange(100)
    assert same_bits(
        ops.embedding_w8(ids, weight.packed, weight.scale, 70), want(ids, weight, 100, 70)
    )


def test_strides_and_threads_change_nothing(rng):
    weight = random_weight(rng, N, K)
    whole = random_ids(rng, N, (40, 60))
    expanded = whole[:1].expand(40, 60)
    at_an_odd_byte = torch.frombuffer(
        bytearray(b"\0" + whole[0].numpy().tobytes()), dtype=torch.int64, offset=1
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for ids in (whole.T, whole[::2, 1::3], whole.flip(0), expanded, at_an_odd_byte):
            y = ops.embedding_w8(ids, weight.packed, weight.scale, K)
            assert same_bits(y, want(ids, weight, N, K))


def test_scales_at_the_ends_of_the_dtypes():
    """Rounded to nearest even, to subnormals and to Inf as torch rounds."""
    w = torch.arange(-128, 128).to(torch.int8).reshape(4, 64)
    scale = torch.tensor([2.0**-31, 600.0, 2.0**-140, 1.0 / 127])
    packed, ids = ops.pack_w8(w), torch.arange(4)
    for dtype in FLOATS:
        y = ops.embedding_w8(ids, packed, scale, 64, out_dtype=dtype)
        assert same_bits(y, (w.float() * scale[:, None]).to(dtype))


BAD = {
    "ids float": ({"ids": torch.ones(2)}, TypeError, "ids has dtype torch.float32, want"),
    "ids list": ({"ids": [1]}, TypeError, "ids is a list, want a torch.Tensor"),
    "id = N": ({"ids": torch.tensor([[0, N]])}, ValueError, "ids holds 50, want 0 or more"),
    "id < 0": ({"ids": torch.tensor([0, -1])}, ValueError, "ids holds -1, want 0 or more and less"),
    "int32 id": (
        {"ids": torch.tensor([2**31 - 1], dtype=torch.int32)},
        ValueError,
        "ids holds 2147483647, want 0 or more and less than N = 50",
    ),
    "ids meta": ({"ids": torch.ones(2, device="meta").long()}, ValueError, "w_packed is on cpu"),
    "w_packed dtype": ({"w_packed": PACKED.char()}, TypeError, "w_packed has dtype torch.int8"),
    "w_packed rubbish": ({"w_packed": PACKED.flip(0)}, ValueError, "w_packed: it is not a packed"),
    "w_packed short": ({"w_packed": PACKED[:-64]}, ValueError, "w_packed: its size does not match"),
    "w_packed strided": ({"w_packed": PACKED[::2]}, ValueError, "w_packed has stride 2, want a"),
    "w_packed sparse": (
        {"w_packed": ops.repack_w8(PACKED, "bitmask")},
        ValueError,
        "w_packed has the layout bitmask, want dense",
    ),
    "w_packed cuda": (
        {"w_packed": ops.repack_w8(PACKED, "cuda")},
        ValueError,
        "w_packed: it is packed for CUDA",
    ),
    "w_scale": ({"w_scale": torch.ones(N - 1)}, ValueError, r"w_scale has shape \[49\], want \[50"),
    "w_scale dtype": ({"w_scale": torch.ones(N).double()}, TypeError, "w_scale has dtype"),
    "k": ({"k": K + 1}, ValueError, "w_packed has K = 70, want k = 71"),
    "k < 0": ({"k": -1}, ValueError, "k is -1, want >= 0"),
    "out_dtype": ({"out_dtype": torch.float64}, TypeError, "out_dtype is torch.float64, want"),
}


@pytest.mark.parametrize(("change", "error", "match"), BAD.values(), ids=BAD)
def test_refuses(change, error, match):
    arguments = {
        "ids": torch.tensor([1, 2]),
        "w_packed": PACKED,
        "w_scale": torch.ones(N),
        "k": K,
        **change,
    }
    with pytest.raises(error, match=f"^embedding_w8: {match}"):
        ops.embedding_w8(**arguments)


@pytest.mark.parametrize("id", [-1, N, 2**40])
def test_the_operator_itself_refuses_ids_out_of_range(id):
    with pytest.raises(RuntimeError, match=f"embedding_w8: ids holds {id}, want 0 or more"):
        torch.ops.fastinfer.embedding_w8(torch.tensor([id]), PACKED, torch.ones(N), K)


def test_an_empty_weight_has_no_rows():
    packed = ops.pack_w8(torch.empty(0, 8, dtype=torch.int8))
    assert ops.embedding_w8(torch.empty(3, 0).long(), packed, torch.empty(0), 8).shape == (3, 0, 8)
    with pytest.raises(ValueError, match="ids holds 0, want 0 or more and less than N = 0"):
        ops.embedding_w8(torch.tensor([0]), packed, torch.empty(0), 8)


def test_meta_tensors_give_shapes():
    ids = torch.empty(2, 3, dtype=torch.int64, device="meta")
    packed, scale = PACKED.to("meta"), torch.ones(N, device="meta")
    y = ops.embedding_w8(ids, packed, scale, K, out_dtype=torch.float16)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, K), torch.float16, "meta")
    with pytest.raises(ValueError, match=r"^embedding_w8: w_packed has \d+ bytes, want the "):
        ops.embedding_w8(ids, packed, scale, 20)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_opcheck(dtype, rng):
    weight = random_weight(rng, N, K)
    op = torch.ops.fastinfer.embedding_w8
    opcheck(op, random_ids(rng, N, (2, 3)), weight.packed, weight.scale, K, dtype)
    opcheck(op, random_ids(rng, N, (9, 4), torch.int32).T, weight.packed, weight.scale, K, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (17, 3), (0, 8), (5, 0)])
def test_what_runs_on_cuda(n, k, dtype, rng):
    """It is made of torch's own operators, so that a CPU shows what it gives."""
    weight = random_weight(rng, n, k)
    ids = random_ids(rng, max(n, 1), (2, 5) if n else (2, 0))
    there = ops.repack_w8(weight.packed, "cuda")
    assert same_bits(
        rows_by_torch(ids, there, weight.scale, k, dtype), want(ids, weight, n, k, dtype)
    )
    if n and k:
        with pytest.raises(ValueError, match=r'want the \d+ of an int8 weight of layout "cuda"'):
            rows_by_torch(ids, weight.packed, weight.scale, k, dtype)
