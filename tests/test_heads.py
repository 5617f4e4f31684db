"""`prune_heads_`: fewer heads against zeroed ones, and blocks that must not be narrowed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastinfer
from families import FAMILIES, answer, inputs, make
from fastinfer import Magnitude, Random, Taylor, Wanda, prune_heads_
from fastinfer.nn import SplitAttention

LENGTH, WIDTH = 5, 16


class Attention(nn.Module):
    """4 heads of 4; how q, k and v lie in one matrix is up to `split`."""

    def __init__(self, rows=48, between=lambda scores: scores):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, rows), nn.Linear(WIDTH, WIDTH)
        self.num_heads, self.between = 4, between

    def split(self, x):  # [batch, heads, length, 3, size]: a head's q, k and v side by side
        return self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).transpose(1, 2).unbind(-2)

    def forward(self, x):
        q, k, v = self.split(x)
        scores = self.between(q @ k.transpose(-1, -2))
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Grouped(Attention):
    """4 query heads that share 2 key-value heads: rows q, then k, then v."""

    def __init__(self):
        super().__init__(32)

    def split(self, x):
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in self.parts(self.qkv(x)))
        return q, *(y.repeat_interleave(2, 1) for y in (k, v))

    def parts(self, y):
        quarter = y.shape[-1] // 4
        return y.split([2 * quarter, quarter, quarter], -1)


def unit_rows(kind, unit):
    if kind is Attention:
        return list(range(12 * unit, 12 * unit + 12))
    k = range(16 + 4 * unit, 20 + 4 * unit)
    return [*range(8 * unit, 8 * unit + 8), *k, *(row + 8 for row in k)]


def in_double(given):
    return {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in given.items()
    }


def close(got, want):
    # Sums of the same numbers in another order, a few times over, in float64.
    return (got - want).norm() <= 1e-12 * want.norm()


@pytest.mark.parametrize("kind", [Attention, Grouped])
def test_the_heads_of_the_largest_weights_stay_with_what_they_share(randn, kind):
    model, x = nn.ModuleList([kind().double().eval()]), randn(3, LENGTH, WIDTH).double()
    model.forward = model[0].forward
    before, count = copy.deepcopy(model[0]), 4 if kind is Attention else 2
    result = prune_heads_(model, x, 0.5)
    size = WIDTH // count
    qkv, out = (layer.weight.detach().abs() for layer in (before.qkv, before.out))
    scores = [
        qkv[unit_rows(kind, unit)].sum() + out[:, unit * size : (unit + 1) * size].sum()
        for unit in range(count)
    ]
    kept = sorted(sorted(range(count), key=lambda unit: -scores[unit])[: count // 2])
    rows = sorted(row for unit in kept for row in unit_rows(kind, unit))
    columns = [column for unit in kept for column in range(unit * size, (unit + 1) * size)]
    assert torch.equal(model[0].qkv.weight, before.qkv.weight[rows])
    assert torch.equal(model[0].qkv.bias, before.qkv.bias[rows])
    assert torch.equal(model[0].out.weight, before.out.weight[:, columns])
    assert (model[0].qkv.out_features, model[0].out.in_features) == (len(rows), WIDTH // 2)
    assert model[0].num_heads == 2
    with torch.no_grad():
        before.out.weight[:, [c for c in range(WIDTH) if c not in columns]] = 0
        assert close(model[0](x), before(x))
    (row,) = result.pruned
    assert (row.name, row.before) == ("0", ("0.qkv",))
    assert (row.width_before, row.width_after) == (count, count // 2)
    assert f"{count} -> {count // 2}" in str(result)
    assert result.to_dict()["attention_blocks"][0]["width_after"] == count // 2


OUTPUTS = {
    "bert": "encoder.layer.0.attention.output.dense",
    "roberta": "encoder.layer.0.attention.output.dense",
    "distilbert": "transformer.layer.0.attention.out_lin",
    "vit": "layers.0.attention.o_proj",
    "clip text": "encoder.layers.0.self_attn.out_proj",
    "clip vision": "encoder.layers.0.self_attn.out_proj",
    "whisper encoder": "layers.0.self_attn.out_proj",
    "gpt2": "h.0.attn.c_proj",
    "llama": "layers.0.self_attn.o_proj",
    "qwen2": "layers.0.self_attn.o_proj",
    "qwen3": "layers.0.self_attn.o_proj",
    "mistral": "layers.0.self_attn.o_proj",
    "gemma": "layers.0.self_attn.o_proj",
    "encoder layer": "self_attn.out_proj",
    "encoder layer, norm first": "self_attn.out_proj",
    "encoder": "layers.0.self_attn.out_proj",
}


@pytest.mark.parametrize("family", OUTPUTS)
def test_families(family):
    model, given = make(family).double(), in_double(inputs(family, 2, 7))
    zeroed = copy.deepcopy(model)
    result = prune_heads_(model, given, 0.5, Random(1))
    (row,) = result.pruned
    grouped = FAMILIES[family].inputs(2, 7).get("use_cache") is False and family != "gpt2"
    assert (row.width_before, row.width_after) == ((2, 1) if grouped else (4, 2))

    new, old = (m.get_submodule(OUTPUTS[family]).weight for m in (model, zeroed))
    if family == "gpt2":  # Conv1D: [in, out]
        new, old = new.T, old.T
    gone = ~(old.T[:, None] == new.T).all(-1).any(-1)
    assert new.shape == (old.shape[0], old.shape[1] // 2)
    assert gone.sum() == new.shape[1]
    for name in row.before:
        layer = model.get_submodule(name)
        outputs = layer.weight.shape[family == "gpt2"]
        assert len(layer.bias) == outputs if layer.bias is not None else True
    with torch.no_grad():
        old[:, gone] = 0
        assert close(answer(model, given), answer(zeroed, given))  # torch's fused paths too
        model.train()(**given)


def test_the_numbers_of_heads_follow():
    model = make("gpt2")
    prune_heads_(model, inputs("gpt2", 2, 7), 0.5)
    attention = model.h[0].attn
    assert (attention.num_heads, attention.split_size, attention.head_dim) == (2, 32, 16)
    assert (attention.c_attn.nf, attention.c_attn.nx, attention.c_proj.nx) == (96, 64, 32)
    model = make("bert")
    prune_heads_(model, inputs("bert", 2, 7), 0.25)
    attention = model.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (1, 16)
    assert model.config.num_attention_heads == 4


def test_a_pruned_decoder_generates_with_a_cache():
    model, given = make("llama"), inputs("llama", 2, 7)
    prune_heads_(model, given, 0.5)
    ids = given["input_ids"]
    with torch.no_grad():
        whole = model(ids, use_cache=False)[0]
        start = model(ids[:, :4], use_cache=True)
        cache = next(v for v in start.values() if not torch.is_tensor(v))
        rest = model(ids[:, 4:], cache=cache)[0]
    # 64-wide float32 sums in two orders; values are of size 1 after the norm.
    assert (rest - whole[:, 4:]).abs().max() <= 64 * 2**-23 * 10


def test_a_pruned_model_fuses_becomes_int8_and_learns():
    teacher, given = make("encoder"), inputs("encoder", 2, 7)
    student = copy.deepcopy(teacher)
    prune_heads_(student, given, 0.5)
    fastinfer.prune_channels_(student, given, 0.5)
    layer = student.layers[0]
    assert isinstance(layer.self_attn, SplitAttention)
    assert (layer.linear1.out_features, layer.self_attn.out_proj.in_features) == (48, 32)
    loss = fastinfer.FeatureMatch({"layers.0": "layers.0"})
    result = fastinfer.distill(student, teacher, [given] * 20, loss, lr=1e-2, progress=False)
    assert result.losses[-1] < result.losses[0]
    with torch.inference_mode():
        want = answer(student, given)
        fused = copy.deepcopy(student)
        fusion = fastinfer.fuse_(fused)
        assert (answer(fused, given) - want).norm() <= 1e-4 * want.norm()
        assert fusion.fused["attention"] == 1
        summary = fastinfer.quantize_(student, fuse=True)
        int8 = {row.name for row in summary.quantized}
        assert int8 >= {f"layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
        assert (answer(student, given) - want).norm() <= 0.05 * want.norm()


def test_other_criteria_choose_by_their_scores(randn):
    x = randn(9, LENGTH, WIDTH)
    x[..., 0] = 0
    model = nn.Sequential(Attention()).eval()
    with torch.no_grad():
        model[0].qkv.weight[:24, 1:] = 0  # heads that no input reaches, however large
        model[0].qkv.weight[:24, 0] = 1000
        model[0].qkv.bias[:24] = 0
    for criterion, useless_go in [
        (Magnitude(), False),
        (Wanda(), True),
        (Taylor(lambda m, batch: m(batch).square().sum()), True),
    ]:
        narrow = copy.deepcopy(model)
        prune_heads_(narrow, x, 0.5, criterion, batches=[x])
        want = model[0].qkv.weight[24 * useless_go :][:24]
        assert torch.equal(narrow[0].qkv.weight, want)


def test_a_global_budget_and_at_least_one_head_a_block(randn):
    model = nn.Sequential(Attention(), Attention()).eval()
    with torch.no_grad():
        model[1].qkv.weight *= 0.01
        model[1].out.weight *= 0.01
    result = prune_heads_(model, randn(2, LENGTH, WIDTH), 0.5, scope="global")
    assert [row.width_after for row in result.rows] == [4, 1]
    assert [row.reason for row in result.rows] == ["all 4 would stay", None]


def test_blocks_by_name(randn):
    x = randn(2, LENGTH, WIDTH)
    model = nn.Sequential(Attention(), Attention()).eval()
    result = prune_heads_(model, x, {"1": 0.25})
    assert [row.width_after for row in result.rows] == [4, 1]
    assert result.rows[0].reason == "keep does not name it"
    with pytest.raises(ValueError, match=r"keep: no attention block named 2 .*there are 0, 1"):
        prune_heads_(model, x, {"2": 0.5})
    model = nn.Sequential(Attention(between=lambda s: s.mean(1, True) + s)).eval()
    with pytest.raises(ValueError, match=r"keep: 0 cannot lose heads: its heads cannot be told"):
        prune_heads_(model, x, {"0": 0.5})
    assert model[0].num_heads == 4


class Biased(Attention):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))
        self.between = lambda scores: scores + self.bias


class Normed(Attention):
    def split(self, x):
        q, k, v = super().split(x)
        return F.layer_norm(q, q.shape[1:]), k, v


class Returned(Attention):
    def forward(self, x):
        return super().forward(x), self.qkv(x)


class Twice(Attention):
    def forward(self, x):
        return super().forward(super().forward(x))


TRAPS = {
    "a bias for each head": (Biased, LENGTH, "counts on their number"),
    "a norm over all heads": (Normed, LENGTH, "cannot be told apart"),
    "heads that mix": (lambda: Attention(between=lambda s: s.mean(1, True) + s), LENGTH, "apart"),
    "one token": (Attention, 1, "cannot be told apart"),
    "twice": (Twice, LENGTH, "more than once"),
    "q is returned, too": (Returned, LENGTH, "more than"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_heads_that_are_not_alone_stay(randn, trap):
    make_trap, length, why = TRAPS[trap]
    model, x = nn.Sequential(make_trap()).eval(), randn(2, length, WIDTH)
    state = copy.deepcopy(model.state_dict())
    result = prune_heads_(model, x, 0.5)
    assert why in result.left[0].reason
    assert not result.pruned
    assert model[0].num_heads == 4
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_filter_fn_and_masks_leave_a_block(randn):
    model = nn.Sequential(Attention(), Attention(), Attention()).eval()
    fastinfer.prune_(model, fastinfer.Sparse24(), filter_fn=lambda m, name: name == "2.out")
    x = randn(2, LENGTH, WIDTH)
    result = prune_heads_(model, x, 0.5, filter_fn=lambda m, name: name != "0.qkv")
    assert [row.name for row in result.pruned] == ["1"]
    assert [row.reason for row in result.left] == [
        "0.qkv: filter_fn left it out",
        "2.out: it has a mask, which finalize_pruning_ takes off",
    ]
    assert [block.num_heads for block in model] == [4, 2, 4]


def test_dead_heads_are_heads(randn):
    model = nn.Sequential(Attention()).eval()
    with torch.no_grad():
        model[0].qkv.weight[12:24], model[0].qkv.bias[12:24] = 0, 0
        model[0].out.weight[:, 4:8] = 0
    want = model(x := randn(2, LENGTH, WIDTH))
    result = prune_heads_(model, x, 0.75)
    assert [row.width_after for row in result.pruned] == [3]
    # Three sums of up to 16 float32 products in another order.
    assert (model(x) - want).abs().max() <= 3 * 16 * 2**-24 * (1 + want.abs().max())


def test_a_failure_leaves_the_model():
    model, given = make("encoder layer"), inputs("encoder layer", 2, 7)

    def loss(model, batch):
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        prune_heads_(model, given, 0.5, Taylor(loss), batches=[given])
    assert type(model.self_attn) is nn.MultiheadAttention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (TypeError, {"model": "model"}, r"model: got str"),
        (ValueError, {"model": nn.MultiheadAttention(8, 2)}, r"model: got an nn.MultiheadAtt"),
        (TypeError, {"example_inputs": 3}, r"example_inputs: got int"),
        (ValueError, {"keep": 1.0}, r"keep: got 1.0, want above 0 to below 1"),
        (ValueError, {"keep": {"0": 2}}, r"keep of 0: got 2, want above 0 to below 1"),
        (TypeError, {"criterion": fastinfer.SparseGPT()}, r"criterion: got SparseGPT, want"),
        (ValueError, {"criterion": Wanda()}, r"batches: got None, but Wanda needs them"),
        (ValueError, {"scope": "local"}, r"scope: got 'local', want one of uniform, global"),
        (ValueError, {"scope": "global", "keep": {"0": 0.5}}, r"scope: got 'global' with a share"),
        (ValueError, {"scope": "global", "criterion": Wanda(), "batches": [1]}, r"within a layer"),
        (TypeError, {"filter_fn": "out"}, r"filter_fn: got str"),
    ],
)
def test_errors(kind, change, message):
    given = {
        "model": nn.Sequential(Attention()).eval(),
        "example_inputs": torch.ones(1, LENGTH, WIDTH),
    }
    with pytest.raises(kind, match=message):
        prune_heads_(**given | change)


def padding():
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 4:] = True
    return mask


CALLS = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": padding()},
    "causal": {"attn_mask": torch.ones(5, 7).triu(1).bool(), "is_causal": True},
    "float mask a head": {"attn_mask": torch.linspace(-1, 1, 12 * 5 * 7).view(12, 5, 7)},
    "both": {
        "attn_mask": torch.ones(5, 7).triu(1).bool(),
        "key_padding_mask": padding(),
        "need_weights": False,
    },
}


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 10}, {"bias": False}])
@pytest.mark.parametrize("call", CALLS)
def test_split_attention_is_that_of_torch(randn, call, options):
    for batch_first in (True, False):
        theirs = nn.MultiheadAttention(8, 4, batch_first=batch_first, **options).double().eval()
        with torch.no_grad():
            for p in theirs.parameters():
                p += 0.1 * torch.randn_like(p)
        ours = SplitAttention.from_torch(theirs)
        q, k = randn(3, 5, 8).double(), randn(3, 7, options.get("kdim", 8)).double()
        given = [q, k, randn(3, 7, options.get("vdim", 8)).double()]
        if not batch_first:
            given = [x.transpose(0, 1) for x in given]
        arguments = {
            name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in CALLS[call].items()
        }
        for got, want in zip(ours(*given, **arguments), theirs(*given, **arguments), strict=True):
            assert (got is None) == (want is None)
            assert want is None or close(got, want)


def test_split_attention_without_a_batch_and_what_it_refuses(randn):
    theirs = nn.MultiheadAttention(8, 4).double().eval()
    ours, x = SplitAttention.from_torch(theirs), randn(5, 8).double()
    for got, want in zip(ours(x, x, x), theirs(x, x, x), strict=True):
        assert got.shape == want.shape
        assert close(got, want)
    with pytest.raises(TypeError, match=r"mask: got torch.int64, want torch.bool"):
        ours(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="attn_mask: got None with is_causal"):
        ours(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="add_bias_kv or add_zero_attn"):
        SplitAttention.from_torch(nn.MultiheadAttention(8, 4, add_zero_attn=True))
