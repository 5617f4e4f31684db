"""What one encoder layer costs in Python and dispatch: one token, so narrow that its kernels cost
next to nothing.

python bench/dispatch.py                 # half a minute; writes results/dispatch.csv

The layers are BERT's and nn.TransformerEncoderLayer, hidden size 64. They take turns in torch
float32, in float32 fused, and in int8 fused; `graph` is the rewritten graph of the last called by
itself, without torch.compile's guards and entry.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import machine
import records
from contenders import fuse_int8
from layers import tiny_layer
from records import OURS, Record
from timing import Candidate, interleave
from verdict import Row, verdict_table

RESULTS = Path(__file__).parent / "results" / "dispatch.csv"
HIDDEN = 64


def torch_layer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(HIDDEN, 2, 2 * HIDDEN, batch_first=True)
    return nn.Sequential(layer).eval()


LAYERS = {"BertLayer": tiny_layer, "nn.TransformerEncoderLayer": torch_layer}


def fused(module: nn.Module) -> nn.Module:
    import fastinfer

    fastinfer.fuse_(module)
    return module


def graph_of(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    """The rewritten graph of a fused module's next call, with what that call gives it."""
    from fastinfer.graph import backend

    compile_graph, taken = backend.compile_graph, []

    def spy(*arguments: Any) -> Callable[..., Any]:
        run = compile_graph(*arguments)

        def call(*inputs: Any) -> Any:
            taken.append(partial(run, *inputs))
            return taken[-1]()

        return call

    with mock.patch.object(backend, "compile_graph", spy):
        module(x)
    return taken[0]


@torch.inference_mode()
def measure(name: str, seconds: float) -> list[Record]:
    """One layer, in turns."""
    x = torch.randn(1, 1, HIDDEN)
    with torch.inference_mode(False):
        modules = {
            "torch_fp32": LAYERS[name](),
            "fastinfer_fuse": fused(LAYERS[name]()),
            OURS: fuse_int8(LAYERS[name]()),
        }
        spied = fuse_int8(LAYERS[name]())
    candidates = {what: Candidate(partial(m, x), "openmp") for what, m in modules.items()}
    candidates["graph"] = Candidate(graph_of(spied, x), "openmp")
    taken = interleave(candidates, seconds=seconds, least_samples=51, hopeless=math.inf)
    return [
        Record(
            *("dispatch", what, "fp32" if what == "torch_fp32" else "ours"),
            threads=1,
            m=1,
            k=HIDDEN,
            median_us=found.median * 1e6,
            min_us=found.minimum * 1e6,
            samples=found.samples,
            note=name,
        )
        for what, found in taken.items()
    ]


def numbers(found: list[Record]) -> list[Row]:
    calls = tuple((r.median_us, r.note) for r in found if r.candidate == OURS)
    return [Row("one encoder layer, one token, us", 60, 30, False, calls)]


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of turns a layer")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    console, here = Console(highlight=False, soft_wrap=True), machine.describe()
    machine.set_threads(1)
    found = [record for name in LAYERS for record in measure(name, given.seconds)]
    table = Table(title="One token, hidden size 64, one thread")
    for column in ("layer", "what", "us", "best us"):
        table.add_column(column, justify="right" if "us" in column else "left")
    for r in found:
        table.add_row(r.note, r.candidate, f"{r.median_us:.1f}", f"{r.min_us:.1f}")
    console.print(table)
    console.print(verdict_table(numbers(found)))
    records.write_csv(given.csv, found, here)
    console.print(f"{len(found)} records in {given.csv}")
    return found


if __name__ == "__main__":
    main()
