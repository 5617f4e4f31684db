"""The benchmark of the int8 linear layer: measures, prints the table of numbers, writes the CSV.

python bench/linear.py                   # everything, about 25 minutes on two cores
python bench/linear.py --quick           # a few shapes, two minutes; no CSV unless --csv
python bench/linear.py --only hot,peak --shapes 768x3072 --m 128 --threads 1
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import fastinfer
import machine
import peers
import records
import roofline
import sections
from model import minilm
from records import Record
from sections import Options
from verdict import numbers, verdict_table

RESULTS = Path(__file__).parent / "results" / "linear.csv"
QUICK_SHAPES = ((384, 1536), (3072, 768))
QUICK_ROWS = (1, 32, 128)

# What holds a library down to an instruction set: oneDNN, MKL (torch's float32 product), ATen.
CAPS = {
    "avx512vnni": {
        "FASTINFER_ISA": "avx512vnni",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
    },
    "avx2": {
        "FASTINFER_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}
CAPPED_PEERS = ("fastinfer", "torch_fp32", "torch_ao_onednn")


def isa(options: Options) -> Iterator[Record]:
    """M >= 128 on one thread with fastinfer and oneDNN held down to the same instruction set.

    The variables count only before the libraries load, so each set has a process of its own.
    """
    supported = {row["name"] for row in fastinfer._C.isas() if row["supported"]}
    rows = [m for m in options.rows if m >= 128]
    for name, caps in CAPS.items():
        if name not in supported or not rows:
            options.report(f"isa      {name} cannot run here")
            continue
        options.report(f"isa      {name}, in a process of its own")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "capped.csv"
            command = [
                *(sys.executable, __file__, "--only", "hot", "--threads", "1"),
                *("--peers", ",".join(CAPPED_PEERS), "--csv", str(path)),
                *("--shapes", ",".join(f"{k}x{n}" for k, n in options.shapes)),
                *("--m", ",".join(map(str, rows)), "--seconds", str(options.seconds / 2)),
            ]
            done = subprocess.run(command, env=os.environ | caps, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"the process for {name} failed:\n{done.stdout}{done.stderr}")
            for line in done.stdout.splitlines():
                if line.startswith("hot"):
                    options.report(f"  {line}")
            note = f"held down to {name}"
            yield from records.relabel(records.read_csv(path), f"isa {name}", note)


SECTIONS: dict[str, Callable[[Options], Iterator[Record]]] = {
    "error": sections.error,
    "overhead": sections.overhead,
    "peak": sections.peak,
    "bandwidth": sections.bandwidth,
    "hot": sections.hot,
    "cold": sections.cold,
    "scaling": sections.scaling,
    "steps": sections.steps,
    "minilm": minilm,
    "isa": isa,
}
STEP_SHAPES = ((384, 1536), (768, 3072), (4096, 4096))


def print_roofline(console: Console, threads: tuple[int, ...]) -> Iterator[Record]:
    """Measures the machine, prints it, and yields it as records."""
    found = roofline.measure(threads)
    table = Table(title="This machine at best, measured now")
    table.add_column("what")
    table.add_column("rate", justify="right")
    for name, rate in found.peak.items():
        table.add_row(f"{name}, one core", f"{rate / 1e12:.2f} TOP/s" if rate else "not here")
        yield Record("roofline", name, "machine", threads=1, value=rate)
    for (level, count), rate in found.bandwidth.items():
        table.add_row(f"reads from {level}, {count} thr.", f"{rate / 1e9:.1f} GB/s")
        yield Record("roofline", f"read {level}", "machine", threads=count, value=rate)
    console.print(table)


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """ "768x3072,4096x4096": K x N."""
    pairs = [part.split("x") for part in text.split(",")]
    return tuple((int(k), int(n)) for k, n in pairs)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few shapes, for tuning")
    parser.add_argument("--only", help=f"sections, some of {','.join(SECTIONS)},roofline")
    parser.add_argument("--shapes", type=shapes, help="KxN,KxN,...")
    parser.add_argument("--m", type=integers, help="row counts")
    parser.add_argument("--threads", type=integers, help="thread counts")
    parser.add_argument("--peers", help=f"some of {','.join(p.name for p in peers.PEERS)}")
    parser.add_argument("--seconds", type=float, help="of turns a cell")
    parser.add_argument("--csv", type=Path, help=f"where to write (a full run: {RESULTS.name})")
    given = parser.parse_args(arguments)
    known = {*SECTIONS, "roofline"}
    unknown = set(given.only.split(",")) - known if given.only else set()
    if unknown:
        parser.error(f"--only: got {', '.join(sorted(unknown))}, want some of {', '.join(known)}")
    return given


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> list[Record]:
    given = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    start = time.perf_counter()

    def report(line: str) -> None:
        console.print(f"{line}  [dim]{time.perf_counter() - start:.0f} s", soft_wrap=True)

    chosen, skipped = peers.available(given.peers.split(",") if given.peers else None)
    here = machine.describe()
    threads = given.threads or tuple(t for t in (1, 2) if t <= here.cores)
    options = Options(
        shapes=given.shapes or (QUICK_SHAPES if given.quick else sections.SHAPES),
        rows=given.m or (QUICK_ROWS if given.quick else sections.ROWS),
        threads=threads,
        peers=tuple(chosen),
        seconds=given.seconds or (0.2 if given.quick else 0.7),
        report=report,
    )
    console.print(
        f"CPU       {here.cpu}, {here.cores} cores, instruction set in use: {here.isa}\n"
        f"Compiler  {here.compiler}\nVersions  {here.versions}"
    )
    for sentence in skipped:
        console.print(sentence)
    only = given.only.split(",") if given.only else ["roofline", *SECTIONS]

    torch.manual_seed(time.time_ns() % (1 << 63))  # fresh numbers every run
    found: list[Record] = []
    path = given.csv or (None if given.quick or given.only else RESULTS)
    try:
        if "roofline" in only:
            found += print_roofline(console, threads)
        for name in (name for name in SECTIONS if name in only):
            these = options
            if name == "steps" and not given.shapes:
                these = replace(options, shapes=QUICK_SHAPES[:1] if given.quick else STEP_SHAPES)
            found += SECTIONS[name](these)
        console.print(verdict_table(numbers(found)))
    finally:  # an interrupted run keeps what it has measured
        if path:
            records.write_csv(path, found, here)
            console.print(f"{len(found)} records in {path}")
    console.print(f"It took {(time.perf_counter() - start) / 60:.1f} minutes.")
    return found


if __name__ == "__main__":
    main()
