"""`sensitivity`: how far the model's output moves when a linear layer changes its scheme."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

from fastinfer.candidates import FilterFn, check_filter_fn
from fastinfer.observe import list_batches
from fastinfer.options import Option, find_options, measure_errors
from fastinfer.render import Printable, titled_table
from fastinfer.schemes import SCHEMES, Scheme, check_schemes
from fastinfer.trial import check_max_error, check_model, on_trial

_LONGEST_TABLE = 20  # layers


@dataclass(frozen=True)
class SchemeError:
    """What a scheme does to a layer; NaN and 0 ms where the layer cannot take its input."""

    error: float  # ||y - y0|| / ||y0|| of the model's output, this layer alone in the scheme
    own_error: float  # the same of the layer's own output, on the input that float gives it
    ms_before: float  # over all its calls in a run of all batches, in float
    ms_after: float  # the same in the scheme
    failed: str | None = None  # why the layer cannot take its input


@dataclass(frozen=True)
class LayerSensitivity:
    """A linear layer under its first name, or all that share its weight; its errors by scheme."""

    name: str
    in_features: int
    out_features: int
    schemes: dict[str, SchemeError]  # empty if it was left
    reason: str | None = None  # why it was left
    shared_with: tuple[str, ...] = ()  # the first names of the others

    @property
    def worst(self) -> float:
        """The largest error of the model's output over the schemes."""
        return max((_ordered(s.error) for s in self.schemes.values()), default=-math.inf)


@dataclass(frozen=True)
class Sensitivity(Printable):
    """The result of `sensitivity`: the layers in the model's order. Prints the worst first."""

    layers: tuple[LayerSensitivity, ...]
    schemes: tuple[Scheme, ...]
    exposed: bool = False  # whether some of the layers come of `expose_linears_`

    @property
    def measured(self) -> tuple[LayerSensitivity, ...]:
        """The layers that were put into the schemes."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def worst_layers(self) -> tuple[LayerSensitivity, ...]:
        """Those by their largest error, largest first."""
        return tuple(sorted(self.measured, key=lambda layer: -layer.worst))

    def left_out(self, scheme: str, max_error: float = 0.05) -> tuple[str, ...]:
        """The layers to leave in float, worst first, so that with all others in `scheme` the
        model's output has an error of at most max_error.

        The fewest that do so if squares of errors add, as they do where the errors of layers are
        independent; what the model really makes of it, `search` measures. scheme: a label.

        Raises ValueError on a label of none of the schemes, or a max_error that is negative or not
        finite; TypeError if it is no number.
        """
        labels = [scheme.label for scheme in self.schemes]
        if scheme not in labels:
            raise ValueError(f"scheme: got {scheme!r}, want one of {', '.join(labels)}")
        check_max_error(max_error)
        errors = {layer.name: _ordered(layer.schemes[scheme].error) for layer in self.measured}
        kept = sorted(errors, key=lambda name: errors[name])
        squares, count = 0.0, 0
        for name in kept:
            squares += errors[name] ** 2
            if squares > max_error**2:
                break
            count += 1
        return tuple(reversed(kept[count:]))

    def code(self, scheme: str, max_error: float = 0.05) -> str:
        """Python to paste: a filter_fn that leaves out `left_out(scheme, max_error)`, and the calls
        that put every other layer of `model` into the scheme.

        Raises as `left_out` does.
        """
        errors = {layer.name: layer.schemes for layer in self.measured}
        lines = [
            f"    {json.dumps(name)},  # {errors[name][scheme].error:.2g}"
            for name in self.left_out(scheme, max_error)
        ]
        names = "\n".join(["{", *lines, "}"]) if lines else "set()"
        calls = next(s.code() for s in self.schemes if s.label == scheme)
        if self.exposed and "prune_(" in calls:
            calls = f"fastinfer.expose_linears_(model)\n{calls}"
        return (
            f"# Too sensitive to be {scheme} within an error of {max_error:g}; the error of each.\n"
            f"sensitive = {names}\n\n\n"
            "def filter_fn(module, name):\n"
            "    return name not in sensitive\n\n\n"
            f"{calls}\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json: an error that is not finite is None."""
        layers = [asdict(layer) for layer in self.layers]
        for layer in layers:
            for errors in layer["schemes"].values():
                for key in ("error", "own_error"):
                    errors[key] = errors[key] if math.isfinite(errors[key]) else None
        return {"schemes": [scheme.label for scheme in self.schemes], "layers": layers}

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws the error of the model's output by layer and scheme to a picture file (PNG, SVG,
        PDF: by the name's ending).

        Raises ImportError without matplotlib (`pip install "fastinfer[plot]"`).
        """
        from fastinfer.plot import plot_sensitivity  # matplotlib only when a picture is wanted

        plot_sensitivity(self, path)

    def __repr__(self) -> str:
        worst = self.worst_layers[0]
        return (
            f"<Sensitivity: {len(self.measured)} layers under {len(self.schemes)} schemes, "
            f"{worst.name} the most sensitive with an error of {worst.worst:.2g}>"
        )

    def __rich__(self) -> RenderableType:
        table = titled_table("Linear layers, the most sensitive first")
        table.add_column("layer", overflow="fold")
        table.add_column("in x out", justify="right", no_wrap=True)
        for scheme in self.schemes:
            table.add_column(f"{scheme.label}:\nmodel, own error", justify="right")
        for layer in self.worst_layers[:_LONGEST_TABLE]:
            cells = [_cell(layer.schemes[scheme.label]) for scheme in self.schemes]
            table.add_row(layer.name, f"{layer.in_features} x {layer.out_features}", *cells)
        notes = [
            "Error: ||y - y0|| / ||y0||, of the model's output with this layer alone in the scheme,"
            "\nand of the layer's own output on its float input."
        ]
        hidden = len(self.measured) - _LONGEST_TABLE
        if hidden > 0:
            notes.append(f"{hidden} less sensitive layers not shown; to_dict() has all")
        left = [layer for layer in self.layers if layer.reason is not None]
        notes += [f"Left: {layer.name}: {layer.reason}" for layer in left[:_LONGEST_TABLE]]
        return Group(table, Text("\n".join(notes)))


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    schemes: Sequence[Scheme] = SCHEMES,
    *,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Measures how sensitive a model is to each of its linear layers, under each scheme.

    model: trained, on the CPU; it comes out as it was. It runs once on all batches for each layer
    and scheme, in eval mode under torch.inference_mode(), with that layer alone in the scheme.
    batches: an iterable of what it is called with: a tensor, a tuple of positional arguments or a
    dict of keyword arguments each. schemes: Int8Dynamic(), Int8Sparse(structure, criterion) or
    others of that protocol (`fastinfer.schemes.Scheme`). filter_fn(module, name) -> bool: False
    leaves that layer out. progress: True or False shows or hides a bar; None shows it on a
    terminal.

    The error is ||y - y0|| / ||y0|| in the Euclidean norm over all floating-point outputs for all
    batches together, y0 being those of the model as given. Layers that share a weight change
    together. Each layer is also timed beside its float form, on what reaches it.

    Memory as with `optimize`, whose file this needs too: about the largest layer and the outputs
    y0; and what a criterion of pruning takes.

    Raises TypeError on arguments of other types; ValueError on no batches, on schemes with one
    label, a model that is not on the CPU, is itself an nn.Linear, or has no floating-point output
    or no linear layer that can change. What the model raises on a batch comes through.
    """
    check_model(model)
    check_schemes(schemes)
    check_filter_fn(filter_fn)
    given = list_batches(batches)
    with on_trial(model, given, progress) as (trial, spill, say):
        trial.remember_outputs()
        trial.open()
        layers, found = find_options(trial, spill, given, schemes, filter_fn, say)
        measure_errors(trial, [o for options in found for o in options if o.failed is None], say)
        exposed = bool(trial.opened.exposed)
        trial.undo()
    measured = {options[0].layers[0].name: _row(options) for options in found}
    shared = {layer.name for options in found for layer in options[0].layers[1:]}
    rows = [
        measured.get(layer.name)
        or LayerSensitivity(
            layer.name, layer.module.in_features, layer.module.out_features, {}, layer.reason
        )
        for layer in layers
        if layer.name not in shared
    ]
    return Sensitivity(tuple(rows), tuple(schemes), exposed)


def _row(options: Sequence[Option]) -> LayerSensitivity:
    first, *others = options[0].layers
    errors = {
        o.scheme.label: SchemeError(o.error, o.own_error, o.ms_before, o.ms_after, o.failed)
        for o in options
    }
    shape = first.module.in_features, first.module.out_features
    return LayerSensitivity(
        first.name, *shape, errors, shared_with=tuple(layer.name for layer in others)
    )


def _ordered(error: float) -> float:
    """What could not be measured counts as infinite."""
    return math.inf if math.isnan(error) else error


def _cell(error: SchemeError) -> str:
    return "failed" if error.failed else f"{error.error:.2g}, {error.own_error:.2g}"
