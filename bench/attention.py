"""Attention beside torch's scaled_dot_product_attention, and against the peak of its instruction.

python bench/attention.py                             # every case, 1 and 2 threads, 1 minute
python bench/attention.py --cases "512 x 64" --threads 1 --seconds 5 --csv attention.csv

q, k and v are views of one packed projection, in float32 and in bfloat16 (cast beforehand,
untimed). The speed-up is that over the faster of torch's two. The share is of the peak of the
threads, measured in the same turns by a loop on one of them: of the fused multiply-add of float32,
or of the product of bfloat16 where the instruction set in use has one. Operations are
4 B Hq Tq Tk D, half of it where causal, and those of visible keys alone under a padding mask. Every
answer is compared with float64 first.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import machine
import records
import roofline
from fastinfer import _C, ops
from records import Record
from timing import Candidate, interleave

MUST, AIM = 1.5, 2.5
# Relative to float64.
ERROR_LIMIT = {"fastinfer": 1e-6, "fastinfer bf16": 2e-2, "torch fp32": 1e-6, "torch bf16": 2e-2}
FLOAT_ISAS = ("generic", "avx2", "avxvnni")  # without AVX-512
PAIR_LOOPS = {"avx512bf16": "avx512_bf16", "amx": "amx_bf16"}  # with a product of bfloat16


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    causal: bool = False
    padding: bool = False  # a boolean mask [B, 1, 1, T] that shows 3/4 of the keys

    @property
    def operations(self) -> float:
        pairs = self.tokens * self.tokens * (0.5 if self.causal else 1.0)
        shown = 0.75 if self.padding else 1.0
        return 4.0 * self.batch * self.heads * pairs * self.head_dim * shown


CASES = (
    Case("8 x 12 x 512 x 64", 8, 12, 12, 512, 64),
    Case("8 x 12 x 512 x 64, padding", 8, 12, 12, 512, 64, padding=True),
    Case("8 x 12 x 128 x 64", 8, 12, 12, 128, 64),
    Case("1 x 12 x 128 x 64", 1, 12, 12, 128, 64),
    Case("1 x 14 x 512 x 64, causal, 2 kv", 1, 14, 2, 512, 64, causal=True),
    Case("1 x 12 x 8 x 64", 1, 12, 12, 8, 64),
    Case("1 x 12 x 16 x 64", 1, 12, 12, 16, 64),
)


def candidates(case: Case) -> tuple[Tensor, dict[str, Callable[[], Tensor]]]:
    """The answer in float64, and ours and torch's ways to it."""
    sizes = [case.heads, case.kv_heads, case.kv_heads]
    qkv = torch.randn(case.batch, case.tokens, sum(sizes), case.head_dim)
    shown = torch.arange(case.tokens) < case.tokens * 3 // 4
    mask = shown.expand(case.batch, 1, 1, -1).contiguous() if case.padding else None

    def ours(dtype: torch.dtype) -> Callable[[], Tensor]:
        q, k, v = (t.transpose(1, 2) for t in qkv.to(dtype).split(sizes, 2))
        return lambda: ops.attention(q, k, v, mask, causal=case.causal)

    def theirs(dtype: torch.dtype) -> Callable[[], Tensor]:
        q_, k_, v_ = (t.transpose(1, 2) for t in qkv.to(dtype).split(sizes, 2))
        grouped = case.heads != case.kv_heads
        return lambda: F.scaled_dot_product_attention(
            q_, k_, v_, mask, is_causal=case.causal, enable_gqa=grouped
        )

    return theirs(torch.float64)(), {
        "fastinfer": ours(torch.float32),
        "fastinfer bf16": ours(torch.bfloat16),
        "torch fp32": theirs(torch.float32),
        "torch bf16": theirs(torch.bfloat16),
    }


def peak_loops(isa: str) -> list[tuple[str, str]]:
    """What a peak is called here, and the loop that measures it."""
    loops = [("peak", "avx2_fma" if isa in FLOAT_ISAS else "avx512_fma")]
    return loops + ([("peak bf16", PAIR_LOOPS[isa])] if isa in PAIR_LOOPS else [])


def measure(case: Case, threads: int, seconds: float) -> list[Record]:
    machine.set_threads(threads)
    want, runs = candidates(case)
    errors = {
        name: ((run().double() - want).norm() / want.norm()).item() for name, run in runs.items()
    }
    for name, error in errors.items():
        if not error <= ERROR_LIMIT[name]:
            raise AssertionError(f"{case.name}: relative error of {name} is {error:.1e}")
    turns = {name: Candidate(run, pool="openmp") for name, run in runs.items()}
    peaks = {
        name: found
        for name, loop in peak_loops(_C.isa_in_use())
        if (found := roofline.loop(loop)) is not None
    }
    turns |= {name: Candidate(run) for name, (run, _) in peaks.items()}
    taken = interleave(turns, seconds=seconds, hopeless=100.0, settle=0.02 if threads > 1 else 0.0)
    operations = dict.fromkeys(runs, case.operations)
    operations |= {name: of_one * threads for name, (_, of_one) in peaks.items()}
    return [
        Record(
            *("attention", name, "ours" if name.startswith(records.OURS) else "peer"),
            threads=threads,
            m=case.tokens,
            k=case.head_dim,
            n=case.batch * case.heads,
            median_us=found.median * 1e6,
            min_us=found.minimum * 1e6,
            samples=found.samples,
            relative_error=errors.get(name, 0.0),
            value=operations[name] / found.median,
            note=case.name,
        )
        for name, found in taken.items()
    ]


def add_rows(table: Table, found: list[Record]) -> None:
    time_of = {record.candidate: record.median_us for record in found}
    value_of = {record.candidate: record.value for record in found}
    for record in found:
        speedup = verdict = ""
        peak = value_of.get("peak", 0.0)
        if record.candidate.endswith("bf16"):
            peak = value_of.get("peak bf16", peak)
        if record.candidate.startswith(records.OURS):
            ratio = min(time_of["torch fp32"], time_of["torch bf16"]) / record.median_us
            speedup = f"{ratio:.2f}"
            verdict = "aim" if ratio >= AIM else "must" if ratio >= MUST else "missed"
        table.add_row(
            *(record.note, str(record.threads), record.candidate, f"{record.median_us:.0f}"),
            *(f"{record.min_us:.0f}", f"{record.value / 1e9:.1f}"),
            *(f"{record.value / peak:.2f}" if peak else "", speedup, verdict),
        )
    table.add_section()


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="only those whose name has this in it")
    parser.add_argument("--threads", default="1,2", help="thread counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="of turns a cell")
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
    table = Table(title=f"Speed-up over the faster peer: must >= {MUST}, aim >= {AIM}")
    for column in ("B x H x T x D", "thr.", "what", "us", "best us", "GFLOP/s", "share"):
        table.add_column(column, justify="left" if column in ("B x H x T x D", "what") else "right")
    table.add_column("speed-up", justify="right")
    table.add_column("verdict")
    found: list[Record] = []
    for threads in (int(t) for t in given.threads.split(",") if int(t) <= here.cores):
        for case in CASES:
            if given.cases in case.name:
                cell = measure(case, threads, given.seconds)
                found += cell
                add_rows(table, cell)
    console.print(table)
    if given.csv:
        records.write_csv(given.csv, found, here)
        console.print(f"{len(found)} records in {given.csv}")
    return found


if __name__ == "__main__":
    main()
