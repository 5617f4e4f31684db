"""Ways to copy, store and send a quantised model, each bit for bit."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

import fastinfer
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear


class Model(nn.Module):
    """Two int8 layers with an odd shape between them, and one float layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up = QuantizedLinear(200, 96)
        self.norm = nn.LayerNorm(96)
        self.down = QuantizedLinear(96, 17, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))


class Tied(nn.Module):
    """Two int8 embeddings of one shape, each with the weight of a linear layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.ModuleList(QuantizedEmbedding(50, 70) for _ in range(2))
        self.heads = nn.ModuleList(QuantizedLinear(70, 50, bias=False) for _ in range(2))
        for tokens, head in zip(self.tokens, self.heads, strict=True):
            tokens.weight_packed, tokens.weight_scale = head.weight_packed, head.weight_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.heads[0](self.tokens[0](ids)) + self.heads[1](self.tokens[1](ids))


@pytest.fixture
def model(randn):
    model = Model().eval().requires_grad_(False)
    up, down = nn.Linear(200, 96), nn.Linear(96, 17, bias=False)
    for linear in (up, down):
        linear.requires_grad_(False).weight.copy_(randn(*linear.weight.shape))
    up.bias.copy_(randn(96))
    model.up, model.down = fastinfer.quantize_linear(up), fastinfer.quantize_linear(down)
    return model.eval()


def by_deepcopy(model, path):
    return copy.deepcopy(model)


def by_pickle(model, path):
    return pickle.loads(pickle.dumps(model))


def by_state_dict(model, path):
    other = type(model)()
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    return other


def by_safetensors(model, path):
    safetensors.torch.save_model(model, path)
    other = type(model)()
    assert safetensors.torch.load_model(other, path) == (set(), [])
    return other


def by_safetensors_assigned(model, path):
    """The buffers are the mapped file: nothing is copied."""
    safetensors.torch.save_model(model, path)
    with torch.device("meta"):
        other = type(model)()
    other.load_state_dict(safetensors.torch.load_file(path), assign=True)
    return other


def by_torch_save_of_the_state(model, path):
    torch.save(model.state_dict(), path)
    other = type(model)()
    other.load_state_dict(torch.load(path, weights_only=True))
    return other


def by_torch_save_mapped(model, path):
    torch.save(model.state_dict(), path)
    with torch.device("meta"):
        other = type(model)()
    other.load_state_dict(torch.load(path, weights_only=True, mmap=True), assign=True)
    return other


def by_torch_save_of_the_model(model, path):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ROUND_TRIPS = [
    by_deepcopy,
    by_pickle,
    by_state_dict,
    by_safetensors,
    by_safetensors_assigned,
    by_torch_save_of_the_state,
    by_torch_save_mapped,
    by_torch_save_of_the_model,
]


@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_every_bit_comes_back(model, trip, randn, tmp_path):
    x = randn(3, 200)
    want, state = model(x), {name: t.clone() for name, t in model.state_dict().items()}
    other = trip(model, tmp_path / "model").eval()
    assert other is not model
    assert other.state_dict().keys() == state.keys()
    for name, t in other.state_dict().items():
        assert t.dtype == state[name].dtype
        assert torch.equal(t, state[name]), name
    assert torch.equal(other(x), want)


@pytest.mark.parametrize("trip", [t for t in ROUND_TRIPS if t is not by_safetensors_assigned])
def test_ties_come_back(trip, randn, tmp_path):
    """Of a mapped safetensors file the state lacks the second names, as with tied parameters."""
    model = Tied().eval()
    for tokens, head in zip(model.tokens, model.heads, strict=True):
        linear = nn.Linear(70, 50, bias=False).requires_grad_(False)
        linear.weight.copy_(randn(50, 70))
        head.load_state_dict(fastinfer.quantize_linear(linear).state_dict())
        assert torch.equal(tokens(torch.arange(50)), head.dequantize())
    ids = torch.randint(0, 50, (3, 7))
    want = model(ids)
    other = trip(model, tmp_path / "model").eval()
    assert torch.equal(other(ids), want)
    for tokens, head in zip(other.tokens, other.heads, strict=True):
        assert tokens.weight_packed.data_ptr() == head.weight_packed.data_ptr()
        assert tokens.weight_scale.data_ptr() == head.weight_scale.data_ptr()
        assert torch.equal(tokens(torch.arange(50)), head.dequantize())
    assert not torch.equal(other.heads[0].weight_packed, other.heads[1].weight_packed)
    mine = {t.data_ptr() for t in model.buffers()}
    assert not mine & {t.data_ptr() for t in other.buffers()}


@pytest.mark.parametrize("trip", [by_deepcopy, by_pickle, by_torch_save_of_the_model])
def test_a_copy_shares_no_memory(model, trip, tmp_path):
    other = trip(model, tmp_path / "model")
    mine = {t.data_ptr() for t in model.buffers()}
    assert not mine & {t.data_ptr() for t in other.buffers()}


def test_a_layer_used_twice_stays_one_layer(model):
    pair = copy.deepcopy(nn.ModuleList([model.up, model.up]))
    assert pair[0] is pair[1]
    pair.half()
    assert pair[0].weight_packed is pair[1].weight_packed
