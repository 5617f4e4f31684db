"""`optimize`: tries what this package can do to a model, measures it, keeps the best."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fastinfer.candidates import FilterFn, Layer, check_filter_fn, find_layers, group_tied
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.fuse import Fusion, fuse_
from fastinfer.guard import Timing, verdict
from fastinfer.observe import check_inputs
from fastinfer.optimized import Candidate, Optimized
from fastinfer.pairs import Pair, make_pairs
from fastinfer.spill import Spill, trim
from fastinfer.summary import Row, Summary
from fastinfer.swap import make_row
from fastinfer.trial import (
    LEAST_GAIN,
    Form,
    Trial,
    check_max_error,
    check_model,
    check_number,
    on_trial,
)


def optimize(
    model: nn.Module,
    example_inputs: Any,
    *,
    max_error: float = 0.05,
    speedup: float | None = None,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> Optimized:
    """Makes a model as fast as it can on this machine, in place, within an error that you allow.

    Four candidates run on example_inputs, in turns: the model as given; fused (`fuse_`); with the
    linear layers in int8 that gain by it (`quantize_`); both. The fastest that keeps to max_error
    stays. If none is at least 2 % faster than the model as given, that is what is handed back, bit
    for bit. Where int8 alone exceeds max_error, layers go back to float, those with the largest
    error of their own first, until it does not.

    model: trained, on the CPU. It is measured in eval mode under torch.inference_mode(), which is
    also how a fused one is to be called; training flags come back as they were.
    example_inputs: what the model is called with: a tensor, a tuple of positional arguments or a
    dict of keyword arguments, or a list of those: several batches. Shapes and thread count should
    be those of later.
    max_error: limit of ||y - y0|| / ||y0|| in the Euclidean norm over all floating-point outputs
    for all batches together, y0 being those of the model as given (where nn.TransformerEncoder has
    a fused path, which writes zeros where a sequence is padded, those without it). A value that is
    finite in one alone counts as an infinite error. speedup: a goal, such as 2.0; the best found is
    handed back whether it is reached or not, and `missed` says so. filter_fn(module, name) -> bool:
    False keeps that linear layer float. progress: True or False shows or hides a bar; None shows it
    on a terminal.

    Memory: float weights and int8 ones are never in memory together but for one layer at a time;
    the others wait in a temporary file (in TMPDIR, as large as the model's linear layers and a
    quarter more). On top of the model come at most about its largest layer, the outputs y0, and the
    code of torch.compile. Weights that are not plain memory of their own (mapped from a file, as
    transformers' from_pretrained leaves them; part of a larger tensor; shared) stay where they are
    meanwhile, with the int8 ones beside them. Where int8 is kept, the float weights are gone unless
    something outside the model holds them.

    An exception leaves the model as it was, a keyboard interrupt too; in the last moments, when
    float weights are given up for good, as what was kept. What the model as given raises on
    example_inputs comes through; a candidate that raises is out, with its reason.

    Raises TypeError on arguments of other types; ValueError on an empty list, a max_error that is
    negative or not finite, a speedup that is not positive and finite, a model that is not on the
    CPU or is itself an nn.Linear, which nothing can replace in place, or a model without
    floating-point output.
    """
    batches = list(example_inputs) if isinstance(example_inputs, list) else [example_inputs]
    _check(model, batches, max_error, speedup, filter_fn)
    with on_trial(model, batches, progress) as (trial, spill, say):
        result = _search(trial, spill, max_error, filter_fn, say)
        trial.finish()
    reached = result.kept.speedup
    if speedup is not None and reached is not None and reached < speedup:
        result.missed = (f"speedup: {reached:.2f}x reached, {speedup:g}x wanted",)
    return result


def _check(
    model: object, batches: list[Any], max_error: object, speedup: Any, filter_fn: object
) -> None:
    check_model(model)
    if not batches:
        raise ValueError("example_inputs: got an empty list, want at least one batch")
    for batch in batches:
        check_inputs("example_inputs", batch)
    check_max_error(max_error)
    if speedup is not None:
        check_number("speedup", speedup)
        if not 0 < speedup < math.inf:
            raise ValueError(f"speedup: got {speedup}, want a finite number above 0")
    check_filter_fn(filter_fn)


@dataclass
class _Tried:
    """A candidate on its way through the search."""

    form: Form
    name: str
    error: float | None = None
    seconds: float | None = None
    note: str | None = None  # what was done to it, or why it cannot be kept
    out: bool = False


def _search(
    trial: Trial,
    spill: Spill,
    max_error: float,
    filter_fn: FilterFn | None,
    say: Callable[[str], None],
) -> Optimized:
    """Tries the candidates and leaves the model as the best of them."""
    model, bytes_before = trial.model, tensor_bytes(trial.model)
    say("Running the model as given")
    trial.remember_outputs()
    given = _Tried(trial.given, "as given", error=0.0)
    say("Fusing")
    fused = _fused(trial, "fused", max_error)

    say("Timing the linear layers beside their int8 twins")
    trial.open()
    layers = find_layers(model, filter_fn)
    sizes = {layer.name: tensor_bytes(layer.module) for layer in layers}
    trial.pairs = make_pairs(
        model, group_tied(model, layers, embeddings_too=True), spill, trial.replaced
    )
    timings, own_errors = trial.time_pairs(trial.pairs)
    for pair in trial.pairs:
        reason = verdict([timings[m.module] for m in pair.layers if m.module in timings])
        for layer in pair.layers:
            layer.reason = reason
    gaining = [pair for pair in trial.pairs if pair.layers[0].reason is None]
    say("Running in int8")
    int8 = _int8(trial, sorted(gaining, key=lambda pair: -own_errors[pair]), max_error)
    if int8.out:
        both = replace(int8, name="int8, fused")
    else:
        say("Fusing in int8")
        both = _fused(trial, "int8, fused", max_error)

    say("Timing the candidates in turns")
    tried = (given, fused, int8, both)
    running = [candidate for candidate in tried if not candidate.out]
    for candidate, seconds in zip(running, trial.time([c.form for c in running]), strict=True):
        candidate.seconds = seconds
    best = min(running, key=_seconds)
    if _seconds(given) < LEAST_GAIN * _seconds(best):
        best = given
    trial.become(best.form)

    rows = _rows(layers, trial.pairs, best.form, timings, sizes)
    sizes_after = bytes_before, tensor_bytes(model), other_bytes(model)
    summary = Summary(rows, *sizes_after, best.form.fusion)
    return Optimized(model, summary, [_candidate(c, given, best) for c in tried], ())


def _fused(trial: Trial, name: str, max_error: float) -> _Tried:
    """The model as it stands, fused; it stands as before afterwards."""
    before = trial.form
    fusion: Fusion = fuse_(trial.model)
    tried = _Tried(trial.fused_form(fusion), name)
    try:
        tried.error = trial.error()
    except Exception as error:
        tried.note = f"it fails: {_first_line(error)}"
    else:
        if not fusion.fused:
            tried.note = "; ".join(fusion.reasons) or "there is nothing to fuse"
        elif tried.error > max_error:
            tried.note = f"its error is above {max_error:g}"
    tried.out = tried.note is not None
    trial.become(before)
    trim()  # what tracing leaves is as much as a layer
    return tried


def _int8(trial: Trial, pairs: Sequence[Pair], max_error: float) -> _Tried:
    """The model with as many of `pairs` in int8 as max_error allows; it stands so afterwards.

    The first of `pairs` go back to float before the others. How many is found by halving, since
    the error falls as layers go back.
    """
    if not pairs:
        return _Tried(trial.given, "int8", note="no linear layer gains by it", out=True)

    def error_without(count: int) -> float:
        trial.become(trial.int8_form(pairs[count:]))
        return trial.error()

    try:
        first = error = error_without(0)
        if error <= max_error:
            return _Tried(trial.form, "int8", error)
        exceeds, fits = 0, len(pairs)  # all back is the model as given
        while fits - exceeds > 1:
            middle = (exceeds + fits) // 2
            if error_without(middle) <= max_error:
                fits = middle
            else:
                exceeds = middle
        error = error_without(fits)
    except Exception as reason:
        trial.become(trial.given)
        return _Tried(trial.form, "int8", note=f"it fails: {_first_line(reason)}", out=True)
    back = sum(len(pair.layers) for pair in pairs[:fits])
    note = f"{back} layers back to float, with all in int8 the error is {first:.2g}"
    for pair in pairs[:fits]:
        for layer in pair.layers:
            layer.reason = "back to float to keep within max_error"
    if fits == len(pairs):
        note = f"no layer of it is within an error of {max_error:g}"
        return _Tried(trial.given, "int8", first, note=note, out=True)
    return _Tried(trial.form, "int8", error, note=note)


def _rows(
    layers: Sequence[Layer],
    pairs: Sequence[Pair],
    form: Form,
    timings: Mapping[nn.Module, Timing],
    sizes: Mapping[str, int],
) -> list[Row]:
    """The summary's rows, in the model's order."""
    for candidate in pairs:
        for layer in candidate.layers:
            if layer.reason is None and candidate not in form.int8:
                layer.reason = "the model is no faster with int8"
    pair_of = {layer.name: pair for pair in pairs for layer in pair.layers}
    rows = []
    for layer in layers:
        pair = pair_of.get(layer.name)
        twin = pair.twins()[layer.module] if pair and pair in form.int8 else None
        row = make_row(layer, twin, timings.get(layer.module), pair.sqnr_db if pair else None)
        rows.append(replace(row, bytes_before=sizes[layer.name]) if twin else row)
    return rows


def _candidate(tried: _Tried, given: _Tried, best: _Tried) -> Candidate:
    """What the table says of a candidate."""
    note = tried.note
    if not tried.out and tried is not best and tried is not given:
        gains = LEAST_GAIN * _seconds(tried) <= _seconds(given)
        why = f"{best.name} is faster" if gains else "not faster than as given"
        note = why if note is None else f"{note}; {why}"
    if tried.seconds is None:
        return Candidate(tried.name, error=tried.error, note=note)
    speedup = _seconds(given) / tried.seconds
    return Candidate(tried.name, 1e3 * tried.seconds, speedup, tried.error, tried is best, note)


def _seconds(tried: _Tried) -> float:
    return math.inf if tried.seconds is None else tried.seconds


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
