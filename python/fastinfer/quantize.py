"""`quantize_`: every linear layer of a model that gains by it becomes an int8 one."""

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from fastinfer.calibration import InputRange
from fastinfer.candidates import (
    ALREADY,
    FilterFn,
    Layer,
    check_filter_fn,
    find_layers,
    group_tied,
)
from fastinfer.config import Int8Dynamic, Int8Static, Int8WeightOnly
from fastinfer.expose import exposed
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.fuse import fuse_
from fastinfer.guard import Timing, time_layers, verdict
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.nn import QuantizedLinear, WeightOnlyLinear
from fastinfer.observe import check_inputs
from fastinfer.summary import Row, Summary
from fastinfer.swap import (
    Make,
    make_row,
    make_twins,
    put,
    same_buffers,
    weight_sqnr_db,
)

_INT8_DYNAMIC = Int8Dynamic()
# A progress bar from here on: about a second of work on one core, or many layers.
_LONG_WEIGHTS = 100_000_000
_LONG_LAYERS = 50


def quantize_(
    model: nn.Module,
    config: Int8Dynamic | Int8Static | Int8WeightOnly = _INT8_DYNAMIC,
    *,
    filter_fn: FilterFn | None = None,
    example_inputs: Any = None,
    fuse: bool = False,
    progress: bool | None = None,
) -> Summary:
    """Replaces the linear layers of `model`, in place, by int8 ones; says what became of each.

    These are its nn.Linear layers, and what `expose_linears_` makes linear layers: the projections
    of nn.MultiheadAttention, named q_proj, k_proj, v_proj and out_proj below it, and transformers'
    Conv1D. A module that held those comes back as it was if none of them becomes int8.

    model: a trained model on the CPU; its layers are replaced, its other parts not touched.
    config: the scheme, Int8Dynamic(), Int8Static(calibration) or Int8WeightOnly().
    filter_fn(module, name) -> bool: False leaves that layer as it is. example_inputs: what the
    model is called with: a tensor, a tuple of positional arguments or a dict of keyword arguments.
    With it, the model runs once, and a layer is replaced only if, on this machine and at the shapes
    that reach it in that run, int8 is not slower; one that is not reached stays float. fuse:
    whether to call fuse_ on the model as well (nothing is fused into weight-only layers); the
    summary's `fusion` is what it returns. progress: True or False shows or hides the bar; None
    shows it on a terminal if the work is long.

    Left alone, each with its reason in the summary: subclasses of nn.Linear, parametrised layers,
    layers with hooks or with a forward of their own, layers that filter_fn rejects, dtypes other
    than float32, bfloat16 and float16, K above 131071, weights with NaN or Inf, weights not on the
    CPU, layers quantised already (but Int8Static fixes the ranges, or fixes them anew, of those
    that its calibration has). Two layers that share a weight share the int8 one as well, and so
    does a plain nn.Embedding (that of the tokens, whose weight lm_head often has), which becomes a
    `fastinfer.nn.QuantizedEmbedding`; a layer whose weight is tied to another module stays.

    nn.TransformerEncoderLayer has a fused path in eval mode that reads its linear layers' weights
    and never calls them; it is switched off in those whose layers were replaced. Positions that
    are masked as padding then hold numbers like any other, where the fused path wrote zeros.

    The layers are all made before the first is put in place: an exception leaves the model as it
    was, and the int8 weights exist beside the float ones for a moment (a quarter more memory).

    Raises TypeError on arguments of other types; ValueError if `model` is itself an nn.Linear,
    which nothing can replace in place, or if the calibration is of another model. What the model
    raises on example_inputs comes through.
    """
    _check(model, config, filter_fn, example_inputs)
    bytes_before = tensor_bytes(model)
    with exposed(model, example_inputs):
        rows = _replace(model, config, filter_fn, example_inputs, progress)
    fusion = fuse_(model, example_inputs) if fuse else None
    return Summary(rows, bytes_before, tensor_bytes(model), other_bytes(model), fusion)


def _replace(
    model: nn.Module, config: Any, filter_fn: FilterFn | None, example_inputs: Any, progress: Any
) -> list[Row]:
    """Puts the int8 layers in place; the summary's rows."""
    static = isinstance(config, Int8Static)
    ranges = config.calibration.by_name if isinstance(config, Int8Static) else {}
    layers = find_layers(model, filter_fn, quantized_too=static)
    check_names(ranges, layers)
    groups = group_tied(model, layers, embeddings_too=True)
    for layer in layers:
        if layer.reason is None and isinstance(layer.module, QuantizedLinear):
            if layer.name in ranges:
                groups.append([layer])
            else:
                layer.reason = ALREADY

    weight_only = isinstance(config, Int8WeightOnly)
    make = WeightOnlyLinear.from_linear if weight_only else QuantizedLinear.from_linear
    made = _make(groups, make, ranges, progress)
    timings: dict[nn.Module, Timing] = {}
    if example_inputs is not None:
        timings = time_layers(model, [example_inputs], made)
        for group in groups:
            reason = verdict([timings[m.module] for m in group if m.module in timings])
            for layer in group:
                layer.reason = reason

    rows = []
    for layer in layers:
        twin = made[layer.module] if layer.reason is None else None
        was_float = not isinstance(layer.module, QuantizedLinear)
        sqnr = weight_sqnr_db(layer.module, twin) if twin and was_float else None
        label = config.label if weight_only else None
        rows.append(make_row(layer, twin, timings.get(layer.module), sqnr, static, label))
    for group in groups:
        for layer in group:
            if layer.reason is None:
                put(layer, made[layer.module])
    done = (layer.module for group in groups for layer in group if layer.reason is None)
    # A layer that was int8 before keeps its weight where it is, perhaps in a mapped file.
    to_huge_pages_(made[module] for module in done if not isinstance(module, QuantizedLinear))
    return rows


def _check(model: object, config: object, filter_fn: object, example_inputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_config(config)
    check_filter_fn(filter_fn)
    if example_inputs is not None:
        check_inputs("example_inputs", example_inputs)
    if isinstance(model, nn.Linear):
        raise ValueError(
            "model: got an nn.Linear, which cannot be replaced in place; "
            "use fastinfer.quantize_linear(model), which returns the int8 layer"
        )


def check_config(config: object) -> None:
    """Raises TypeError unless `config` is a scheme of quantisation."""
    if not isinstance(config, Int8Dynamic | Int8Static | Int8WeightOnly):
        raise TypeError(
            f"config: got {type(config).__name__}, want Int8Dynamic(), Int8Static(calibration) or "
            "Int8WeightOnly()"
        )


def check_names(ranges: Mapping[str, InputRange], layers: list[Layer]) -> None:
    """Raises ValueError if a range is of none of `layers`."""
    unknown = ranges.keys() - {layer.name for layer in layers}
    if unknown:
        raise ValueError(
            f"config: its calibration has a range for {min(unknown)}, which is no linear layer of "
            "model; want what fastinfer.calibrate(model, batches) returns"
        )


def _make(
    groups: list[list[Layer]],
    make: Make,
    ranges: Mapping[str, InputRange],
    progress: bool | None,
) -> dict[nn.Module, Any]:
    """The int8 layer of each float one; those of a group share their weight."""
    made: dict[nn.Module, Any] = {}
    console = Console(stderr=True)
    if progress is None:
        weights = sum(g[0].module.in_features * g[0].module.out_features for g in groups)
        progress = (weights > _LONG_WEIGHTS or len(groups) > _LONG_LAYERS) and console.is_terminal
    with Progress(console=console, transient=console.is_terminal, disable=not progress) as bar:
        for group in bar.track(groups, description="Quantising"):
            module = group[0].module
            quantized = isinstance(module, QuantizedLinear)
            made |= {module: same_buffers(module)} if quantized else make_twins(group, make)
            for layer in group:
                if layer.name in ranges:
                    found = ranges[layer.name]
                    with torch.inference_mode(False):
                        made[layer.module].set_input_range(found.low, found.high)
    return made
