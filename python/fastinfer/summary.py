"""What `quantize_` did to each layer, as data and as a table."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.fuse import Fusion
from fastinfer.render import Printable, format_bytes, group_like, titled_table, without_numbers


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
    note: str | None = None  # why its scheme is another than the one asked for
    embeddings: tuple[str, ...] = ()  # those of its weight, which became int8 with it


class Summary(Printable):
    """The result of `quantize_`: one row a linear layer, and totals of the whole model.

    `rows`: every row. `bytes_before`, `bytes_after`: parameters and buffers of the model, shared
    ones once. `others`: bytes of the parameters outside linear layers, by module type.
    `fusion`: what `fuse_` found, if it was asked for.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        bytes_before: int,
        bytes_after: int,
        others: dict[str, int],
        fusion: Fusion | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.bytes_before = bytes_before
        self.bytes_after = bytes_after
        self.others = dict(others)
        self.fusion = fusion

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
            row["embeddings"] = list(row["embeddings"])
            if row["sqnr_db"] == float("inf"):
                row["sqnr_db"] = None
        return {
            "layers": rows,
            "layers_quantized": len(self.quantized),
            "layers_left": len(self.left),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "other_bytes": dict(self.others),
            "fusion": None if self.fusion is None else self.fusion.to_dict(),
        }

    def __repr__(self) -> str:
        return (
            f"<Summary: {len(self.quantized)} of {len(self.rows)} linear layers quantised, model "
            f"{format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)}>"
        )

    def __rich__(self) -> RenderableType:
        lines = _lines(self.rows)
        timed = any(row.ms_before is not None for row in self.rows)
        scale, unit = _unit(max((line.bytes("before") for line in lines), default=0))
        table = titled_table("Linear layers")
        table.add_column("layer", overflow="fold")
        table.add_column("in x out", justify="right", no_wrap=True)
        table.add_column("now")
        table.add_column(unit, justify="right", no_wrap=True)
        table.add_column("weight\nSQNR, dB", justify="right")
        if timed:
            table.add_column("ms", justify="right", no_wrap=True)
        for line in lines:
            first = line.rows[0]
            cells = [
                line.name,
                f"{first.in_features} x {first.out_features}",
                _now(first),
                _change(line.bytes("before") / scale, line.bytes("after") / scale),
                line.sqnr(),
            ]
            if timed:
                cells.append(line.ms())
            table.add_row(*cells, style=None if first.scheme else "dim")
        note = "\nLike layers share a line: size and ms are of all, the SQNR is of the worst."
        totals = Text(self._totals() + (note if len(lines) < len(self.rows) else ""))
        return Group(table, totals) if self.fusion is None else Group(table, totals, self.fusion)

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

    def bytes(self, when: Literal["before", "after"]) -> int:
        return sum(getattr(row, f"bytes_{when}") for row in self.rows)

    def sqnr(self) -> str:
        values = [row.sqnr_db for row in self.rows if row.sqnr_db is not None]
        return f"{min(values):.1f}" if values else ""

    def ms(self) -> str:
        """What the guard measured, in all; it has no figures for a layer that was not called."""
        before = [row.ms_before for row in self.rows if row.ms_before is not None]
        after = [row.ms_after for row in self.rows if row.ms_after is not None]
        return _change(sum(before), sum(after)) if before else ""


def _lines(rows: tuple[Row, ...]) -> list[_Line]:
    def key(row: Row) -> tuple[object, ...]:
        kind = without_numbers(row.name), row.in_features, row.out_features
        return *kind, row.scheme, row.note, row.reason, row.embeddings

    return [_Line(name, group) for name, group in group_like(rows, key)]


def _now(row: Row) -> str:
    if row.scheme is None:
        return f"left: {row.reason}"
    scheme = ", with ".join((row.scheme, *row.embeddings))
    return scheme if row.note is None else f"{scheme}: {row.note}"


def _change(before: float, after: float) -> str:
    return f"{before:.3g}" if before == after else f"{before:.3g} -> {after:.3g}"


def _unit(largest: int) -> tuple[float, str]:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, unit
    return 1, "B"
