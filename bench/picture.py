"""The picture of the whole-model benchmark: speed-up over torch fp32, SQNR beside it."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from contenders import FP32
from records import OURS, ModelRecord

COLOURS = {"fp32": "#9aa5b1", "bf16": "#6b8fb5", "int8": "#d9a441", "ours": "#2a9d5c"}
SHADES = (1.0, 0.75, 0.5)  # of the sizes of a model, first size first


def draw(records: Sequence[ModelRecord], path: Path, machine: str) -> None:
    """A panel a model, a bar a contender and size. Raises ValueError if nothing was timed."""
    timed = [r for r in records if not r.reason]
    models = list(dict.fromkeys(r.model for r in timed))
    if not models:
        raise ValueError("records: got none with a time, want at least one to draw")
    columns = min(2, len(models))
    lines = -(-len(models) // columns)
    most = max(len({r.candidate for r in timed if r.model == model}) for model in models)
    # Figure without pyplot: no global state, no window, whatever backend is configured.
    figure = Figure(figsize=(7.5 * columns, lines * (1.2 + 0.5 * most)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, model in zip(panels, models, strict=False):
        _panel(axes, model, [r for r in timed if r.model == model])
    for axes in panels[len(models) :]:
        axes.axis("off")
    figure.suptitle(f"Speed-up of whole models over torch fp32\n{machine}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes, model: str, timed: Sequence[ModelRecord]) -> None:  # type: ignore[no-untyped-def]
    names = list(dict.fromkeys(r.candidate for r in timed))
    sizes = list(dict.fromkeys(r.size for r in timed))
    base = {r.size: r.median_us for r in timed if r.candidate == FP32}
    height = 0.84 / len(sizes)
    widest = 0.0
    for r in timed:
        if r.size not in base:
            continue
        place = sizes.index(r.size)
        y = names.index(r.candidate) + (place - (len(sizes) - 1) / 2) * height
        speed = base[r.size] / r.median_us
        widest = max(widest, speed)
        axes.barh(y, speed, 0.92 * height, color=COLOURS[r.kind], alpha=SHADES[place % 3])
        sqnr = f", {r.sqnr_db:.0f} dB" if math.isfinite(r.sqnr_db) else ""
        axes.text(speed, y, f" {r.size}: {speed:.2f}x{sqnr}", va="center", fontsize=6.5)
    axes.set_xlim(0, 1.35 * (widest or 1))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text() == OURS:
            label.set_fontweight("bold")
    axes.invert_yaxis()
    axes.axvline(1, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_title(model, fontsize=11)
    axes.set_xlabel("times torch fp32 (size: speed-up, SQNR against torch fp32)", fontsize=8)
    axes.grid(axis="x", color="0.93")
    axes.set_axisbelow(True)
