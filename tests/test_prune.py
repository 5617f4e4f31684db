"""`prune_`: masks against brute force, scores against plain computations, masks that stay."""

import copy
import io

import pytest
import torch
from torch import nn

import fastinfer
from fastinfer import (
    BlockSparse,
    CubicSchedule,
    Magnitude,
    Random,
    Sparse24,
    SparseGPT,
    Taylor,
    Unstructured,
    Wanda,
    finalize_pruning_,
    prune_,
    sparsity_of,
)

SHAPES = [(1, 1), (3, 5), (4, 6), (5, 7), (16, 64), (17, 65), (33, 130)]
STRUCTURES = [Sparse24(), BlockSparse((4, 6), 0.5), Unstructured(0.4)]


def mlp():
    return nn.Sequential(nn.Linear(13, 10), nn.ReLU(), nn.Linear(10, 6)).eval()


def batches(randn, count=3, size=13):
    return [randn(5, size) for _ in range(count)]


def mask_24(scores):
    """Two winners of each four columns, one comparison after another."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], 4):
            columns = range(start, min(start + 4, scores.shape[1]))
            for column in sorted(columns, key=lambda c: -scores[row, c].item())[:2]:
                mask[row, column] = True
    return mask


def mask_blocks(scores, block, kept):
    corners = [
        (i, j)
        for i in range(0, scores.shape[0], block[0])
        for j in range(0, scores.shape[1], block[1])
    ]
    totals = {(i, j): scores[i : i + block[0], j : j + block[1]].sum().item() for i, j in corners}
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for i, j in sorted(corners, key=lambda corner: -totals[corner])[: round(kept * len(corners))]:
        mask[i : i + block[0], j : j + block[1]] = True
    return mask


def mask_any(scores, kept):
    flat = scores.flatten().tolist()
    winners = sorted(range(len(flat)), key=lambda i: -flat[i])[: round(kept * len(flat))]
    return torch.tensor([i in set(winners) for i in range(len(flat))]).view_as(scores)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_those_of_brute_force(randn, shape):
    scores = randn(*shape).abs()
    mask = Sparse24().mask(scores)
    assert torch.equal(mask, mask_24(scores))
    Sparse24().check(mask, "fc")
    for block, sparsity in [((16, 64), 0.5), ((2, 3), 0.7), ((1, 1), 0.25), ((5, 4), 0.0)]:
        structure = BlockSparse(block, sparsity)
        mask = structure.mask(scores)
        assert torch.equal(mask, mask_blocks(scores, block, 1 - sparsity))
        structure.check(mask, "fc")
    for density in (0.1, 0.5, 1):
        mask = Unstructured(density).mask(scores)
        assert torch.equal(mask, mask_any(scores, density))
        rows = torch.cat([mask_any(row[None], density) for row in scores])
        assert torch.equal(Unstructured(density).mask(scores, within_rows=True), rows)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_scores_keep_the_first(structure):
    scores = torch.ones(8, 12)
    reference = {
        Sparse24: lambda: mask_24(scores),
        BlockSparse: lambda: mask_blocks(scores, (4, 6), 0.5),
        Unstructured: lambda: mask_any(scores, 0.4),
    }
    assert torch.equal(structure.mask(scores), reference[type(structure)]())


def test_a_mask_of_another_form_is_an_error_that_names_the_layer():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3, 4:7] = True
    with pytest.raises(ValueError, match=r"fc: its mask keeps 3 of 4 weights in a group, want 2"):
        Sparse24().check(mask, "fc")
    with pytest.raises(ValueError, match=r"fc: its mask keeps a part of one of the blocks of 4 x"):
        BlockSparse((4, 6)).check(mask, "fc")
    mask[3, 6] = False
    Sparse24().check(mask, "fc")
    mask[:4, :6] = True
    mask[:4, 6:] = False
    BlockSparse((4, 6)).check(mask, "fc")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_magnitude_keeps_the_largest_and_says_so(structure):
    model = mlp()
    before = copy.deepcopy(model)
    result = prune_(model, structure)
    assert [row.name for row in result.pruned] == ["0", "2"]
    for name, row in zip(("0", "2"), result.pruned, strict=True):
        weight = before.get_submodule(name).weight.detach()
        mask = structure.mask(weight.abs())
        pruned = model.get_submodule(name).weight
        assert torch.equal(pruned, weight * mask)
        assert row.sparsity == pytest.approx(1 - mask.float().mean().item())
        found = sparsity_of(model.get_submodule(name))
        assert found.structure == structure
        assert torch.equal(found.mask, mask)
    assert structure.label in str(result)
    assert result.to_dict()["layers"][0]["zeros"] == result.rows[0].zeros


def test_random_repeats_with_its_seed_and_differs_with_another():
    masks = []
    for seed in (1, 1, 2):
        model = mlp()
        prune_(model, Unstructured(0.5), Random(seed))
        masks.append(sparsity_of(model[0]).mask)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_wanda_is_magnitude_times_the_norm_of_the_channel(randn, structure):
    model, data = mlp(), batches(randn)
    data[0][:, 2] *= 40  # a channel that magnitude alone would not see
    first, second = model[0].weight.detach(), model[2].weight.detach()
    x = torch.cat(data).double()
    hidden = (x @ first.double().T + model[0].bias.detach().double()).relu()
    scores = {
        "0": first.double().abs() * (x**2).sum(0).sqrt(),
        "2": second.double().abs() * (hidden**2).sum(0).sqrt(),
    }
    prune_(model, structure, Wanda(), batches=data)
    for name, score in scores.items():
        if isinstance(structure, Unstructured):
            mask = torch.cat([mask_any(row[None], 0.4) for row in score])
        elif isinstance(structure, Sparse24):
            mask = mask_24(score)
        else:
            mask = mask_blocks(score, (4, 6), 0.5)
        assert torch.equal(sparsity_of(model.get_submodule(name)).mask, mask)


def squared_error(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).sum()


def test_taylor_adds_the_squares_of_weight_times_gradient_batch_by_batch(randn):
    model = nn.Sequential(nn.Linear(13, 6)).double().eval()
    model[0].weight.requires_grad_(False)
    data = [(randn(5, 13).double(), randn(5, 6).double()) for _ in range(3)]
    weight, bias = model[0].weight.clone(), model[0].bias.detach()
    gradients = [2 * (x @ weight.T + bias - y).T @ x for x, y in data]
    score = sum((weight * gradient) ** 2 for gradient in gradients)
    prune_(model, Unstructured(0.4), Taylor(squared_error), batches=data)
    mask = torch.cat([mask_any(row[None], 0.4) for row in score])
    assert not torch.equal(mask, mask_any(score, 0.4))
    assert torch.equal(sparsity_of(model[0]).mask, mask)
    assert not model[0].weight.requires_grad
    assert model[0].bias.grad is None


def test_taylor_compares_all_layers_where_the_budget_is_theirs_together(randn):
    model, data = mlp(), [(randn(5, 13), randn(5, 6)) for _ in range(3)]
    linears = {"0": model[0], "2": model[2]}
    scores = Taylor(squared_error).scores(model, linears, data, False)
    prune_(model, Unstructured(0.4), Taylor(squared_error), batches=data, scope="global")
    everything = torch.cat([score.flatten() for score in scores.values()])
    mask = mask_any(everything[None], 0.4)[0]
    kept = [sparsity_of(layer).mask.flatten() for layer in linears.values()]
    assert torch.equal(torch.cat(kept), mask)


@pytest.mark.parametrize("structure", [Unstructured(0.3), BlockSparse((2, 3), 0.7)])
def test_a_global_budget_has_one_threshold(structure):
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(3)
    weights = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    result = prune_(model, structure, scope="global")
    units = [structure.units(weight.abs()).flatten() for weight in weights]
    size = sum(map(len, units))
    threshold = torch.cat(units).sort(descending=True).values[round(0.3 * size) - 1]
    for layer, weight in zip((model[0], model[2]), weights, strict=True):
        kept = structure.units(weight.abs()) >= threshold
        assert torch.equal(sparsity_of(layer).mask, structure.spread(kept, weight.shape))
    assert result.rows[0].sparsity < result.rows[1].sparsity


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    ],
)
def test_masks_stay_through_training(randn, structure, optimizer):
    model, x, y = mlp(), randn(8, 13), randn(8, 6)
    steps = optimizer(model.parameters())

    def train():
        steps.zero_grad()
        squared_error(model, (x, y)).backward()
        steps.step()

    train()  # momentum for the weights that are about to go
    parameters = list(map(id, model.parameters()))
    prune_(model, structure)
    assert sorted(map(id, model.parameters())) == sorted(parameters)
    masks = [sparsity_of(layer).mask.clone() for layer in (model[0], model[2])]
    kept_before = model[0].weight[masks[0]].detach()
    for _ in range(3):
        train()
    assert not torch.equal(model[0].weight[masks[0]], kept_before)
    finals = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    for weight, mask in zip(finals, masks, strict=True):
        assert (weight[~mask] == 0).all()
        assert not weight[~mask].signbit().any()
    output = model(x)
    assert finalize_pruning_(model) == 2
    assert sorted(map(id, model.parameters())) == sorted(parameters)
    assert torch.equal(model(x), output)
    assert list(model.state_dict()) == list(mlp().state_dict())
    for layer, weight, mask in zip((model[0], model[2]), finals, masks, strict=True):
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, weight)
        assert sparsity_of(layer).structure == structure
        assert torch.equal(sparsity_of(layer).mask, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_dtype(randn, dtype):
    model = mlp().to(dtype)
    data = [batch.to(dtype) for batch in batches(randn)]
    for criterion in (Magnitude(), Wanda(), SparseGPT(), Taylor(lambda m, x: m(x).sum())):
        pruned = copy.deepcopy(model)
        prune_(pruned, Sparse24(), criterion, batches=data)
        assert pruned[0].weight.dtype == dtype
        assert (pruned[0].weight[~sparsity_of(pruned[0]).mask] == 0).all()


def test_copies_and_states_of_a_pruned_model(randn):
    model, x = mlp(), randn(4, 13)
    prune_(model, Sparse24())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].parametrizations.weight.original.add_(1)
    assert not torch.equal(twin(x), model(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), model(x))
    finalize_pruning_(twin)
    assert torch.equal(twin(x), model(x))
    other = mlp()
    prune_(other, Sparse24(), Random(3))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_mask_that_was_loaded_is_checked():
    model = mlp()
    prune_(model, Sparse24())
    state = model.state_dict()
    state["2.parametrizations.weight.0.mask"] = torch.ones(6, 10, dtype=torch.bool)
    model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"2: its mask keeps 4 of 4 weights in a group"):
        finalize_pruning_(model)
    assert sparsity_of(model[0]) is not None


def test_weights_trained_without_the_mask_have_lost_their_structure():
    model = mlp()
    prune_(model, Sparse24())
    finalize_pruning_(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(ValueError, match=r"its mask keeps 4 of 4 weights"):
        sparsity_of(model[0])
    assert sparsity_of(mlp()[0]) is None


def test_the_cubic_schedule():
    schedule = CubicSchedule(0.2, 0.9, 10)
    got = [schedule.sparsity_at(step) for step in (0, 1, 5, 9, 10, 50)]
    # by hand: 0.9 - 0.7 * (1, 0.729, 0.125, 0.001, 0, 0); rounding is below 1e-15
    assert got == pytest.approx([0.2, 0.3897, 0.8125, 0.8993, 0.9, 0.9], abs=1e-12)
    with pytest.raises(ValueError, match="step: got -1"):
        schedule.sparsity_at(-1)


def test_sparsity_rises_during_training_and_nothing_comes_back(randn):
    model, x, y = mlp(), randn(8, 13), randn(8, 6)
    schedule = CubicSchedule(0, 0.8, 4)
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    gone = torch.zeros(10, 13, dtype=torch.bool)
    for step in range(6):
        if step <= schedule.steps:
            prune_(model, Unstructured(1 - schedule.sparsity_at(step)))
        mask = sparsity_of(model[0]).mask
        assert mask.sum() == round((1 - schedule.sparsity_at(step)) * 130)
        assert not (mask & gone).any()
        gone = ~mask
        steps.zero_grad()
        squared_error(model, (x, y)).backward()
        steps.step()


class Odd(nn.Linear):
    pass


def test_what_is_left_has_a_reason(randn):
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(8, 8),
            "unused": nn.Linear(8, 8),
            "odd": Odd(8, 8),
            "int8": fastinfer.quantize_linear(nn.Linear(8, 8)),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "tied": nn.Linear(8, 20),
            "embedding": nn.Embedding(20, 8),
            "nan": nn.Linear(8, 8),
            "empty": nn.Linear(0, 8),
            "meta": nn.Linear(8, 8, device="meta"),
            "rejected": nn.Linear(8, 8),
        }
    )
    model["tied"].weight = model["embedding"].weight
    with torch.no_grad():
        model["nan"].weight[0, 0] = float("nan")
    model.forward = lambda x: model["plain"](x)
    result = prune_(
        model,
        Sparse24(),
        Wanda(),
        batches=[randn(3, 8)],
        filter_fn=lambda module, name: name != "rejected",
    )
    assert {row.name: row.reason for row in result.rows} == {
        "plain": None,
        "unused": "not reached by batches",
        "odd": "it is a Odd, a subclass of nn.Linear",
        "int8": "it is quantised already",
        "normed": "it is parametrised (torch.nn.utils.parametrize)",
        "tied": "its weight is tied to embedding.weight",
        "nan": "its weight holds NaN or Inf",
        "empty": "its weight is empty",
        "meta": "it is on the meta device, without values",
        "rejected": "filter_fn left it out",
    }
    assert "1 of 10 linear layers pruned by Wanda" in str(result)


def test_a_pruned_model_can_become_int8(randn):
    model = nn.Sequential(nn.Linear(64, 32))
    prune_(model, Sparse24())
    left = copy.deepcopy(model)
    assert "parametrised" in fastinfer.quantize_(left).rows[0].reason
    mask = sparsity_of(model[0]).mask
    finalize_pruning_(model)
    fastinfer.quantize_(model)
    assert (model[0].weight[~mask] == 0).all()


def test_masks_go_through_training_for_int8(randn):
    model = nn.Sequential(nn.Linear(64, 32))
    prune_(model, Unstructured(0.5))
    fastinfer.prepare_qat_(model)
    prune_(model, Sparse24(), Wanda(), batches=[randn(4, 64)])
    mask = sparsity_of(model[0]).mask
    Sparse24().check(mask, "0")
    model(randn(3, 64)).sum().backward()
    assert (model[0].parametrizations.weight.original.grad[~mask] == 0).all()
    finalize_pruning_(model)
    assert type(model[0]) is fastinfer.nn.QATLinear
    fastinfer.convert_qat_(model)
    assert (model[0].weight[~mask] == 0).all()
    assert model[0].weight[mask].any()


def test_the_layers_of_an_encoder_are_seen(randn):
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    result = prune_(model, Sparse24(), Wanda(), batches=[randn(2, 5, 16)])
    names = [f"layers.{i}.{fc}" for i in range(2) for fc in ("linear1", "linear2")]
    assert [row.name for row in result.pruned] == names
    assert all("subclass" in row.reason for row in result.left)  # out_proj, read and never called
    model(randn(2, 5, 16))


def test_pruning_under_inference_mode_leaves_a_model_that_trains(randn):
    model = mlp()
    with torch.inference_mode():
        prune_(model, Sparse24(), SparseGPT(), batches=batches(randn))
    model(randn(2, 13)).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None


@pytest.mark.parametrize(
    ("criterion", "last"),
    [
        (SparseGPT(), 6),  # 4 calls for the order; from then on the first layer is pruned
        (Wanda(), 4),
        (Taylor(lambda model, x: model(x).sum()), 4),
    ],
)
def test_what_fails_midway_leaves_the_model(randn, criterion, last):
    model, calls = mlp(), []
    model[0].weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())

    def fail(module, args):
        calls.append(args)
        if len(calls) == last:
            raise KeyError("the last call")

    model[2].register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="the last call"):
        prune_(model, Sparse24(), criterion, batches=batches(randn, 4))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model[0].weight.requires_grad
    assert not model[0]._forward_pre_hooks


GIVEN = {"model": mlp, "structure": Sparse24, "criterion": Magnitude}
LOSS = Taylor(squared_error)
ERRORS = [
    (TypeError, {"model": lambda: "model"}, r"model: got str, want an nn\.Module"),
    (ValueError, {"model": lambda: nn.Linear(4, 4)}, r"model: got an nn\.Linear, want a module"),
    (ValueError, {"model": nn.ReLU}, r"model: no linear layer in it .* \(it has none\)"),
    (
        ValueError,
        {"model": lambda: nn.Sequential(fastinfer.quantize_linear(nn.Linear(4, 4)))},
        r"no linear layer in it can be pruned \(0: it is quantised already\)",
    ),
    (TypeError, {"structure": lambda: Sparse24}, r"structure: got the class Sparse24, want"),
    (TypeError, {"structure": lambda: "2:4"}, r"structure: got str, want Sparse24\(\)"),
    (TypeError, {"criterion": lambda: "wanda"}, r"criterion: got str, want Magnitude\(\)"),
    (ValueError, {"scope": "layer"}, r"scope: got 'layer', want one of uniform, global"),
    (ValueError, {"scope": "global"}, r"scope: got 'global' with Sparse24"),
    (
        ValueError,
        {"scope": "global", "structure": Unstructured, "criterion": Wanda, "batches": []},
        r"scope: got 'global' with Wanda, which compares weights within a layer",
    ),
    (TypeError, {"filter_fn": "0"}, r"filter_fn: got str"),
    (TypeError, {"filter_fn": lambda m, n: 1}, r"filter_fn: returned 1 for 0"),
    (ValueError, {"criterion": Wanda}, r"batches: got None, but Wanda needs them"),
    (ValueError, {"criterion": lambda: LOSS}, r"batches: got None, but Taylor needs them"),
    (ValueError, {"criterion": Wanda, "batches": []}, r"batches: it is empty"),
    (ValueError, {"criterion": lambda: LOSS, "batches": []}, r"batches: it is empty"),
    (ValueError, {"criterion": SparseGPT, "batches": []}, r"batches: it is empty"),
    (TypeError, {"criterion": Wanda, "batches": torch.ones(2, 13)}, r"batches: got Tensor"),
    (TypeError, {"criterion": Wanda, "batches": [3]}, r"batches: number 1: got int"),
    (
        ValueError,
        {"criterion": Wanda, "batches": [torch.full((2, 13), torch.inf)]},
        r"the input of layer 0 holds NaN or Inf",
    ),
    (
        ValueError,
        {"criterion": lambda: Taylor(lambda m, x: m(x)), "batches": [torch.ones(2, 13)]},
        r"Taylor: loss_fn returned shape \[2, 6\], want one number",
    ),
    (
        ValueError,
        {
            "criterion": lambda: Taylor(lambda m, x: m(x).sum() * torch.nan),
            "batches": [torch.ones(2, 13)],
        },
        r"criterion: its scores of layer 0 hold NaN or Inf",
    ),
    (
        ValueError,
        {"criterion": Wanda, "batches": [torch.ones(0, 13)]},
        r"batches: no linear layer that can be pruned was reached",
    ),
    (RuntimeError, {"criterion": SparseGPT, "batches": [torch.ones(2, 14)]}, r"shapes cannot be"),
    (
        ValueError,
        {"criterion": SparseGPT, "structure": BlockSparse, "batches": []},
        r"SparseGPT cannot make BlockSparse",
    ),
    (
        ValueError,
        {"criterion": lambda: SparseGPT(block_size=6), "batches": []},
        r"block_size is 6, want a multiple of 4",
    ),
]


@pytest.mark.parametrize(("kind", "given", "message"), ERRORS)
def test_errors_name_the_argument_and_leave_the_model(kind, given, message):
    given = GIVEN | given
    model = given["model"]()
    state = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    arguments = {name: given[name] for name in ("batches", "scope", "filter_fn") if name in given}
    with pytest.raises(kind, match=message):
        prune_(model, given["structure"](), given["criterion"](), **arguments)
    if state:
        assert list(model.state_dict()) == list(state)
        assert all(
            torch.equal(t, state[n]) for n, t in model.state_dict().items() if torch.is_tensor(t)
        )
        assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        (TypeError, lambda: BlockSparse([16, 64]), r"block is \[16, 64\], want two integers"),
        (TypeError, lambda: BlockSparse((16.0, 64)), r"want two integers"),
        (ValueError, lambda: BlockSparse((0, 64)), r"both at least 1"),
        (ValueError, lambda: BlockSparse(sparsity=1), r"sparsity is 1, want 0 to below 1"),
        (TypeError, lambda: BlockSparse(sparsity="0.5"), r"sparsity is a str, want a number"),
        (ValueError, lambda: Unstructured(0), r"density is 0, want above 0 to 1"),
        (TypeError, lambda: Unstructured(True), r"density is a bool"),
        (ValueError, lambda: SparseGPT(damp=0), r"damp is 0, want above 0"),
        (TypeError, lambda: SparseGPT(block_size=8.0), r"block_size is a float"),
        (ValueError, lambda: SparseGPT(block_size=0), r"block_size is 0"),
        (TypeError, lambda: Taylor("loss"), r"loss_fn is a str"),
        (ValueError, lambda: CubicSchedule(0, 1, 10), r"end is 1, want 0 to below 1"),
        (TypeError, lambda: CubicSchedule(0, 0.5, 1.5), r"steps is a float"),
        (ValueError, lambda: CubicSchedule(0, 0.5, 0), r"steps is 0"),
        (TypeError, lambda: finalize_pruning_("model"), r"model: got str"),
    ],
)
def test_values_out_of_range(kind, make, message):
    with pytest.raises(kind, match=message):
        make()
