"""`prepare_qat_`: linear layers that train with int8 in view; `convert_qat_`: makes them int8."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastinfer.candidates import (
    FilterFn,
    Layer,
    bare,
    check_container,
    check_filter_fn,
    find_layers,
    group_layers,
)
from fastinfer.config import Int8Dynamic, Int8Static
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.nn import QATLinear, QuantizedLinear, why_not_quantizable
from fastinfer.quantize import check_names
from fastinfer.summary import Row, Summary
from fastinfer.swap import close_fused_paths, make_row, make_twins, put, weight_sqnr_db

_INT8_DYNAMIC = Int8Dynamic()


def prepare_qat_(
    model: nn.Module,
    config: Int8Dynamic | Int8Static = _INT8_DYNAMIC,
    *,
    filter_fn: FilterFn | None = None,
) -> Summary:
    """Makes the nn.Linear layers of `model`, in place, compute as int8 ones and stay trainable.

    The modules stay the same objects, with the same parameters and state dict; each becomes a
    `fastinfer.nn.QATLinear`, whose output has, bit for bit, what the layer that `convert_qat_`
    makes of it gives. Gradients pass the rounding as if it were not there (straight-through
    estimator: Bengio, Leonard and Courville, 2013, https://arxiv.org/abs/1308.3432). Train the
    model, with `distill` or a loop of your own, then call `convert_qat_`.

    model: a float model on the CPU. config: the scheme; with Int8Static(calibration) the ranges
    stay as calibrated, and what they clip gets no gradient. filter_fn(module, name) -> bool: False
    leaves that layer as it is.

    Left alone are the layers that `quantize_` leaves, with the same reasons in the summary, except
    that parametrised ones (a mask of pruning, torch.nn.utils.parametrize) are taken as well: the
    weight is quantised as the parametrisation gives it. Layers that share a weight are prepared
    together or not at all. For the projections of nn.MultiheadAttention and for transformers'
    Conv1D call `expose_linears_` first.

    Raises TypeError on arguments of other types; ValueError if `model` is itself an nn.Linear, or
    if the calibration is of another model.
    """
    check_container(model)
    if not isinstance(config, Int8Dynamic | Int8Static):
        raise TypeError(
            f"config: got {type(config).__name__}, want Int8Dynamic() or Int8Static(calibration)"
        )
    check_filter_fn(filter_fn)
    ranges = config.calibration.by_name if isinstance(config, Int8Static) else {}
    layers = find_layers(model, filter_fn, parametrized_too=True)
    check_names(ranges, layers)
    for layer in layers:
        if isinstance(layer.module, QATLinear):
            layer.reason = "it is prepared already"
    group_layers(model, layers)

    for layer in layers:
        if layer.reason is None:
            _change_class(layer.module)
            if layer.name in ranges:
                layer.module.input_range = ranges[layer.name].low, ranges[layer.name].high
    close_fused_paths(model)
    size = tensor_bytes(model)
    rows = [_prepared_row(layer, isinstance(config, Int8Static)) for layer in layers]
    return Summary(rows, size, size, other_bytes(model))


def convert_qat_(model: nn.Module) -> Summary:
    """Replaces the layers that `prepare_qat_` prepared, in place, by the int8 ones of `quantize_`.

    The outputs of the model keep every bit. Parametrisations end here: the int8 weight is of what
    they give, zeros of a mask stay zeros. Layers that were not prepared stay as they are.

    Raises TypeError if `model` is no nn.Module; ValueError if no layer is prepared, or if one
    cannot be int8: its weight holds NaN or Inf, it has got hooks, or its weight is shared with a
    module that stays float. The message names it, and the model is as it was.
    """
    check_container(model)
    layers = find_layers(model, None)
    prepared = [layer for layer in layers if isinstance(layer.module, QATLinear)]
    if not prepared:
        raise ValueError("model: it holds no layer that prepare_qat_ prepared")
    for layer in layers:
        layer.reason = layer.reason or "it was not prepared"
    for layer in prepared:
        layer.reason = why_not_quantizable(bare(layer.module, nn.Linear))
    groups = group_layers(model, prepared)
    for layer in prepared:
        if layer.reason is not None:
            raise ValueError(f"model: layer {layer.name} cannot be int8: {layer.reason}")

    bytes_before = tensor_bytes(model)
    made: dict[nn.Module, QuantizedLinear] = {}
    for group in groups:
        try:
            made |= make_twins(group)
        except ValueError as error:
            raise ValueError(f"model: layer {group[0].name} cannot be int8: {error}") from error
    for layer in prepared:
        if layer.module.input_range is not None:
            with torch.inference_mode(False):
                made[layer.module].set_input_range(*layer.module.input_range)
    rows = [_converted_row(layer, made.get(layer.module)) for layer in layers]
    for layer in prepared:
        put(layer, made[layer.module])
    return Summary(rows, bytes_before, tensor_bytes(model), other_bytes(model))


def _change_class(module: Any) -> None:
    """A parametrised module has a class of its own, made by torch; it gets another base."""
    if parametrize.is_parametrized(module):
        kind = type(module)
        module.__class__ = type(f"Parametrized{QATLinear.__name__}", (QATLinear,), dict(vars(kind)))
    else:
        module.__class__ = QATLinear


def _prepared_row(layer: Layer, static: bool) -> Row:
    size = tensor_bytes(layer.module)
    missed = static and layer.reason is None and layer.module.input_range is None
    label = Int8Static.label if static and not missed else Int8Dynamic.label
    return Row(
        name=layer.name,
        in_features=layer.module.in_features,
        out_features=layer.module.out_features,
        scheme=f"fake {label}" if layer.reason is None else None,
        reason=layer.reason,
        bytes_before=size,
        bytes_after=size,
        note="not reached in calibration" if missed else None,
    )


def _converted_row(layer: Layer, twin: QuantizedLinear | None) -> Row:
    if twin is None:
        return make_row(layer, None, None, None)
    with torch.no_grad(), parametrize.cached():
        sqnr = weight_sqnr_db(layer.module, twin)
    return make_row(layer, twin, None, sqnr, static=twin.input_scale is not None)
