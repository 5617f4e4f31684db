"""The result of `optimize`: what was tried, what was kept, which goals were missed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from fastinfer.render import Printable, format_bytes, titled_table
from fastinfer.summary import Summary


@dataclass(frozen=True)
class Candidate:
    """One form of the model that was tried; None stands for what was not measured."""

    name: str
    ms: float | None = None  # median of a run over all batches
    speedup: float | None = None  # over the model as given
    error: float | None = None  # ||y - y0|| / ||y0||
    kept: bool = False
    note: str | None = None  # why it was not kept, or what was done to it


def candidate_dict(candidate: Candidate) -> dict[str, Any]:
    """Plain data, fit for json: an error that is not finite is None."""
    return {
        key: None if value is not None and key.endswith("error") and not isfinite(value) else value
        for key, value in asdict(candidate).items()
    }


def candidate_table(
    candidates: Sequence[Candidate], more: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """A row a candidate. more: columns besides, by heading, a cell a candidate."""
    added = more or {}
    table = titled_table("Candidates")
    table.add_column("candidate")
    for column in ("ms", *added, "speed-up", "error"):
        table.add_column(column, justify="right")
    table.add_column("verdict", overflow="fold")
    for place, c in enumerate(candidates):
        table.add_row(
            c.name,
            "" if c.ms is None else f"{c.ms:.4g}",
            *(cells[place] for cells in added.values()),
            "" if c.speedup is None else f"{c.speedup:.2f}x",
            "" if c.error is None else f"{c.error:.2g}",
            "; ".join(filter(None, ("kept" if c.kept else "", c.note))),
            style="bold" if c.kept else None,
        )
    return table


class Optimized(Printable):
    """The result of `optimize`.

    `model`: the model, changed in place to the best candidate. `summary`: what became of each
    linear layer, as `quantize_` gives it. `candidates`: all that were tried, the model as given
    first. `missed`: the goals that were missed, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        summary: Summary,
        candidates: Iterable[Candidate],
        missed: Iterable[str],
    ) -> None:
        self.model = model
        self.summary = summary
        self.candidates = tuple(candidates)
        self.missed = tuple(missed)

    @property
    def kept(self) -> Candidate:
        """The candidate that the model is now."""
        return next(candidate for candidate in self.candidates if candidate.kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json: an error that is not finite (NaN or Inf came out) is None."""
        return {
            "kept": self.kept.name,
            "candidates": [candidate_dict(candidate) for candidate in self.candidates],
            "missed": list(self.missed),
            "summary": self.summary.to_dict(),
        }

    def __repr__(self) -> str:
        missed = f", missed: {'; '.join(self.missed)}" if self.missed else ""
        return f"<Optimized: {self.kept.name}, {self.kept.speedup:.2f}x as fast{missed}>"

    def __rich__(self) -> RenderableType:
        table = candidate_table(self.candidates)
        rows, size = self.summary.rows, self.summary
        lines = [
            f"{len(size.quantized)} of {len(rows)} linear layers int8; model "
            f"{format_bytes(size.bytes_before)} -> {format_bytes(size.bytes_after)}",
            *(f"Missed: {goal}" for goal in self.missed),
        ]
        return Group(table, Text("\n".join(lines)))
