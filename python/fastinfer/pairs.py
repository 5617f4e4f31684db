"""Layers in two forms that take turns in memory: float ones and their int8 twins."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from fastinfer.candidates import Layer
from fastinfer.float_memory import FloatMemory, float_memories
from fastinfer.nn import QuantizedLinear
from fastinfer.spill import Spill, Stored, trim
from fastinfer.swap import Make, make_twins, put, weight_sqnr_db


class Pair:
    """Layers that share a weight and their int8 twins: one side of the two in memory and in place.

    The modules of both sides stay the same objects, and so do the parameters of the float one. A
    weight that is not in memory is an empty tensor; which float weights leave it, and when, is up
    to their `FloatMemory`. The same layers may have several pairs, of twins made in several ways
    (`beside`), one of which at a time is int8.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        spill: Spill,
        memory: FloatMemory,
        make: Make = QuantizedLinear.from_linear,
    ) -> None:
        self.layers = list(layers)
        self.sqnr_db: float | None = None
        self.is_int8 = False
        self._spill = spill
        self.memory = memory
        self._make: Make | None = make
        self._twins: dict[Any, QuantizedLinear] = {}
        self._packed: Stored | None = None

    def beside(self, make: Make) -> "Pair":
        """Another pair of the same layers."""
        return Pair(self.layers, self._spill, self.memory, make)

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
        self.memory.leave(self.layers[0].module)
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
        self.memory.enter(self.layers[0].module)
        self.is_int8 = False

    def twins(self) -> dict[Any, QuantizedLinear]:
        """The twin of each float layer."""
        return dict(self._twins)

    def release(self) -> None:
        """Forgets the layers."""
        if self.is_int8:
            for linear, twin in self._twins.items():
                twin.training = linear.training
        self.layers, self._twins = [], {}

    def _load_packed(self) -> None:
        assert self._packed is not None
        packed = self._spill.load(self._packed)
        for twin in self._twins.values():
            twin.weight_packed = packed


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
    model: nn.Module, groups: Sequence[list[Layer]], spill: Spill, others: Iterable[nn.Module]
) -> list[Pair]:
    """A Pair for each group of layers that share a weight. others: modules that are not in the
    model now but will be again."""
    memories = float_memories(model, groups, spill, others)
    return [Pair(group, spill, memory) for group, memory in zip(groups, memories, strict=True)]


def release(pairs: Sequence[Pair]) -> None:
    """Forgets all layers; float ones that were replaced and are held elsewhere get their weights
    back."""
    memories = {pair.memory for pair in pairs if pair.is_int8}
    for pair in pairs:
        pair.release()
    do_all(*(memory.release for memory in memories))


def do_all(*steps: Callable[[], None]) -> None:
    """Every step, whatever happens: those that fail, or are interrupted, once more after the
    others. Raises what the first of them raised."""
    failure = None
    failed = []
    for step in steps:
        try:
            step()
        except BaseException as error:
            failure = failure or error
            failed.append(step)
    for step in failed:
        with suppress(BaseException):
            step()
    if failure is not None:
        raise failure
