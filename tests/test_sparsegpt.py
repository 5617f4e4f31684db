"""SparseGPT against the optimal brain surgeon written out in float64."""

import copy

import pytest
import torch
from torch import nn

from fastinfer import Magnitude, Sparse24, SparseGPT, Unstructured, prune_, sparsity_of


def brain_surgeon(weight, x, structure, block_size, damp=0.01):
    """Column after column, with the inverse of what is left of H computed afresh for each.

    weight [N, K], x [tokens, K], float64. Returns the pruned weight.
    """
    n, k = weight.shape
    weight = weight.clone()
    hessian = 2 * x.T @ x
    hessian += damp * hessian.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(k)]
    kept = torch.ones(n, k, dtype=torch.bool)
    for j in range(k):
        few = 4 if isinstance(structure, Sparse24) else block_size
        if j % few == 0:
            columns = range(j, min(j + few, k))
            cost = torch.stack([weight[:, c] ** 2 / inverses[c][0, 0] for c in columns], 1)
            if isinstance(structure, Sparse24):
                for row in range(n):
                    order = cost[row].argsort(descending=True)
                    for loser in order[2:].tolist():
                        kept[row, j + loser] = False
            else:
                order = cost.flatten().argsort(descending=True)
                for loser in order[round(structure.density * cost.numel()) :].tolist():
                    kept[loser // len(columns), j + loser % len(columns)] = False
        for row in range(n):
            if not kept[row, j]:
                weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
                weight[row, j] = 0
    return torch.where(kept, weight, 0)


@pytest.mark.parametrize("structure", [Sparse24(), Unstructured(0.5), Unstructured(0.2)])
@pytest.mark.parametrize(("k", "block_size"), [(12, 128), (15, 8), (18, 4)])
def test_it_is_the_textbook_method(randn, structure, k, block_size):
    x = (randn(40, k) @ randn(k, k)).double()  # channels that go together
    model = nn.Sequential(nn.Linear(k, 7)).double().eval()
    weight = model[0].weight.detach().clone()
    prune_(model, structure, SparseGPT(block_size=block_size), batches=[x[:15], x[15:]])
    want = brain_surgeon(weight, x, structure, block_size)
    # The condition of H is at most trace / smallest eigenvalue <= (1 + damp) k / damp < 2000;
    # 2000 * k steps * 2^-53 < 5e-12 relative to the largest weight that the updates reach.
    bound = 5e-12 * want.abs().max()
    assert (model[0].weight - want).abs().max() <= bound
    assert torch.equal(sparsity_of(model[0]).mask, want != 0)


@torch.no_grad()
def output_error(model, original, x):
    return float((model(x) - original(x)).norm())


@pytest.mark.parametrize("structure", [Sparse24(), Unstructured(0.4)])
def test_outputs_move_less_than_by_magnitude(randn, structure):
    x = randn(200, 8) @ randn(8, 32) + randn(200, 32)  # channels that go together, and noise
    original = nn.Sequential(nn.Linear(32, 24)).eval()
    pruned, plain = copy.deepcopy(original), copy.deepcopy(original)
    prune_(pruned, structure, SparseGPT(), batches=[x])
    prune_(plain, structure, Magnitude())
    assert output_error(pruned, original, x) < output_error(plain, original, x)


def test_a_later_layer_sees_the_inputs_that_the_pruned_ones_before_it_give(randn):
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6)).double().eval()
    x, second = randn(50, 12).double(), model[2].weight.detach().clone()
    prune_(model, Sparse24(), SparseGPT(), batches=[x])
    hidden = torch.nn.functional.linear(x, model[0].weight, model[0].bias).relu().detach()
    want = brain_surgeon(second, hidden, Sparse24(), 128)
    assert (model[2].weight - want).abs().max() <= 5e-12 * want.abs().max()


def test_inputs_that_are_always_zero_cost_nothing(randn):
    x = randn(50, 16)
    x[:, 3] = 0
    model = nn.Sequential(nn.Linear(16, 5)).eval()
    prune_(model, Unstructured(15 / 16), SparseGPT(), batches=[x])
    assert (model[0].weight[:, 3] == 0).all()
    assert torch.equal((model[0].weight != 0).sum(1), torch.full((5,), 15))


def test_a_layer_that_is_called_twice_sees_all_its_inputs(randn):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8).double()

        def forward(self, x):
            return self.fc(x), self.fc(2 * x.flip(1))

    model, x = Twice().eval(), randn(30, 8).double()
    weight = model.fc.weight.detach().clone()
    prune_(model, Sparse24(), SparseGPT(), batches=[x])
    want = brain_surgeon(weight, torch.cat([x, 2 * x.flip(1)]), Sparse24(), 128)
    assert (model.fc.weight - want).abs().max() <= 5e-12 * want.abs().max()


def test_pruning_again_starts_from_the_pruned_weights(randn):
    x = randn(50, 16).double()
    model = nn.Sequential(nn.Linear(16, 5)).double().eval()
    prune_(model, Unstructured(0.7), SparseGPT(), batches=[x])
    once = model[0].weight.detach().clone()
    prune_(model, Unstructured(0.3), SparseGPT(), batches=[x])
    want = brain_surgeon(once, x, Unstructured(0.3), 128)
    assert (model[0].weight - want).abs().max() <= 5e-12 * want.abs().max()


def test_layers_with_the_same_inputs_share_a_run_which_ends_there(randn):
    ran = []

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("first", "second", "changed", "last"):
                self.add_module(name, nn.Linear(8, 8).double())

        def forward(self, x):
            x = x.clone()
            y = self.first(x) + self.second(x)
            ran.append("two")
            y = y + self.changed(x.tanh_())  # in the memory of the other two's input
            ran.append("three")
            y = self.last(y)
            ran.append("all")
            return y

    model, batches = Parts().eval(), [randn(30, 8).double(), randn(20, 8).double()]
    original, x = copy.deepcopy(model), torch.cat(batches)
    prune_(model, Sparse24(), SparseGPT(), batches=batches)
    # Two batches: a look at all layers, then for each tensor as far as to the first layer on it.
    assert ran == ["two", "three", "all"] * 2 + ["two"] * 2 + ["two", "three"] * 2
    with torch.no_grad():
        hidden = model.first(x) + model.second(x) + model.changed(x.tanh())
    for name, inputs in [("first", x), ("second", x), ("changed", x.tanh()), ("last", hidden)]:
        want = brain_surgeon(original.get_submodule(name).weight.detach(), inputs, Sparse24(), 128)
        weight = model.get_submodule(name).weight
        assert (weight - want).abs().max() <= 5e-12 * want.abs().max(), name
