"""Linear layers whose weight is that of an embedding: int8 together, float together."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fastinfer
from fastinfer import Int8Dynamic, Int8Static, Int8WeightOnly, guard
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear, WeightOnlyLinear
from fastinfer.trial import Form, Trial

N, K = 50, 24


class Model(nn.Module):
    """Two embeddings of one shape, each tied to a head of its own, and one that is tied to none."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, K)
        self.tokens, self.types = nn.Embedding(N, K, padding_idx=0), nn.Embedding(N, K)
        self.mlp = nn.Linear(K, K)
        self.head, self.type_head = nn.Linear(K, N), nn.Linear(K, N, bias=False)
        self.head.weight, self.type_head.weight = self.tokens.weight, self.types.weight
        self.eval()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        places = self.positions(torch.arange(ids.shape[1]))
        x = self.mlp(self.tokens(ids) + self.types(ids.flip(1)) + places)
        return self.head(x), self.type_head(x)


IDS = torch.arange(12).reshape(2, 6)


def error(want: Tensor, got: Tensor) -> float:
    return float(((want - got).norm() / want.norm()).detach())


def reasons(summary: fastinfer.Summary) -> dict[str, str | None]:
    return {row.name: row.reason for row in summary.left}


def check_tied(embedding: nn.Module, head: nn.Module, weight: Tensor) -> None:
    """The two are int8, hold the same tensors, and those stand for `weight`."""
    assert type(embedding) is QuantizedEmbedding
    assert isinstance(head, QuantizedLinear)
    assert embedding.weight_packed is head.weight_packed
    assert embedding.weight_scale is head.weight_scale
    rows = embedding(torch.arange(embedding.num_embeddings))
    assert torch.equal(rows, head.dequantize())
    assert error(weight, rows) < 0.01


@pytest.mark.parametrize("scheme", ["dynamic", "static", "weight-only"])
def test_become_int8_together(scheme: str) -> None:
    model = Model()
    original, want = copy.deepcopy(model), model(IDS)
    config: Int8Dynamic | Int8Static | Int8WeightOnly = Int8Dynamic()
    if scheme == "static":
        config = Int8Static(fastinfer.calibrate(model, [(IDS,)]))
    if scheme == "weight-only":
        config = Int8WeightOnly()
    summary = fastinfer.quantize_(model, config)
    assert not summary.left
    check_tied(model.tokens, model.head, original.tokens.weight)
    check_tied(model.types, model.type_head, original.types.weight)
    assert type(model.positions) is nn.Embedding
    assert model.tokens.padding_idx == 0
    assert (model.head.input_scale is not None) == (scheme == "static")
    assert (type(model.head) is WeightOnlyLinear) == (scheme == "weight-only")
    for a, b in zip(want, model(IDS), strict=True):
        assert error(a, b) < 0.05


def test_the_summary_counts_the_weight_once() -> None:
    model = Model()
    sizes = {"head": 4 * (N * K + N), "type_head": 4 * N * K, "mlp": 4 * (K * K + K)}
    summary = fastinfer.quantize_(model)
    rows = {row.name: row for row in summary.rows}
    assert {name: row.bytes_before for name, row in rows.items()} == sizes
    assert {name: row.embeddings for name, row in rows.items()} == {
        "mlp": (),
        "head": ("tokens",),
        "type_head": ("types",),
    }
    assert all(row.sqnr_db is not None and row.sqnr_db > 40 for row in rows.values())
    assert summary.others == {"Embedding": 4 * 8 * K}
    assert summary.bytes_before == sum(sizes.values()) + 4 * 8 * K
    assert summary.bytes_after == sum(row.bytes_after for row in rows.values()) + 4 * 8 * K
    assert "int8 dynamic, with tokens" in str(summary)
    data = summary.to_dict()
    assert json.loads(json.dumps(data)) == data


def test_others_of_a_float_model_leave_out_what_linear_layers_hold() -> None:
    summary = fastinfer.quantize_(Model(), filter_fn=lambda module, name: False)
    assert summary.others == {"Embedding": 4 * 8 * K}
    assert summary.bytes_before == summary.bytes_after
    assert all(row.embeddings == () for row in summary.rows)


def test_stay_float_together() -> None:
    model = Model()
    weight = model.tokens.weight
    summary = fastinfer.quantize_(model, filter_fn=lambda module, name: name != "head")
    assert reasons(summary) == {"head": "filter_fn left it out"}
    assert (type(model.tokens), type(model.head)) == (nn.Embedding, nn.Linear)
    assert model.tokens.weight is model.head.weight is weight
    assert type(model.types) is QuantizedEmbedding


def test_filter_fn_is_asked_about_linear_layers_alone() -> None:
    asked: list[str] = []
    fastinfer.quantize_(Model(), filter_fn=lambda module, name: not asked.append(name))
    assert set(asked) == {"mlp", "head", "type_head"}


def test_the_guard_times_the_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
        layer = forward.__self__  # type: ignore[attr-defined]
        assert isinstance(layer, nn.Linear | QuantizedLinear)
        slow = layer.bias is not None and layer.out_features == N  # head, not type_head
        return 2.0 if isinstance(layer, QuantizedLinear) and slow else 1.0

    monkeypatch.setattr(guard, "_seconds", seconds)
    model = Model()
    summary = fastinfer.quantize_(model, example_inputs=IDS)
    assert reasons(summary) == {"head": "int8 is slower here"}
    assert type(model.tokens) is nn.Embedding
    assert model.tokens.weight is model.head.weight
    assert type(model.types) is QuantizedEmbedding


def hooked(model: Model) -> None:
    model.tokens.register_forward_hook(lambda *a: None)


def replaced(model: Model) -> None:
    model.tokens = nn.Embedding(N, K, max_norm=1.0)
    model.head.weight = model.tokens.weight


def held_elsewhere(model: Model) -> None:
    model.register_parameter("scores", model.head.weight)


def of_another_shape(model: Model) -> None:
    model.tokens.weight = nn.Parameter(model.head.weight.detach().view(K, N))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "its weight is tied to tokens.weight, and it has hooks"),
        (replaced, "its weight is tied to tokens.weight, and it renormalises its weight"),
        (held_elsewhere, "its weight is tied to scores"),
        (of_another_shape, "its weight is tied to tokens.weight, and its weight has shape"),
    ],
)
def test_an_embedding_that_must_stay_keeps_its_head(
    change: Callable[[Model], None], reason: str
) -> None:
    model = Model()
    change(model)
    held = model.tokens, model.head, model.head.weight
    (left,) = fastinfer.quantize_(model).left
    assert left.name == "head"
    assert str(left.reason).startswith(reason)
    assert (model.tokens, model.head, model.head.weight) == held


def test_one_embedding_of_two_heads_in_two_places() -> None:
    model = nn.ModuleDict({"a": nn.Linear(K, N), "b": nn.Linear(K, N), "e": nn.Embedding(N, K)})
    model["a"].weight = model["b"].weight = model["e"].weight
    model["again"] = nn.ModuleList([model["e"]])
    weight = model["e"].weight.detach()
    summary = fastinfer.quantize_(model)
    assert [row.embeddings for row in summary.rows] == [("e",), ("e",)]
    check_tied(model["e"], model["a"], weight)
    check_tied(model["e"], model["b"], weight)
    assert model["again"][0] is model["e"]
    shared = model["e"].weight_packed.nbytes + model["e"].weight_scale.nbytes
    assert summary.bytes_after == shared + 2 * 4 * N


def test_ranges_of_int8_layers_are_fixed_later_and_the_tie_stays() -> None:
    model = Model()
    calibration = fastinfer.calibrate(model, [(IDS,)])
    assert {"head", "type_head"} <= calibration.by_name.keys()
    weight = model.tokens.weight.detach().clone()
    fastinfer.quantize_(model)
    fastinfer.quantize_(model, Int8Static(calibration))
    assert model.head.input_scale is not None
    check_tied(model.tokens, model.head, weight)


def test_search_and_sensitivity_leave_them() -> None:
    result = fastinfer.sensitivity(Model(), [(IDS,)], [Int8Dynamic()], progress=False)
    left = {layer.name: layer.reason for layer in result.layers if layer.reason}
    assert left == {
        "head": "its weight is tied to tokens.weight",
        "type_head": "its weight is tied to types.weight",
    }


@pytest.mark.parametrize("fastest", ["as given", "int8"])
def test_optimize_takes_both_or_none(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move to a file and back on the way, so each form is put in place several times."""

    def seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
        forward(x)
        layer = forward.__self__  # type: ignore[attr-defined]
        return 1.0 if isinstance(layer, QuantizedLinear) else 2.0

    def time(trial: Trial, forms: Sequence[Form]) -> list[float]:
        for form in (*forms, *forms):
            trial.become(form)
        wanted = (fastest == "int8", False)
        return [1.0 if (bool(f.int8), f.fusion is not None) == wanted else 2.0 for f in forms]

    monkeypatch.setattr(guard, "_seconds", seconds)
    monkeypatch.setattr(Trial, "time", time)
    model = Model()
    original, held = copy.deepcopy(model), model.tokens.weight
    result = fastinfer.optimize(model, IDS, max_error=0.2)
    assert result.kept.name == fastest
    if fastest == "as given":
        assert model.tokens.weight is model.head.weight is held
        assert torch.equal(held, original.tokens.weight)
        assert type(model.tokens) is nn.Embedding
        return
    assert not result.summary.left
    check_tied(model.tokens, model.head, original.tokens.weight)
    check_tied(model.types, model.type_head, original.types.weight)
    row = result.summary.rows[1]
    assert (row.name, row.embeddings) == ("head", ("tokens",))
    assert row.bytes_before == 4 * (N * K + N)


# --- language models of transformers -------------------------------------------------------------

_SIZES = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
_SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_TIED = {"tie_word_embeddings": True}


def qwen2() -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_SIZES, **_TIED))


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, **_TIED))


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 260, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


TOKENS = torch.arange(3, 37).reshape(2, 17)


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [qwen2, llama, gpt2])
def test_language_models(make: Callable[[], nn.Module], dtype: torch.dtype, tmp_path: Path) -> None:
    model = make().eval().to(dtype)
    weight, want = model.lm_head.weight.detach().float(), logits(model)
    summary = fastinfer.quantize_(model)
    assert not summary.left
    embedding = model.get_input_embeddings()
    check_tied(embedding.float(), model.lm_head, weight)
    embedding.to(dtype)
    got = logits(model)
    assert got.dtype == dtype
    assert 20 * torch.log10(want.norm() / (want - got).norm()) > 30  # SQNR, dB
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 5, "min_new_tokens": 5}
    assert model.generate(TOKENS, **options).shape == (2, 22)
    model.save_pretrained(tmp_path)
    again = copy.deepcopy(model)
    assert again.get_input_embeddings().weight_packed is again.lm_head.weight_packed
    assert torch.equal(logits(again), got)


@pytest.mark.parametrize("make", [qwen2, llama, gpt2])
def test_fused_language_models(make: Callable[[], nn.Module]) -> None:
    """The head is an int8 layer of the graph, which the last norm hands its rows; the embedding an
    operator in it."""
    torch._dynamo.reset()
    model = make().eval()
    want = logits(model)
    assert not fastinfer.quantize_(model).left
    unfused = logits(model)
    fusion = fastinfer.fuse_(model, {"input_ids": TOKENS, "use_cache": False})
    assert not fusion.reasons
    assert fusion.fused["norm to int8"] == 5
    with torch.profiler.profile() as profile:
        got = logits(model)
    calls = Counter(event.name for event in profile.events())
    assert calls["fastinfer::embedding_w8"] == 1
    # Queries, keys and values are one call of another name, and so are gate and up; or one layer.
    assert calls["fastinfer::linear_w8a8"] == (2 * 4 + 1 if make is gpt2 else 2 * 2 + 1)
    assert calls["aten::linear"] == 0
    assert error(want, got) < 0.05
    assert error(unfused, got) < 0.03
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 4, "min_new_tokens": 4}
    assert model.generate(TOKENS, **options).shape == (2, 21)
