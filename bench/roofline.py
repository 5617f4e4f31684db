"""What this machine can do at best, measured in the same run as everything else.

The loops are in ``native/roofline.cpp``; a C++ compiler builds them at the first call.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from fastinfer.huge_pages import mapped

SOURCE = Path(__file__).parent / "native" / "roofline.cpp"
LOOPS = ("amx_int8", "avx512_vnni", "avx512_fma", "avx2_madd", "avx2_fma")
LEVELS = {"L2": 1 << 20, "L3": 64 << 20, "DRAM": 1 << 30}  # bytes that each thread reads

# The loop that bounds the kernels of an instruction set.
LOOP_OF_ISA = {
    "amx": "amx_int8",
    "avx512bf16": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx512_vnni",
    "avx2": "avx2_madd",
}


@dataclass(frozen=True)
class Roofline:
    """Operations a second of one core by loop; bytes a second by (level, threads)."""

    peak: dict[str, float]
    bandwidth: dict[tuple[str, int], float]


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("roofline: no C++ compiler (g++, clang++ or $CXX) to build the loops")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "roofline.so"
        flags = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.fastinfer_run_loop.restype = ctypes.c_double
    library.fastinfer_run_loop.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    library.fastinfer_read_bandwidth.restype = ctypes.c_double
    library.fastinfer_read_bandwidth.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_double]
    library.fastinfer_read_once.restype = ctypes.c_uint64
    library.fastinfer_read_once.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.fastinfer_copy_once.restype = None
    library.fastinfer_copy_once.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
    ]
    return library


def loop(name: str, seconds: float = 1e-3) -> tuple[Callable[[], float], float] | None:
    """The loop `name` as a candidate for interleaved timing.

    Returns a callable that runs it for about `seconds`, and the operations of one call; None where
    this CPU cannot run it.
    """
    run, text = _library().fastinfer_run_loop, name.encode()
    rounds = 1024
    while True:
        start = perf_counter()
        operations = run(text, rounds)
        if operations == 0:
            return None
        if perf_counter() - start > seconds / 2:
            return partial(run, text, rounds), operations
        rounds *= 2


def peak(name: str, seconds: float = 0.2) -> float:
    """Operations a second of one core in the loop `name`, best of blocks of about 1 ms; 0.0 where
    this CPU cannot run it."""
    found = loop(name)
    if found is None:
        return 0.0
    run, operations = found
    best, begin = 0.0, perf_counter()
    while perf_counter() - begin < seconds:
        start = perf_counter()
        run()
        best = max(best, operations / (perf_counter() - start))
    return best


def reader(data: Tensor, threads: int, chunk: int = 256 << 20) -> tuple[Callable[[], int], int]:
    """Streaming reads of `data` as a candidate for interleaved timing.

    Returns a callable that reads the next `chunk` bytes with `threads` threads, going round `data`
    (contiguous, 64-byte aligned), and the bytes of one call.
    """
    chunks = data.numel() * data.element_size() // chunk
    read, base, at = _library().fastinfer_read_once, data.data_ptr(), -1

    def run() -> int:
        nonlocal at
        at = (at + 1) % chunks
        return int(read(base + at * chunk, chunk, threads))

    return run, chunk


def copier(to: Tensor, source: Tensor, threads: int) -> Callable[[], None]:
    """A copy past the caches as a candidate for interleaved timing: both tensors contiguous and
    64-byte aligned, of one size, a multiple of 4096 * threads bytes."""
    size = source.numel() * source.element_size()
    copy = _library().fastinfer_copy_once
    return partial(copy, to.data_ptr(), source.data_ptr(), size, threads)


def bandwidth(bytes_per_thread: int, threads: int, seconds: float = 0.2) -> float:
    """Bytes a second that `threads` threads read together, each from a share of its own."""
    return float(_library().fastinfer_read_bandwidth(bytes_per_thread * threads, threads, seconds))


def measure(threads: tuple[int, ...] = (1, 2), seconds: float = 0.2) -> Roofline:
    """All of it, in about 7 s: 1 GiB a thread takes a second or two to fill."""
    return Roofline(
        peak={name: peak(name, seconds) for name in LOOPS},
        bandwidth={
            (level, t): bandwidth(size, t, seconds)
            for level, size in LEVELS.items()
            for t in threads
        },
    )


def random_bytes(count: int) -> Tensor:
    """`count` random bytes to read, on huge pages as the weights of a model are."""
    memory, begin = mapped(count)
    words = torch.frombuffer(memory, dtype=torch.int64, count=count // 8, offset=begin)
    return words.random_()
