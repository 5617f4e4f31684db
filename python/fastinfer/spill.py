"""Tensors that wait in a file."""

import ctypes
import mmap
from dataclasses import dataclass
from io import BufferedRandom

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Stored:
    """Where in the file a tensor is, and what it was."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Spill:
    """Contiguous tensors in a file, one after another.

    Plain reads and writes: pages of a mapped file would count as memory of the process.
    """

    def __init__(self, file: BufferedRandom) -> None:
        self._file = file
        self._end = 0

    def store(self, tensor: Tensor) -> Stored:
        stored = Stored(self._end, tensor.shape, tensor.dtype)
        self._file.seek(stored.offset)
        self._file.write(_bytes(tensor))
        self._file.flush()  # a full disk shows here, not when the tensor is gone
        self._end += tensor.nbytes
        return stored

    def load(self, stored: Stored) -> Tensor:
        with torch.inference_mode(False):
            tensor = torch.empty(stored.shape, dtype=stored.dtype)
        _advise_huge_pages(tensor)
        self._file.seek(stored.offset)
        if self._file.readinto(_bytes(tensor)) != tensor.nbytes:
            raise OSError("the temporary file of spilled weights has lost its end")
        return tensor


def _bytes(tensor: Tensor) -> "ctypes.Array[ctypes.c_char]":
    """The memory of a contiguous tensor, good while the tensor is. (`tensor.numpy()` would leave
    the storage fixed in size for good.)"""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def trim() -> None:
    """Gives freed memory back to the system: glibc keeps blocks below a growing size, and those
    that lie between others."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def _advise_huge_pages(tensor: Tensor) -> None:
    """As the operator that packs weights does: fewer TLB misses where every call reads them all."""
    begin = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    end = (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE * HUGE_PAGE
    if begin < end:
        advice = getattr(mmap, "MADV_HUGEPAGE", None)
        if advice is not None:
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
