"""What `prune_` did to each layer, as data and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, group_like, titled_table, without_numbers


@dataclass(frozen=True)
class PrunedRow:
    """One nn.Linear (or what stands for one) of the model, under its first name."""

    name: str
    in_features: int
    out_features: int
    structure: str | None = None  # None: left as it was
    zeros: int = 0  # weights that the mask removes
    reason: str | None = None  # why it was left

    @property
    def sparsity(self) -> float:
        """The share of its weights that the mask removes."""
        return self.zeros / max(1, self.in_features * self.out_features)


@dataclass(frozen=True)
class Pruning(Printable):
    """The result of `prune_`: a row a linear layer, in the model's order."""

    rows: tuple[PrunedRow, ...]
    criterion: str

    @property
    def pruned(self) -> tuple[PrunedRow, ...]:
        """The rows of the layers that were pruned."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def left(self) -> tuple[PrunedRow, ...]:
        """The rows of the layers that were left as they were; each has a reason."""
        return tuple(row for row in self.rows if row.reason is not None)

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights of the layers that were pruned."""
        return _sparsity(self.pruned)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        layers = [asdict(row) | {"sparsity": row.sparsity} for row in self.rows]
        return {"criterion": self.criterion, "sparsity": self.sparsity, "layers": layers}

    def __repr__(self) -> str:
        return f"<Pruning: {self._totals()}>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Linear layers")
        table.add_column("layer", overflow="fold")
        table.add_column("in x out", justify="right", no_wrap=True)
        table.add_column("now")
        table.add_column("zeros", justify="right", no_wrap=True)
        for name, rows in group_like(self.rows, _kind):
            first = rows[0]
            table.add_row(
                name,
                f"{first.in_features} x {first.out_features}",
                first.structure or f"left: {first.reason}",
                f"{_sparsity(rows):.1%}" if first.structure else "",
                style=None if first.structure else "dim",
            )
        return Group(table, Text(self._totals()))

    def _totals(self) -> str:
        return (
            f"{len(self.pruned)} of {len(self.rows)} linear layers pruned by {self.criterion}, "
            f"{self.sparsity:.1%} of their weights zero"
        )


def _sparsity(rows: tuple[PrunedRow, ...]) -> float:
    weights = sum(row.in_features * row.out_features for row in rows)
    return sum(row.zeros for row in rows) / max(1, weights)


def _kind(row: PrunedRow) -> tuple[object, ...]:
    shape = row.in_features, row.out_features
    return without_numbers(row.name), *shape, row.structure, row.reason
