"""The "Numbers" table: each row's figure from the records, and whether it holds."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from records import OURS, ModelRecord, Record
from zoo import MODELS

Figure = tuple[float, str]  # the value and where it was taken


@dataclass(frozen=True)
class Row:
    """A requirement: all figures on the right side of `must`, better `aim`."""

    what: str
    must: float
    aim: float
    at_least: bool
    figures: tuple[Figure, ...]

    @property
    def worst(self) -> Figure | None:
        pick = min if self.at_least else max
        return pick(self.figures, key=lambda figure: figure[0]) if self.figures else None

    @property
    def middle(self) -> float | None:
        return median(value for value, _ in self.figures) if self.figures else None

    def _holds(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit

    @property
    def verdict(self) -> str:
        """ "aim", "must", "missed" or "not run"."""
        if self.worst is None:
            return "not run"
        value = self.worst[0]
        if self._holds(value, self.aim):
            return "aim"
        return "must" if self._holds(value, self.must) else "missed"

    @property
    def held(self) -> int:
        """How many figures reach the must."""
        return sum(self._holds(value, self.must) for value, _ in self.figures)


def cells(records: Iterable[Any], section: str) -> list[list[Any]]:
    """The records of a section, those of one interleaved run together."""
    groups = defaultdict(list)
    for record in records:
        if record.section == section:
            groups[record.cell].append(record)
    return list(groups.values())


def speedups(
    records: Iterable[Record | ModelRecord],
    section: str,
    rows: Callable[[int], bool] = lambda m: True,
    peers: Callable[[Any], bool] = lambda peer: True,
) -> list[Figure]:
    """Time of the best peer over ours, a figure a cell."""
    figures = []
    for cell in cells(records, section):
        ours = [r for r in cell if r.candidate == OURS and rows(r.m)]
        rivals = [r for r in cell if r.candidate != OURS and peers(r)]
        if ours and rivals:
            best = min(rivals, key=lambda r: r.median_us)
            where = f"{ours[0].where} ({best.candidate})"
            figures.append((best.median_us / ours[0].median_us, where))
    return figures


def fractions(records: Iterable[Record], section: str) -> list[Figure]:
    """Our rate over the rate of the machine, a figure a cell: value over that of kind "machine"."""
    figures = []
    for cell in cells(records, section):
        ours = [r for r in cell if r.candidate == OURS]
        limits = [r for r in cell if r.kind == "machine"]
        if ours and limits:
            figures.append((ours[0].value / limits[0].value, ours[0].where))
    return figures


def scaling(records: Iterable[Record]) -> list[Figure]:
    """Time on one thread over time on two, a figure a shape."""
    times: dict[tuple[int, int, int], dict[int, Record]] = defaultdict(dict)
    for r in records:
        if r.section == "scaling":
            times[r.m, r.k, r.n][r.threads] = r
    return [
        (by[1].median_us / by[2].median_us, f"M={m} K={k} N={n}")
        for (m, k, n), by in times.items()
        if {1, 2} <= by.keys()
    ]


def steps(records: Iterable[Record]) -> list[Figure]:
    """time(M+1)/time(M) for neighbours in M."""
    times = {(r.threads, r.k, r.n, r.m): r for r in records if r.section == "steps"}
    figures = []
    for (threads, k, n, m), r in times.items():
        after = times.get((threads, k, n, m + 1))
        if after:
            where = f"M={m}->{m + 1} K={k} N={n}, {threads} thr."
            figures.append((after.median_us / r.median_us, where))
    return figures


def values(records: Iterable[Record], section: str, note: str) -> list[Figure]:
    """The values of our own records with this note."""
    return [
        (r.value, r.where if r.m else "")
        for r in records
        if r.section == section and r.candidate == OURS and r.note == note
    ]


def numbers(records: list[Record]) -> list[Row]:
    """Every row of the table, in its order."""

    def at_least(what: str, must: float, aim: float, figures: list[Figure]) -> Row:
        return Row(what, must, aim, True, tuple(figures))

    def at_most(what: str, must: float, aim: float, figures: list[Figure]) -> Row:
        return Row(what, must, aim, False, tuple(figures))

    def int8(r: Record) -> bool:
        return r.kind == "int8"

    def onednn(r: Record) -> bool:
        return r.candidate == "torch_ao_onednn"

    def fp32(r: Record) -> bool:
        return r.candidate == "torch_fp32"

    overhead = [(1 / ratio, where) for ratio, where in speedups(records, "overhead", peers=fp32)]

    def answers(note: str) -> list[Figure]:
        return values(records, "minilm answers", note)

    return [
        at_least(
            "M >= 128, vs the best peer", 1.8, 3.0, speedups(records, "hot", lambda m: m >= 128)
        ),
        at_least("AMX, M=2048, K=N=4096, of the int8 peak", 0.50, 0.70, fractions(records, "peak")),
        at_least(
            "M <= 32, vs the best int8 peer, hot",
            1.1,
            1.5,
            speedups(records, "hot", lambda m: m <= 32, int8),
        ),
        at_least(
            "M <= 32, vs the best int8 peer, rotated",
            1.1,
            1.5,
            speedups(records, "cold", peers=int8),
        ),
        at_least(
            "M=1, out of cache, of the read bandwidth", 0.80, 0.95, fractions(records, "bandwidth")
        ),
        at_most("module call M=1, K=N=64, vs nn.Linear", 1.5, 1.0, overhead),
        at_most("relative error, Gaussian", 0.0125, 0.010, values(records, "error", "gaussian")),
        at_most(
            "relative error, outlier channels", 0.055, 0.04, values(records, "error", "outliers")
        ),
        at_least("2 threads over 1, M >= 128", 1.8, 1.95, scaling(records)),
        at_least(
            "avx512vnni, M >= 128, vs oneDNN capped",
            1.1,
            1.3,
            speedups(records, "isa avx512vnni", peers=onednn),
        ),
        at_least(
            "avx2, M >= 128, vs oneDNN capped",
            1.1,
            1.3,
            speedups(records, "isa avx2", peers=onednn),
        ),
        at_most("time(M+1)/time(M), M = 1..64", 1.15, 1.08, steps(records)),
        at_least("MiniLM, batch 1 and 32, vs fp32 and bf16", 1.3, 1.8, speedups(records, "minilm")),
        at_least("MiniLM, mean cosine", 0.997, 0.999, answers("cosine mean")),
        at_least("MiniLM, worst cosine", 0.99, 0.998, answers("cosine worst")),
        at_least("MiniLM, same neighbour", 0.92, 0.97, answers("neighbours")),
    ]


# Speed against the best peer: must and aim. Other models are measured, no more.
MODEL_SPEED = {
    "BERT-base": (1.6, 2.7),
    "MiniLM-L6": (1.4, 2.2),
    "ViT-B/16": (1.4, 2.2),
    "Qwen2-0.5B": (1.8, 3.5),
}
TORCH_PEERS_ONLY = ("Qwen2-0.5B",)


def extra_sqnr(records: Iterable[ModelRecord], model: str) -> list[Figure]:
    """Our SQNR less that of the fastest int8 peer, in dB, a figure a cell."""
    figures = []
    for cell in cells(records, model):
        ours = [r for r in cell if r.candidate == OURS]
        rivals = [r for r in cell if r.kind == "int8"]
        if ours and rivals:
            fastest = min(rivals, key=lambda r: r.median_us)
            best = max(rivals, key=lambda r: r.sqnr_db)
            where = f"{ours[0].where} ({fastest.candidate}"
            if best is not fastest:
                where += f"; the most exact, {best.candidate}, has {best.sqnr_db:.1f} dB"
            figures.append((ours[0].sqnr_db - fastest.sqnr_db, where + ")"))
    return figures


def model_numbers(records: Iterable[ModelRecord]) -> list[Row]:
    """Every row of the table of whole models, in its order."""
    valid = [r for r in records if not r.reason]
    rows = []
    for model in (MODELS[name] for name in MODEL_SPEED):
        must, aim = MODEL_SPEED[model.name]
        torch_only = model.name in TORCH_PEERS_ONLY

        def peer(r: ModelRecord, torch_only: bool = torch_only) -> bool:
            return r.kind != "ours" and (r.candidate.startswith("torch") or not torch_only)

        for size in model.sizes:
            here = [r for r in valid if r.size == str(size)]
            figures = speedups(here, model.name, peers=peer)
            what = f"{model.name} {size}, vs the best {'torch ' if torch_only else ''}peer"
            rows.append(Row(what, must, aim, True, tuple(figures)))
    for name in MODELS:
        figures = extra_sqnr(valid, name)
        rows.append(
            Row(f"{name}, SQNR over the fastest int8 peer's, dB", 0, 0, True, tuple(figures))
        )
    ours = [r for r in valid if r.candidate == OURS and r.model == "MiniLM-L6"]
    mean = tuple((r.cosine_mean, r.where) for r in ours)
    worst = tuple((r.cosine_worst, r.where) for r in ours)
    rows.append(Row("MiniLM-L6, mean cosine", 0.997, 0.999, True, mean))
    rows.append(Row("MiniLM-L6, worst cosine", 0.99, 0.998, True, worst))
    return rows


def verdict_table(rows: list[Row]) -> Table:
    """The requirements and what became of them."""
    colour = {"aim": "green", "must": "yellow", "missed": "red", "not run": "dim"}
    table = Table(title="Numbers")
    for column in ("what", "must", "aim", "worst", "median", "reach must", "worst at", "verdict"):
        table.add_column(column, justify="left" if column in ("what", "worst at") else "right")
    for row in rows:
        sign = ">=" if row.at_least else "<="
        worst, where = row.worst or (float("nan"), "")
        table.add_row(
            row.what,
            f"{sign} {row.must:g}",
            f"{sign} {row.aim:g}",
            f"{worst:.4g}" if row.worst else "",
            f"{row.middle:.4g}" if row.middle is not None else "",
            f"{row.held}/{len(row.figures)}" if row.figures else "",
            where,
            f"[{colour[row.verdict]}]{row.verdict}",
        )
    return table
