"""The benchmark of whole models: measures, prints tables, writes the CSV and the picture.

python bench/models.py --plot                # everything, more than an hour on two cores
python bench/models.py --models MiniLM-L6 --sizes 1x128 --contenders torch_fp32,fastinfer
"""

import argparse
import contextlib
import io
import math
import resource
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import machine
import records
from contenders import CONTENDERS, FP32, Cell, Contender, apart, turns
from records import ModelRecord
from timing import Candidate, Run, interleave, settle
from verdict import model_numbers, verdict_table
from zoo import MODELS, Inputs, Model, Size

RESULTS = Path(__file__).parent / "results" / "models.csv"
PICTURE = RESULTS.with_suffix(".png")
LEAST_SAMPLES = 5
HOPELESS = 5.0  # times slower than the fastest: 3 samples are enough
LEAST_SQNR = {"fp32": 60.0, "bf16": 10.0, "int8": 5.0, "ours": 5.0}  # dB; below it is wrong


@dataclass(frozen=True)
class Quality:
    """How close answers are to torch fp32's."""

    sqnr_db: float
    cosine_mean: float = 0.0
    cosine_worst: float = 0.0


def answers(run: Run, cell: Cell) -> list[Tensor]:
    """The model's answer to each batch of the cell; the inputs are the first batch again after."""
    found = []
    with torch.inference_mode():
        for batch in (*cell.batches[1:], cell.batches[0]):
            cell.load(batch)
            found.append(torch.as_tensor(run()).float().clone())
    return found[-1:] + found[:-1]


def quality(cell: Cell, got: Sequence[Tensor], want: Sequence[Tensor]) -> Quality:
    """Over all batches: the ratio of the answer's norm to that of the error, padding left out, and
    the cosines of the embeddings, the means of the tokens."""
    signal = noise = 0.0
    cosines = []
    for y, right, batch in zip(got, want, cell.batches, strict=True):
        if y.shape != right.shape:
            raise ValueError(f"answer: got shape {tuple(y.shape)}, want {tuple(right.shape)}")
        keep = _token_mask(batch, right)
        signal += float((right.double() * keep).square().sum())
        noise += float(((y - right).double() * keep).square().sum())
        if cell.model.embeds:
            cosines.append(
                nn.functional.cosine_similarity((y * keep).sum(1), (right * keep).sum(1))
            )
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if noise > 0 else math.nan
    if not cosines:
        return Quality(sqnr)
    cosine = torch.cat(cosines)
    return Quality(sqnr, float(cosine.mean()), float(cosine.min()))


def _token_mask(batch: Inputs, y: Tensor) -> Tensor:
    mask = batch.get("attention_mask")
    if mask is None or y.shape[:2] != mask.shape:  # images; the logits of one position
        return torch.ones(())
    return mask.unsqueeze(-1).float()


def measure(
    model: str, size: Size, names: Sequence[str], threads: int, seconds: float, cache: Path
) -> list[ModelRecord]:
    """One model at one size: every contender is built, compared with torch fp32, then timed in
    turns. One that cannot be built, or is wrong, leaves a record with the reason."""
    console = _console()
    machine.set_threads(threads)
    cell = Cell(MODELS[model], size, threads, cache)
    where = {"model": model, "batch": size.batch, "length": size.length, "threads": threads}
    fp32 = next(c for c in CONTENDERS if c.name == FP32)
    want = answers(fp32.build(cell), cell)

    runs: dict[str, Candidate] = {}
    found: dict[str, Quality] = {}
    failed: dict[str, tuple[str, float]] = {}
    for contender in (c for c in CONTENDERS if c.name in names):
        start = time.perf_counter()
        said, sqnr = "", 0.0
        try:
            run = _build(contender, cell)
            result = quality(cell, answers(run, cell), want)
            sqnr, said = result.sqnr_db, f"{result.sqnr_db:.1f} dB"
            if not result.sqnr_db >= LEAST_SQNR[contender.kind]:
                raise ValueError(f"wrong: SQNR {result.sqnr_db:.1f} dB")
        except Exception as error:
            said = _reason(error)
            failed[contender.name] = (said, sqnr)
        else:
            runs[contender.name] = Candidate(run, contender.pool)
            found[contender.name] = result
        console.print(
            f"{model} {size}  {contender.name}: {said}  [dim]{time.perf_counter() - start:.0f} s",
            soft_wrap=True,
        )
    with torch.inference_mode():
        timings = interleave(
            runs,
            seconds=seconds,
            least_samples=LEAST_SAMPLES,
            hopeless=HOPELESS,
            settle=settle(threads),
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    console.print(f"{model} {size}  at most {peak:.1f} GiB of memory")

    made = []
    for contender in (c for c in CONTENDERS if c.name in names):
        head = where | {"candidate": contender.name, "kind": contender.kind}
        if contender.name in failed:
            reason, sqnr = failed[contender.name]
            made.append(ModelRecord(**head, reason=reason, sqnr_db=sqnr))
            continue
        timing, result = timings[contender.name], found[contender.name]
        made.append(
            ModelRecord(
                **head,
                median_us=timing.median * 1e6,
                first_quartile_us=timing.quartiles[0] * 1e6,
                third_quartile_us=timing.quartiles[1] * 1e6,
                min_us=timing.minimum * 1e6,
                samples=timing.samples,
                sqnr_db=result.sqnr_db,
                cosine_mean=result.cosine_mean,
                cosine_worst=result.cosine_worst,
            )
        )
    return made


def measure_apart(
    model: Model, size: Size, given: argparse.Namespace, cache: Path
) -> list[ModelRecord]:
    """`measure` in a process of its own, so that all memory is free again for the next; of a large
    model, in one for each runtime: what took part in several counts as measured in the first."""
    found: dict[str, ModelRecord] = {}
    for names in turns(model, given.contenders):
        try:
            arguments = (model.name, size, names, given.threads, given.seconds, cache)
            made = apart(measure, *arguments)
        except BrokenProcessPool as error:
            where = (size.batch, size.length, given.threads)
            made = [
                ModelRecord(model.name, c.name, c.kind, *where, reason=_reason(error))
                for c in CONTENDERS
                if c.name in names
            ]
        found = {r.candidate: r for r in made} | found
    return [found[c.name] for c in CONTENDERS if c.name in found]


def _build(contender: Contender, cell: Cell) -> Run:
    """Without what the libraries have to say meanwhile."""
    contender.check()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return contender.build(cell)


def _reason(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process died, perhaps for want of memory"
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()}"[:200]


def cell_table(found: Sequence[ModelRecord]) -> Table:
    """What one cell gave, a row a contender."""
    base = next((r.median_us for r in found if r.candidate == FP32 and not r.reason), math.nan)
    embeds = any(r.cosine_mean for r in found)
    table = Table(title=f"{found[0].model}, {found[0].size}, {found[0].threads} threads")
    table.add_column("contender")
    for column in (
        "ms",
        "quartiles",
        "x fp32",
        "SQNR dB",
        *(("cosine, worst",) * embeds),
        "samples",
    ):
        table.add_column(column, justify="right")
    table.add_column("why not")
    for r in found:
        if r.reason:
            blank = [""] * (5 + embeds)
            table.add_row(r.candidate, *blank, r.reason, style="dim")
            continue
        figures = [
            f"{r.median_us / 1e3:.2f}",
            f"{r.first_quartile_us / 1e3:.2f}-{r.third_quartile_us / 1e3:.2f}",
            f"{base / r.median_us:.2f}",
            f"{r.sqnr_db:.1f}",
        ]
        if embeds:
            figures.append(f"{r.cosine_mean:.5f}, {r.cosine_worst:.5f}")
        style = "bold" if r.kind == "ours" else ""
        table.add_row(r.candidate, *figures, str(r.samples), "", style=style)
    return table


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


def some_of(what: str, known: Sequence[str], text: str | None) -> tuple[str, ...]:
    """The names in a comma-separated text; all of them if there is none."""
    chosen = tuple(text.split(",")) if text else tuple(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(f"{what}: got {', '.join(unknown)}, want some of {', '.join(known)}")
    return chosen


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    sizes = dict.fromkeys(str(size) for model in MODELS.values() for size in model.sizes)
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help=f"some of {','.join(MODELS)}")
    parser.add_argument("--sizes", help=f"some of {','.join(sizes)}")
    parser.add_argument("--contenders", help=f"some of {','.join(names)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=positive, default=20.0, help="of turns a cell")
    parser.add_argument("--cache", type=Path, help="where exported models are kept")
    parser.add_argument("--csv", type=Path, help=f"where to write (a full run: {RESULTS.name})")
    parser.add_argument(
        "--plot", type=Path, nargs="?", const=PICTURE, help=f"draw the picture ({PICTURE.name})"
    )
    given = parser.parse_args(arguments)
    if given.threads < 1:
        parser.error(f"--threads: got {given.threads}, want at least 1")
    given.full = not (given.models or given.sizes or given.contenders)
    try:
        given.models = some_of("--models", list(MODELS), given.models)
        given.sizes = some_of("--sizes", list(sizes), given.sizes)
        given.contenders = some_of("--contenders", names, given.contenders)
    except ValueError as error:
        parser.error(str(error))
    given.cells = [
        (name, size)
        for name in MODELS
        for size in MODELS[name].sizes
        if name in given.models and str(size) in given.sizes
    ]
    if not given.cells:
        parser.error("--sizes: none of them is a size of these models")
    return given


def main(arguments: list[str] | None = None) -> list[ModelRecord]:
    given = parse(arguments)
    if given.plot:
        from picture import draw  # needs matplotlib, and says so before the hour is over
    console, here, start = _console(), machine.describe(), time.perf_counter()
    console.print(
        f"CPU       {here.cpu}, {here.cores} cores, instruction set in use: {here.isa}\n"
        f"Compiler  {here.compiler}\nVersions  {here.versions}"
    )
    found: list[ModelRecord] = []
    path = given.csv or (RESULTS if given.full else None)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            cache = (given.cache or Path(temporary)).resolve()
            for model, size in given.cells:
                cell = measure_apart(MODELS[model], size, given, cache)
                console.print(cell_table(cell))
                found += cell
        console.print(verdict_table(model_numbers(found)))
    finally:  # an interrupted run keeps what it has measured
        if path and found:
            records.write_csv(path, found, here)
            console.print(f"{len(found)} records in {path}")
    if given.plot:
        draw(found, given.plot, f"{here.cpu}, {given.threads} threads, {here.isa}")
        console.print(f"the picture in {given.plot}")
    console.print(f"It took {(time.perf_counter() - start) / 60:.1f} minutes.")
    return found


if __name__ == "__main__":
    main()
