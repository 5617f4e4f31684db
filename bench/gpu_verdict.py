"""What a run of gpu.py leaves behind, its tables, and the requirements computed from them alone."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from gpu_peers import BASELINE, OURS

WRONG = "wrong"  # how the reason of a candidate begins whose answer is


@dataclass(frozen=True)
class Record:
    """One candidate in one cell; ``reason`` says why it has no time."""

    candidate: str
    m: int
    n: int
    k: int
    microseconds: float = 0.0
    stored_bytes: int = 0
    relative_error: float = 0.0
    copies: int = 0
    reason: str = ""

    @property
    def cell(self) -> tuple[int, int, int]:
        return self.m, self.n, self.k


@dataclass(frozen=True)
class Requirement:
    """A line of the requirements: of which cells, what must be reached, and what was."""

    text: str
    must: float
    cells: Callable[[int, int, int], bool]
    # From {candidate: Record} of a cell and the rates of the machine: what is compared with `must`.
    value: Callable[[dict[str, Record], dict[str, float]], float]
    at_most: bool = False


def faster(ours: str) -> Callable[[dict[str, Record], dict[str, float]], float]:
    return lambda cell, rates: cell["torch_bf16"].microseconds / cell[ours].microseconds


def of_read_rate(ours: str) -> Callable[[dict[str, Record], dict[str, float]], float]:
    return lambda cell, rates: (
        cell[ours].n * cell[ours].k / (cell[ours].microseconds * 1e-6) / rates["read"]
    )


def operations(cell: dict[str, Record], rates: dict[str, float]) -> float:
    r = cell["fastinfer_w8a8"]
    return 2e-12 * r.m * r.n * r.k / (r.microseconds * 1e-6)


def is_decode(m: int, n: int, k: int) -> bool:
    return (n, k) in {(8192, 8192), (28672, 8192)}


def is_square(m: int, n: int, k: int) -> bool:
    return m == n == k


REQUIREMENTS = [
    *(
        Requirement(
            f"{ours}, M 1-4, over bf16",
            1.6,
            lambda m, n, k: m <= 4 and is_decode(m, n, k),
            faster(f"fastinfer_{ours}"),
        )
        for ours in ("w8a8", "w8a16")
    ),
    *(
        Requirement(
            f"{ours}, M 1-4, of the read rate",
            0.75,
            lambda m, n, k: m <= 4 and is_decode(m, n, k),
            of_read_rate(f"fastinfer_{ours}"),
        )
        for ours in ("w8a8", "w8a16")
    ),
    Requirement(
        "w8a8, M 5-16, over bf16",
        1.5,
        lambda m, n, k: 5 <= m <= 16 and is_decode(m, n, k),
        faster("fastinfer_w8a8"),
    ),
    Requirement(
        "w8a8, M 17-64, over bf16",
        1.2,
        lambda m, n, k: 17 <= m <= 64 and is_decode(m, n, k),
        faster("fastinfer_w8a8"),
    ),
    Requirement(
        "w8a8, M 128-512, over bf16",
        1.2,
        lambda m, n, k: 128 <= m <= 512 and n >= 1024,
        faster("fastinfer_w8a8"),
    ),
    Requirement(
        "2:4, M 1-16, over w8a8",
        1.3,
        lambda m, n, k: m <= 16 and is_decode(m, n, k),
        lambda cell, rates: (
            cell["fastinfer_w8a8"].microseconds / cell["fastinfer_sp24"].microseconds
        ),
    ),
    Requirement("w8a8, squares, TOP/s", 1100, is_square, operations),
    Requirement(
        "w8a8, any M and shape, over bf16", 1.0, lambda m, n, k: True, faster("fastinfer_w8a8")
    ),
]


def verdicts(records: list[Record], rates: dict[str, float]) -> Table:
    cells: dict[tuple[int, int, int], dict[str, Record]] = {}
    for r in records:
        if not r.reason:
            cells.setdefault(r.cell, {})[r.candidate] = r
    whole = {cell: by for cell, by in cells.items() if {*OURS, *BASELINE} <= by.keys()}
    table = Table("what", "must", "worst", "median", "reach it", "worst at", title="Requirements")
    for line in REQUIREMENTS:
        values = sorted((line.value(by, rates), at) for at, by in whole.items() if line.cells(*at))
        if not values:
            table.add_row(line.text, f"{line.must:g}", "not measured", "", "", "")
            continue
        reached = sum(value >= line.must for value, _ in values)
        worst, (m, n, k) = values[0]
        table.add_row(
            line.text,
            f"{line.must:g}",
            f"{worst:.3g}",
            f"{values[len(values) // 2][0]:.3g}",
            f"{reached}/{len(values)}",
            f"M={m} N={n} K={k}",
        )
    steps = neighbours(whole)
    if steps:
        worst, (m, n, k) = max(steps)
        table.add_row(
            "w8a8, t(M+1) / t(M), M 16-64",
            "<= 1.2",
            f"{worst:.3g}",
            "",
            f"{sum(s <= 1.2 for s, _ in steps)}/{len(steps)}",
            f"M={m} N={n} K={k}",
        )
    return table


def neighbours(
    cells: dict[tuple[int, int, int], dict[str, Record]],
) -> list[tuple[float, tuple[int, int, int]]]:
    """Time of M + 1 rows over that of M, where both were measured."""
    steps = []
    for (m, n, k), by in cells.items():
        after = cells.get((m + 1, n, k))
        if after is not None and 16 <= m <= 64:
            ratio = after["fastinfer_w8a8"].microseconds / by["fastinfer_w8a8"].microseconds
            steps.append((ratio, (m, n, k)))
    return steps


def times(records: list[Record]) -> Table:
    names = list(dict.fromkeys(r.candidate for r in records if not r.reason))
    table = Table("M", "N", "K", *names, title="Microseconds a call")
    cells: dict[tuple[int, int, int], dict[str, Record]] = {}
    for r in records:
        cells.setdefault(r.cell, {})[r.candidate] = r
    for (m, n, k), by in cells.items():
        row = [
            f"{by[name].microseconds:.2f}" if name in by and not by[name].reason else "-"
            for name in names
        ]
        table.add_row(str(m), str(n), str(k), *row)
    return table


def left_out(records: list[Record]) -> dict[str, set[str]]:
    reasons: dict[str, set[str]] = {}
    for r in records:
        if r.reason:
            reasons.setdefault(r.reason, set()).add(r.candidate)
    return reasons
