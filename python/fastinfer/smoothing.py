"""What `smooth_` did to each norm, as data and as a table."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, group_like, titled_table, without_numbers


@dataclass(frozen=True)
class NormRow:
    """One norm of the model.

    `linears`: the layers that its scale went into. `scale_low`, `scale_high`: the least and the
    greatest s. `peak_before`, `peak_after`: max |X| of its largest channel over that of the median
    one, inf if that is 0.
    """

    name: str
    linears: tuple[str, ...] = ()
    reason: str | None = None  # why it was left
    scale_low: float | None = None
    scale_high: float | None = None
    peak_before: float | None = None
    peak_after: float | None = None


@dataclass(frozen=True)
class Smoothing(Printable):
    """The result of `smooth_`: a row a norm, in the model's order."""

    norms: tuple[NormRow, ...]

    @property
    def smoothed(self) -> tuple[NormRow, ...]:
        """The rows of the norms that were folded into linear layers."""
        return tuple(row for row in self.norms if row.reason is None)

    @property
    def left(self) -> tuple[NormRow, ...]:
        """The rows of the norms that were left as they were; each has a reason."""
        return tuple(row for row in self.norms if row.reason is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json: a number that is not finite is None."""
        rows = [asdict(row) for row in self.norms]
        for row in rows:
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    row[key] = None
            row["linears"] = list(row["linears"])
        return {"norms": rows}

    def __repr__(self) -> str:
        return f"<Smoothing: {len(self.smoothed)} of {len(self.norms)} norms smoothed>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Norms")
        table.add_column("norm", overflow="fold")
        table.add_column("linear layers that read it", overflow="fold")
        table.add_column("s", justify="right", no_wrap=True)
        table.add_column("largest channel\n/ median one", justify="right", no_wrap=True)
        for name, rows in group_like(self.norms, _kind):
            first = rows[0]
            if first.reason is not None:
                table.add_row(name, f"left: {first.reason}", style="dim")
                continue
            table.add_row(
                name,
                ", ".join(first.linears if len(rows) == 1 else map(without_numbers, first.linears)),
                f"{min(row.scale_low or 0 for row in rows):.3g} to "
                f"{max(row.scale_high or 0 for row in rows):.3g}",
                f"{max(row.peak_before or 0 for row in rows):.3g} -> "
                f"{max(row.peak_after or 0 for row in rows):.3g}",
            )
        return Group(table, Text(f"{len(self.smoothed)} of {len(self.norms)} norms smoothed"))


def _kind(row: NormRow) -> tuple[object, ...]:
    reads = tuple(map(without_numbers, row.linears))
    return without_numbers(row.name), reads, row.reason and without_numbers(row.reason)
