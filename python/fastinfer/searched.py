"""The result of `search`: the scheme of each layer, and what was predicted and measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

from fastinfer.optimized import Candidate, candidate_dict, candidate_table
from fastinfer.render import Printable, format_bytes
from fastinfer.summary import Summary


@dataclass(frozen=True)
class SearchedCandidate(Candidate):
    """A model that was tried; predictions from what single layers take and do to the output.

    predicted_ms: the sum of what its layers take where they stand in the plain models (as given, in
    each scheme by itself), at the pace at which those run beside it; its own time is not in it.
    """

    predicted_ms: float | None = None
    predicted_error: float | None = None


class Searched(Printable):
    """The result of `search`.

    `model`: the model, changed in place. `summary`: what became of each linear layer, its scheme or
    why it is float. `candidates`: the model as given, in each scheme by itself, and mixed, if there
    is a mixed one within `max_error`.
    """

    def __init__(
        self,
        model: nn.Module,
        summary: Summary,
        candidates: Iterable[SearchedCandidate],
        max_error: float,
    ) -> None:
        self.model = model
        self.summary = summary
        self.candidates = tuple(candidates)
        self.max_error = max_error

    @property
    def kept(self) -> SearchedCandidate:
        """What the model is now."""
        return next(candidate for candidate in self.candidates if candidate.kept)

    @property
    def schemes(self) -> dict[str, str]:
        """The label of the scheme by the name of the layer; layers that are float are not in it."""
        return {row.name: row.scheme for row in self.summary.rows if row.scheme is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json: an error that is not finite (NaN or Inf came out) is None."""
        return {
            "kept": self.kept.name,
            "max_error": self.max_error,
            "candidates": [candidate_dict(candidate) for candidate in self.candidates],
            "schemes": self.schemes,
            "summary": self.summary.to_dict(),
        }

    def __repr__(self) -> str:
        kept = self.kept
        return f"<Searched: {kept.name}, {kept.speedup:.2f}x as fast, error {kept.error:.2g}>"

    def __rich__(self) -> RenderableType:
        predicted = [_figure(c.predicted_ms) for c in self.candidates]
        table = candidate_table(self.candidates, {"predicted ms": predicted})
        rows, kept, size = self.summary.rows, self.kept, self.summary
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.scheme or "float"] = counts.get(row.scheme or "float", 0) + 1
        lines = [
            ", ".join(f"{count} of {len(rows)} layers {label}" for label, count in counts.items())
            + f"; model {format_bytes(size.bytes_before)} -> {format_bytes(size.bytes_after)}",
        ]
        if kept.ms and kept.predicted_ms:
            off = kept.predicted_ms / kept.ms - 1
            lines.append(
                f"Predicted {kept.predicted_ms:.4g} ms, measured {kept.ms:.4g} ms ({off:+.1%}); "
                f"error predicted {kept.predicted_error:.2g}, measured {kept.error:.2g}, at most "
                f"{self.max_error:g} wanted"
            )
        return Group(table, Text("\n".join(lines)), self.summary)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
