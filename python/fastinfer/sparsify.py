"""`sparsify_`: pruned linear layers become int8 ones that store and multiply what was kept."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastinfer.candidates import (
    FilterFn,
    Layer,
    check_container,
    check_filter_fn,
    find_layers,
    group_layers,
)
from fastinfer.config import Int8Dynamic
from fastinfer.footprint import other_bytes, tensor_bytes
from fastinfer.fuse import fuse_
from fastinfer.guard import Timing, time_layers, verdict
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.masked import finalize_pruning_, mask_of, sparsity_of
from fastinfer.nn import QuantizedLinear
from fastinfer.observe import check_inputs
from fastinfer.ops import Layout
from fastinfer.sparsity import BlockSparse, Sparse24, Structure
from fastinfer.summary import Row, Summary
from fastinfer.swap import close_fused_paths, make_row, make_twins, put, weight_sqnr_db

_TILE = (16, 64)  # N, K of the tiles that the kernels skip
_Twins = dict[nn.Module, QuantizedLinear]


def sparsify_(
    model: nn.Module,
    *,
    filter_fn: FilterFn | None = None,
    example_inputs: Any = None,
    fuse: bool = False,
) -> Summary:
    """Replaces the linear layers that `prune_` pruned, in place, by int8 ones without the zeros.

    2:4 weights take 5 bits each, in place of 32; `BlockSparse` in multiples of 16 x 64 stores and
    multiplies the tiles that stayed; other structures take a bit a weight, and a byte for each that
    stayed (`fastinfer.ops.pack_w8`). Quantisation, and every bit of the outputs, is that of
    `quantize_` on the same zeros. Layers that were not pruned become dense int8, as `quantize_`
    makes them.

    model: a pruned model on the CPU, its masks still on (they end here) or taken off by
    `finalize_pruning_`. filter_fn(module, name) -> bool: False leaves that layer in float.
    example_inputs: what the model is called with: a tensor, a tuple of positional arguments or a
    dict of keyword arguments. With it, the model runs, and each layer gets what is fastest on this
    machine at the shapes that reach it: sparse int8, dense int8, or float, zeros and all; the
    summary says which. Without it, sparse is taken wherever it is smaller. fuse: whether to call
    fuse_ on the model as well.

    Raises TypeError on arguments of other types; ValueError if `model` is itself an nn.Linear, if
    no layer in it was pruned, or, naming the layer, if the weights have lost their structure in
    training. What the model raises on example_inputs comes through. An exception leaves the model
    as it was.
    """
    check_container(model)
    check_filter_fn(filter_fn)
    if example_inputs is not None:
        check_inputs("example_inputs", example_inputs)
    layers = find_layers(model, filter_fn, parametrized_too=True)
    for layer in layers:
        masked = mask_of(layer.module) is not None
        if layer.reason is None and parametrize.is_parametrized(layer.module) and not masked:
            layer.reason = "it is parametrised, and not by prune_ alone"
    structures = _structures(layers)
    groups = group_layers(model, layers)
    bytes_before = tensor_bytes(model) - sum(map(_mask_bytes, model.modules()))

    dense: _Twins = {}
    sparse: _Twins = {}
    for group in groups:
        dense |= make_twins(group)
        structure = structures.get(group[0].name)
        if structure is not None:
            layout = layout_for(structure, group[0].module.in_features)
            make = partial(QuantizedLinear.from_linear, layout=layout)
            twins = make_twins(group, make)
            if tensor_bytes(twins[group[0].module]) < tensor_bytes(dense[group[0].module]):
                sparse |= twins
    made, timings, notes = _choose(model, groups, dense, sparse, example_inputs)

    rows = [_row(layer, made, timings, structures, notes.get(layer.name)) for layer in layers]
    for layer in layers:
        if layer.reason is None:
            put(layer, made[layer.module])
    finalize_pruning_(model)  # those that stay in float
    close_fused_paths(model)
    to_huge_pages_(made[layer.module] for layer in layers if layer.reason is None)
    fusion = fuse_(model, example_inputs) if fuse else None
    return Summary(rows, bytes_before, tensor_bytes(model), other_bytes(model), fusion)


def layout_for(structure: Structure, in_features: int) -> Layout:
    """The layout that stores weights of a structure in the fewest bytes; of 2:4 "sp24" as long as
    it is within a twentieth of that, since it has a form for GPUs too. A row of "sp24" holds half
    of K values with K rounded up to 64, one of "bitmask" half of K as it is, both a bit for each of
    the padded."""
    if isinstance(structure, Sparse24):
        padded = -(-in_features // _TILE[1]) * _TILE[1]
        sp24, bitmask = padded / 8 + padded / 2, padded / 8 + in_features / 2
        return "sp24" if bitmask > 0.95 * sp24 else "bitmask"
    if isinstance(structure, BlockSparse):
        whole = all(size % tile == 0 for size, tile in zip(structure.block, _TILE, strict=True))
        return "bsr" if whole else "bitmask"
    return "bitmask"


def _structures(layers: list[Layer]) -> dict[str, Structure]:
    """The structure of each layer that was pruned and has no reason to stay as it is."""
    structures: dict[str, Structure] = {}
    pruned = False
    for layer in layers:
        if not isinstance(layer.module, nn.Linear):
            continue
        try:
            sparsity = sparsity_of(layer.module)
        except ValueError as error:
            _, _, what = str(error).partition(": ")
            raise ValueError(f"model: layer {layer.name}: {what}") from error
        if sparsity is None:
            continue
        pruned = True
        sparsity.structure.check(sparsity.mask, f"model: layer {layer.name}")
        if layer.reason is None:
            structures[layer.name] = sparsity.structure
    if not pruned:
        raise ValueError("model: no linear layer in it was pruned; call fastinfer.prune_ first")
    return structures


def _choose(
    model: nn.Module,
    groups: list[list[Layer]],
    dense: _Twins,
    sparse: _Twins,
    example_inputs: Any,
) -> tuple[_Twins, dict[nn.Module, Timing], dict[str, str]]:
    """What each layer becomes, how long that takes, and why it is not sparse by layer name.

    The layers that stay in float get their reason.
    """
    if example_inputs is None:
        return dense | sparse, {}, {}
    made = dict(dense)
    notes: dict[str, str] = {}
    with parametrize.cached():  # a mask is not applied anew at each call that is timed
        timings = time_layers(model, [example_inputs], dense)
        faster = time_layers(model, [example_inputs], sparse) if sparse else {}
    for group in groups:
        modules = [layer.module for layer in group]
        if modules[0] in sparse:
            if _share(faster, modules) <= _share(timings, modules):
                made |= {module: sparse[module] for module in modules}
                timings |= {m: faster[m] for m in modules if m in faster}
            else:
                notes |= {layer.name: "no faster without the zeros here" for layer in group}
        reason = verdict([timings[m] for m in modules if m in timings])
        for layer in group:
            layer.reason = reason
    return made, timings, notes


def _share(timings: Mapping[nn.Module, Timing], modules: list[nn.Module]) -> float:
    """Time of the int8 layers over that of the float ones, which were timed beside them."""
    reached = [timings[m] for m in modules if m in timings and timings[m].error is None]
    before = sum(timing.ms_before for timing in reached)
    return sum(timing.ms_after for timing in reached) / before if before else 1.0


def _row(
    layer: Layer,
    made: _Twins,
    timings: Mapping[nn.Module, Timing],
    structures: Mapping[str, Structure],
    note: str | None,
) -> Row:
    twin = made[layer.module] if layer.reason is None else None
    with torch.no_grad(), parametrize.cached():
        sqnr = weight_sqnr_db(layer.module, twin) if twin else None
    structure = structures.get(layer.name)
    sparse = twin is not None and twin.layout != "dense"
    label = f"{Int8Dynamic.label}, {structure.label}" if sparse and structure else None
    row = make_row(layer, twin, timings.get(layer.module), sqnr, label=label, note=note)
    masks = _mask_bytes(layer.module)
    after = row.bytes_after - masks if twin is None else row.bytes_after
    return replace(row, bytes_before=row.bytes_before - masks, bytes_after=after)


def _mask_bytes(module: nn.Module) -> int:
    held = mask_of(module)
    return 0 if held is None else held.mask.nbytes
