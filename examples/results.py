"""How the examples of sparsity show what they found: table, verdicts, picture, page of the docs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import fastinfer
from forms import Example

DOCS = Path(__file__).parents[1] / "docs"
FP32 = "fp32"
MUST, AIM = 0.99, 0.997  # of fp32's score, of 2:4 + distil
MUST_SIZE = 0.17  # of the bytes of fp32's linear layers, of 2:4

console = Console()
if not console.is_terminal:
    console.width = 120


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


def say(text: str) -> None:
    console.print(text, highlight=False)


def number(score: float) -> str:
    return f"{score:.4f}" if score < 2 else f"{score:.2f}"


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
        if metric.accuracy
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
    shown = markdown(["form", *columns(example)], rows)
    picture = f"![{example.title}](examples/{example.name}.png)"
    put_into_docs(example.name, f"{shown}\n\n{picture}", *notes)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_into_docs(name: str, shown: str, *notes: str) -> None:
    """Replaces what stands between the markers of `name`: what is shown, then a list of notes."""
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
            ring = "black" if i in best else "none"
            axes.scatter(costs[i], kept[i], s=60, color=f"C{i}", edgecolor=ring, label=form.name)
        axes.set_xscale("log")
        axes.margins(0.1)
        axes.set_xlabel(label)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel(f"kept of fp32's {example.metrics[0].name}, %")
    names = [form.name for form in result.forms]
    figure.legend(figure.axes[0].collections, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{example.title} (ringed: nothing is both cheaper and better)", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def pareto(costs: Sequence[float], kept: Sequence[float]) -> list[int]:
    """Which points no other beats in both, the cheapest first."""
    best: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -kept[i])):
        if not best or kept[i] > kept[best[-1]]:
            best.append(i)
    return best
