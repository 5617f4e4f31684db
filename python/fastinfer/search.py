"""`search`: a scheme for each linear layer, the fastest model within an error."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from torch import nn

from fastinfer.candidates import FilterFn, Layer, check_filter_fn
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.guard import Timing
from fastinfer.knapsack import cheapest, check_scipy
from fastinfer.observe import list_batches
from fastinfer.options import Option, Say, find_options, measure_errors
from fastinfer.schemes import SCHEMES, Scheme, check_schemes
from fastinfer.searched import Searched, SearchedCandidate
from fastinfer.spill import Spill
from fastinfer.summary import Row, Summary
from fastinfer.swap import make_row
from fastinfer.trial import LEAST_GAIN, Form, Trial, check_max_error, check_model, on_trial

Drift = Mapping[str | None, float]  # by label; None for float

_ROUNDS = 8  # of solving and measuring the error of what was found
_LESS = 0.9  # of the error predicted, where it does not fall by itself


def search(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_error: float = 0.05,
    schemes: Sequence[Scheme] = SCHEMES,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> Searched:
    """Puts each linear layer of a model into the scheme, or leaves it in float, that makes the
    model fastest on this machine within an error, in place.

    model: trained, on the CPU. batches: an iterable of what it is called with: a tensor, a tuple of
    positional arguments or a dict of keyword arguments each. Shapes and thread count should be
    those of later. max_error: limit of ||y - y0|| / ||y0|| in the Euclidean norm over all
    floating-point outputs for all batches together, y0 being those of the model as given. schemes:
    Int8Dynamic(), Int8Sparse(structure, criterion) or others of that protocol
    (`fastinfer.schemes.Scheme`); float is always among the choices. filter_fn(module, name) ->
    bool: False keeps that linear layer float. progress: True or False shows or hides a bar; None
    shows it on a terminal.

    Layers are timed where they stand: the whole model runs in each scheme in turns, every layer in
    it that can be, and what goes by from a layer's call to the next one's is what that layer takes
    in that scheme. The model's error is measured with each layer alone in each scheme that it gains
    by; layers that share a weight change together. Then an integer programme (scipy's milp, solved
    exactly) chooses the fastest within the error, by the rule that times add and that squares of
    errors add. The model that it chose is run. If its real error is not what the rule said, the
    limit in the programme is moved and it is solved again, a few times. Then the mixed model, each
    of the uniform ones and the model as given are timed in turns, and the fastest of those that
    really keep to max_error stays; but a uniform one that is within 2 % of it is preferred, and the
    model as given, bit for bit, to both. What is predicted of a model goes by what the others take
    in these turns.

    Source of the programme: HAWQ-V3, Yao et al. 2021 (https://arxiv.org/abs/2011.10680), which
    chooses bit widths so, by latencies measured on the hardware and sensitivities that add.

    Memory, and the temporary file, as with `optimize`, the file larger by the weights of every
    scheme; and what a criterion of pruning takes. A fused model is `fuse_(model)` of the result.

    An exception leaves the model as it was, a keyboard interrupt too. Raises ImportError without
    scipy (`pip install "fastinfer[search]"`); TypeError on arguments of other types; ValueError on
    no batches, on schemes with one label, a max_error that is negative or not finite, a model that
    is not on the CPU, is itself an nn.Linear, or has no floating-point output or no linear layer
    that can change. What the model raises on a batch comes through.
    """
    check_model(model)
    check_max_error(max_error)
    check_schemes(schemes)
    check_filter_fn(filter_fn)
    given = list_batches(batches)
    check_scipy()
    with on_trial(model, given, progress) as (trial, spill, say):
        result = choose(measure(trial, spill, given, schemes, filter_fn, say), max_error, say)
        trial.finish()
    return result


@dataclass(eq=False)
class _Mix:
    """A model on its way through the search: the layers that are not float in it."""

    name: str
    options: tuple[Option, ...]
    label: str | None = None  # of the scheme of all of them, if it is one
    error: float = math.nan
    ms: float = math.inf
    predicted_ms: float = math.nan
    note: str | None = None
    form: Form = field(default_factory=Form)

    @property
    def predicted_error(self) -> float:
        """The root of the sum of the squares of its options' errors.

        To first order what the changes of single layers do to the output adds, and changes that
        have nothing to do with each other are orthogonal on average, so that squares add. HAWQ-V2
        (Dong et al. 2020, https://arxiv.org/abs/1911.03852) and -V3 add their sensitivities, which
        are second-order in the changes, on the same ground.
        """
        return math.sqrt(sum(option.error**2 for option in self.options))


@dataclass(frozen=True)
class Measured:
    """What a choice is made from, whatever the limit on the error.

    found: by layers that share a weight, their options; gaining: those that are faster than float.
    uniform: the model in each scheme, all that gain by it. ms: of a run of the model as given.
    spans: by option, the part of it that goes by from the layers' calls to the next ones, and the
    same in the option's scheme. sizes: bytes of the modules as given, by name.
    """

    trial: Trial
    layers: list[Layer]
    found: list[list[Option]]
    gaining: list[list[Option]]
    uniform: list[_Mix]
    ms: float
    spans: dict[Option, tuple[float, float]]
    sizes: dict[str, int]

    def ms_with(self, options: Iterable[Option], drift: Drift | None = None) -> float:
        """What the model takes with `options`, by the rule that times add.

        drift: what a run takes by now of what it took.
        """
        factor = drift or defaultdict(lambda: 1.0)
        total = self.ms * factor[None]
        for option in options:
            before, after = self.spans[option]
            total += after * factor[option.scheme.label] - before * factor[None]
        return total


def measure(
    trial: Trial,
    spill: Spill,
    batches: Sequence[Any],
    schemes: Sequence[Scheme],
    filter_fn: FilterFn | None,
    say: Say,
) -> Measured:
    """Time and error of each layer in each scheme, and of the model in each."""
    model = trial.model
    trial.remember_outputs()
    trial.open()
    sizes = {name: tensor_bytes(m) for name, m in model.named_modules()}
    layers, found = find_options(trial, spill, batches, schemes, filter_fn, say)
    say("Timing the layers in the model, in each scheme in turns")
    ms, spans = _time_in_place(trial, found)
    gaining = [[option for option in options if option.gains] for options in found]
    measure_errors(trial, [option for options in gaining for option in options], say)
    uniform = _uniform(trial, schemes, gaining, say)
    return Measured(trial, layers, found, gaining, uniform, ms, spans, sizes)


def _time_in_place(
    trial: Trial, found: Sequence[Sequence[Option]]
) -> tuple[float, dict[Option, tuple[float, float]]]:
    """Milliseconds of the model as given, and `Measured.spans`; and the options' own times."""
    columns = [
        [option for option in column if option.failed is None]
        for column in zip(*found, strict=True)  # a scheme each
    ]
    places = [[layer.module for layer in options[0].layers] for options in found]
    forms = [trial.int8_form([option.pair for option in column]) for column in columns]
    opened, *taken = trial.time_layers([trial.opened, *forms], places)
    spans = {}
    for place, options in enumerate(found):
        for option, run in zip(options, taken, strict=True):
            if option.failed is None:
                option.ms_before, option.ms_after = 1e3 * opened.own[place], 1e3 * run.own[place]
                spans[option] = 1e3 * opened.span(place), 1e3 * run.span(place)
    return 1e3 * opened.seconds, spans


def choose(measured: Measured, max_error: float, say: Say) -> Searched:
    """Looks for the best model within the error and leaves it in place."""
    trial = measured.trial
    model = trial.model
    given = _Mix("as given", (), error=0.0, form=trial.given)
    uniform = [replace(mix) for mix in measured.uniform]
    mixed = _mixed(measured, max_error, say)
    if any(set(mix.options) == set(mixed[0].options) for mix in uniform if mixed):
        mixed = []

    say("Timing the candidates in turns")
    tried = [given, *uniform, *mixed]
    # What layers take was measured in the opened form; only that shows what the machine does now.
    exposed = [_Mix("opened", (), form=trial.opened)] if trial.opened != trial.given else []
    timed = [given, *exposed, *uniform, *mixed]
    for mix, seconds in zip(timed, trial.time([mix.form for mix in timed]), strict=True):
        mix.ms = 1e3 * seconds
    plain = [*(exposed or [given]), *uniform]
    for mix in tried:
        mix.predicted_ms = measured.ms_with(mix.options, _drift(measured, plain, mix))
    for mix in uniform:
        if not mix.error <= max_error:
            mix.note = f"its error is above {max_error:g}"
    best = given
    for some in (uniform, mixed):  # the plainer one, unless the other is worth it
        fit = [mix for mix in some if mix.note is None]
        fastest = min(fit, key=lambda mix: mix.ms, default=best)
        if fastest.ms * LEAST_GAIN <= best.ms:
            best = fastest
    trial.become(best.form)

    after = tensor_bytes(model), other_bytes(model)
    summary = Summary(_rows(measured, best), measured.sizes[""], *after)
    return Searched(model, summary, [_candidate(mix, given, best) for mix in tried], max_error)


def _uniform(
    trial: Trial, schemes: Sequence[Scheme], gaining: Sequence[Sequence[Option]], say: Say
) -> list[_Mix]:
    """The model in each scheme, every layer in it that gains by it; and its real error."""
    mixes = []
    for scheme in schemes:
        options = tuple(o for row in gaining for o in row if o.scheme is scheme)
        if options:
            say(f"Running in {scheme.label}")
            mixes.append(_assembled(trial, f"all {scheme.label}", options, scheme.label))
    return mixes


def _assembled(
    trial: Trial, name: str, options: tuple[Option, ...], label: str | None = None
) -> _Mix:
    """The model with `options`, its error measured; it stands so afterwards."""
    form = trial.int8_form([option.pair for option in options])
    trial.become(form)
    return _Mix(name, options, label, error=trial.error(), form=form)


def _drift(measured: Measured, plain: Iterable[_Mix], but: _Mix) -> Drift:
    """What the `plain` models other than `but` take now, of what they took when layers were timed.

    A machine whose memory is shared with others may be slower by now, the more so the larger the
    weights. For the scheme of `but` the mean of the others stands.
    """
    others = [mix for mix in plain if mix is not but]
    ratios = {mix.label: mix.ms / measured.ms_with(mix.options) for mix in others}
    return defaultdict(lambda: fmean(ratios.values()), ratios)


def _mixed(measured: Measured, max_error: float, say: Say) -> list[_Mix]:
    """The fastest choice of options whose real error is at most max_error, if there is one.

    The limit on the error in the programme starts at max_error and moves by the ratio of what it
    predicted to what was measured, up or down. A choice that was measured and is too far off does
    not come again, since the limit falls below its own prediction.
    """
    trial, gaining = measured.trial, measured.gaining
    costs = [
        [0.0, *(measured.spans[option][1] - measured.spans[option][0] for option in options)]
        for options in gaining
    ]
    weights = [[0.0, *(_square(option.error) for option in options)] for options in gaining]
    best: _Mix | None = None
    limit, seen = max_error, dict[tuple[Option, ...], _Mix]()
    for number in range(1, _ROUNDS + 1):
        say(f"Choosing a scheme for each layer, round {number}")
        places = cheapest(costs, weights, limit**2)
        options = tuple(row[place - 1] for row, place in zip(gaining, places, strict=True) if place)
        again = options in seen
        if not options or (again and seen[options].error <= max_error):
            break
        if not again:
            mix = seen[options] = _assembled(trial, "mixed", options)
            mix.predicted_ms = measured.ms_with(options)
        mix = seen[options]
        if mix.error <= max_error and (best is None or mix.predicted_ms < best.predicted_ms):
            best = mix
        ratio = max_error / mix.error if mix.error else math.inf
        limit = mix.predicted_error * (min(ratio, _LESS) if again else ratio)
    return [] if best is None else [best]


def _rows(measured: Measured, best: _Mix) -> list[Row]:
    """The summary's rows, in the model's order."""
    taken = {layer.name: o for o in best.options for layer in o.layers}
    why = {layer.name: _why_float(o, best) for o in measured.found for layer in o[0].layers}
    rows = []
    for layer in measured.layers:
        option = taken.get(layer.name)
        if option is None:
            reason = why.get(layer.name, layer.reason)
            rows.append(make_row(replace(layer, reason=reason), None, None, None))
            continue
        # what the option's layers take together is shown on the first of them
        first = layer is option.layers[0]
        timing = Timing(option.ms_before, option.ms_after) if first else None
        twin, label = option.pair.twins()[layer.module], option.scheme.label
        row = make_row(layer, twin, timing, option.pair.sqnr_db, label=label)
        rows.append(replace(row, bytes_before=measured.sizes[layer.name]))
    return rows


def _why_float(options: Sequence[Option], best: _Mix) -> str:
    failed = [option.failed for option in options if option.failed is not None]
    if len(failed) == len(options):
        return f"no scheme can take its input: {failed[0]}"
    if not any(option.gains for option in options):
        return "no scheme is faster here"
    return "float, to keep within max_error" if best.options else "the model is no faster"


def _candidate(mix: _Mix, given: _Mix, best: _Mix) -> SearchedCandidate:
    """What the table says of a model."""
    note = mix.note
    if note is None and mix is not best and mix is not given:
        slower = best.ms < mix.ms
        note = f"{best.name} is faster" if slower else f"not worth more than {best.name}"
    return SearchedCandidate(
        mix.name,
        mix.ms,
        given.ms / mix.ms,
        mix.error,
        mix is best,
        note,
        predicted_ms=mix.predicted_ms,
        predicted_error=mix.predicted_error,
    )


def _square(error: float) -> float:
    return math.inf if math.isnan(error) else error**2
