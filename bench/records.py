"""What a section of the benchmark leaves behind: one Record a candidate, and the CSV of them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from machine import Machine
from zoo import Size

OURS = "fastinfer"
R = TypeVar("R")


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


@dataclass(frozen=True)
class ModelRecord:
    """One contender on a whole model at one size.

    ``sqnr_db`` compares its answer with torch fp32's: inf for the same bits. The cosines are those
    of the embeddings, 0 where the model has none. ``reason`` says why there is no figure to
    go by: such a record takes no part in any comparison.
    """

    model: str
    candidate: str
    kind: str
    batch: int
    length: int  # tokens an input, 0 for images
    threads: int
    median_us: float = 0.0
    first_quartile_us: float = 0.0
    third_quartile_us: float = 0.0
    min_us: float = 0.0
    samples: int = 0
    sqnr_db: float = 0.0
    cosine_mean: float = 0.0
    cosine_worst: float = 0.0
    reason: str = ""

    @property
    def section(self) -> str:
        return self.model

    @property
    def m(self) -> int:
        return self.batch

    @property
    def size(self) -> str:
        return str(Size(self.batch, self.length))

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the candidates of one interleaved run share."""
        return (self.model, self.batch, self.length, self.threads)

    @property
    def where(self) -> str:
        """The cell in words."""
        return f"{self.model} {self.size}, {self.threads} thr."


def write_csv(path: Path, records: Sequence[Any], machine: Machine) -> None:
    """All records, of one dataclass, each with the machine it was taken on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(record) | asdict(machine) for record in records]
    kind = type(records[0]) if records else Record
    columns = [f.name for f in (*fields(kind), *fields(Machine))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path, kind: type[R] = Record) -> list[R]:  # type: ignore[assignment]
    """The records of a file that write_csv wrote from records of that dataclass."""
    types = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        return [
            kind(**{name: types[name](row[name]) for name in types})  # type: ignore[operator]
            for row in csv.DictReader(file)
        ]


def relabel(records: Iterable[Record], section: str, note: str) -> list[Record]:
    """The same records under another section, with a note."""
    return [replace(record, section=section, note=note) for record in records]
