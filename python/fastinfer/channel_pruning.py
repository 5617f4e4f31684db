"""What `prune_channels_` did to each MLP, as data and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, group_like, titled_table, without_numbers


@dataclass(frozen=True)
class ChannelRow:
    """The channels between linear layers `before` and the linear layer `name`."""

    name: str
    before: tuple[str, ...]
    width_before: int
    width_after: int
    reason: str | None = None  # why they were left


@dataclass(frozen=True)
class ChannelPruning(Printable):
    """The result of `prune_channels_`: a row an MLP, in the order in which the model calls them."""

    rows: tuple[ChannelRow, ...]
    criterion: str

    @property
    def pruned(self) -> tuple[ChannelRow, ...]:
        """The rows of what was made narrower."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def left(self) -> tuple[ChannelRow, ...]:
        """The rows of what was left as it was; each has a reason."""
        return tuple(row for row in self.rows if row.reason is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        rows = [asdict(row) | {"before": list(row.before)} for row in self.rows]
        return {"criterion": self.criterion, "mlps": rows}

    def __repr__(self) -> str:
        return f"<ChannelPruning: {self._totals()}>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Channels of MLPs")
        table.add_column("from", overflow="fold")
        table.add_column("to", overflow="fold")
        table.add_column("channels", justify="right")
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
        return f"{len(self.pruned)} of {len(self.rows)} MLPs made narrower by {self.criterion}"


def _kind(row: ChannelRow) -> tuple[object, ...]:
    before = tuple(map(without_numbers, row.before))
    return without_numbers(row.name), before, row.width_before, row.width_after, row.reason
