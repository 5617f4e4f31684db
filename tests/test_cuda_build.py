"""The CUDA side as far as a machine without a GPU can see it: the library, layouts, messages."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastinfer import _C, ops
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear
from fastinfer.ops import _common

LIBRARY = Path(_C.__file__).with_name("libfastinfer_cuda.so")
# In libtorch_cuda, which the torch of a CPU has not.
ABSENT = {"aoti_torch_get_current_cuda_stream"}
needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason="built without nvcc: there is no libfastinfer_cuda.so"
)

# Loaded where torch has no CUDA: lazily, since what ABSENT names can be resolved there by nobody.
LOAD = """
import ctypes, os, sys, torch, fastinfer
ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)
names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastinfer::")}
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*sorted(name for name in names if not has(name, "CUDA")))
"""


def symbols(kind: str, path: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", kind, path], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


@needs_library
def test_every_operator_but_programs_has_a_cuda_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, LIBRARY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fastinfer::run_program"]  # of operators on the CPU, made there


@needs_library
def test_undefined_symbols() -> None:
    """All but one come from libraries that are there under any torch."""
    undefined = symbols("--undefined-only", LIBRARY)
    torch_libraries = Path(torch.__file__).parent / "lib"
    for name in ("libtorch.so", "libtorch_cpu.so", "libc10.so"):
        undefined -= symbols("--defined-only", torch_libraries / name)
    cuda = {name for name in undefined if "cuda" in name.lower() or "torch" in name.lower()}
    assert cuda == ABSENT


@needs_library
def test_exports_nothing() -> None:
    """The CUDA runtime inside is its own: no symbol of it meets that of another library."""
    assert not {name for name in symbols("--defined-only", LIBRARY) if name.startswith("cuda")}


@pytest.mark.parametrize("layout", ["dense", "sp24", "bitmask", "bsr"])
def test_layer_packed_for_cuda_and_back(layout: ops.Layout) -> None:
    linear = nn.Linear(77, 35)
    with torch.no_grad():
        linear.weight.view(35, 77)[:, 1::2] = 0  # what sp24 asks for
    layer = QuantizedLinear.from_linear(linear, layout)
    packed = layer.weight_packed
    there = layer._packed_for(torch.device("cuda"), packed)
    want: ops.Layout = "cuda_sp24" if layout == "sp24" else "cuda"
    assert ops.layout_of(there) == want
    assert there.numel() == ops.packed_bytes(35, 77, want)
    assert torch.equal(ops.unpack_w8(there, 35, 77), ops.unpack_w8(packed, 35, 77))
    assert torch.equal(layer._packed_for(torch.device("cpu"), there), packed)
    assert layer._packed_for(torch.device("cuda"), there) is there


def test_empty_layer_packed_for_cuda() -> None:
    layer = QuantizedLinear(40, 20)
    there = layer._packed_for(torch.device("cuda"), layer.weight_packed)
    assert there.numel() == ops.packed_bytes(20, 40, "cuda")
    assert not there.any()


@pytest.mark.parametrize("layout", ["dense", "sp24"])
def test_state_of_a_gpu_loads_on_a_cpu(layout: ops.Layout) -> None:
    linear, x = nn.Linear(70, 33), torch.randn(3, 70)
    with torch.no_grad():
        linear.weight.view(33, 70)[:, 1::2] = 0
    layer = QuantizedLinear.from_linear(linear, layout)
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    on_gpu: ops.Layout = "cuda_sp24" if layout == "sp24" else "cuda"
    state["weight_packed"] = ops.repack_w8(state["weight_packed"], on_gpu)
    for assign in (False, True):
        other = QuantizedLinear(70, 33)
        other.load_state_dict(dict(state), assign=assign)
        assert other.layout == layout
        assert torch.equal(other(x), layer(x))
    state["weight_packed"] = state["weight_packed"][:-1]
    with pytest.raises(RuntimeError, match="cut short"):
        QuantizedLinear(70, 33).load_state_dict(state)


def pairs(n: int, k: int) -> Tensor:
    """int8 [N, K], of every 4 along K at most 2 not zero."""
    groups = -(-k // 4)
    w = torch.randint(-127, 128, (n, groups, 4), dtype=torch.int8)
    w.scatter_(2, torch.rand(w.shape).argsort(2)[..., :2], 0)
    return w.reshape(n, groups * 4)[:, :k].contiguous()


@pytest.mark.parametrize("n", [0, 1, 17, 64])
@pytest.mark.parametrize("k", [0, 1, 5, 64, 203])
def test_sp24_round_trip(n: int, k: int) -> None:
    w = pairs(n, k)
    packed = ops.pack_w8(w, "cuda_sp24")
    assert ops.layout_of(packed) == "cuda_sp24"
    assert packed.numel() == ops.packed_bytes(n, k, "cuda_sp24")
    assert torch.equal(ops.unpack_w8(packed, n, k), w)
    for layout in ops.LAYOUTS:
        assert torch.equal(ops.repack_w8(packed, layout), ops.pack_w8(w, layout))


def test_sp24_bytes() -> None:
    """By hand: which are kept, zeros made up from the least k on, and what the rest is."""
    w = torch.tensor([[0, 7, 0, -8, 0, 0, 0, 5, 3]], dtype=torch.int8)
    packed = ops.pack_w8(w, "cuda_sp24")
    front, masks = 256, 16 * 64 // 8
    assert packed[64:68].view(torch.int32).item() == -128 * 7
    assert packed[front : front + 8].tolist() == [0b1001_1010, 0b0011_0011] + [0x33] * 6
    assert packed[front + masks :].view(torch.int8)[:8].tolist() == [7, -8, 0, 5, 3, 0, 0, 0]
    assert not packed[front + masks + 8 :].any()


def test_sp24_sizes_differ() -> None:
    """An operator on CUDA tells the layouts apart by their size."""
    for n in range(1, 300, 13):
        for k in range(1, 3000, 7):
            sizes = [ops.packed_bytes(n, k, layout) for layout in ("dense", *ops.CUDA_LAYOUTS)]
            assert len(set(sizes)) == 3


@pytest.mark.parametrize("layout", ["sp24", "cuda_sp24"])
def test_sp24_refuses_three_of_four(layout: ops.Layout) -> None:
    w = torch.zeros(5, 12, dtype=torch.int8)
    w[3, 4:7] = 1
    message = f"more than 2 of 4 weights in row 3 from column 4 on, want 2 for the layout {layout}$"
    with pytest.raises(ValueError, match=message):
        ops.pack_w8(w, layout)


def test_sp24_damaged_mask() -> None:
    packed = ops.pack_w8(pairs(4, 8), "cuda_sp24")
    packed[256] = 0x37
    with pytest.raises(ValueError, match="has a mask that does not keep 2 of 4"):
        ops.unpack_w8(packed, 4, 8)


@pytest.mark.parametrize("layout", ops.CUDA_LAYOUTS)
def test_layer_refuses_cuda_layout(layout: ops.Layout) -> None:
    with pytest.raises(ValueError, match=f"layout is '{layout}', want one of a CPU"):
        QuantizedLinear.from_linear(nn.Linear(8, 4), layout)


@pytest.mark.parametrize("layout", ops.CUDA_LAYOUTS)
def test_cpu_refuses_cuda_layout(layout: ops.Layout) -> None:
    packed = ops.pack_w8(pairs(4, 8), layout)
    with pytest.raises(ValueError, match="packed for CUDA, not for CPUs"):
        ops.linear_w8a8(torch.randn(2, 8), packed, torch.ones(4))


@pytest.mark.parametrize("layout", ops.CUDA_LAYOUTS)
@pytest.mark.parametrize(("change", "message"), [(0, "not a packed"), (24, "another version")])
def test_damaged_cuda_layout(change: int, message: str, layout: ops.Layout) -> None:
    packed = ops.pack_w8(pairs(4, 8), layout)
    packed[change] += 1
    with pytest.raises(ValueError, match=message):
        ops.repack_w8(packed, "dense")


@pytest.mark.parametrize("layout", ops.CUDA_LAYOUTS)
def test_unpack_of_another_shape(layout: ops.Layout) -> None:
    packed = ops.pack_w8(pairs(4, 8), layout)
    with pytest.raises(ValueError, match="another shape"):
        ops.unpack_w8(packed, 8, 4)


def test_traced_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, dtypes and devices without a GPU, as torch.compile asks for them."""
    monkeypatch.setattr(_common, "DEVICES", ("cpu", "meta", "cuda"))
    with FakeTensorMode():

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device="cuda")

        x, scale = empty(2, 3, 70, dtype=torch.bfloat16), empty(33)
        for layout in ops.CUDA_LAYOUTS:
            packed = ops.pack_w8(empty(33, 70, dtype=torch.int8), layout)
            assert packed.shape[0] == ops.packed_bytes(33, 70, layout)
            y = ops.linear_w8a8(x, packed, scale, scale)
            assert (y.shape, y.dtype, y.device.type) == ((2, 3, 33), torch.bfloat16, "cuda")
        packed = ops.pack_w8(empty(33, 70, dtype=torch.int8), "cuda")
        ids = empty(2, 3, dtype=torch.int64)
        y = ops.embedding_w8(ids, packed, scale, 70, out_dtype=torch.float16)
        assert (y.shape, y.dtype, y.device.type) == ((2, 3, 70), torch.float16, "cuda")
        dense = empty(ops.packed_bytes(32, 70), dtype=torch.uint8)
        with pytest.raises(ValueError, match="packed for CUDA"):
            ops.linear_w8a8(x, dense, empty(32))
        with pytest.raises(ValueError, match="want cuda or cuda_sp24: w is on cuda"):
            ops.pack_w8(empty(33, 70, dtype=torch.int8))


def test_why_no_cuda() -> None:
    if torch.version.cuda is None:
        assert _common.WHY_NO_CUDA is not None
        with FakeTensorMode(), pytest.raises(ValueError, match="is built without CUDA"):
            ops.quantize_rows(torch.empty(2, 3, device="cuda"))


def test_embedding_packed_for_cuda_and_back() -> None:
    embedding = nn.Embedding(35, 77)
    linear = nn.Linear(77, 35, bias=False)
    linear.weight = embedding.weight
    head = QuantizedLinear.from_linear(linear)
    layer = QuantizedEmbedding.from_embedding(embedding, head)
    there = layer._packed_for(torch.device("cuda"), layer.weight_packed)
    assert ops.layout_of(there) == "cuda"
    assert torch.equal(layer._packed_for(torch.device("cpu"), there), layer.weight_packed)
    state = layer.state_dict() | {"weight_packed": there}
    other = QuantizedEmbedding(35, 77)
    other.load_state_dict(state)
    assert torch.equal(other(torch.arange(35)), layer(torch.arange(35)))


def test_pickle_read_on_another_device() -> None:
    """torch.load(..., map_location=...) moves tensors and knows nothing of layouts."""
    layer, x = QuantizedLinear.from_linear(nn.Linear(70, 16)), torch.randn(3, 70)
    want = layer(x)
    layer.weight_packed = ops.repack_w8(layer.weight_packed, "cuda")
    other = pickle.loads(pickle.dumps(layer))
    assert other.layout == "dense"
    assert torch.equal(other(x), want)
