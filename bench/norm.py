"""Residual addition, norm and quantisation in one operator, against the bandwidth of a copy.

python bench/norm.py                                  # 4096 x 4096, float32 and bfloat16, 2 minutes
python bench/norm.py --rows 512 --columns 768 --dtypes float32 --threads 1 --csv norm.csv

Every figure is bytes moved, all reads and writes of operands and results, a second; its share is of
the faster of two copies of 64 MiB timed in the same turns: torch's `copy_`, and a loop that
stores past the caches; "best" is the same of the fastest samples. An untimed call comes before each
sample: output buffers are warm, as in a model that runs layer after layer. The peer is torch's own
addition and norm, which quantise nothing; their traffic counts as if they were one pass, so that
shares compare as times do.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import machine
import records
import roofline
from fastinfer import ops
from records import Record
from timing import Candidate, interleave

EPS = 1e-5
MUST, AIM = 0.7, 0.9
COPY_BYTES = 64 << 20


def ours(kind: str, weight: Tensor, bias: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    if kind == "layer":
        return lambda x, *options: torch.ops.fastinfer.layer_norm(x, weight, bias, EPS, *options)
    return lambda x, *options: torch.ops.fastinfer.rms_norm(x, weight, EPS, *options)


def theirs(kind: str, weight: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor], object]:
    shape = tuple(weight.shape)
    if kind == "layer":
        return lambda x, residual: F.layer_norm(x + residual, shape, weight, bias, EPS)
    return lambda x, residual: F.rms_norm(x + residual, shape, weight, EPS)


def error(kind: str, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Relative to float64 over some rows; raises if the int8 rows are not those of y."""
    x, residual = x[:64], residual[:64]
    total, y, *rows = ours(kind, weight, bias)(x, residual, True, True)
    if not torch.equal(total, x + residual):
        raise AssertionError(f"{kind}: sum is not x + residual")
    for got, want in zip(rows, ops.quantize_rows(y), strict=True):
        if not torch.equal(got, want):
            raise AssertionError(f"{kind}: the int8 rows are not those of y")
    doubles = (t.double() for t in (weight, bias))
    want = theirs(kind, *doubles)(total.double(), torch.zeros((), dtype=torch.float64))
    assert isinstance(want, Tensor)
    relative = ((y.double() - want).norm() / want.norm()).item()
    if relative > 2 * torch.finfo(x.dtype).eps:
        raise AssertionError(f"{kind}: relative error {relative:.1e} in {x.dtype}")
    return relative


def measure(
    kind: str, dtype: torch.dtype, shape: tuple[int, int], threads: int, seconds: float
) -> list[Record]:
    machine.set_threads(threads)
    m, k = shape
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = torch.randn(k).to(dtype), torch.randn(k).to(dtype)
    wrong = error(kind, x, residual, weight, bias)
    source, to = torch.randn(COPY_BYTES // 4), torch.zeros(COPY_BYTES // 4)
    norm, peer = ours(kind, weight, bias), theirs(kind, weight, bias)
    row = k * x.element_size()
    moved = {
        "sum, int8 rows": m * (3 * row + k + 8),
        "sum, y": m * 4 * row,
        "sum, y, int8 rows": m * (4 * row + k + 8),
        "torch": m * 4 * row,
        "copy_": 2 * COPY_BYTES,
        "copy past caches": 2 * COPY_BYTES,
    }
    runs = {
        "sum, int8 rows": lambda: norm(x, residual, False, True),
        "sum, y": lambda: norm(x, residual, True, False),
        "sum, y, int8 rows": lambda: norm(x, residual, True, True),
        "torch": lambda: peer(x, residual),
        "copy_": lambda: to.copy_(source),
        "copy past caches": roofline.copier(to, source, threads),
    }
    taken = interleave(
        {name: Candidate(run, before=run) for name, run in runs.items()},
        seconds=seconds,
        hopeless=100.0,
    )
    return [
        Record(
            *(f"norm {kind}", name, str(dtype).removeprefix("torch.")),
            threads=threads,
            m=m,
            k=k,
            median_us=found.median * 1e6,
            min_us=found.minimum * 1e6,
            samples=found.samples,
            relative_error=wrong if name.startswith("sum") else 0.0,
            value=moved[name] / found.median,
        )
        for name, found in taken.items()
    ]


def add_rows(table: Table, found: list[Record]) -> None:
    copies = [record for record in found if record.candidate.startswith("copy")]
    for record in found:
        share = record.value / max(copy.value for copy in copies)
        # The bytes of a call are value * median.
        best = record.value * record.median_us / record.min_us
        best /= max(copy.value * copy.median_us / copy.min_us for copy in copies)
        verdict = ""
        if record.candidate.startswith("sum"):
            verdict = "aim" if share >= AIM else "must" if share >= MUST else "missed"
        table.add_row(
            *(record.section, record.kind, f"{record.m} x {record.k}", str(record.threads)),
            *(record.candidate, f"{record.median_us:.0f}", f"{record.value / 1e9:.2f}"),
            *(f"{share:.2f}", f"{best:.2f}", verdict),
        )
    table.add_section()


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--kinds", default="rms,layer", help="some of rms,layer")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="names of torch")
    parser.add_argument("--threads", default="1,2", help="thread counts")
    parser.add_argument("--seconds", type=float, default=5.0, help="of turns a cell")
    parser.add_argument("--csv", type=Path, help="where to write the records")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    here = machine.describe()
    console.print(
        f"CPU       {here.cpu}, {here.cores} cores, instruction set in use: {here.isa}\n"
        f"Compiler  {here.compiler}\nVersions  {here.versions}"
    )
    torch.manual_seed(time.time_ns() % (1 << 63))  # fresh numbers every run
    table = Table(title=f"Share of the copy's bandwidth: must >= {MUST}, aim >= {AIM}")
    for column in (
        "norm",
        "dtype",
        "shape",
        "thr.",
        "what",
        "us",
        "GB/s",
        "share",
        "best",
        "verdict",
    ):
        right = column in ("us", "GB/s", "share", "best")
        table.add_column(column, justify="right" if right else "left")
    found: list[Record] = []
    for threads in (int(t) for t in given.threads.split(",") if int(t) <= here.cores):
        for dtype in given.dtypes.split(","):
            for kind in given.kinds.split(","):
                shape = (given.rows, given.columns)
                cell = measure(kind, getattr(torch, dtype), shape, threads, given.seconds)
                found += cell
                add_rows(table, cell)
    console.print(table)
    if given.csv:
        records.write_csv(given.csv, found, here)
        console.print(f"{len(found)} records in {given.csv}")
    return found


if __name__ == "__main__":
    main()
