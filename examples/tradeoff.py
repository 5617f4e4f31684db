"""What the examples of sparsity share: every form of a model judged, timed, and shown."""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

import results
from forms import Example, forms, to_int8_
from results import FP32, Form, Result, say


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
    results.console.print(results.table(example, result))
    for line in results.verdicts(example, result):
        say(line)
    if arguments.short:
        say("This was the short form, hardly trained: it shows that all runs, not what is lost.")
    if arguments.save:
        results.save(example, result)
    return result


def _said(example: Example, scores: Sequence[float]) -> str:
    named = zip(example.metrics, scores, strict=True)
    return ", ".join(f"{metric.name} {results.number(score)}" for metric, score in named)


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
