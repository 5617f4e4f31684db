"""`search` beside the best uniform scheme, under several error budgets, on whole models.

    python bench/search.py                                     # on quiet cores
    python bench/search.py --models MiniLM-L6 --sizes 8x128 --budgets 0.03,0.2

For each model and size: what `search` chose under each budget, the latency that it predicted, and
the model that it made beside the model as given and every uniform scheme, timed in turns once more
by the benchmark itself; errors are those on the batch that was searched on and on another one. The
layers of a model are measured once for all budgets.
"""

import argparse
import copy
import csv
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastinfer import (
    BlockSparse,
    Int8Dynamic,
    Int8Sparse,
    Magnitude,
    Searched,
    Sparse24,
    show_config,
)
from fastinfer.search import choose, measure
from fastinfer.trial import on_trial
from timing import Candidate, interleave
from zoo import MODELS, Inputs, Size

SCHEMES = [
    Int8Dynamic(),
    Int8Sparse(Sparse24()),
    Int8Sparse(BlockSparse(sparsity=0.5), Magnitude()),
    Int8Sparse(BlockSparse(sparsity=0.9), Magnitude()),
]
FIELDS = [
    "model", "size", "budget", "kept", "schemes", "error", "error_other", "predicted_ms",
    "searched_ms", "ms", "float_ms", "uniform", "uniform_ms",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="MiniLM-L6,BERT-base")
    parser.add_argument("--sizes", default="1x128,8x128")
    parser.add_argument("--budgets", default="0.02,0.05,0.2,0.5")
    parser.add_argument("--seconds", type=float, default=5, help="of timing a budget")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    config = show_config()
    console.print(f"{config.cpu}, {config.isa_in_use}, {config.threads} threads", highlight=False)
    rows = []
    for name in options.models.split(","):
        for size in options.sizes.split(","):
            batch, _, length = size.partition("x")
            rows += compare(
                name,
                Size(int(batch), int(length or 0)),
                [float(budget) for budget in options.budgets.split(",")],
                options.seconds,
                console,
            )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


@torch.inference_mode()
def compare(
    name: str, size: Size, budgets: list[float], seconds: float, console: Console
) -> list[dict[str, object]]:
    spec = MODELS[name]
    batch, other = spec.draw(size, 1, 0)[0], spec.draw(size, 1, 1)[0]
    given = spec.build("sdpa")
    want, want_other = given(**batch), given(**other)
    table = Table(title=f"{name}, {size}", title_justify="left")
    for column in (
        "budget", "kept", "error", "on another batch", "predicted ms", "search's ms", "off", "ms",
        "float", "best uniform scheme", "ms", "gain",
    ):  # fmt: skip
        table.add_column(column)
    rows = []
    uniform = {s.label: uniform_model(given, s, batch) for s in SCHEMES}
    errors = {label: relative(model(**batch), want) for label, model in uniform.items()}
    for budget, (result, model) in search(copy.deepcopy(given), batch, budgets).items():
        fit = {label: uniform[label] for label, error in errors.items() if error <= budget}
        ms = time_in_turns({"float": given, "search": model, **fit}, batch, seconds)
        best = min(fit, key=lambda label: ms[label], default="float")
        error = relative(model(**batch), want)
        assert error <= budget, f"{name} {size}: error {error} above the budget {budget}"
        kept = result.kept
        rows.append(
            dict(zip(FIELDS, (
                name, str(size), budget, kept.name, counted(result), error,
                relative(model(**other), want_other), kept.predicted_ms, kept.ms, ms["search"],
                ms["float"], best, ms[best],
            ), strict=True))
        )  # fmt: skip
        row = rows[-1]
        console.print(f"{name}, {size}, budget {budget:g}", row, highlight=False)
        table.add_row(
            f"{budget:g}", f"{kept.name}: {counted(result)}", f"{error:.3g}",
            f"{row['error_other']:.3g}", f"{kept.predicted_ms:.4g}", f"{kept.ms:.4g}",
            f"{kept.predicted_ms / kept.ms - 1:+.1%}", f"{ms['search']:.4g}", f"{ms['float']:.4g}",
            best, f"{ms[best]:.4g}", f"{ms[best] / ms['search']:.3f}x",
        )  # fmt: skip
    console.print(table)
    return rows


def search(
    model: nn.Module, batch: Inputs, budgets: list[float]
) -> dict[float, tuple[Searched, nn.Module]]:
    """What `fastinfer.search` finds by budget, and a copy of the model that it leaves."""
    found = {}
    with on_trial(model, [batch], None) as (trial, spill, say):
        measured = measure(trial, spill, [batch], SCHEMES, None, say)
        for budget in budgets:
            result = choose(measured, budget, say)
            found[budget] = result, copy.deepcopy(model)
        trial.undo()
    return found


def uniform_model(given: nn.Module, scheme: Int8Dynamic | Int8Sparse, batch: Inputs) -> nn.Module:
    """Every layer of the model in the scheme."""
    model = copy.deepcopy(given)
    linears = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    make = scheme.prepare(model, linears, [batch])
    for name, linear in linears.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, make(linear))
    return model


def time_in_turns(models: dict[str, nn.Module], batch: Inputs, seconds: float) -> dict[str, float]:
    """Milliseconds a run by name."""
    runs = {
        name: Candidate(lambda model=model: model(**batch), "torch")
        for name, model in models.items()
    }
    timings = interleave(runs, seconds=seconds, hopeless=10)
    return {name: 1e3 * timing.median for name, timing in timings.items()}


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def counted(result: Searched) -> str:
    """How many layers are in which scheme: "4 float, 32 int8 dynamic"."""
    labels = [row.scheme or "float" for row in result.summary.rows]
    return ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))


if __name__ == "__main__":
    main()
