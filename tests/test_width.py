"""`prune_width_`: narrower convolutions and residual streams, and widths that must stay."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

import fastinfer
from families import inputs, make
from fastinfer import Magnitude, Random, Taylor, Wanda, prune_width_

pytest.importorskip("torch_pruning")


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


def convnet():
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), Residual(16)),
        *(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    with torch.no_grad():
        for norm in (net[1], net[3].norm_a, net[3].norm_b):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 1.5)
    return net.eval()


def test_a_convnet_is_what_it_was_without_the_channels(randn):
    model, x = convnet().double(), randn(2, 3, 12, 12).double()
    before = copy.deepcopy(model)
    result = prune_width_(model, x, 0.5, multiple=4)
    assert (model[0].out_channels, model[3].a.out_channels) == (8, 8)
    assert (model[4].in_channels, model[4].out_channels, model[4].groups) == (8, 8, 8)
    assert (model[5].out_channels, model[9].in_features) == (16, 64)
    assert model[3].norm_b.running_mean.shape == (8,)
    assert model[9].weight.shape == (10, 64)

    # The residual stream: all that give it or read it have a say.
    weights = {
        n: m.weight.detach().abs() for n, m in before.named_modules() if hasattr(m, "weight")
    }
    stream = weights["0"].sum((1, 2, 3)) + weights["3.b"].sum((1, 2, 3))
    stream = stream + weights["3.a"].sum((0, 2, 3)) + weights["4"].sum((1, 2, 3))
    stream = stream + weights["5"].sum((0, 2, 3))
    kept = stream.argsort(descending=True)[:8].sort().values
    assert torch.equal(model[0].weight, before[0].weight[kept])
    assert torch.equal(model[1].running_var, before[1].running_var[kept])
    inner = weights["3.a"].sum((1, 2, 3)) + weights["3.b"].sum((0, 2, 3))
    inside = inner.argsort(descending=True)[:8].sort().values
    assert torch.equal(model[3].b.weight, before[3].b.weight[kept][:, inside])

    last = weights["5"].sum((1, 2, 3)) + weights["9"].view(10, 32, 4).sum((0, 2))
    out = last.argsort(descending=True)[:16].sort().values
    with torch.no_grad():
        before[3].a.weight[:, [c for c in range(16) if c not in kept]] = 0
        before[3].b.weight[:, [c for c in range(16) if c not in inside]] = 0
        before[5].weight[:, [c for c in range(16) if c not in kept]] = 0
        before[9].weight.view(10, 32, 4)[:, [c for c in range(32) if c not in out]] = 0
        want = before(x)
        # Sums of the same numbers in another order, a few times over, in float64.
        assert (model(x) - want).norm() <= 1e-12 * want.norm()
    assert [row.name for row in result.left] == ["9"]
    assert "outputs" in result.left[0].reason
    assert "16 -> 8" in str(result)
    assert model.training is False
    assert all(p.requires_grad for p in model.parameters())


def classifier():
    config = hf.BertConfig(
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 96, "vocab_size": 100, "num_labels": 3},
    )
    return hf.BertForSequenceClassification(config).eval()


def test_the_residual_stream_of_a_transformer():
    model, given = classifier(), inputs("bert", 2, 7)
    result = prune_width_(model, given, 0.5, multiple=16)
    assert model.bert.embeddings.word_embeddings.weight.shape == (100, 32)
    assert model.bert.embeddings.LayerNorm.normalized_shape == (32,)
    layer = model.bert.encoder.layer[1]
    assert layer.attention.self.query.weight.shape == (64, 32)  # heads stay whole
    assert layer.intermediate.dense.weight.shape == (48, 32)
    assert layer.output.dense.weight.shape == (32, 48)
    assert model.classifier.weight.shape[0] == 3
    assert any("heads of bert.encoder.layer.0.attention" in row.reason for row in result.left)
    with torch.no_grad():
        assert model(**given).logits.isfinite().all()


def test_a_narrowed_transformer_loses_heads_fuses_becomes_int8_and_learns():
    teacher, given = classifier(), inputs("bert", 2, 7)
    student = copy.deepcopy(teacher)
    prune_width_(student, given, 0.5)
    fastinfer.prune_heads_(student, given, 0.5)
    fastinfer.prune_layers_(student, [given], 0.5)
    result = fastinfer.distill(student, teacher, [given] * 20, lr=1e-2, progress=False)
    assert result.losses[-1] < result.losses[0]
    with torch.inference_mode():
        want = student(**given).logits
        summary = fastinfer.quantize_(student, fuse=True)
        assert len(summary.quantized) == 8
        assert (student(**given).logits - want).norm() <= 0.1 * want.norm()


def test_tied_weights_stay_tied():
    config = hf.LlamaConfig(
        **{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100},
        tie_word_embeddings=True,
    )
    model, given = hf.LlamaForCausalLM(config).eval(), inputs("llama", 2, 7)
    prune_width_(model, given, 0.5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (100, 32)
    assert model.model.norm.weight.shape == (32,)
    with torch.no_grad():
        assert model(**given).logits.shape == (2, 7, 100)


class Trap(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.up, self.down, self.between = nn.Linear(6, 32), nn.Linear(32, 5), between

    def forward(self, x):
        return self.down(self.between(self.up(x)))


TRAPS = {
    "softmax": (lambda h: h.softmax(-1), "reaches more"),
    "a shuffle": (lambda h: h.roll(1, -1), "reaches more"),
    "a constant": (lambda h: h + torch.ones(32), "counts on it"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_channels_that_are_not_alone_stay(randn, trap):
    between, why = TRAPS[trap]
    model, x = Trap(between).eval(), randn(9, 6)
    state, want = copy.deepcopy(model.state_dict()), model(x)
    result = prune_width_(model, x, 0.5)
    assert why in next(row for row in result.left if row.name == "up").reason
    assert not result.pruned
    assert torch.equal(model(x), want)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_heads_in_one_module_stay():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = make("encoder layer"), nn.Linear(64, 3)

        def forward(self, src):
            return self.head(self.encoder(src))

    model = Classifier().eval()
    result = prune_width_(model, inputs("encoder layer", 2, 7), 0.5)
    assert model.encoder.self_attn.embed_dim == 64
    assert any("heads of encoder.self_attn" in row.reason for row in result.left)
    assert model.encoder.linear1.out_features == 48


def test_other_criteria_and_filter_fn(randn):
    x = randn(9, 6)
    x[:, 0] = 0
    model = Trap(F.relu).eval()
    with torch.no_grad():
        model.up.weight[:16, 1:] = 0  # channels that no input reaches, however large
        model.up.weight[:16, 0] = 1000
        model.up.bias[:16] = 0
        model.down.weight[:, :16] = 1000
    loss = Taylor(lambda m, batch: m(batch).square().sum())
    for criterion, useless_go in [(Magnitude(), False), (loss, True)]:
        narrow = copy.deepcopy(model)
        prune_width_(narrow, x, 0.5, criterion, batches=[x])
        assert torch.equal(narrow.down.weight, model.down.weight[:, 16 * useless_go :][:, :16])
    result = prune_width_(model, x, 0.5, Random(1), filter_fn=lambda m, name: name != "down")
    assert {row.reason for row in result.left} == {"filter_fn left down out"}
    assert not result.pruned
    fastinfer.prune_(model, fastinfer.Sparse24(), filter_fn=lambda m, name: name == "down")
    result = prune_width_(model, x, 0.5)
    assert {row.reason for row in result.left} == {"down is parametrised"}


def test_a_failure_leaves_the_model(randn):
    model = Trap(F.relu).eval()
    state = copy.deepcopy(model.state_dict())

    def loss(model, batch):
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        prune_width_(model, randn(3, 6), 0.5, Taylor(loss), batches=[randn(3, 6)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prune_width_(model, randn(3, 7), 0.5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (TypeError, {"model": "model"}, r"model: got str"),
        (TypeError, {"example_inputs": 3}, r"example_inputs: got int"),
        (ValueError, {"keep": 1}, r"keep: got 1, want above 0 to below 1"),
        (TypeError, {"criterion": Wanda()}, r"criterion: got Wanda, want Magnitude"),
        (ValueError, {"multiple": 0}, r"multiple: got 0, want at least 1"),
        (TypeError, {"filter_fn": "up"}, r"filter_fn: got str"),
    ],
)
def test_errors(kind, change, message):
    given = {"model": Trap(F.relu).eval(), "example_inputs": torch.ones(2, 6)} | change
    with pytest.raises(kind, match=message):
        prune_width_(**given)


def test_without_torch_pruning_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "import torch, fastinfer\n"
        "fastinfer.prune_width_(torch.nn.Linear(2, 2), torch.ones(1, 2), 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ImportError: widths need torch-pruning: pip install "fastinfer[prune]"' in done.stderr
