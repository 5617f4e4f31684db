"""Models of a Hugging Face directory: config.json, weights, perhaps a tokenizer."""

import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_MOST_BATCHES = 8  # of a text file
_DECODER_LENGTH = 16


def import_transformers() -> ModuleType:
    """transformers, silent; ImportError names the extra that brings it."""
    try:
        import safetensors  # noqa: F401
        import transformers
    except ImportError as error:
        raise ImportError(
            f'{error.name} is not installed: pip install "fastinfer[transformers]"'
        ) from error
    return transformers


def model_class(directory: Path) -> Any:
    """The class that config.json names, heads included; AutoModel where it names none.

    Raises ValueError on a directory without a config.json that transformers understands.
    """
    transformers = import_transformers()
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory")
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory}: not a Hugging Face model directory, it has no config.json")
    try:
        config = json.loads(path.read_text("utf-8"))
        names = config.get("architectures") or ["AutoModel"]
        name = str(names[0])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the config.json of a model: {error}") from error
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(
            f"{path}: the architecture {name} is not in transformers {transformers.__version__}"
        )
    return found


def load_float(directory: Path) -> nn.Module:
    """The trained model in eval mode, its weights in memory of their own, not in a mapped file."""
    loader = model_class(directory)
    try:
        model: nn.Module = loader.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # of any kind: what a damaged directory raises is not documented
        raise ValueError(f"{directory}: transformers cannot load it: {_line(error)}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model.eval()


def build_empty(directory: Path) -> nn.Module:
    """The model on the meta device: its structure, no values."""
    transformers = import_transformers()
    found = model_class(directory)
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            # An Auto class picks the model's; a model's own class takes the config itself.
            model: nn.Module = getattr(found, "from_config", found)(config)
        if (directory / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
    except Exception as error:
        raise ValueError(f"{directory}: transformers cannot build it: {_line(error)}") from error
    return model.eval()


def example_inputs(
    model: Any, batch: int, length: int, text: Path | None = None, directory: Path | None = None
) -> list[dict[str, Any]]:
    """Batches to run `model` on: random ones of the shapes that its config asks for, or lines of
    the file `text` through the tokenizer of `directory`.

    Raises ValueError if no inputs are known for such a model, or there is no text.
    """
    if text is not None:
        assert directory is not None
        batches = _text_batches(text, directory, batch, length)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            batches = [_random(model, batch, length)]
    accepted = inspect.signature(model.forward).parameters
    for inputs in batches:
        if "use_cache" in accepted and not model.config.is_encoder_decoder:
            inputs["use_cache"] = False
        if model.config.is_encoder_decoder and "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = _ids(model, batch, _DECODER_LENGTH)
    return batches


def _random(model: Any, batch: int, length: int) -> dict[str, Any]:
    config, name = model.config, model.main_input_name
    vision = getattr(config, "vision_config", config)
    inputs: dict[str, Any] = {}
    if name == "input_ids":
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        inputs["input_ids"] = _ids(model, batch, min(length, most) if most else length)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if name == "pixel_values" or (name == "input_ids" and vision is not config):
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        inputs["pixel_values"] = torch.randn(batch, vision.num_channels, height, width)
    if name == "input_features":
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(batch, config.num_mel_bins, frames)
    if name == "input_values":
        inputs["input_values"] = torch.randn(batch, 16000)
    if not inputs:
        raise ValueError(f"{type(model).__name__}: no example inputs known for its {name}")
    return inputs


def _ids(model: Any, batch: int, length: int) -> Tensor:
    return torch.randint(0, model.config.get_text_config().vocab_size, (batch, length))


def _text_batches(text: Path, directory: Path, batch: int, length: int) -> list[dict[str, Any]]:
    lines = [line.strip() for line in text.read_text("utf-8").splitlines() if line.strip()]
    if len(lines) < batch:
        raise ValueError(f"{text}: got {len(lines)} lines of text, want at least {batch}")
    try:
        tokenizer = import_transformers().AutoTokenizer.from_pretrained(
            directory, local_files_only=True
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        starts = range(0, len(lines) - batch + 1, batch)[:_MOST_BATCHES]
        return [
            dict(
                tokenizer(
                    lines[i : i + batch],
                    padding=True,
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                )
            )
            for i in starts
        ]
    except Exception as error:
        raise ValueError(f"{directory}: its tokenizer does not work: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
