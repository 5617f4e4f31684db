"""A model on trial: put into one form after another, run, timed, and put back."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fastinfer.compare import Error, float_tensors
from fastinfer.expose import Exposure, find_exposures, runs
from fastinfer.fuse import Fusion
from fastinfer.guard import Timing, time_layers
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.observe import call, evaluating, layer_by_layer, observed
from fastinfer.pairs import Pair, Twins, do_all, release
from fastinfer.spans import Spans, median_spans, take_spans
from fastinfer.spill import Spill
from fastinfer.swap import close_fused_paths, fused_paths, open_fused_paths

T = TypeVar("T")

LEAST_GAIN = 1.02  # less is within the noise of a measurement, and not worth a change
# Many short turns: where the weights lie, and what else the machine does, is the noise, and both
# stay the same within a turn. In each round every form has one.
_ROUNDS = 9
_TURN_SECONDS, _TURN_FEWEST = 0.05, 2
_CALL = "_compiled_call_impl"  # where nn.Module keeps what a call runs in place of forward


@dataclass(frozen=True)
class Form:
    """What a model can be: the pairs that are int8 in it, what a call of it runs, and which modules
    have linear layers in their place, as those must in which something is int8."""

    int8: tuple[Pair, ...] = ()
    call: Any = None
    fusion: Fusion | None = None
    exposed: tuple[Exposure, ...] = ()


class Trial:
    """`model` and `batches`, in eval mode and inference mode whenever it runs.

    `pairs`: the layers that have an int8 form; a layer that has several is in as many pairs, and a
    form holds one of them at most. `given`: the form that the model came in. `opened`: the one in
    which all of its linear layers stand in the model; the same unless some have to be exposed.
    `form`: the one that it is in.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any]) -> None:
        self.model = model
        self.pairs: list[Pair] = []
        self.given = self.form = Form(call=vars(model).get(_CALL))
        self.opened = replace(self.given, exposed=tuple(find_exposures(model)))
        self._batches = batches
        self._had_call = _CALL in vars(model)
        self._paths = fused_paths(model)
        self._want: list[dict[str, Tensor]] = []

    def int8_form(self, pairs: Sequence[Pair]) -> Form:
        linears = {layer.module for pair in pairs for layer in pair.layers}
        exposed = tuple(e for e in self.opened.exposed if not e.linears.isdisjoint(linears))
        return replace(self.opened, int8=tuple(pairs), exposed=exposed)

    def fused_form(self, fusion: Fusion) -> Form:
        """The present form, after fuse_."""
        return replace(self.form, call=vars(self.model)[_CALL], fusion=fusion)

    def become(self, form: Form) -> None:
        """Puts the model into a form; layers that are in it already are not touched."""
        try:
            if set(form.int8) != set(self.form.int8) or form.exposed != self.form.exposed:
                self._change(form)
        except BaseException:
            self.undo()
            raise
        self._set_call(form)
        self.form = form

    def _change(self, form: Form) -> None:
        open_fused_paths(self._paths)
        for pair in self.pairs:
            if pair not in form.int8:
                pair.to_float()
        self._expose(form)
        for pair in form.int8:
            pair.to_int8()
        close_fused_paths(self.model)

    def _set_call(self, form: Form) -> None:
        if form.call is None and not self._had_call:
            vars(self.model).pop(_CALL, None)
        else:
            setattr(self.model, _CALL, form.call)

    def open(self) -> None:
        """Puts the model into its opened form, which is the given one if it does not run so."""
        self.become(self.opened)
        if self.opened.exposed and not runs(self.model, self._batches):
            self.become(self.given)
            self.opened = self.given

    @property
    def replaced(self) -> list[nn.Module]:
        """The modules of the model as given that have others in their place in its opened form."""
        return [exposure.layer.module for exposure in self.opened.exposed]

    def _expose(self, form: Form) -> None:
        for exposure in set(self.opened.exposed) - set(form.exposed):
            exposure.close()
        for exposure in set(form.exposed) - set(self.form.exposed):
            exposure.open()

    def undo(self) -> None:
        """The model as it was, whatever happened, and happens meanwhile."""
        self.form = self.given
        do_all(
            *(pair.to_float for pair in self.pairs),
            partial(self._expose, self.given),
            partial(open_fused_paths, self._paths),
            partial(self._set_call, self.given),
        )

    def finish(self) -> None:
        """Leaves the model in its form and forgets the rest."""
        self._own_memory_()  # while there is a way back
        pairs = self.pairs
        to_huge_pages_(twin for pair in pairs if pair.is_int8 for twin in pair.twins().values())
        # What holds float layers goes first: their weights would be read back. There is no way
        # back from here.
        kept = Form(call=self.form.call)
        self.pairs, self._paths = [], []
        self.given = self.opened = self.form = kept
        release(pairs)

    def _own_memory_(self) -> None:
        """Of what stands in place of others; a function, since its variable holds float layers."""
        for exposure in self.form.exposed:
            exposure.own_memory_()

    def remember_outputs(self) -> None:
        """Takes what the model returns now for what `error` compares with."""
        with self._running(), self._on_equal_terms():
            for batch in self._batches:
                outputs = dict(float_tensors(call(self.model, batch), ""))
                if not outputs:
                    raise ValueError("model: its output holds no floating-point tensor to compare")
                self._want.append({name: y.clone() for name, y in outputs.items()})

    def error(self) -> float:
        """||y - y0|| / ||y0|| over all outputs for all batches together."""
        error = Error()
        with self._running(), self._on_equal_terms():
            for batch, want in zip(self._batches, self._want, strict=True):
                got = dict(float_tensors(call(self.model, batch), ""))
                if got.keys() != want.keys():
                    raise ValueError(f"its outputs are {list(got)}, not {list(want)}")
                for name, y in want.items():
                    error.add(y, got[name])
        return error.relative

    def time_pairs(
        self, pairs: Sequence[Pair]
    ) -> tuple[dict[nn.Module, Timing], dict[Pair, float]]:
        """Times each layer of `pairs` beside its twin, on what reaches it; and the error that a
        pair makes on that input, of its float layers' outputs."""
        errors = {pair: Error() for pair in pairs}
        pair_of = {layer.module: pair for pair in pairs for layer in pair.layers}
        twins = Twins(pairs)

        def look(linear: nn.Module, y: Tensor, got: Tensor) -> None:
            errors[pair_of[linear]].add(y, got)

        timings = time_layers(self.model, self._batches, twins, look)
        twins.drop()
        return timings, {pair: error.relative for pair, error in errors.items()}

    def time(self, forms: Sequence[Form]) -> list[float]:
        """Seconds of a run over all batches in each form: the median of turns, so that a slow
        second of the machine falls on all. Forms with the same layers in int8 come in a row, since
        weights move between the others."""

        def sample(form: Form) -> float:
            start = perf_counter()
            self._run()
            return perf_counter() - start

        return [median(taken) for taken in self._in_turns(forms, sample)]

    def time_layers(
        self, forms: Sequence[Form], places: Sequence[Sequence[nn.Module]]
    ) -> list[Spans]:
        """Where a run over all batches spends its time in each form, medians of turns as in `time`.

        places: float layers; in a form, the twins that stand for them there. So each layer meets
        the caches, the memory and the threads as the model leaves them. What torch.compile made of
        the model does not call its layers, and is not taken.
        """

        def sample(form: Form) -> Spans:
            twins = {linear: twin for pair in form.int8 for linear, twin in pair.twins().items()}
            standing = [[twins.get(module, module) for module in modules] for modules in places]
            with observed(self.model):
                return take_spans(self._run, standing)

        return [median_spans(taken) for taken in self._in_turns(forms, sample)]

    def _in_turns(self, forms: Sequence[Form], sample: Callable[[Form], T]) -> list[list[T]]:
        """The samples of each form, taken in turns, the model in that form."""
        samples: list[list[T]] = [[] for _ in forms]
        for _ in range(_ROUNDS):
            for form, taken in zip(forms, samples, strict=True):
                self.become(form)
                with self._running():
                    self._run()  # brings in the weights
                    start, fewest = perf_counter(), len(taken) + _TURN_FEWEST
                    while len(taken) < fewest or perf_counter() - start < _TURN_SECONDS:
                        taken.append(sample(form))
        return samples

    def _run(self) -> None:
        for batch in self._batches:
            call(self.model, batch)

    def _on_equal_terms(self) -> AbstractContextManager[None]:
        """Without torch's fused path, which some forms take and others do not. What torch.compile
        made takes none, and would be traced again."""
        return layer_by_layer() if vars(self.model).get(_CALL) is None else nullcontext()

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), evaluating(self.model):
            yield


@contextmanager
def on_trial(
    model: nn.Module, batches: Sequence[Any], progress: bool | None
) -> Iterator[tuple[Trial, Spill, Callable[[str], None]]]:
    """A trial, its file, and say(text), which shows what is being done; an exception inside leaves
    the model as it was.

    progress: True or False shows or hides the bar; None shows it on a terminal.
    """
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    bar = Progress(console=console, transient=console.is_terminal, disable=not shown)
    with bar, TemporaryFile(prefix="fastinfer-") as file:
        task = bar.add_task("Running the model as given", total=None)
        trial = Trial(model, batches)
        try:
            yield trial, Spill(file), lambda text: bar.update(task, description=text)
        except BaseException:
            trial.undo()
            raise


def check_model(model: object) -> None:
    """Raises TypeError or ValueError unless `model` can be on trial."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    if isinstance(model, nn.Linear):
        raise ValueError(
            "model: got an nn.Linear, which cannot be replaced in place; "
            "use fastinfer.quantize_linear(model), which returns the int8 layer"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"model: {name} is on {tensor.device}, want the model on the CPU")


def check_max_error(max_error: Any) -> None:
    """Raises TypeError or ValueError unless `max_error` is a finite number of at least 0."""
    check_number("max_error", max_error)
    if not 0 <= max_error < math.inf:
        raise ValueError(f"max_error: got {max_error}, want a finite number of at least 0")


def check_number(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, want a number")
