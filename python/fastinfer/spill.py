"""Weights that take turns in memory: float ones and their int8 twins, the others in a file."""

import ctypes
import mmap
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastinfer.candidates import Layer
from fastinfer.nn import QuantizedLinear
from fastinfer.swap import Make, make_twins, put, weight_sqnr_db

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


@dataclass
class FloatWeight:
    """Whether the weight of some layers may leave memory, and where in the file it is if it has."""

    movable: bool
    stored: Stored | None = None


class Pair:
    """Layers that share a weight and their int8 twins: one side of the two in memory and in place.

    The modules of both sides stay the same objects, and so do the parameters of the float one. A
    weight that is not in memory is an empty tensor. A float weight that is not plain memory of its
    own (part of a larger storage, shared between processes, mapped from a file) stays in memory.
    The same layers may have several pairs, of twins made in several ways (`beside`), one of which
    at a time is int8.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        spill: Spill,
        weight: FloatWeight,
        make: Make = QuantizedLinear.from_linear,
    ) -> None:
        self.layers = list(layers)
        self.sqnr_db: float | None = None
        self.is_int8 = False
        self._spill = spill
        self._weight = weight
        self._make: Make | None = make
        self._twins: dict[Any, QuantizedLinear] = {}
        self._packed: Stored | None = None

    def beside(self, make: Make) -> "Pair":
        """Another pair of the same layers."""
        return Pair(self.layers, self._spill, self._weight, make)

    def twin(self, module: nn.Module) -> QuantizedLinear:
        """The twin of one of the layers, ready to be called, beside the float weight."""
        if not self._twins:
            assert self._make is not None
            self._twins = make_twins(self.layers, self._make)
            self._make = None  # which may hold what the layers were made of
            trim()
            first = self.layers[0].module
            self.sqnr_db = weight_sqnr_db(first, self._twins[first])
            self._packed = self._spill.store(self._twins[first].weight_packed)
            trim()
        elif not self._twins[module].weight_packed.numel():
            self._load_packed()
        return self._twins[module]

    def drop_twin(self) -> None:
        """Takes the int8 weight out of memory."""
        for twin in self._twins.values():
            twin.weight_packed = twin.weight_packed.new_empty(0)
        trim()

    def to_int8(self) -> None:
        """Puts the twins in place; the float weight goes to the file."""
        if self.is_int8:
            return
        self.is_int8 = True
        if self._weight.movable:
            if self._weight.stored is None:
                self._weight.stored = self._spill.store(self.layers[0].module.weight.detach())
            self._set_weights(torch.empty(0, dtype=self._weight.stored.dtype))
        self._load_packed()
        for layer in self.layers:
            put(layer, self._twins[layer.module])

    def to_float(self) -> None:
        """Puts the float layers back, each bit as it was; the int8 weight is in the file."""
        if not self.is_int8:
            return
        for layer in self.layers:
            put(layer, layer.module)
        self.drop_twin()
        stored = self._weight.stored
        if stored is not None and not self.layers[0].module.weight.numel():
            self._set_weights(self._spill.load(stored))
        self.is_int8 = False

    def twins(self) -> dict[Any, QuantizedLinear]:
        """The twin of each float layer."""
        return dict(self._twins)

    def release(self) -> None:
        """Forgets the float layers, if they were replaced; one that is held elsewhere gets its
        weight back."""
        if not self.is_int8:
            self.layers, self._twins = [], {}
            return
        for linear, twin in self._twins.items():
            twin.training = linear.training
        weights = [weakref.ref(linear.weight) for linear in self._twins]
        self.layers, self._twins = [], {}
        del linear
        held = [weight for ref in weights if (weight := ref()) is not None]
        if self._weight.stored is not None and held:
            _set_data(held, self._spill.load(self._weight.stored))

    def _load_packed(self) -> None:
        assert self._packed is not None
        packed = self._spill.load(self._packed)
        for twin in self._twins.values():
            twin.weight_packed = packed

    def _set_weights(self, value: Tensor) -> None:
        _set_data([layer.module.weight for layer in self.layers], value)
        trim()


class Twins(Mapping[nn.Module, QuantizedLinear]):
    """The int8 twin of every float layer, one in memory at a time."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._pairs = {layer.module: pair for pair in pairs for layer in pair.layers}
        self._last: Pair | None = None

    def __getitem__(self, module: nn.Module) -> QuantizedLinear:
        pair = self._pairs[module]
        if self._last is not pair:
            self.drop()
            self._last = pair
        return pair.twin(module)

    def drop(self) -> None:
        if self._last is not None:
            self._last.drop_twin()

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def make_pairs(
    model: nn.Module, groups: Iterable[list[Layer]], spill: Spill, others: Iterable[nn.Module]
) -> list[Pair]:
    """A Pair for each group of layers that share a weight. others: modules that are not in the
    model now but will be again."""
    holders = Counter(
        tensor.untyped_storage().data_ptr()
        for module in (model, *others)
        for tensor in (*module.parameters(), *module.buffers())
        if not is_lazy(tensor)
    )
    return [Pair(group, spill, FloatWeight(_is_movable(group, holders))) for group in groups]


def _is_movable(group: list[Layer], holders: Mapping[int, int]) -> bool:
    weight = group[0].module.weight
    storage = weight.untyped_storage()
    parameters = len({id(layer.module.weight) for layer in group})
    return (
        weight.is_contiguous()
        and storage.nbytes() == weight.nbytes
        and storage.resizable()
        and not weight.is_shared()
        and holders[storage.data_ptr()] == parameters  # none is a view that would be left behind
        and not any(layer.module.weight.is_inference() for layer in group)
    )


def _set_data(weights: Iterable[Tensor], value: Tensor) -> None:
    with torch.inference_mode(False):
        for weight in weights:
            weight.data = value


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
