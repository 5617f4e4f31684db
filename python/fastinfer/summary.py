"""What `quantize_` did to each layer, as data and as a table."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastinfer.render import Printable, format_bytes

_LONGEST_TABLE = 20  # rows; beyond it, the like layers of repeated blocks share a row


@dataclass(frozen=True)
class Row:
    """One nn.Linear (or a subclass of it) of the model, under its first name."""

    name: str
    in_features: int
    out_features: int
    scheme: str | None  # None: left as it was
    reason: str | None  # why it was left
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None  # of the quantised weight against the float one
    ms_before: float | None = None  # what the guard measured, over all calls of the layer
    ms_after: float | None = None


class Summary(Printable):
    """The result of `quantize_`: one row a linear layer, and totals of the whole model.

    `rows`: every row. `bytes_before`, `bytes_after`: parameters and buffers of the model, shared
    ones once. `others`: bytes of the parameters outside linear layers, by module type.
    """

    def __init__(
        self, rows: Iterable[Row], bytes_before: int, bytes_after: int, others: dict[str, int]
    ) -> None:
        self.rows = tuple(rows)
        self.bytes_before = bytes_before
        self.bytes_after = bytes_after
        self.others = dict(others)

    @property
    def quantized(self) -> tuple[Row, ...]:
        """The rows of the layers that were replaced."""
        return tuple(row for row in self.rows if row.scheme is not None)

    @property
    def left(self) -> tuple[Row, ...]:
        """The rows of the layers that were left as they were; each has a reason."""
        return tuple(row for row in self.rows if row.scheme is None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json: a number that is not finite (an exact weight) is None."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["sqnr_db"] == float("inf"):
                row["sqnr_db"] = None
        return {
            "layers": rows,
            "layers_quantized": len(self.quantized),
            "layers_left": len(self.left),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "other_bytes": dict(self.others),
        }

    def __repr__(self) -> str:
        return (
            f"<Summary: {len(self.quantized)} of {len(self.rows)} linear layers quantised, model "
            f"{format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)}>"
        )

    def __rich__(self) -> RenderableType:
        lines = _lines(self.rows)
        grouped = len(lines) < len(self.rows)
        timed = any(row.ms_before is not None for row in self.rows)
        table = Table(title="Linear layers", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("layer", overflow="fold")
        if grouped:
            table.add_column("count", justify="right")
        table.add_column("in x out", justify="right")
        table.add_column("now")
        table.add_column("bytes", justify="right")
        table.add_column("weight SQNR", justify="right")
        if timed:
            table.add_column("ms", justify="right")
        for line in lines:
            cells = [line.name, *([str(len(line.rows))] if grouped else []), *line.cells()]
            if timed:
                cells.append(line.ms())
            table.add_row(*cells, style=None if line.rows[0].scheme else "dim")
        note = "\nLike layers share a line: bytes and ms are of all, the SQNR is of the worst."
        return Group(table, Text(self._totals() + (note if grouped else "")))

    def _totals(self) -> str:
        text = (
            f"{len(self.quantized)} of {len(self.rows)} linear layers quantised; model "
            f"{format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)}"
        )
        if self.others:
            largest = sorted(self.others.items(), key=lambda item: -item[1])
            text += "\nNot linear layers, left as they were: "
            text += ", ".join(f"{kind} {format_bytes(size)}" for kind, size in largest)
        return text


@dataclass(frozen=True)
class _Line:
    """One line of the table: one layer, or the like layers of repeated blocks."""

    name: str
    rows: tuple[Row, ...]

    def cells(self) -> list[str]:
        first = self.rows[0]
        before = sum(row.bytes_before for row in self.rows)
        after = sum(row.bytes_after for row in self.rows)
        size = format_bytes(before)
        sqnr = [row.sqnr_db for row in self.rows if row.sqnr_db is not None]
        return [
            f"{first.in_features} x {first.out_features}",
            first.scheme or f"left: {first.reason}",
            size if before == after else f"{size} -> {format_bytes(after)}",
            f"{min(sqnr):.1f} dB" if sqnr else "",
        ]

    def ms(self) -> str:
        """What the guard measured, in all; it has no figures for a layer that was not called."""
        before = [row.ms_before for row in self.rows if row.ms_before is not None]
        after = [row.ms_after for row in self.rows if row.ms_after is not None]
        return f"{sum(before):.3g} -> {sum(after):.3g}" if before else ""


def _lines(rows: tuple[Row, ...]) -> list[_Line]:
    if len(rows) <= _LONGEST_TABLE:
        return [_Line(row.name, (row,)) for row in rows]
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        pattern = re.sub(r"\d+", "*", row.name)
        key = (pattern, row.in_features, row.out_features, row.scheme, row.reason)
        groups.setdefault(key, []).append(row)
    return [
        _Line(group[0].name if len(group) == 1 else str(key[0]), tuple(group))
        for key, group in groups.items()
    ]
