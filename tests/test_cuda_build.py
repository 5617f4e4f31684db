"""The CUDA side as far as a machine without a GPU can see it: the library, layouts, messages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastinfer import _C, ops, quantize_linear
from fastinfer.nn import QuantizedLinear
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
def test_every_operator_has_a_cuda_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, LIBRARY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


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
    assert ops.layout_of(there) == "cuda"
    assert there.numel() == ops.packed_bytes(35, 77, "cuda")
    assert torch.equal(ops.unpack_w8(there, 35, 77), ops.unpack_w8(packed, 35, 77))
    assert torch.equal(layer._packed_for(torch.device("cpu"), there), packed)
    assert layer._packed_for(torch.device("cuda"), there) is there


def test_empty_layer_packed_for_cuda() -> None:
    layer = QuantizedLinear(40, 20)
    there = layer._packed_for(torch.device("cuda"), layer.weight_packed)
    assert there.numel() == ops.packed_bytes(20, 40, "cuda")
    assert not there.any()


def test_state_of_a_gpu_loads_on_a_cpu() -> None:
    layer, x = quantize_linear(nn.Linear(70, 33)), torch.randn(3, 70)
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    state["weight_packed"] = ops.repack_w8(state["weight_packed"], "cuda")
    for assign in (False, True):
        other = QuantizedLinear(70, 33)
        other.load_state_dict(dict(state), assign=assign)
        assert other.layout == "dense"
        assert torch.equal(other(x), layer(x))
    state["weight_packed"] = state["weight_packed"][:-1]
    with pytest.raises(RuntimeError, match="cut short"):
        QuantizedLinear(70, 33).load_state_dict(state)


def test_cpu_refuses_cuda_layout() -> None:
    packed = ops.pack_w8(torch.ones(4, 8, dtype=torch.int8), "cuda")
    with pytest.raises(ValueError, match="packed for CUDA, not for CPUs"):
        ops.linear_w8a8(torch.randn(2, 8), packed, torch.ones(4))


@pytest.mark.parametrize(("change", "message"), [(0, "not a packed"), (24, "another version")])
def test_damaged_cuda_layout(change: int, message: str) -> None:
    packed = ops.pack_w8(torch.ones(4, 8, dtype=torch.int8), "cuda")
    packed[change] += 1
    with pytest.raises(ValueError, match=message):
        ops.repack_w8(packed, "dense")


def test_unpack_of_another_shape() -> None:
    packed = ops.pack_w8(torch.ones(4, 8, dtype=torch.int8), "cuda")
    with pytest.raises(ValueError, match="another shape"):
        ops.unpack_w8(packed, 8, 4)


def test_traced_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, dtypes and devices without a GPU, as torch.compile asks for them."""
    monkeypatch.setattr(_common, "DEVICES", ("cpu", "meta", "cuda"))
    with FakeTensorMode():

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device="cuda")

        x, scale = empty(2, 3, 70, dtype=torch.bfloat16), empty(33)
        packed = ops.pack_w8(empty(33, 70, dtype=torch.int8), "cuda")
        assert packed.shape[0] == ops.packed_bytes(33, 70, "cuda")
        y = ops.linear_w8a8(x, packed, scale, scale)
        assert (y.shape, y.dtype, y.device.type) == ((2, 3, 33), torch.bfloat16, "cuda")
        dense = empty(ops.packed_bytes(32, 70), dtype=torch.uint8)
        with pytest.raises(ValueError, match="packed for CUDA"):
            ops.linear_w8a8(x, dense, empty(32))
        with pytest.raises(ValueError, match="want cuda: w is on cuda"):
            ops.pack_w8(empty(33, 70, dtype=torch.int8))


def test_why_no_cuda() -> None:
    if torch.version.cuda is None:
        assert _common.WHY_NO_CUDA is not None
        with FakeTensorMode(), pytest.raises(ValueError, match="is built without CUDA"):
            ops.quantize_rows(torch.empty(2, 3, device="cuda"))
