"""`quantize_`: every linear layer of a model that gains by it becomes an int8 one."""

import math
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from fastinfer.candidates import FilterFn, Layer, find_layers, group_tied
from fastinfer.config import Int8Dynamic
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.guard import Timing, time_layers, verdict
from fastinfer.nn import QuantizedLinear
from fastinfer.observe import check_inputs
from fastinfer.summary import Row, Summary

_INT8_DYNAMIC = Int8Dynamic()
# A progress bar from here on: about a second of work on one core, or many layers.
_LONG_WEIGHTS = 100_000_000
_LONG_LAYERS = 50


def quantize_(
    model: nn.Module,
    config: Int8Dynamic = _INT8_DYNAMIC,
    *,
    filter_fn: FilterFn | None = None,
    example_inputs: Any = None,
    progress: bool | None = None,
) -> Summary:
    """Replaces the nn.Linear layers of `model`, in place, by int8 ones; says what became of each.

    model: a trained model on the CPU; its layers are replaced, its other parts not touched.
    config: the scheme. filter_fn(module, name) -> bool: False leaves that layer as it is.
    example_inputs: what the model is called with: a tensor, a tuple of positional arguments or a
    dict of keyword arguments. With it, the model runs once, and a layer is replaced only if, on
    this machine and at the shapes that reach it in that run, int8 is not slower; one that is not
    reached stays float. progress: True or False shows or hides the bar; None shows it on a
    terminal if the work is long.

    Left alone, each with its reason in the summary: subclasses of nn.Linear, parametrised layers,
    layers with hooks or with a forward of their own, layers that filter_fn rejects, dtypes other
    than float32, bfloat16 and float16, K above 131071, weights with NaN or Inf, weights not on the
    CPU, layers quantised already. Two layers that share a weight share the int8 one as well; a
    layer whose weight is tied to a module that stays float (lm_head to an embedding) stays too.

    nn.TransformerEncoderLayer has a fused path in eval mode that reads its linear layers' weights
    and never calls them; it is switched off in those whose layers were replaced. Positions that
    are masked as padding then hold numbers like any other, where the fused path wrote zeros.

    The layers are all made before the first is put in place: an exception leaves the model as it
    was, and the int8 weights exist beside the float ones for a moment (a quarter more memory).

    Raises TypeError on arguments of other types; ValueError if `model` is itself an nn.Linear,
    which nothing can replace in place. What the model raises on example_inputs comes through.
    """
    _check(model, config, filter_fn, example_inputs)
    layers = find_layers(model, filter_fn)
    groups = group_tied(model, layers)
    bytes_before = tensor_bytes(model)

    made = _make(groups, progress)
    timings: dict[nn.Linear, Timing] = {}
    if example_inputs is not None:
        timings = time_layers(model, example_inputs, made)
        for group in groups:
            reason = verdict([timings[m.module] for m in group if m.module in timings])
            for layer in group:
                layer.reason = reason

    rows = [
        _row(layer, config, made.get(layer.module), timings.get(layer.module)) for layer in layers
    ]
    for layer in layers:
        if layer.reason is None:
            for parent, attribute in layer.places:
                setattr(parent, attribute, made[layer.module])
    _close_fused_paths(model)
    return Summary(rows, bytes_before, tensor_bytes(model), other_bytes(model))


def _check(model: object, config: object, filter_fn: object, example_inputs: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    if not isinstance(config, Int8Dynamic):
        raise TypeError(f"config: got {type(config).__name__}, want Int8Dynamic()")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"filter_fn: got {type(filter_fn).__name__}, want a function (module, name) -> bool"
        )
    if example_inputs is not None:
        check_inputs("example_inputs", example_inputs)
    if isinstance(model, nn.Linear):
        raise ValueError(
            "model: got an nn.Linear, which cannot be replaced in place; "
            "use fastinfer.quantize_linear(model), which returns the int8 layer"
        )


def _make(groups: list[list[Layer]], progress: bool | None) -> dict[nn.Linear, QuantizedLinear]:
    """The int8 layer of each float one; those of a group share their weight."""
    made: dict[nn.Linear, QuantizedLinear] = {}
    console = Console(stderr=True)
    if progress is None:
        weights = sum(group[0].module.weight.numel() for group in groups)
        progress = (weights > _LONG_WEIGHTS or len(groups) > _LONG_LAYERS) and console.is_terminal
    bar = Progress(console=console, transient=console.is_terminal, disable=not progress)
    # Made as normal tensors even within inference_mode, or nothing could be loaded into them later.
    with torch.inference_mode(False), torch.no_grad(), bar:
        for group in bar.track(groups, description="Quantising"):
            first = made[group[0].module] = QuantizedLinear.from_linear(group[0].module)
            for layer in group[1:]:
                twin = made[layer.module] = QuantizedLinear.from_linear(layer.module)
                twin.weight_packed, twin.weight_scale = first.weight_packed, first.weight_scale
    return made


def _row(
    layer: Layer, config: Int8Dynamic, quantized: QuantizedLinear | None, timing: Timing | None
) -> Row:
    module = layer.module
    swapped = quantized if layer.reason is None else None
    measured = timing if timing is not None and timing.error is None else None
    bytes_before = tensor_bytes(module)
    return Row(
        name=layer.name,
        in_features=module.in_features,
        out_features=module.out_features,
        scheme=config.label if swapped else None,
        reason=layer.reason,
        bytes_before=bytes_before,
        bytes_after=tensor_bytes(swapped) if swapped else bytes_before,
        sqnr_db=_weight_sqnr_db(module, swapped) if swapped else None,
        ms_before=measured.ms_before if measured else None,
        ms_after=measured.ms_after if measured else None,
    )


@torch.no_grad()
def _weight_sqnr_db(linear: nn.Linear, quantized: QuantizedLinear) -> float:
    """20 log10(|W| / |W - W_int8|), Frobenius norms; inf if int8 holds the weight exactly."""
    weight = linear.weight.float()
    signal = torch.linalg.vector_norm(weight, dtype=torch.float64)
    error = torch.linalg.vector_norm(weight - quantized.dequantize(), dtype=torch.float64)
    return 20 * math.log10(float(signal / error)) if error > 0 else math.inf


def _close_fused_paths(model: nn.Module) -> None:
    """Makes torch's transformer encoder call its linear layers where they are int8 ones.

    nn.TransformerEncoderLayer.forward hands the weights of linear1 and linear2 to one fused float
    operator if activation_relu_or_gelu is not 0; the activation itself comes from elsewhere.
    nn.TransformerEncoder.forward makes nested tensors for that operator if use_nested_tensor.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            encoder_layers: list[nn.Module] = list(module.layers)
            if any(_holds_int8(layer) for layer in encoder_layers):
                module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer) and _holds_int8(module):
            module.activation_relu_or_gelu = 0


def _holds_int8(layer: nn.Module) -> bool:
    return any(isinstance(child, QuantizedLinear) for child in layer.children())
