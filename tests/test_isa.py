"""Selection can be capped, read back, and says why an instruction set is left out."""

import os
import subprocess
import sys

import pytest

from fastinfer import _C

ISAS = [row["name"] for row in _C.isas()]
SUPPORTED = [row["name"] for row in _C.isas() if row["supported"]]
GEMM_ISA = {k["name"]: k["isa"] for k in _C.kernels() if k["family"] == "gemm_s8s8s32"}


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def up_to(name):
    return SUPPORTED[: SUPPORTED.index(name) + 1]


def gemm_rows(name):
    """The instruction sets up to this one for which there is a gemm_s8s8s32 row."""
    return [isa for isa in up_to(name) if isa in GEMM_ISA.values()]


@pytest.mark.parametrize("m", [64, 512])
def test_forced_isa_is_the_one_selected(isa, m):
    assert _C.isa_cap() == isa
    assert _C.isa_in_use() == isa
    assert (
        GEMM_ISA[_C.select(m, 768, 768)["gemm"]]
        == [name for name in up_to(isa) if name in GEMM_ISA.values()][-1]
    )
    assert [row["name"] for row in _C.isas() if row["allowed"]] == up_to(isa)


@pytest.mark.parametrize("m", [1, 2, 8, 32])
@pytest.mark.parametrize("size", [64, 768, 4096])
def test_few_rows_may_take_a_lesser_kernel_but_never_one_above_the_cap(isa, m, size):
    assert GEMM_ISA[_C.select(m, size, size)["gemm"]] in gemm_rows(isa)[-2:]


def test_no_cap_takes_the_best(force_isa):
    force_isa("")
    assert _C.isa_cap() == ""
    assert _C.isa_in_use() == SUPPORTED[-1]


def test_unknown_isa_is_refused_and_changes_nothing(force_isa):
    force_isa("generic")
    with pytest.raises(ValueError, match=r'got "avx1024", want one of generic, '):
        _C.force_isa("avx1024")
    assert _C.isa_cap() == "generic"


def test_every_unsupported_isa_has_a_reason():
    for row in _C.isas():
        assert bool(row["reason"]) != row["supported"], row


@pytest.mark.parametrize("name", SUPPORTED)
def test_environment_variable_caps(name):
    done = run(
        "from fastinfer import _C\n"
        "print(_C.isa_cap(), _C.isa_in_use(), _C.select(64, 64, 64)['gemm'])",
        FASTINFER_ISA=name,
    )
    assert done.returncode == 0, done.stderr
    cap, in_use, kernel = done.stdout.split()
    assert (cap, in_use, GEMM_ISA[kernel]) == (name, name, gemm_rows(name)[-1])


def test_unknown_environment_variable_is_an_import_error():
    done = run("import fastinfer", FASTINFER_ISA="avx1024")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: FASTINFER_ISA: got "avx1024", want one of generic, ')
    assert all(name in last for name in SUPPORTED)


SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.addressof(memory), 0, 4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
import torch, fastinfer
from fastinfer import _C
row = next(row for row in _C.isas() if row["name"] == "amx")
layer = fastinfer.quantize_linear(torch.nn.Linear(64, 64))
assert layer(torch.ones(40, 64)).isfinite().all()
print(row["supported"], _C.isa_in_use(), row["reason"], sep="|")
"""


@pytest.mark.skipif("amx" not in SUPPORTED, reason="no amx here")
def test_amx_refused_by_the_kernel_falls_back_and_says_why():
    done = run(SMALL_SIGNAL_STACK, FASTINFER_ISA="")
    assert done.returncode == 0, done.stderr
    supported, in_use, reason = done.stdout.strip().split("|")
    assert (supported, in_use) == ("False", SUPPORTED[SUPPORTED.index("amx") - 1])
    assert "sigaltstack" in reason
