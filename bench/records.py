"""What a section of the benchmark leaves behind: one Record a candidate, and the CSV of them."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from machine import Machine

OURS = "fastinfer"


@dataclass(frozen=True)
class Record:
    """One candidate in one cell.

    ``value`` is what the section is about where that is not time: operations or bytes a second,
    a relative error, a cosine.
    """

    section: str
    candidate: str
    kind: str = ""
    threads: int = 0
    m: int = 0
    k: int = 0
    n: int = 0
    weights: str = "hot"
    copies: int = 1
    median_us: float = 0.0
    min_us: float = 0.0
    samples: int = 0
    relative_error: float = 0.0
    value: float = 0.0
    note: str = ""

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the candidates of one interleaved run share."""
        return (self.section, self.threads, self.m, self.k, self.n, self.weights)

    @property
    def where(self) -> str:
        """The cell in words."""
        what = f"M={self.m} K={self.k} N={self.n}" if self.k else f"batch {self.m}"
        return f"{what}, {self.threads} thr."


def write_csv(path: Path, records: Iterable[Record], machine: Machine) -> None:
    """All records, each with the machine it was taken on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(record) | asdict(machine) for record in records]
    columns = [f.name for f in (*fields(Record), *fields(Machine))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> list[Record]:
    """The records of a file that write_csv wrote."""
    types = {f.name: f.type for f in fields(Record)}
    with path.open(newline="") as file:
        return [
            Record(**{name: types[name](row[name]) for name in types})  # type: ignore[operator]
            for row in csv.DictReader(file)
        ]


def relabel(records: Iterable[Record], section: str, note: str) -> list[Record]:
    """The same records under another section, with a note."""
    return [replace(record, section=section, note=note) for record in records]
