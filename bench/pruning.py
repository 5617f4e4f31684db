"""What smaller shapes are worth: BERT-base, pruned in one way or another, beside itself in int8.

python bench/pruning.py                 # channels, heads, layers at 8x128, about a minute
python bench/pruning.py --only channels --seconds 15

Each is quantised and fused as the unpruned model is; all take turns in one run. Speed alone:
weights are random, so what pruning costs in accuracy shows elsewhere.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fastinfer
import machine
from timing import Candidate, interleave, settle
from zoo import MODELS, Size

MUST = {"channels": 1.3}  # times as fast as the unpruned model

PRUNINGS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "channels": lambda model, inputs: fastinfer.prune_channels_(model, inputs, 0.5),
    "heads": lambda model, inputs: fastinfer.prune_heads_(model, inputs, 0.5),
    "layers": lambda model, inputs: fastinfer.prune_layers_(model, [inputs], 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PRUNINGS, action="append")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="for all together")
    arguments = parser.parse_args()

    machine.set_threads(arguments.threads)
    zoo = MODELS["BERT-base"]
    model = zoo.build("sdpa")
    inputs = zoo.draw(Size(arguments.batch, arguments.length), 1, 0)[0]
    sample = {name: tensor[:1] for name, tensor in inputs.items()}  # enough to prune by
    runs = {"fp32": Candidate(lambda: model(**inputs)), "unpruned": _int8(model, inputs)}
    for name in arguments.only or PRUNINGS:
        pruned = copy.deepcopy(model)
        PRUNINGS[name](pruned, sample)
        runs[name] = _int8(pruned, inputs)
    with torch.inference_mode():
        timings = interleave(
            runs, seconds=arguments.seconds, settle=settle(arguments.threads), hopeless=10.0
        )

    table = Table("BERT-base in int8", "ms", "times as fast", "must")
    for name, timing in timings.items():
        ratio = timings["unpruned"].median / timing.median
        must = f">= {MUST[name]}" if name in MUST else ""
        table.add_row(name, f"{timing.median * 1e3:.1f}", f"{ratio:.2f}", must)
    console = Console()
    console.print(machine.describe())
    console.print(table)


def _int8(model: nn.Module, inputs: Any) -> Candidate:
    model = copy.deepcopy(model)
    fastinfer.quantize_(model, fuse=True)
    return Candidate(lambda: model(**inputs))


if __name__ == "__main__":
    main()
