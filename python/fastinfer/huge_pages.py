"""Packed weights side by side on huge pages.

A weight in memory of its own lies on small pages where it begins and ends inside a huge page, which
one below 2 MB does altogether. With few rows a layer takes as long as its weight takes to read, and
that takes longer where the addresses of 512 times as many pages must be found: on a Zen 4, in a
virtual machine, one thread multiplied a 2:4 weight (of masks, then) of 3072 x 768 by one row 1.4
times as fast so.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor, nn

from fastinfer.nn.packed_weight import PackedWeight
from fastinfer.spill import HUGE_PAGE, trim

_MOST = 32 * HUGE_PAGE  # of weights moved together: so much is in memory twice meanwhile
_ALIGNMENT = 64


def to_huge_pages_(modules: Iterable[nn.Module]) -> None:
    """Moves the weights of these modules, on a CPU, to memory that they share. Modules with one
    weight keep one. Where the system has no huge pages, or the weights fill none, nothing moves.

    The memory is given back when the last of the weights in it is gone.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    holders: dict[int, list[PackedWeight]] = defaultdict(list)
    for module in modules:
        if isinstance(module, PackedWeight) and module.weight_packed.device.type == "cpu":
            holders[module.weight_packed.data_ptr()].append(module)
    for group in _groups(list(holders.values())):
        sizes = [_padded(sharing[0].weight_packed) for sharing in group]
        if sum(sizes) < HUGE_PAGE:
            continue
        memory, begin = mapped(sum(sizes))
        for sharing, offset in zip(group, accumulate(sizes, initial=begin), strict=False):
            old = sharing[0].weight_packed
            with torch.inference_mode(False):
                new = torch.frombuffer(memory, dtype=old.dtype, count=old.numel(), offset=offset)
                new.copy_(old)
            for module in sharing:
                module.weight_packed = new
        trim()


def _groups(holders: list[list[PackedWeight]]) -> Iterator[list[list[PackedWeight]]]:
    """Of up to _MOST bytes, but one weight at least."""
    group: list[list[PackedWeight]] = []
    size = 0
    for sharing in holders:
        padded = _padded(sharing[0].weight_packed)
        if group and size + padded > _MOST:
            yield group
            group, size = [], 0
        group.append(sharing)
        size += padded
    if group:
        yield group


def _padded(weight: Tensor) -> int:
    return -(-weight.nbytes // _ALIGNMENT) * _ALIGNMENT


def mapped(size: int) -> tuple[mmap.mmap, int]:
    """Memory of so many bytes, and where in it the first huge page begins; what is never touched
    takes no memory."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr() % HUGE_PAGE
    # Whole ones alone: the last would take memory for what is not there.
    memory.madvise(mmap.MADV_HUGEPAGE, begin, size // HUGE_PAGE * HUGE_PAGE)
    return memory, begin
