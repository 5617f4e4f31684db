"""`sparsify_`: pruned models in int8 without their zeros."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastinfer
from fastinfer import (
    BlockSparse,
    Sparse24,
    Unstructured,
    finalize_pruning_,
    ops,
    prune_,
    sparsify_,
)
from fastinfer.nn import QuantizedLinear
from fastinfer.sparsify import layout_for

STRUCTURES = {
    "sp24": Sparse24(),
    "bsr": BlockSparse((32, 64), 0.5),
    "bitmask": Unstructured(0.2),
}


def mlp():
    return nn.Sequential(nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 96)).eval()


def pruned(structure, **options):
    model = mlp()
    prune_(model, structure, **options)
    return model


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("layout", STRUCTURES)
def test_the_numbers_are_those_of_dense_int8_on_the_same_zeros(layout, masks, randn):
    model, x = pruned(STRUCTURES[layout]), randn(7, 192)
    dense = copy.deepcopy(model)
    finalize_pruning_(dense)
    fastinfer.quantize_(dense)
    if not masks:
        finalize_pruning_(model)
    summary = sparsify_(model)
    for i in (0, 2):
        assert isinstance(model[i], QuantizedLinear)
        assert model[i].layout == layout
        assert torch.equal(model[i].weight, dense[i].weight)
    assert torch.equal(model(x), dense(x))
    assert [row.scheme for row in summary.rows] == [f"int8 dynamic, {STRUCTURES[layout].label}"] * 2
    floats = sum(p.numel() * 4 for p in mlp().parameters())
    assert summary.bytes_before == floats
    assert summary.rows[0].bytes_before == 4 * (192 + 1) * 256
    assert summary.bytes_after == sum(b.nbytes for b in model.buffers())
    assert sum(row.bytes_after for row in summary.rows) == summary.bytes_after


@pytest.mark.parametrize(
    ("structure", "k", "layout"),
    [
        (Sparse24(), 64, "sp24"),
        (Sparse24(), 265, "bitmask"),
        (Sparse24(), 1000, "sp24"),
        (Unstructured(), 64, "bitmask"),
        (BlockSparse(), 265, "bsr"),
        (BlockSparse((48, 128)), 64, "bsr"),
        (BlockSparse((8, 64)), 64, "bitmask"),
        (BlockSparse((16, 32)), 64, "bitmask"),
    ],
)
def test_layouts(structure, k, layout):
    assert layout_for(structure, k) == layout


def test_2_of_4_of_a_k_that_is_no_multiple_of_64():
    """As small as the zeros allow, with the bits of the dense layer."""
    model, x = nn.Sequential(nn.Linear(265, 256)).eval(), torch.randn(5, 265)
    prune_(model, Sparse24(), progress=False)
    dense = copy.deepcopy(model)
    finalize_pruning_(dense)
    fastinfer.quantize_(dense)
    sparsify_(model)
    assert model[0].layout == "bitmask"
    assert torch.equal(model(x), dense(x))
    # A row: 320 bits and half of 265 values, where "sp24" has half of 320.
    q = ops.unpack_w8(model[0].weight_packed, 256, 265)
    assert model[0].weight_packed.nbytes < 0.9 * ops.pack_w8(q, "sp24").nbytes


def test_dense_is_kept_where_sparse_is_no_smaller():
    model = pruned(Unstructured(0.99))
    summary = sparsify_(model)
    assert model[0].layout == "dense"
    assert [row.scheme for row in summary.rows] == ["int8 dynamic"] * 2


def test_layers_that_were_not_pruned_become_dense_int8():
    model = pruned(Sparse24(), filter_fn=lambda module, name: name == "0")
    summary = sparsify_(model)
    assert [model[i].layout for i in (0, 2)] == ["sp24", "dense"]
    assert [row.scheme for row in summary.rows] == ["int8 dynamic, 2:4", "int8 dynamic"]


def test_filter_fn_leaves_a_layer_in_float_without_its_mask():
    model = pruned(Sparse24())
    zeros = model[2].weight.detach().clone()
    summary = sparsify_(model, filter_fn=lambda module, name: name == "0")
    assert type(model[2]) is not QuantizedLinear
    assert not parametrize.is_parametrized(model[2])
    assert torch.equal(model[2].weight, zeros)
    assert summary.rows[1].reason == "filter_fn left it out"


@pytest.mark.parametrize(
    ("dense_ms", "sparse_ms", "layout", "note"),
    [
        (1.0, 0.5, "sp24", None),
        (0.5, 1.0, "dense", "no faster without the zeros here"),
        (3.0, 4.0, None, None),
        (3.0, 1.0, "sp24", None),
    ],
)
def test_what_is_fastest_is_kept(dense_ms, sparse_ms, layout, note, monkeypatch, randn):
    """Float takes 2 ms here; which of the three is taken, and what the summary says."""

    def timed(model, batches, pairs):
        return {
            module: fastinfer.guard.Timing(2.0, dense_ms if twin.layout == "dense" else sparse_ms)
            for module, twin in pairs.items()
        }

    monkeypatch.setattr("fastinfer.sparsify.time_layers", timed)
    model, x = pruned(Sparse24()), randn(7, 192)
    want = model(x)
    summary = sparsify_(model, example_inputs=x)
    row = summary.rows[0]
    if layout is None:
        assert (row.scheme, row.reason) == (None, "int8 is slower here")
        assert torch.equal(model(x), want)
        assert not parametrize.is_parametrized(model[0])
    else:
        assert model[0].layout == layout
        assert (row.note, row.ms_after) == (note, min(dense_ms, sparse_ms))
    assert note is None or note in str(summary)


def test_real_timings_choose_something_and_say_what(randn):
    model = pruned(BlockSparse(sparsity=0.9))
    summary = sparsify_(model, example_inputs=randn(256, 192), fuse=True)
    assert summary.fusion is not None
    for row in summary.rows:
        assert row.reason is not None or row.ms_after <= row.ms_before


def test_a_failing_model_is_as_it_was(randn):
    model = pruned(Sparse24())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sparsify_(model, example_inputs=randn(7, 100))
    assert all(parametrize.is_parametrized(model[i]) for i in (0, 2))


def test_bad_arguments_are_named(randn):
    with pytest.raises(TypeError, match=r"^model: got str, want an nn.Module"):
        sparsify_("model")
    with pytest.raises(ValueError, match=r"^model: got an nn.Linear, which cannot be replaced"):
        sparsify_(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^model: no linear layer in it was pruned; call "):
        sparsify_(mlp())
    with pytest.raises(TypeError, match=r"^filter_fn: got int, want a function"):
        sparsify_(pruned(Sparse24()), filter_fn=3)
    with pytest.raises(TypeError, match=r"^example_inputs: got int"):
        sparsify_(pruned(Sparse24()), example_inputs=3)


def test_weights_that_lost_their_structure_are_an_error_that_names_the_layer():
    model = pruned(Sparse24())
    finalize_pruning_(model)
    with torch.no_grad():
        model[2].weight += 1
    with pytest.raises(ValueError, match=r"^model: layer 2: its mask keeps 4 of 4 weights"):
        sparsify_(model)
    assert type(model[2]) is not QuantizedLinear
