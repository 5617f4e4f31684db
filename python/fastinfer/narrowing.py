"""What became of units that could go (channels of MLPs, heads, widths), as data and as a table."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, group_like, titled_table, without_numbers


@dataclass(frozen=True)
class NarrowedRow:
    """What stands between the layers `before` and what reads them: how many units it has."""

    name: str
    before: tuple[str, ...]
    width_before: int
    width_after: int
    reason: str | None = None  # why they were left


@dataclass(frozen=True)
class Narrowing(Printable):
    """A row for each place where units could go, in the order in which the model calls them."""

    rows: tuple[NarrowedRow, ...]
    criterion: str

    title: ClassVar[str]
    places: ClassVar[str]  # what a row is, in the plural
    units: ClassVar[str]

    @property
    def pruned(self) -> tuple[NarrowedRow, ...]:
        """The rows of what was made narrower."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def left(self) -> tuple[NarrowedRow, ...]:
        """The rows of what was left as it was; each has a reason."""
        return tuple(row for row in self.rows if row.reason is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        rows = [asdict(row) | {"before": list(row.before)} for row in self.rows]
        return {"criterion": self.criterion, self.places.lower().replace(" ", "_"): rows}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._totals()}>"

    def __rich__(self) -> RenderableType:
        table = titled_table(self.title)
        table.add_column("from", overflow="fold")
        table.add_column("to", overflow="fold")
        table.add_column(self.units, justify="right")
        for name, rows in group_like(self.rows, _kind):
            first = rows[0]
            table.add_row(
                ", ".join(first.before if len(rows) == 1 else map(without_numbers, first.before)),
                name,
                f"{first.width_before} -> {first.width_after}"
                if first.reason is None
                else f"{first.width_before}, left: {first.reason}",
                style=None if first.reason is None else "dim",
            )
        return Group(table, Text(self._totals()))

    def _totals(self) -> str:
        done = f"{len(self.pruned)} of {len(self.rows)} {self.places}"
        return f"{done} made narrower by {self.criterion}"


class ChannelPruning(Narrowing):
    """The result of `prune_channels_`: a row an MLP, named by the linear layer that narrows."""

    title, places, units = "Channels of MLPs", "MLPs", "channels"


class HeadPruning(Narrowing):
    """The result of `prune_heads_`: a row an attention block.

    Its units are key-value heads, each with the query heads that read it.
    """

    title, places, units = "Heads of attention", "attention blocks", "key-value heads"


class WidthPruning(Narrowing):
    """The result of `prune_width_`: a row for each width, named by the first layer that gives it.

    `before`: all layers that do.
    """

    title, places, units = "Widths", "widths", "channels"


def _kind(row: NarrowedRow) -> tuple[object, ...]:
    before = tuple(map(without_numbers, row.before))
    return without_numbers(row.name), before, row.width_before, row.width_after, row.reason
