"""QuantizedEmbedding: what it gives and refuses, and that it stays tied to its linear layer."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import fastinfer
from fastinfer import ops
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear, why_not_quantizable_embedding

N, K = 50, 70


@pytest.fixture
def embedding(randn):
    embedding = nn.Embedding(N, K, padding_idx=3).requires_grad_(False).eval()
    embedding.weight.copy_(randn(N, K))
    return embedding


def tied(embedding):
    """The int8 form of an embedding, and of a linear layer with its weight."""
    linear = nn.Linear(K, N, bias=False)
    linear.weight = embedding.weight
    head = fastinfer.quantize_linear(linear)
    return QuantizedEmbedding.from_embedding(embedding, head), head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_those_of_the_linear_layer(embedding, dtype):
    layer, head = tied(embedding.to(dtype))
    ids = torch.tensor([[0, 3, N - 1], [7, 7, 1]])
    y = layer(ids)
    assert y.dtype == dtype
    assert torch.equal(y, head.dequantize()[ids].to(dtype))
    assert torch.equal(y, layer.weight[ids])
    assert torch.equal(layer(input=ids.int()), y)
    assert float((y - embedding(ids)).abs().max()) <= float(embedding.weight.abs().max()) / 120
    assert torch.equal(layer.dequantize(), head.weight)


def test_holds_the_tensors_of_the_linear_layer(embedding):
    layer, head = tied(embedding)
    assert layer.weight_packed is head.weight_packed
    assert layer.weight_scale is head.weight_scale
    head.weight_scale.mul_(2)
    assert torch.equal(layer(torch.arange(N)), head.dequantize())


def test_reads_like_an_embedding(embedding):
    layer, _ = tied(embedding)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (N, K, 3)
    assert (layer.training, layer.layout, layer.dtype) == (False, "dense", torch.float32)
    assert repr(layer) == "QuantizedEmbedding(50, 70, padding_idx=3, scheme=w8, torch.float32)"
    assert repr(QuantizedEmbedding(4, 8)) == "QuantizedEmbedding(4, 8, scheme=w8, torch.float32)"
    assert tied(embedding.train())[0].training


CASTS = {
    "half": (lambda m: m.half(), torch.float16),
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16),
    "to dtype": (lambda m: m.to(torch.float16), torch.float16),
    "to device and dtype": (lambda m: m.to("cpu", torch.bfloat16), torch.bfloat16),
    "to integer and back": (lambda m: m.half().float(), torch.float32),
    "cpu": (lambda m: m.cpu(), torch.float32),
    "share memory": (lambda m: m.share_memory(), torch.float32),
}


@pytest.mark.parametrize(("cast", "dtype"), CASTS.values(), ids=CASTS)
def test_casts_change_the_dtype_of_the_rows_alone(embedding, cast, dtype):
    pair = nn.ModuleList(tied(embedding))
    before, ids = copy.deepcopy(pair), torch.arange(N)
    layer, head = cast(pair)
    assert layer.weight_packed is head.weight_packed
    assert layer.weight_scale is head.weight_scale
    assert torch.equal(layer.weight_packed, before[0].weight_packed)
    assert torch.equal(layer.weight_scale, before[0].weight_scale)
    assert torch.equal(layer(ids), before[0](ids).to(dtype))
    assert layer(ids).dtype == layer.weight.dtype == dtype


def test_moves_to_meta_and_back(embedding):
    layer, head = tied(embedding)
    want, state = layer(torch.arange(N)), head.state_dict()
    layer.to("meta", torch.float16)
    assert all(t.is_meta for t in layer.buffers())
    assert layer(torch.empty(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, K)
    layer.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(torch.arange(N)), want.half())


def test_made_and_run_with_fake_tensors():
    with FakeTensorMode():
        layer = QuantizedEmbedding(N, K, dtype=torch.bfloat16)
        y = layer(torch.zeros(2, 5, dtype=torch.int64))
    assert (y.shape, y.dtype) == ((2, 5, K), torch.bfloat16)


def test_compiles_and_exports(embedding):
    model, ids = nn.Sequential(*tied(embedding)), torch.randint(0, N, (2, 9))
    want = model(ids)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(ids), want)
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(model, (ids,), dynamic_shapes=({1: length},))
    assert torch.equal(program.module()(ids[:, :5]), model(ids[:, :5]))


def test_an_empty_layer_says_so(embedding):
    layer, full = QuantizedEmbedding(N, K), tied(embedding)[0]
    with pytest.raises(ValueError, match="QuantizedEmbedding: the layer is empty, want weights"):
        layer(torch.tensor([1]))
    layer.load_state_dict(full.state_dict())
    assert torch.equal(layer(torch.tensor([1])), full(torch.tensor([1])))


def test_made_on_meta_and_filled_by_assignment(embedding):
    full, head = tied(embedding)
    layer = QuantizedEmbedding(N, K, device="meta")
    layer.load_state_dict(head.state_dict(), assign=True)
    assert layer.weight_packed.data_ptr() == full.weight_packed.data_ptr()
    assert torch.equal(layer(torch.arange(N)), full(torch.arange(N)))


STATES = {
    "float": ({"weight": torch.ones(N, K)}, "weight is the weight of a float layer"),
    "half of it": ({"weight_packed": None}, "weight_packed is missing, want it beside"),
    "scales": ({"weight_scale": torch.ones(N + 1)}, r"weight_scale has shape \[51\], want \[50\]"),
    "rubbish": (
        {"weight_packed": torch.ones(999, dtype=torch.uint8)},
        "weight_packed, weight_scale: embedding_w8: w_packed: it is not a packed weight",
    ),
    "K": (
        {"weight_packed": ops.pack_w8(torch.ones(N, K + 1, dtype=torch.int8))},
        "weight_packed, weight_scale: embedding_w8: w_packed has K = 71, want k = 70",
    ),
    "sparse": (
        {"weight_packed": ops.pack_w8(torch.ones(N, K, dtype=torch.int8), "bsr")},
        "w_packed has the layout bsr, want dense",
    ),
}


@pytest.mark.parametrize(("change", "match"), STATES.values(), ids=STATES)
def test_a_wrong_state_is_refused(embedding, change, match):
    layer, _ = tied(embedding)
    want = layer(torch.arange(N))
    state = {k: v for k, v in {**layer.state_dict(), **change}.items() if v is not None}
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state)
    assert torch.equal(layer(torch.arange(N)), want)


INPUTS = {
    "no tensor": ([1], TypeError, "ids is a list"),
    "float": (torch.ones(2), TypeError, "ids has dtype torch.float32, want torch.int32 or"),
    "too large": (torch.tensor([N]), ValueError, "ids holds 50, want 0 or more and less than"),
    "negative": (torch.tensor([-1]), ValueError, "ids holds -1"),
}


@pytest.mark.parametrize(("ids", "error", "match"), INPUTS.values(), ids=INPUTS)
def test_a_wrong_input_is_one_clear_error(embedding, ids, error, match):
    with pytest.raises(error, match=f"^embedding_w8: {match}"):
        tied(embedding)[0](ids)


def test_wrong_sizes_and_layouts(embedding):
    with pytest.raises(ValueError, match="embedding_dim is 131072, want 0 to 131071"):
        QuantizedEmbedding(1, 131072)
    with pytest.raises(ValueError, match="num_embeddings is -1, want >= 0"):
        QuantizedEmbedding(-1, 8)
    with pytest.raises(TypeError, match=r"dtype is torch\.float64, want torch\.float32 or"):
        QuantizedEmbedding(1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"linear has a weight of shape \[50, 8\], want \[50, 70"):
        QuantizedEmbedding.from_embedding(embedding, QuantizedLinear(8, N))
    sparse = QuantizedLinear.from_linear(nn.Linear(K, N), "bitmask")
    with pytest.raises(ValueError, match="linear has the layout bitmask, want dense"):
        QuantizedEmbedding.from_embedding(embedding, sparse)


class Subclass(nn.Embedding):
    pass


REASONS = {
    "a linear layer": (lambda: nn.Linear(8, 8), "it is a Linear, not an nn.Embedding"),
    "subclass": (lambda: Subclass(8, 8), "it is a Subclass, a subclass of nn.Embedding"),
    "max_norm": (lambda: nn.Embedding(8, 8, max_norm=1.0), "it renormalises its weight"),
    "sparse": (lambda: nn.Embedding(8, 8, sparse=True), "its gradients are sparse"),
    "scaled": (lambda: nn.Embedding(8, 8, scale_grad_by_freq=True), "its gradients are scaled"),
    "double": (lambda: nn.Embedding(8, 8).double(), "its weight has dtype torch.float64"),
    "parametrised": (
        lambda: parametrizations.weight_norm(nn.Embedding(8, 8)),
        "it is a ParametrizedEmbedding",
    ),
}


@pytest.mark.parametrize(("make", "match"), REASONS.values(), ids=REASONS)
def test_why_not(make, match):
    assert str(why_not_quantizable_embedding(make())).startswith(match)


def test_why_not_of_an_embedding_that_was_changed():
    assert why_not_quantizable_embedding(nn.Embedding(8, 8, padding_idx=0)) is None
    hooked, replaced, more, other = (nn.Embedding(8, 8) for _ in range(4))
    hooked.register_forward_hook(lambda *a: None)
    replaced.forward = lambda x: x
    more.register_buffer("mask", torch.ones(3))
    other.weight = nn.Parameter(torch.ones(4, 8))
    assert why_not_quantizable_embedding(hooked) == "it has hooks"
    assert why_not_quantizable_embedding(replaced) == "its forward was replaced on the instance"
    assert why_not_quantizable_embedding(more) == "it holds more than a weight: mask"
    assert why_not_quantizable_embedding(other) == "its weight has shape [4, 8], not [8, 8]"
