"""Builds the C++ tests and runs them: every kernel row on guarded buffers (tests/cpp), the CUDA
kernels over an emulator (tests/cuda), and CUTLASS's own functions on the host (tests/cutlass)."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys

import pytest

from fastinfer import _C

ROOT = pathlib.Path(__file__).parents[1]
LOG = ROOT / "build" / "isa" / "native.log"
ISAS = [isa["name"] for isa in _C.isas() if isa["supported"]]


def environment(**extra: str) -> dict[str, str]:
    """The environment less a cap on the ISA, with the tools of this Python's environment first."""
    env = {k: v for k, v in os.environ.items() if k not in ("FASTINFER_ISA", "LD_PRELOAD")}
    env["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    return env | extra


@pytest.fixture(scope="module")
def binary() -> pathlib.Path:
    for command in (["--preset", "cpp"], ["--build", "--preset", "cpp"]):
        done = subprocess.run(
            ["cmake", *command], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "cpp" / "tests" / "cpp" / "fastinfer_tests"


def test_every_row(binary: pathlib.Path) -> None:
    done = subprocess.run([binary], env=environment(), capture_output=True, text=True)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" passed, 0 failed\n")
    ran = {line.split()[2] for line in done.stdout.splitlines() if line.endswith(" ran")}
    assert ran == set(ISAS), "an instruction set of this CPU has no row that ran"
    emulated = [line for line in done.stdout.splitlines() if line.endswith(" amx emulated")]
    assert len(emulated) == (4 if "avx512bf16" in ISAS else 0), "an AMX row was not emulated"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for x86 registers")
def test_instructions_stay_in_their_files(binary: pathlib.Path) -> None:
    """No file holds registers that its instruction set has not, nor, if it is one of an instruction
    set, a function that the linker may take for that of another file."""
    objects = list((binary.parents[2] / "csrc" / "cpu").rglob("*.cpp.o"))
    assert len(objects) > 50
    for path in objects:
        code = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", path], text=True)
        if path.name.startswith("x86_"):
            symbols = subprocess.check_output(["nm", "-C", "--defined-only", path], text=True)
            assert not [line for line in symbols.splitlines() if " W " in line], path
        else:
            assert "%ymm" not in code, path
        if not path.name.startswith(("x86_avx512", "x86_amx")):
            assert "%zmm" not in code, path


def test_cuda_kernels_emulated(binary: pathlib.Path) -> None:
    emulated = binary.parents[1] / "cuda" / "fastinfer_cuda_tests"
    done = subprocess.run([emulated], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" passed, 0 failed\n")


def test_cutlass_on_host(binary: pathlib.Path) -> None:
    tests = binary.parents[1] / "cutlass" / "fastinfer_cutlass_tests"
    if not tests.exists():
        pytest.skip("built without nvidia-cutlass, or without the headers of CUDA")
    done = subprocess.run([tests], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" passed, 0 failed\n")


@pytest.mark.parametrize("isa", ISAS)
def test_cap_from_environment(binary: pathlib.Path, isa: str) -> None:
    done = subprocess.run(
        [binary, "linear"], env=environment(FASTINFER_ISA=isa), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"isa {isa} in use" in done.stdout.splitlines()


def test_unknown_cap_is_an_error(binary: pathlib.Path) -> None:
    done = subprocess.run(
        [binary], env=environment(FASTINFER_ISA="sse9"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert 'FASTINFER_ISA: got "sse9", want one of generic, ' in done.stderr
