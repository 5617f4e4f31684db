"""`prune_channels_`: narrower MLPs against plain formulas, and models that must not be narrowed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastinfer
from families import FAMILIES
from fastinfer import Magnitude, Random, Taylor, Wanda, prune_channels_


class Mlp(nn.Module):
    def __init__(self, gated=False, bias=True, between=F.gelu):
        super().__init__()
        self.up = nn.Linear(6, 32, bias)
        self.gate = nn.Linear(6, 32, bias) if gated else None
        self.down = nn.Linear(32, 5, bias)
        self.between = between

    def forward(self, x):
        h = self.up(x)
        h = self.between(h) if self.gate is None else F.silu(self.gate(x)) * h
        return self.down(h)


def best(scores, count):
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_channels_of_the_largest_weights_stay(randn, gated, bias):
    model, x = Mlp(gated, bias).double().eval(), randn(9, 6).double()
    before = copy.deepcopy(model)
    result = prune_channels_(model, x, 0.5, multiple=8)
    ups = [before.up, before.gate] if gated else [before.up]
    rows = sum(up.weight.detach().abs().sum(1) for up in ups)
    kept = best((rows + before.down.weight.detach().abs().sum(0)).tolist(), 16)
    for up, old in zip([model.up, model.gate], ups, strict=False):
        assert up.out_features == 16
        assert torch.equal(up.weight, old.weight[kept])
        assert up.bias is None or torch.equal(up.bias, old.bias[kept])
    assert model.down.in_features == 16
    assert torch.equal(model.down.weight, before.down.weight[:, kept])
    assert bias is (model.down.bias is not None)
    with torch.no_grad():
        before.down.weight[:, [i for i in range(32) if i not in kept]] = 0
        want = before(x)
        bound = 32 * 2**-53 * (want.abs().max() + before.down.weight.abs().sum(1).max() * 10)
        assert (model(x) - want).abs().max() <= bound  # a sum of 32 products in another order
    (row,) = result.pruned
    assert (row.name, row.width_before, row.width_after) == ("down", 32, 16)
    assert set(row.before) == ({"gate", "up"} if gated else {"up"})
    assert "32 -> 16" in str(result)
    assert result.to_dict()["mlps"][0]["width_after"] == 16


def test_a_narrowed_model_trains_and_becomes_int8(randn):
    model, x = Mlp().eval(), randn(9, 6)
    with torch.inference_mode():
        prune_channels_(model, x, 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    assert model.up.weight.grad.shape == (16, 6)
    fastinfer.quantize_(model)
    assert model(x).shape == (9, 5)


def test_a_gate_and_what_it_gates_in_one_layer(randn):
    class Packed(Mlp):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(6, 64)

        def forward(self, x):
            gate, up = self.up(x).chunk(2, -1)
            return self.down(F.silu(gate) * up)

    model, x = Packed().double().eval(), randn(9, 6).double()
    before = copy.deepcopy(model)
    prune_channels_(model, x, 0.5)
    rows, columns = before.up.weight.detach().abs().sum(1), before.down.weight.detach().abs().sum(0)
    kept = best((rows[:32] + rows[32:] + columns).tolist(), 16)
    assert torch.equal(model.up.weight, before.up.weight[kept + [i + 32 for i in kept]])
    with torch.no_grad():
        before.down.weight[:, [i for i in range(32) if i not in kept]] = 0
        want = before(x)
        # A sum of 32 products in another order, in float64.
        assert (model(x) - want).norm() <= 1e-13 * want.norm()


def test_other_criteria_choose_by_their_scores(randn):
    x = randn(9, 6)
    x[:, 0] = 0
    model = Mlp(bias=False, between=F.relu).eval()
    with torch.no_grad():
        model.up.weight[:16, 1:] = 0  # channels that no input reaches, however large
        model.up.weight[:16, 0] = 1000
        model.down.weight[:, :16] = 1000
    for criterion, useless_go in [
        (Magnitude(), False),
        (Wanda(), True),
        (Taylor(lambda m, batch: m(batch).square().sum()), True),
    ]:
        narrow = copy.deepcopy(model)
        prune_channels_(narrow, x, 0.5, criterion, batches=[x])
        assert torch.equal(narrow.down.weight, model.down.weight[:, 16 * useless_go :][:, :16])


TRAPS = {
    "a norm": (lambda: Mlp(between=lambda h: F.layer_norm(h, h.shape[-1:])), "reach more"),
    "softmax": (lambda: Mlp(between=lambda h: h.softmax(-1)), "reach more"),
    "a shuffle": (lambda: Mlp(between=lambda h: h.roll(1, -1)), "reach more"),
    "groups": (lambda: Mlp(between=lambda h: h.view(-1, 4, 8).softmax(1).flatten(1)), "reach more"),
    "its width": (lambda: Mlp(between=lambda h: h * h.shape[-1]), "counts on their number"),
    "a constant": (lambda: Mlp(between=lambda h: h + torch.ones(32)), "counts on their number"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_channels_that_are_not_alone_stay(randn, trap):
    make, why = TRAPS[trap]
    model, x = make().eval(), randn(9, 6)
    state, want = copy.deepcopy(model.state_dict()), model(x)
    result = prune_channels_(model, x, 0.5)
    assert why in result.left[0].reason
    assert not result.pruned
    assert why in str(result)
    assert torch.equal(model(x), want)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_channels_that_are_also_returned_stay(randn):
    class Both(Mlp):
        def forward(self, x):
            h = self.up(x)
            return self.down(F.relu(h)), h

    result = prune_channels_(Both().eval(), randn(9, 6), 0.5)
    assert "reach more" in result.left[0].reason


def test_one_mlp_stays_and_the_other_goes(randn):
    bad = Mlp(between=lambda h: h.softmax(-1))
    model = nn.Sequential(bad, nn.Linear(5, 6), Mlp()).eval()
    result = prune_channels_(model, randn(9, 6), 0.5)
    assert [row.name for row in result.rows] == ["0.down", "2.down"]
    assert [row.reason is None for row in result.rows] == [False, True]
    assert (bad.up.out_features, model[2].up.out_features) == (32, 16)
    assert bad.up.weight.shape == (32, 6)


def test_layers_that_are_called_twice_or_rejected_or_masked_stay(randn):
    class Twice(Mlp):
        def forward(self, x):
            return super().forward(x) + super().forward(2 * x)

    model = Twice().eval()
    result = prune_channels_(model, randn(9, 6), 0.5)
    assert result.left[0].reason == "they are called more than once"
    model = Mlp().eval()
    assert not prune_channels_(model, randn(9, 6), filter_fn=lambda m, name: name != "up").rows
    fastinfer.prune_(model, fastinfer.Sparse24())
    assert not prune_channels_(model, randn(9, 6)).rows
    result = prune_channels_(Mlp().eval(), randn(9, 6), 0.9)
    assert result.left[0].reason == "all 32 would stay"


GATED = ["llama", "qwen2", "qwen3", "mistral", "gemma"]
PLAIN = ["bert", "roberta", "distilbert", "vit", "clip text", "clip vision", "whisper encoder"]
PLAIN += ["gpt2", "encoder layer"]


@pytest.mark.parametrize("family", GATED + PLAIN)
def test_families(family):
    model = FAMILIES[family].make().double().eval()
    inputs = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in FAMILIES[family].inputs(2, 7).items()
    }
    zeroed = copy.deepcopy(model)
    result = prune_channels_(model, inputs, 0.5, Random(1))
    (row,) = result.pruned
    assert row.width_after * 2 == row.width_before
    assert len(row.before) == (2 if family in GATED else 1)

    up, old = (m.get_submodule(row.before[0]).weight for m in (model, zeroed))
    down = zeroed.get_submodule(row.name).weight
    if family == "gpt2":  # Conv1D: [in, out]
        up, old, down = up.T, old.T, down.T
    gone = ~(old[:, None] == up).all(-1).any(-1)
    assert gone.sum() == row.width_after
    with torch.no_grad():
        down[:, gone] = 0
        got, want = (main_output(m, inputs) for m in (model, zeroed))  # torch's fused paths too
    # Sums of the same numbers in another order, a few times over, in float64.
    assert (got - want).norm() <= 1e-12 * want.norm()


def main_output(model, inputs):
    output = model(**inputs)
    return output if torch.is_tensor(output) else output.last_hidden_state


def test_a_failure_leaves_the_model(randn):
    model = Mlp().eval()
    state = copy.deepcopy(model.state_dict())

    def loss(model, batch):
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        prune_channels_(model, randn(3, 6), 0.5, Taylor(loss), batches=[randn(3, 6)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prune_channels_(model, randn(3, 7), 0.5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model.up._forward_pre_hooks


class Silent(Mlp):
    def forward(self, x):
        super().forward(x)
        return 1


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (TypeError, {"model": "model"}, r"model: got str"),
        (TypeError, {"example_inputs": 3}, r"example_inputs: got int"),
        (TypeError, {"keep": "half"}, r"keep: got str, want a number"),
        (ValueError, {"keep": 1}, r"keep: got 1, want above 0 to below 1"),
        (TypeError, {"criterion": fastinfer.SparseGPT()}, r"criterion: got SparseGPT, want"),
        (TypeError, {"multiple": 8.0}, r"multiple: got float, want an int"),
        (ValueError, {"multiple": 0}, r"multiple: got 0, want at least 1"),
        (TypeError, {"filter_fn": "up"}, r"filter_fn: got str"),
        (ValueError, {"criterion": Wanda()}, r"batches: got None, but Wanda needs them"),
        (ValueError, {"criterion": Wanda(), "batches": []}, r"batches: it is empty"),
        (ValueError, {"model": Silent(), "keep": 0.5}, r"model: it returns no float tensor"),
    ],
)
def test_errors(kind, change, message):
    given = {"model": Mlp().eval(), "example_inputs": torch.ones(2, 6)} | change
    with pytest.raises(kind, match=message):
        prune_channels_(**given)
