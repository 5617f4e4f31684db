"""Small models of every family that fuse_ must know: how to make one and what it is called with.

Random weights from a seed; vectors (norm weights, biases) are moved away from 1 and 0, where a
forgotten one would go unnoticed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY = 100
_SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
_TEXT = {**_SIZES, "intermediate_size": 96, "vocab_size": VOCABULARY, "pad_token_id": 0}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_TEXT, **_TOKENS, "num_key_value_heads": 2}
_IMAGE = {**_SIZES, "intermediate_size": 96, "image_size": 32, "patch_size": 16}

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Family:
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]  # batch, length
    attention: int = 1  # attention blocks that must be found


def _ids(batch: int, length: int) -> Inputs:
    """Tokens, the first sequence padded at its end."""
    ids = torch.randint(3, VOCABULARY, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, (length + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _decoder_ids(batch: int, length: int) -> Inputs:
    return {**_ids(batch, length), "use_cache": False}


def _image(batch: int, length: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _tensor(name: str) -> Callable[[int, int], Inputs]:
    return lambda batch, length: {name: torch.randn(batch, length, 64)}


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        **_TOKENS,
        **{"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96},
        **{"num_mel_bins": 8, "max_source_positions": 20, "vocab_size": VOCABULARY},
        **{"pad_token_id": 0, "decoder_start_token_id": 1},
    )
    return hf.WhisperModel(config).encoder


def _padded(batch: int, length: int) -> Inputs:
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0, (length + 1) // 2 :] = True
    return {"src": torch.randn(batch, length, 64), "src_key_padding_mask": padding}


def _causal(batch: int, length: int) -> Inputs:
    mask = nn.Transformer.generate_square_subsequent_mask(length)
    memory = torch.randn(batch, length + 3, 64)
    return {
        **{"tgt": torch.randn(batch, length, 64), "memory": memory},
        **{"tgt_mask": mask, "tgt_is_causal": True},
    }


def _same_three(batch: int, length: int) -> Inputs:
    x = torch.randn(batch, length, 64)
    return {"query": x, "key": x, "value": x, "need_weights": False}


def _encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, **options)


FAMILIES = {
    "bert": Family(lambda: hf.BertModel(hf.BertConfig(**_TEXT)), _ids),
    "roberta": Family(lambda: hf.RobertaModel(hf.RobertaConfig(**_TEXT)), _ids),
    "distilbert": Family(
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(dim=64, n_layers=1, n_heads=4, hidden_dim=96, vocab_size=VOCABULARY)
        ),
        _ids,
    ),
    "mpnet": Family(lambda: hf.MPNetModel(hf.MPNetConfig(**{**_TEXT, "pad_token_id": 1})), _ids),
    "vit": Family(lambda: hf.ViTModel(hf.ViTConfig(**_IMAGE)), _image),
    "clip text": Family(lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_TEXT, **_TOKENS)), _ids),
    "clip vision": Family(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_IMAGE)), _image),
    "whisper encoder": Family(
        _whisper, lambda batch, length: {"input_features": torch.randn(batch, 8, 40)}
    ),
    "gpt2": Family(
        lambda: hf.GPT2Model(
            hf.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=VOCABULARY, **_TOKENS)
        ),
        _decoder_ids,
    ),
    "llama": Family(lambda: hf.LlamaModel(hf.LlamaConfig(**_DECODER)), _decoder_ids),
    "qwen2": Family(lambda: hf.Qwen2Model(hf.Qwen2Config(**_DECODER)), _decoder_ids),
    "qwen3": Family(lambda: hf.Qwen3Model(hf.Qwen3Config(**_DECODER, head_dim=32)), _decoder_ids),
    "mistral": Family(
        lambda: hf.MistralModel(hf.MistralConfig(**_DECODER, sliding_window=4)), _decoder_ids
    ),
    "gemma": Family(lambda: hf.GemmaModel(hf.GemmaConfig(**_DECODER, head_dim=16)), _decoder_ids),
    "encoder layer": Family(_encoder_layer, _tensor("src")),
    "encoder layer, norm first": Family(
        lambda: _encoder_layer(norm_first=True, activation="gelu"), _padded
    ),
    "encoder": Family(
        lambda: nn.TransformerEncoder(_encoder_layer(), 1, enable_nested_tensor=False), _padded
    ),
    "encoder layer, length first": Family(
        lambda: nn.TransformerEncoderLayer(64, 4, 96),
        lambda batch, length: {"src": torch.randn(length, batch, 64)},
    ),
    "decoder layer": Family(
        lambda: nn.TransformerDecoderLayer(64, 4, 96, batch_first=True), _causal, attention=2
    ),
    "multi-head attention": Family(
        lambda: nn.MultiheadAttention(64, 4, batch_first=True), _same_three
    ),
    "mlp": Family(
        lambda: nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)),
        _tensor("input"),
        attention=0,
    ),
    "image mlp": Family(  # as torchvision's MLP block is put together
        lambda: nn.Sequential(
            *(nn.Linear(64, 96), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(96, 64)),
            nn.Dropout(0.1, inplace=True),
        ),
        _tensor("input"),
        attention=0,
    ),
}


def make(name: str) -> nn.Module:
    """The model of a family, always the same, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[name].make().eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 1:
                    p += 0.1 * torch.randn_like(p)
    return model


def inputs(name: str, batch: int, length: int) -> Inputs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch * 1000 + length)
        return FAMILIES[name].inputs(batch, length)


def answer(model: nn.Module, given: Inputs) -> Tensor:
    """The main output, at the positions that no mask hides: [positions, features]."""
    out = model(**given)
    out = out if isinstance(out, Tensor) else out[0]
    mask = given.get("attention_mask")
    if mask is None and "src_key_padding_mask" in given:
        mask = ~given["src_key_padding_mask"]
    return out[mask.bool()] if mask is not None else out.flatten(0, -2)
