"""`prune_layers_`: whole blocks that go, and everything that counts them."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

import fastinfer
from fastinfer import prune_layers_

VOCABULARY = 50
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}


class Block(nn.Module):
    def __init__(self, size, scale):
        super().__init__()
        self.inner, self.scale = nn.Linear(size, size), scale

    def forward(self, x):
        return x + self.scale * self.inner(x)


def stack(*scales):
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(*(Block(8, s) for s in scales))).eval()


def test_the_blocks_that_change_least_go(randn):
    model, batches = stack(1, 0.01, 0.5, 0.02), [randn(9, 6), randn(3, 6)]
    blocks = list(model[1])
    want = []
    with torch.no_grad():
        for number, block in enumerate(blocks):
            pairs = [(model[1][:number](model[0](x)), block) for x in batches]
            cos = [torch.cosine_similarity(x.double(), b(x).double(), -1) for x, b in pairs]
            want.append(1 - float(torch.cat(cos).mean()))
    result = prune_layers_(model, batches, 0.5)
    assert list(model[1]) == [blocks[0], blocks[2]]
    assert [row.removed for row in result.rows] == [False, True, False, True]
    # 1 - cos loses digits where cos is close to 1; the inputs of both are the same float32.
    assert [row.influence for row in result.rows] == pytest.approx(want, abs=1e-12)
    assert [row.name for row in result.removed] == ["1.1", "1.3"]
    assert "2 of 4 blocks removed" in str(result)
    assert result.to_dict()["blocks"][1]["removed"] is True
    x = batches[0]
    assert torch.equal(model(x), blocks[2](blocks[0](model[0](x))))


def ids(count=2, length=6):
    return {"input_ids": torch.randint(3, VOCABULARY, (count, length))}


def llama():
    model = hf.LlamaModel(hf.LlamaConfig(**SIZES, num_hidden_layers=4, num_key_value_heads=2))
    return model, "layers", ids() | {"use_cache": False}


def qwen2():
    config = hf.Qwen2Config(
        **SIZES,
        num_hidden_layers=4,
        num_key_value_heads=2,
        layer_types=["full_attention", "sliding_attention"] * 2,
        sliding_window=4,
        use_sliding_window=True,
    )
    return hf.Qwen2Model(config), "layers", ids() | {"use_cache": False}


def bert():
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = hf.BertConfig(**SIZES, **none, num_hidden_layers=4)
    return hf.BertModel(config), "encoder.layer", ids()


def gpt2():
    config = hf.GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=VOCABULARY)
    return hf.GPT2Model(config), "h", ids() | {"use_cache": False}


def vit():
    size = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    config = hf.ViTConfig(**size, num_hidden_layers=4, image_size=16, patch_size=8)
    return hf.ViTModel(config), "layers", {"pixel_values": torch.randn(2, 3, 16, 16)}


def encoder():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 48, batch_first=True), 4)
    return model, "layers", {"src": torch.randn(2, 6, 32)}


def shrink_block(model, name, number):
    """Makes a block of pre-norm or post-norm almost no change at all."""
    with torch.no_grad():
        for parameter in model.get_submodule(name)[number].parameters():
            if parameter.dim() == 2:
                parameter *= 1e-3


@pytest.mark.parametrize("family", [llama, qwen2, bert, gpt2, vit, encoder])
def test_families(family):
    model, name, given = family()
    model = model.eval()
    shrink_block(model, name, 1)
    blocks = list(model.get_submodule(name))
    prune_layers_(model, [given], 0.75)
    kept = list(model.get_submodule(name))
    assert kept == [blocks[0], blocks[2], blocks[3]]
    config = getattr(model, "config", None)
    if config is not None:
        assert config.num_hidden_layers == 3
    if family is qwen2:
        assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    if family is encoder:
        assert model.num_layers == 3
    for number, block in enumerate(kept):
        indices = {vars(m)["layer_idx"] for m in block.modules() if "layer_idx" in vars(m)}
        assert indices <= {number}
    with torch.no_grad():
        assert model(**given)[0].isfinite().all()


def test_a_shortened_decoder_uses_its_cache_and_its_config_makes_one_like_it():
    model, name, given = llama()
    shrink_block(model.eval(), name, 0)
    prune_layers_(model, [given], 0.75)
    tokens = given["input_ids"]
    with torch.no_grad():
        whole = model(tokens, use_cache=False)[0]
        start = model(tokens[:, :3], use_cache=True)
        cache = next(v for v in start.values() if not torch.is_tensor(v))
        rest = model(tokens[:, 3:], cache=cache)[0]
    # 32-wide float32 sums in two orders; values are of size 1 after the norm.
    assert (rest - whole[:, 3:]).abs().max() <= 32 * 2**-23 * 10
    twin = hf.LlamaModel(model.config)
    twin.load_state_dict(model.state_dict())


def test_a_shortened_model_fuses_becomes_int8_and_learns():
    teacher, name, given = bert()
    teacher = teacher.eval()
    with torch.no_grad():
        for parameter in teacher.encoder.parameters():
            parameter *= (
                10 if parameter.dim() == 2 else 1
            )  # or a block would change next to nothing
    student = copy.deepcopy(teacher)
    prune_layers_(student, [given], 0.5)
    loss = fastinfer.FeatureMatch({f"{name}.1": f"{name}.3"})
    result = fastinfer.distill(student, teacher, [given] * 20, loss, lr=1e-3, progress=False)
    assert result.losses[-1] < result.losses[0]
    with torch.inference_mode():
        want = student(**given)[0]
        summary = fastinfer.quantize_(student, fuse=True)
        assert len(summary.quantized) == 2 * 6 + 1
        assert (student(**given)[0] - want).norm() <= 0.05 * want.norm()


def test_an_encoder_and_a_decoder_count_apart():
    config = hf.WhisperConfig(
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        **{"num_mel_bins": 8, "max_source_positions": 10, "vocab_size": VOCABULARY},
        **{"pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
    )
    model = hf.WhisperModel(config).eval()
    given = {
        "input_features": torch.randn(1, 8, 20),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (1, 5)),
        "use_cache": False,
    }
    result = prune_layers_(
        model, [given], 0.5, filter_fn=lambda module, name: not name.startswith("encoder")
    )
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 1)
    assert (config.encoder_layers, config.decoder_layers) == (2, 1)
    assert [row.reason for row in result.rows[:2]] == ["filter_fn left it out"] * 2


def test_blocks_that_change_the_shape_or_are_not_reached_stay(randn):
    class Down(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.inner = nn.Linear(size, size // 2)

        def forward(self, x):
            return self.inner(x)

    model = nn.Sequential(nn.Sequential(Down(8), Down(4))).eval()
    result = prune_layers_(model, [randn(3, 8)], 0.5)
    reasons = [row.reason for row in result.rows]
    assert reasons == ["it makes [3, 4] of [3, 8]", "it makes [3, 2] of [3, 4]"]
    assert not result.removed

    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(8, 1) for _ in range(3)])

        def forward(self, x):
            return self.blocks[2](self.blocks[0](x))

    with pytest.raises(ValueError, match=r"model: it does not run without blocks\.[02]"):
        prune_layers_(Some().eval(), [randn(3, 8)], 0.6)


def test_a_model_that_does_not_run_without_blocks_is_as_it_was(randn):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_layers = 3
            self.blocks = nn.ModuleList([Block(8, 1) for _ in range(3)])
            for number, block in enumerate(self.blocks):
                block.layer_idx = number

        def forward(self, x):
            for number in range(3):
                x = self.blocks[number](x)
            return x

    model, x = Counting().eval(), randn(3, 8)
    want = model(x)
    with pytest.raises(ValueError, match=r"model: it does not run without blocks\.\d: IndexError"):
        prune_layers_(model, [x], 0.6)
    assert torch.equal(model(x), want)
    assert model.num_layers == 3
    assert [block.layer_idx for block in model.blocks] == [0, 1, 2]
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (TypeError, {"model": "model"}, r"model: got str"),
        (ValueError, {"model": nn.Linear(6, 6)}, r"model: it has no nn.ModuleList or"),
        (TypeError, {"batches": torch.ones(2, 6)}, r"batches: got Tensor, want an iterable"),
        (ValueError, {"batches": []}, r"batches: it is empty"),
        (ValueError, {"batches": [torch.full((2, 6), torch.nan)]}, r"holds NaN or Inf"),
        (ValueError, {"keep": 1}, r"keep: got 1, want above 0 to below 1"),
        (TypeError, {"filter_fn": "out"}, r"filter_fn: got str"),
    ],
)
def test_errors(kind, change, message):
    with pytest.raises(kind, match=message):
        prune_layers_(**{"model": stack(1, 1), "batches": [torch.ones(2, 6)]} | change)
