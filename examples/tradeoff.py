"""What the examples of sparsity share: the forms of a model, what each costs, table and picture.

Each form is made from the trained fp32 model by the public functions of fastinfer alone; `forms`
shows how. All but fp32 end as int8.
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import fastinfer

DOCS = Path(__file__).parents[1] / "docs"
FP32 = "fp32"
TILE = (16, 64)
LEAST_TILES = 16
MUST, AIM = 0.99, 0.997  # of fp32's score, of 2:4 + distil
MUST_SIZE = 0.17  # of the bytes of fp32's linear layers, of 2:4

console = Console()
if not console.is_terminal:
    console.width = 120


@dataclass(frozen=True)
class Metric:
    """What a model is judged by."""

    name: str
    lower_is_better: bool = False

    def kept(self, score: float, fp32: float) -> float:
        """The share of fp32's score that is left: 1 if nothing is lost."""
        return fp32 / score if self.lower_is_better else score / fp32


@dataclass(frozen=True)
class Example:
    """A trained model, and all that is needed to make it smaller and to judge what is left.

    name: of the picture. data: a sentence on it. metrics: of what `score` gives; the picture shows
    the first. inputs: by description, what the model is timed on; the picture shows the last.
    batches: what a student is distilled on, from the training split; calibration: a few of them,
    for the criteria of pruning. blocks: the share of 16 x 64 tiles that go. channels: the share of
    an MLP's channels that stays.
    """

    name: str
    title: str
    data: str
    model: nn.Module
    metrics: Sequence[Metric]
    score: Callable[[nn.Module], Sequence[float]]
    inputs: dict[str, Any]
    batches: Iterable[Any]
    calibration: Sequence[Any]
    loss: Any
    steps: int
    lr: float
    blocks: float
    channels: float
    mixed_precision: Literal["no", "bf16"] = "no"


@dataclass(frozen=True)
class Form:
    """One row of the table.

    scores, kept: by metric, as they are and as a share of fp32's. zeros: the share of zeros among
    the weights of the linear layers. linear_bytes: all tensors of the linear layers, scales and
    biases too. model_bytes: all of the model. ms: a call, by description of the input.
    """

    name: str
    scores: tuple[float, ...]
    kept: tuple[float, ...]
    zeros: float
    linear_bytes: int
    model_bytes: int
    ms: dict[str, float]


@dataclass(frozen=True)
class Result:
    """All forms of one example, fp32 first."""

    forms: tuple[Form, ...]

    def __getitem__(self, name: str) -> Form:
        return next(form for form in self.forms if form.name == name)


def arguments_of(description: str, given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="seconds: little training, no fusion")
    parser.add_argument(
        "--validation", action="store_true",
        help="score on the validation split, by which the settings were chosen",
    )  # fmt: skip
    parser.add_argument(
        "--save", action="store_true", help="put table and picture into docs/examples.md"
    )
    return parser.parse_args(given)


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate rises for a twentieth of the steps, then falls to 0 as half a cosine."""
    rise = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * min(1, (step - rise) / max(1, steps - rise)))

    return LambdaLR(optimizer, factor)


def recover_(student: nn.Module, example: Example, steps: int) -> None:
    """Trains the student to the fp32 model's outputs, without labels."""
    fastinfer.distill(
        student,
        example.model,
        example.batches,
        example.loss,
        steps=steps,
        optimizer=partial(torch.optim.AdamW, fused=True),
        lr=example.lr,
        scheduler=partial(warm_up_and_cosine, steps=steps),
        mixed_precision=example.mixed_precision,
    )


def pruned(model: nn.Module, structure: Any, criterion: Any, batches: Sequence[Any]) -> nn.Module:
    """A pruned copy, masks on."""
    student = copy.deepcopy(model)
    fastinfer.prune_(student, structure, criterion, batches=batches, progress=False)
    return student


def has_many_tiles(linear: nn.Module, name: str) -> bool:
    """Whether a layer has so many tiles that a share of them can go; an output layer often has
    few, and would be cut off altogether."""
    assert isinstance(linear, nn.Linear)
    return linear.weight.numel() >= LEAST_TILES * math.prod(TILE)


def forms(example: Example) -> Iterator[tuple[str, nn.Module]]:
    """Every form but fp32 by name, in float still: masks on weights, narrower layers."""
    batches = example.calibration
    half = partial(
        pruned, structure=fastinfer.Sparse24(), criterion=fastinfer.SparseGPT(), batches=batches
    )

    yield "int8", copy.deepcopy(example.model)

    student = half(example.model)
    yield "2:4", copy.deepcopy(student)
    recover_(student, example, example.steps)
    yield "2:4 + distil", student

    # Tiles go little by little: five rounds of pruning and a short recovery, then the long one.
    student = copy.deepcopy(example.model)
    schedule = fastinfer.CubicSchedule(0, example.blocks, 5)
    for stage in range(1, schedule.steps + 1):
        fastinfer.prune_(
            student,
            fastinfer.BlockSparse(TILE, schedule.sparsity_at(stage)),
            fastinfer.Wanda(),
            batches=batches,
            filter_fn=has_many_tiles,
            progress=False,
        )
        last = stage == schedule.steps
        recover_(student, example, example.steps if last else max(1, example.steps // 10))
    yield "block + distil", student

    student = copy.deepcopy(example.model)
    fastinfer.prune_channels_(
        student,
        batches[0],
        example.channels,
        fastinfer.Wanda(),
        batches=batches,
        progress=False,
    )
    recover_(student, example, example.steps)
    yield "channel + distil", copy.deepcopy(student)

    # All combined: the narrow student pruned to 2:4 as well, and trained with int8 in view.
    student = half(student)
    trained = fastinfer_qat(student)
    recover_(trained, example, example.steps)
    student.load_state_dict(trained.state_dict())
    yield "all combined", student


def fastinfer_qat(model: nn.Module) -> nn.Module:
    """A copy whose linear layers compute as int8 ones; it has the same state dict."""
    prepared = copy.deepcopy(model)
    fastinfer.prepare_qat_(prepared)
    return prepared


def to_int8_(model: nn.Module, fuse: bool) -> fastinfer.Summary:
    """Makes the linear layers int8, and sparse where they were pruned: wherever that is smaller,
    whether it is faster at the sizes timed here or not."""
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    if any(fastinfer.sparsity_of(linear) for linear in linears):
        return fastinfer.sparsify_(model, fuse=fuse)
    return fastinfer.quantize_(model, fuse=fuse, progress=False)


def run(example: Example, arguments: argparse.Namespace) -> Result:
    """Makes all forms, judges and times them, prints the table; with --save, into the docs."""
    fp32 = example.model
    say(f"[bold]{example.title}[/]\n{example.data}. {_sizes(fp32)}.")
    models, scores = {FP32: fp32}, {FP32: tuple(example.score(fp32))}
    say(f"fp32: {_said(example, scores[FP32])}")
    zeros, linear_bytes = {FP32: zeros_of(fp32)}, {FP32: _linear_bytes(fp32)}
    start = time.perf_counter()
    for name, model in forms(example):
        taken, start = time.perf_counter() - start, time.perf_counter()
        in_float, zeros[name] = example.score(model), zeros_of(model)
        summary = to_int8_(model, fuse=not arguments.short)
        models[name], scores[name] = model, tuple(example.score(model))
        linear_bytes[name] = sum(row.bytes_after for row in summary.rows)
        say(
            f"{name}: {_said(example, in_float)} in float; {_said(example, scores[name])} in int8 "
            f"({taken:.0f} s to make)"
        )
        start = time.perf_counter()
    ms = time_in_turns(models, example.inputs, seconds=0.1 if arguments.short else 10)
    result = Result(
        tuple(
            Form(
                name=name,
                scores=scores[name],
                kept=tuple(
                    metric.kept(*pair)
                    for metric, *pair in zip(
                        example.metrics, scores[name], scores[FP32], strict=True
                    )
                ),
                zeros=zeros[name],
                linear_bytes=linear_bytes[name],
                model_bytes=sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
                ms=ms[name],
            )
            for name, model in models.items()
        )
    )
    console.print(table(example, result))
    for line in verdicts(example, result):
        say(line)
    if arguments.save:
        save(example, result)
    return result


def say(text: str) -> None:
    console.print(text, highlight=False)


def number(score: float) -> str:
    return f"{score:.4f}" if score < 2 else f"{score:.2f}"


def _said(example: Example, scores: Sequence[float]) -> str:
    named = zip(example.metrics, scores, strict=True)
    return ", ".join(f"{metric.name} {number(score)}" for metric, score in named)


def _sizes(model: nn.Module) -> str:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = sum(m.weight.numel() for m in linears) / 1e6
    total = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{total:.1f} million parameters, {weights:.1f} of them in {len(linears)} linear layers"


def zeros_of(model: nn.Module) -> float:
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _linear_bytes(model: nn.Module) -> int:
    linears = (m for m in model.modules() if isinstance(m, nn.Linear))
    return sum(p.nbytes for m in linears for p in m.parameters())


@torch.inference_mode()
def time_in_turns(
    models: dict[str, nn.Module], inputs: dict[str, Any], seconds: float
) -> dict[str, dict[str, float]]:
    """Milliseconds a call by model and input: the models take turns, so that a disturbance meets
    all alike. A turn is one call that is not counted, which brings the weights back into the
    caches, then 3 that are; the median over at least 5 turns, and over `seconds` for an input."""
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for what, batch in inputs.items():
        for name, model in models.items():
            call(model, batch)  # a fused model is traced now
            taken[name][what] = []
        begin, turns = time.perf_counter(), 0
        while turns < 5 or time.perf_counter() < begin + seconds:
            for name, model in models.items():
                call(model, batch)
                for _ in range(3):
                    start = time.perf_counter()
                    call(model, batch)
                    taken[name][what].append(1e3 * (time.perf_counter() - start))
            turns += 1
    return {name: {k: median(v) for k, v in by_input.items()} for name, by_input in taken.items()}


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def columns(example: Example) -> list[str]:
    sizes = ["zeros", "linear MB", "of fp32", "all MB"]
    scores = [name for metric in example.metrics for name in (metric.name, "kept")]
    return [*scores, *sizes, *(f"ms, {what}" for what in example.inputs)]


def cells(result: Result, form: Form) -> list[str]:
    first = result.forms[0]
    return [
        *itertools.chain.from_iterable(
            (number(score), f"{kept:.1%}")
            for score, kept in zip(form.scores, form.kept, strict=True)
        ),
        f"{form.zeros:.0%}",
        f"{form.linear_bytes / 1e6:.2f}",
        f"{form.linear_bytes / first.linear_bytes:.3f}x",
        f"{form.model_bytes / 1e6:.2f}",
        *(f"{ms:.3f} ({first.ms[what] / ms:.1f}x)" for what, ms in form.ms.items()),
    ]


def table(example: Example, result: Result) -> Table:
    shown = Table(title=example.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("form")
    for column in columns(example):
        shown.add_column(column, justify="right")
    for form in result.forms:
        shown.add_row(form.name, *cells(result, form))
    return shown


def verdicts(example: Example, result: Result) -> list[str]:
    """What was required, and what came out."""
    recovered, first = result["2:4 + distil"], result[FP32]
    size = recovered.linear_bytes / first.linear_bytes
    lines = [
        f"2:4 + distil keeps {kept:.2%} of fp32's {metric.name}: must {MUST:.1%}, aim {AIM:.1%}, "
        f"{_verdict(kept >= MUST, kept >= AIM)}."
        for metric, kept in zip(example.metrics, recovered.kept, strict=True)
    ]
    return [
        *lines,
        f"Its linear layers, scales and biases included, take {size:.3f} of fp32's bytes: "
        f"must {MUST_SIZE}, {_verdict(size <= MUST_SIZE)}.",
    ]


def _verdict(must: bool, aim: bool = False) -> str:
    return "reached the aim" if aim else "reached" if must else "MISSED"


def save(example: Example, result: Result) -> None:
    """Draws the picture and puts table, verdicts and machine into docs/examples.md."""
    draw(example, result, DOCS / "examples" / f"{example.name}.png")
    rows = [[form.name, *cells(result, form)] for form in result.forms]
    config = fastinfer.show_config()
    notes = [
        *verdicts(example, result),
        f"Measured on {config.cpu}, {config.threads} threads, {config.isa_in_use}, "
        f"torch {torch.__version__}.",
    ]
    put_into_docs(example.name, markdown(["form", *columns(example)], rows), *notes)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_into_docs(name: str, shown: str, *notes: str) -> None:
    """Replaces what stands between the markers of `name`: a table, then a list of sentences."""
    page = DOCS / "examples.md"
    before, rest = page.read_text("utf-8").split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    listed = "\n".join(f"- {note}" for note in notes)
    block = f"<!-- {name} -->\n{shown}\n\n{listed}\n<!-- /{name} -->"
    page.write_text(before + block + after, "utf-8")


def draw(example: Example, result: Result, path: Path) -> None:
    """What a form keeps of fp32's score, over its time and over its size."""
    from matplotlib.figure import Figure

    what = list(example.inputs)[-1]
    panels = (
        (f"ms a call, {what}", [form.ms[what] for form in result.forms]),
        ("MB of the linear layers", [form.linear_bytes / 1e6 for form in result.forms]),
    )
    kept = [100 * form.kept[0] for form in result.forms]
    figure = Figure(figsize=(11, 4.5), layout="constrained")  # no pyplot: no global state
    for axes, (label, costs) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        best = pareto(costs, kept)
        axes.plot([costs[i] for i in best], [kept[i] for i in best], color="0.8", zorder=1)
        for i, form in enumerate(result.forms):
            axes.scatter(costs[i], kept[i], s=45, color="tab:green" if i in best else "0.6")
            axes.annotate(
                form.name, (costs[i], kept[i]), (5, 5), textcoords="offset points", fontsize=8
            )
        axes.set_xscale("log")
        axes.margins(0.18)
        axes.set_xlabel(label)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel(f"kept of fp32's {example.metrics[0].name}, %")
    figure.suptitle(f"{example.title}: green where nothing is both cheaper and better", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def pareto(costs: Sequence[float], kept: Sequence[float]) -> list[int]:
    """Which points no other beats in both, the cheapest first."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -kept[i])):
        if not best or kept[i] > kept[best[-1]]:
            best.append(i)
    return best
