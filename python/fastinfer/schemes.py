"""What a linear layer can be put into: schemes, for `sensitivity` and `search` to choose from."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastinfer.config import Int8Dynamic
from fastinfer.criteria import Wanda
from fastinfer.nn import QuantizedLinear
from fastinfer.prune import AnyCriterion, check_method, choose
from fastinfer.sparsify import layout_for
from fastinfer.sparsity import BlockSparse, Sparse24, Structure
from fastinfer.swap import Make

_WANDA = Wanda()


@runtime_checkable
class Scheme(Protocol):
    """A form that a linear layer can have instead of float."""

    @property
    def label(self) -> str:
        """Its name in a table; no two schemes of a call have the same."""
        ...

    def prepare(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Any]
    ) -> Make:
        """Looks at the model once; returns what makes the twin of each of `linears`, by name, all
        of which `batches` reach. The model stays as it is."""
        ...

    def code(self) -> str:
        """Python that puts the layers of `model` which `filter_fn` takes into this scheme."""
        ...


@dataclass(frozen=True)
class Int8Sparse:
    """Weights pruned in a structure, then int8 as with `Int8Dynamic`, stored without the zeros.

    structure: Sparse24(), BlockSparse(block, sparsity) or Unstructured(density), stored as
    `sparsify_` does. criterion: which weights go, as in `prune_`, each layer by itself; one that
    needs batches gets those that `sensitivity` or `search` runs on.

    Raises TypeError on values of other types; ValueError on a criterion that does not go with the
    structure.
    """

    structure: Structure
    criterion: AnyCriterion = _WANDA

    def __post_init__(self) -> None:
        check_method(self.structure, self.criterion)

    @property
    def label(self) -> str:
        share = ""
        if not isinstance(self.structure, Sparse24):
            share = f", {100 * (1 - self.structure.kept):g} % zero"
        return f"int8 {self.structure.label}{share}, {self.criterion.label}"

    def prepare(
        self, model: nn.Module, linears: Mapping[str, nn.Linear], batches: Sequence[Any]
    ) -> Make:
        def choose_for(linears: Mapping[str, nn.Linear]) -> dict[str, tuple[Tensor, Tensor | None]]:
            return choose(model, linears, self.structure, self.criterion, batches, progress=False)

        names = {linear: name for name, linear in linears.items()}
        chosen = choose_for(linears) if self.criterion.needs_batches else {}

        def make(linear: nn.Linear) -> QuantizedLinear:
            name = names[linear]
            mask, weight = (chosen or choose_for({name: linear}))[name]
            present = linear.weight.detach() if weight is None else weight
            pruned = copy.copy(linear)
            weight = nn.Parameter(torch.where(mask, present, 0), requires_grad=False)
            pruned._parameters = linear._parameters | {"weight": weight}
            layout = layout_for(self.structure, linear.in_features)
            return QuantizedLinear.from_linear(pruned, layout)

        return make

    def code(self) -> str:
        structure, criterion = _code(self.structure), _code(self.criterion)
        batches = ", batches=batches" if self.criterion.needs_batches else ""
        return (
            f"fastinfer.prune_(model, {structure}, {criterion}{batches}, filter_fn=filter_fn)\n"
            "fastinfer.sparsify_(model, filter_fn=filter_fn)  # fine-tune before it"
        )


SCHEMES: tuple[Scheme, ...] = (
    Int8Dynamic(),
    Int8Sparse(Sparse24()),
    Int8Sparse(BlockSparse(sparsity=0.5)),
)


def check_schemes(schemes: Sequence[object]) -> None:
    """Raises TypeError or ValueError unless `schemes` are schemes, at least one, no label twice."""
    if isinstance(schemes, str) or not isinstance(schemes, Sequence):
        raise TypeError(f"schemes: got {type(schemes).__name__}, want a list of schemes")
    for scheme in schemes:
        if isinstance(scheme, type) or not isinstance(scheme, Scheme):
            name = scheme.__name__ if isinstance(scheme, type) else type(scheme).__name__
            raise TypeError(
                f"schemes: got {name} in it, want Int8Dynamic(), Int8Sparse(structure) or what has "
                "label, prepare and code as they do"
            )
    if not schemes:
        raise ValueError("schemes: it is empty, want at least one scheme")
    labels = [scheme.label for scheme in schemes if isinstance(scheme, Scheme)]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(f"schemes: two are {twice[0]!r}, want each once")


def _code(value: Any) -> str:
    """The expression that makes a structure or a criterion; functions in it by their names."""
    given = []
    for field in fields(value):
        held = getattr(value, field.name)
        given.append(f"{field.name}={getattr(held, '__name__', repr(held))}")
    return f"fastinfer.{type(value).__name__}({', '.join(given)})"
