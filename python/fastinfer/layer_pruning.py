"""What `prune_layers_` did to each block, as data and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, titled_table


@dataclass(frozen=True)
class BlockRow:
    """One block of a stack, under the name that it had."""

    name: str
    influence: float | None  # 1 - mean cos(what it gets, what it gives); None if not measured
    removed: bool
    reason: str | None = None  # why it could not be removed


@dataclass(frozen=True)
class LayerPruning(Printable):
    """The result of `prune_layers_`: a row a block, in the model's order."""

    rows: tuple[BlockRow, ...]

    @property
    def removed(self) -> tuple[BlockRow, ...]:
        """The rows of the blocks that are gone."""
        return tuple(row for row in self.rows if row.removed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return {"blocks": [asdict(row) for row in self.rows]}

    def __repr__(self) -> str:
        return f"<LayerPruning: {self._totals()}>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Blocks")
        table.add_column("block", overflow="fold")
        table.add_column("influence", justify="right", no_wrap=True)
        table.add_column("now")
        for row in self.rows:
            influence = "" if row.influence is None else f"{row.influence:.4f}"
            now = "removed" if row.removed else f"left: {row.reason}" if row.reason else "stays"
            table.add_row(row.name, influence, now, style="dim" if row.reason else None)
        return Group(table, Text(self._totals()))

    def _totals(self) -> str:
        return f"{len(self.removed)} of {len(self.rows)} blocks removed"
