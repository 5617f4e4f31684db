"""Pictures by layer: the SQNR of a comparison, the errors of a sensitivity."""

import math
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastinfer.compare import Comparison
    from fastinfer.sensitivity import Sensitivity

_MOST_LAYERS = 80  # beyond it only the worst are drawn: the picture stays readable


def plot_comparison(comparison: "Comparison", path: str | PathLike[str]) -> None:
    """Draws each replaced layer's own and accumulated SQNR, in call order, the worst one marked.

    Raises ImportError without matplotlib, ValueError if the comparison holds no layer.
    """
    figure_class = _figure_class()
    if not comparison.layers:
        raise ValueError("comparison: got no replaced layer, want at least one to draw")

    drawn = set(comparison.worst_layers[:_MOST_LAYERS])
    layers = [layer for layer in comparison.layers if layer in drawn]
    places = range(len(layers))
    own = [_drawable(layer.own.sqnr_db) for layer in layers]
    accumulated = [_drawable(layer.accumulated.sqnr_db) for layer in layers]
    worst = layers.index(comparison.worst_layers[0])

    figure = figure_class(figsize=(9, 1.6 + 0.22 * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.hlines(places, own, accumulated, color="0.85", linewidth=3, zorder=1)
    axes.scatter(own, places, color="tab:blue", s=28, zorder=3, label="own error")
    axes.scatter(accumulated, places, color="tab:orange", s=28, zorder=2, label="accumulated error")
    if math.isfinite(own[worst]):
        axes.scatter(
            [own[worst]], [worst], s=140, zorder=4, facecolor="none", edgecolor="tab:red",
            linewidth=1.5, label="worst layer",
        )  # fmt: skip
    axes.set_yticks(places, [_label(layer.name, layer.own.sqnr_db) for layer in layers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("SQNR against the float model, dB (higher is better)")
    title = "Quantisation error by layer, first called on top"
    if len(layers) < len(comparison.layers):
        title += f"\n(the worst {len(layers)} of {len(comparison.layers)} layers)"
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", color="0.93")
    axes.set_axisbelow(True)
    axes.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_sensitivity(sensitivity: "Sensitivity", path: str | PathLike[str]) -> None:
    """Draws the error of the model's output with each layer alone in each scheme, in the model's
    order.

    Raises ImportError without matplotlib.
    """
    figure_class = _figure_class()
    drawn = {layer.name for layer in sensitivity.worst_layers[:_MOST_LAYERS]}
    layers = [layer for layer in sensitivity.measured if layer.name in drawn]
    figure = figure_class(figsize=(9, 1.8 + 0.22 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for scheme in sensitivity.schemes:
        errors = [layer.schemes[scheme.label].error for layer in layers]
        # no place for 0 or NaN on a logarithmic axis
        shown = [error if 0 < error < math.inf else math.nan for error in errors]
        axes.scatter(shown, range(len(layers)), s=28, zorder=2, label=scheme.label)
    axes.set_xscale("log")
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("relative error of the model's output, this layer alone (lower is better)")
    title = "Sensitivity by layer"
    if len(layers) < len(sensitivity.measured):
        title += f"\n(the worst {len(layers)} of {len(sensitivity.measured)} layers)"
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", color="0.93")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)


def _figure_class() -> Any:
    """Figure without pyplot: no global state, no window, whatever backend is configured."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "fastinfer[plot]"') from error
    return Figure


def _drawable(sqnr_db: float) -> float:
    return sqnr_db if math.isfinite(sqnr_db) else math.nan


def _label(name: str, sqnr_db: float) -> str:
    if math.isfinite(sqnr_db):
        return name
    return f"{name} ({'exact' if sqnr_db == math.inf else 'no finite values'})"
