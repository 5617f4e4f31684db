"""`python -m fastinfer optimize` and fastinfer.load: directories of Hugging Face models."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fastinfer
from fastinfer import checkpoint, huggingface
from fastinfer.__main__ import main
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear, WeightOnlyLinear
from fastinfer.trial import Form, Trial

_SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100, "num_hidden_layers": 1}
_SIZES |= {"num_attention_heads": 4, "pad_token_id": 0}


def bert() -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**_SIZES)).eval()


def llama() -> nn.Module:
    config = hf.LlamaConfig(**_SIZES, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    return hf.LlamaForCausalLM(config).eval()


def saved(make: Callable[[], nn.Module], path: Path) -> Path:
    make().save_pretrained(path)
    (path / "vocab.txt").write_text("kept\n")
    (path / "pytorch_model.bin").write_text("left out")
    return path


def logits(model: nn.Module) -> Tensor:
    ids = torch.arange(3, 21).view(2, 9)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture
def last_form_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8, fused is the fastest, and every layer gains; fused alone is not tried."""

    def time(trial: Trial, forms: Sequence[Form]) -> list[float]:
        return [2.0] * (len(forms) - 1) + [1.0]

    optimize_module = sys.modules["fastinfer.optimize"]
    fused = optimize_module._fused

    def fused_int8(trial: Trial, name: str, max_error: float) -> object:
        if trial.form.int8:
            return fused(trial, name, max_error)
        return optimize_module._Tried(trial.form, name, out=True)

    monkeypatch.setattr(Trial, "time", time)
    monkeypatch.setattr(optimize_module, "_fused", fused_int8)
    monkeypatch.setattr(optimize_module, "verdict", lambda timings: None)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """What save writes of a model of one layer, int8 and not fused."""
    source = saved(bert, tmp_path / "model")
    model = huggingface.load_float(source)
    summary = fastinfer.quantize_(model, filter_fn=lambda m, name: name == "classifier")
    kept = fastinfer.optimized.Candidate("int8", kept=True)
    checkpoint.save(fastinfer.Optimized(model, summary, [kept], []), source, tmp_path / "out")
    return tmp_path / "out"


def test_weight_only_layers_come_back_as_such(tmp_path: Path) -> None:
    source = saved(bert, tmp_path / "model")
    model = huggingface.load_float(source)
    summary = fastinfer.quantize_(model, fastinfer.Int8WeightOnly())
    kept = fastinfer.optimized.Candidate("given", kept=True)
    checkpoint.save(fastinfer.Optimized(model, summary, [kept], []), source, tmp_path / "out")
    loaded = fastinfer.load(tmp_path / "out")
    assert sum(type(m) is WeightOnlyLinear for m in loaded.modules()) == len(summary.quantized)
    assert torch.equal(logits(loaded), logits(model))


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 100, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()


@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_round_trip_bit_for_bit(
    make: Callable[[], nn.Module], last_form_wins: None, tmp_path: Path
) -> None:
    source, out = saved(make, tmp_path / "model"), tmp_path / "out"
    model = huggingface.load_float(source)
    batches = huggingface.example_inputs(model, 2, 9)
    result = fastinfer.optimize(model, batches)
    assert result.kept.name == "int8, fused"
    checkpoint.save(result, source, out)
    names = {path.name for path in source.iterdir()} - {"pytorch_model.bin"} | {"fastinfer.json"}
    assert {path.name for path in out.iterdir()} == names
    assert len(list(tmp_path.iterdir())) == 2  # nothing unfinished is left
    loaded = fastinfer.load(out)
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert not loaded.training
    assert loaded._compiled_call_impl is not None
    assert loaded.config.to_dict() == model.config.to_dict() | {
        "_name_or_path": loaded.config._name_or_path
    }
    with torch.inference_mode():
        assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)
    if make is not bert:
        assert loaded.generation_config.eos_token_id == 2


def test_command_writes_what_it_found(tmp_path: Path) -> None:
    source, out = saved(bert, tmp_path / "model"), tmp_path / "out"
    command = [sys.executable, "-m", "fastinfer", "optimize", source, "-o", out]
    command += ["--length", "32", "--batch", "2", "--threads", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "as given" in run.stdout
    data = json.loads((out / "fastinfer.json").read_text())
    kept = data["optimized"]["kept"]
    assert kept in run.stdout
    same = huggingface.load_float(source)  # made again from what the file says
    chosen = {layer["name"] for layer in data["int8"]}
    fastinfer.quantize_(same, filter_fn=lambda module, name: name in chosen)
    if data["fused"]:
        fastinfer.fuse_(same)
    loaded = fastinfer.load(out)
    int8 = {name for name, m in loaded.named_modules() if isinstance(m, QuantizedLinear)}
    assert int8 == chosen
    assert torch.equal(logits(loaded), logits(same))


def write_tied(directory: Path, dtype: torch.dtype, int8: bool) -> tuple[nn.Module, Path]:
    """A model whose embedding and head are one weight, and where it was written."""

    def tied() -> nn.Module:
        config = hf.LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True)
        return hf.LlamaForCausalLM(config).eval().to(dtype)

    source, out = saved(tied, directory / "model"), directory / "out"
    model = huggingface.load_float(source)
    summary = fastinfer.quantize_(model, filter_fn=lambda module, name: int8 or name != "lm_head")
    kept = fastinfer.optimized.Candidate("int8", kept=True)
    checkpoint.save(fastinfer.Optimized(model, summary, [kept], []), source, out)
    return model, out


def test_tied_weights_are_one_again(tmp_path: Path) -> None:
    model, out = write_tied(tmp_path, torch.float32, int8=False)
    loaded = fastinfer.load(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tied_int8_weights_are_one_again(dtype: torch.dtype, tmp_path: Path) -> None:
    model, out = write_tied(tmp_path, dtype, int8=True)
    loaded = fastinfer.load(out)
    embedding, head = loaded.model.embed_tokens, loaded.lm_head
    assert type(embedding) is QuantizedEmbedding
    assert embedding.weight_packed is head.weight_packed
    assert embedding.weight_scale is head.weight_scale
    assert (embedding.padding_idx, embedding.dtype) == (0, dtype)
    assert logits(loaded).dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


def test_load_refuses_damaged_embeddings(tmp_path: Path) -> None:
    _, out = write_tied(tmp_path, torch.float32, int8=True)
    path = out / "fastinfer.json"
    text = path.read_text()
    for old, new, message in (
        ('"name": "model.embed_tokens"', '"name": "model.norm"', "model.norm is no embedding"),
        ('"embedding_dim": 64', '"embedding_dim": 32', "want k = 32"),
        ('"dtype": "float32"', '"dtype": "float64"', "damaged: TypeError"),
        ('"dtype": "float32"', '"dtype": "float23"', "damaged: AttributeError"),
        ('"int8_embeddings"', '"int8_embedding"', "is in the file or in the model alone"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            fastinfer.load(out)


def test_inputs_by_kind_of_model(tmp_path: Path) -> None:
    vit = hf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32)
    (images,) = huggingface.example_inputs(hf.ViTModel(vit), 3, 9)
    assert images["pixel_values"].shape == (3, 3, 32, 32)
    (tokens,) = huggingface.example_inputs(bert(), 2, 9999)
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (2, 512)
    assert tokens["input_ids"].max() < 100
    (again,) = huggingface.example_inputs(bert(), 2, 9999)
    assert torch.equal(tokens["input_ids"], again["input_ids"])
    text, source = tmp_path / "text", saved(bert, tmp_path / "model")
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    text.write_text("a b\n\na\nb b b b b b\n")
    (batch,) = huggingface.example_inputs(bert(), 2, 5, text, source)
    assert batch["input_ids"].shape == (2, 4)  # [CLS] a b [SEP], and one padded; a third is over
    assert batch["attention_mask"].sum() == 7


# --- what is wrong is said in one line -----------------------------------------------------------


def test_wrong_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty, full = tmp_path / "out", tmp_path / "empty", tmp_path / "full"
    empty.mkdir(), full.mkdir()
    (full / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "bert"}')
    broken, weightless = tmp_path / "broken", tmp_path / "weightless"
    broken.mkdir(), weightless.mkdir()
    (broken / "config.json").write_text("{")
    (weightless / "config.json").write_text('{"model_type": "bert"}')
    for model, to, message in (
        (tmp_path / "none", out, "none: no such directory"),
        (empty, out, "empty: not a Hugging Face model directory, it has no config.json"),
        (full, out, "config.json: the architecture NoSuchModel is not in transformers"),
        (broken, out, "config.json: not the config.json of a model"),
        (weightless, out, "weightless: transformers cannot load it"),
        (empty, full, "full: it exists and is not an empty directory"),
        (empty, tmp_path / "a" / "b", "b: its parent is not a directory"),
    ):
        assert main(["optimize", str(model), "-o", str(to)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("fastinfer: ")
        assert error.count("\n") == 1
        assert not out.exists()


def test_load_refuses_what_is_damaged(small: Path) -> None:
    with pytest.raises(TypeError):
        fastinfer.load(3)
    with pytest.raises(ValueError, match=r"no fastinfer\.json; want what"):
        fastinfer.load(small.parent)
    path = small / "fastinfer.json"
    text = path.read_text()
    assert len(json.loads(text)["int8"]) == 1
    for old, new, message in (
        ('"format": 1', '"format": 2', "it has format 2, want 1"),
        ('"format"', '"fromat"', "damaged: KeyError: 'format'"),
        ('"int8": [', '"int8": [3, ', "damaged: TypeError"),
        ('"name": "classifier"', '"name": "bert.pooler"', "bert.pooler is no linear layer"),
        ('"name": "classifier"', '"name": "nothing"', "damaged: AttributeError"),
        ('"name": "classifier"', '"name": "bert.pooler.dense"', "is in the file or in the model"),
        ('"in_features": 64', '"in_features": 640', "K = 64, as the packed weight has"),
        (text, "[", "Expecting value"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            fastinfer.load(small)
    path.write_text(text)
    weights = small / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged: SafetensorError"):
        fastinfer.load(small)


def test_a_failed_write_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    model = fastinfer.load(small)
    kept = fastinfer.optimized.Candidate("int8", kept=True)
    optimized = fastinfer.Optimized(model, fastinfer.quantize_(model), [kept], [])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(optimized, tmp_path / "model", tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_transformers_is_an_extra(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "fastinfer\[transformers\]"'):
        fastinfer.load(small)
