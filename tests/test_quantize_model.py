"""quantize_: which layers it replaces, which it leaves and why, and that the model stays whole."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastinfer import Int8Dynamic, Summary, quantize_
from fastinfer.nn import QuantizedLinear

# Symmetric int8 rounds each value by at most half a step, absmax/254. For Gaussian rows of some
# hundred values (absmax about 3 to 4 sigma) that is an error of about 0.9 % of sigma for weights
# and activations each, 1.2 % together; 3 % is far below what a wrong layer would show.
RELATIVE_ERROR = 0.03


def relative_error(want: Tensor, got: Tensor) -> float:
    return float(((want - got).norm() / want.norm()).detach())


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32, bias=False))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def reasons(summary: Summary) -> dict[str, str]:
    return {row.name: row.reason for row in summary.left if row.reason is not None}


def test_replaces_linear_layers_and_keeps_the_outputs() -> None:
    model, x = mlp().eval(), torch.randn(5, 7, 64)
    want = model(x)
    summary = quantize_(model)
    assert [type(layer) for layer in model] == [QuantizedLinear, nn.GELU, QuantizedLinear]
    assert relative_error(want, model(x)) < RELATIVE_ERROR
    assert [row.name for row in summary.quantized] == ["0", "2"]
    assert not summary.left


def test_same_bits_as_layer_by_layer() -> None:
    model, x = mlp(), torch.randn(4, 64)
    twin = copy.deepcopy(model)
    quantize_(model, Int8Dynamic())
    twin[0] = QuantizedLinear.from_linear(twin[0])
    twin[2] = QuantizedLinear.from_linear(twin[2])
    assert torch.equal(model(x), twin(x))


def test_within_inference_mode_a_state_can_be_loaded_later() -> None:
    model, other, x = mlp(), mlp(), torch.randn(4, 64)
    with torch.inference_mode():
        quantize_(model)
    quantize_(other)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))


def test_keeps_the_training_flags() -> None:
    model = mlp().train()
    model[2].eval()
    quantize_(model)
    assert [module.training for module in model] == [True, True, False]


def test_filter_sees_modules_with_their_names() -> None:
    model = nn.ModuleDict({"a": mlp(), "head": nn.Linear(32, 8)})
    seen = []

    def keep_head(module: nn.Module, name: str) -> bool:
        seen.append((type(module), name))
        return name != "head"

    summary = quantize_(model, filter_fn=keep_head)
    assert seen == [(nn.Linear, "a.0"), (nn.Linear, "a.2"), (nn.Linear, "head")]
    assert type(model["head"]) is nn.Linear
    assert reasons(summary) == {"head": "filter_fn left it out"}


def test_leaves_what_is_not_a_plain_float_linear() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def linear() -> nn.Linear:
        return nn.Linear(16, 16)

    model = nn.ModuleDict(
        {
            "subclass": Doubled(16, 16),
            "parametrised": parametrizations.weight_norm(linear()),
            "forward_hook": linear(),
            "pre_hook": linear(),
            "backward_hook": linear(),
            "own_forward": linear(),
            "float64": linear().double(),
            "nan": linear(),
            "inf": linear(),
            "meta": nn.Linear(16, 16, device="meta"),
            "lazy": nn.LazyLinear(16),
            "done": QuantizedLinear.from_linear(linear()),
            "plain": linear(),
        }
    )
    model["forward_hook"].register_forward_hook(lambda module, args, out: out + 1)
    model["pre_hook"].register_forward_pre_hook(lambda module, args: args)
    model["backward_hook"].register_full_backward_hook(lambda module, gi, go: None)
    model["own_forward"].forward = lambda x: x
    model["nan"].weight.data[3, 4] = math.nan
    model["inf"].weight.data[0, 0] = math.inf
    before = dict(model.named_children())

    summary = quantize_(model)

    assert [row.name for row in summary.quantized] == ["plain"]
    after = dict(model.named_children())
    assert all(after[name] is before[name] for name in before if name != "plain")
    why = reasons(summary)
    for name, words in {
        "subclass": "Doubled, a subclass of nn.Linear",
        "parametrised": "parametrised",
        "forward_hook": "hooks",
        "pre_hook": "hooks",
        "backward_hook": "hooks",
        "own_forward": "forward was replaced",
        "float64": "float64",
        "nan": "NaN or Inf",
        "inf": "NaN or Inf",
        "meta": "meta device",
        "lazy": "LazyLinear, a subclass",
        "done": "quantised already",
    }.items():
        assert words in why[name], name


def test_leaves_a_k_beyond_exact_sums() -> None:
    model = nn.Sequential(nn.Linear(131072, 1), nn.Linear(1, 1))
    summary = quantize_(model)
    assert list(reasons(summary)) == ["0"]
    assert "131071" in reasons(summary)["0"]


def test_a_module_used_twice_stays_one() -> None:
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(32, 4))})
    summary = quantize_(model)
    assert isinstance(model["a"], QuantizedLinear)
    assert model["a"] is model["b"][0]
    assert [row.name for row in summary.rows] == ["a", "b.1"]


def test_filter_on_one_name_keeps_a_module_used_twice() -> None:
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": shared})
    quantize_(model, filter_fn=lambda module, name: name == "a")
    assert model["a"] is shared
    assert model["b"] is shared


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48))
    model[1].weight = model[0].weight
    x = torch.randn(3, 48)
    want = model(x)
    summary = quantize_(model)
    first, second = model
    assert first.weight_packed is second.weight_packed
    assert first.weight_scale is second.weight_scale
    assert not torch.equal(first.bias, second.bias)
    assert relative_error(want, model(x)) < 2 * RELATIVE_ERROR
    one = first.weight_packed.nbytes + first.weight_scale.nbytes
    assert summary.bytes_after == one + first.bias.nbytes + second.bias.nbytes
    copied = copy.deepcopy(model)
    assert copied[0].weight_packed is copied[1].weight_packed


def test_tied_layers_stand_and_fall_together() -> None:
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48))
    model[1].weight = model[0].weight
    summary = quantize_(model, filter_fn=lambda module, name: name != "1")
    assert reasons(summary) == {
        "0": "its weight is tied to 1.weight",
        "1": "filter_fn left it out",
    }
    assert model[0].weight is model[1].weight


def test_leaves_two_views_of_one_weight() -> None:
    model = nn.Sequential(nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach().T)
    summary = quantize_(model)
    assert set(reasons(summary)) == {"0", "1"}
    assert all("another view" in reason for reason in reasons(summary).values())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_runs_its_int8_layers(
    norm_first: bool, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, activation=activation, batch_first=True, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(3, 6, 32)
    mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 3 + [True] * 3])
    with torch.inference_mode():
        want = model(x), model(x, src_key_padding_mask=mask)
        summary = quantize_(model)
    of_a_layer = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    of_a_layer += ["linear1", "linear2"]
    linears = [f"layers.{i}.{name}" for i in (0, 1) for name in of_a_layer]
    assert [row.name for row in summary.quantized] == linears
    assert not summary.left

    called = []
    forward = QuantizedLinear.forward

    def counted(layer: QuantizedLinear, x: Tensor) -> Tensor:
        called.append(layer)
        return forward(layer, x)

    monkeypatch.setattr(QuantizedLinear, "forward", counted)
    with torch.inference_mode():
        got = model(x), model(x, src_key_padding_mask=mask)
    assert called == [model.get_submodule(name) for name in linears] * 2
    assert relative_error(want[0], got[0]) < RELATIVE_ERROR
    assert relative_error(want[1][~mask], got[1][~mask]) < RELATIVE_ERROR


def test_transformer_encoder_left_float_keeps_its_fused_path() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1).eval()
    quantize_(model, filter_fn=lambda module, name: False)
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear(4, 4),), ValueError, "quantize_linear"),
        (("model",), TypeError, "model: got str"),
        ((mlp(), "int8"), TypeError, "config: got str"),
    ],
)
def test_refuses_wrong_arguments(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        quantize_(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filter_fn": "0"}, "filter_fn: got str"),
        ({"example_inputs": 3}, "example_inputs: got int"),
    ],
)
def test_refuses_wrong_options_untouched(options: dict, words: str) -> None:
    model = mlp()
    with pytest.raises(TypeError, match=words):
        quantize_(model, **options)
    assert type(model[0]) is nn.Linear


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = mlp()
    before = list(model)

    def fails_late(module: nn.Module, name: str) -> bool:
        if name == "2":
            raise KeyError(name)
        return True

    with pytest.raises(KeyError):
        quantize_(model, filter_fn=fails_late)
    assert list(model) == before
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        quantize_(model, example_inputs=torch.randn(2, 63))
    assert list(model) == before
    assert not model[0]._forward_pre_hooks


def test_summary_is_plain_data_and_a_table() -> None:
    model = nn.Sequential(nn.Embedding(10, 64), mlp(), nn.Linear(32, 8).double())
    model[1][2].weight.data = torch.randint(-127, 128, (32, 96)).float()
    model[1][2].weight.data[:, 0] = 127.0  # steps of 1: int8 holds this weight exactly
    summary = quantize_(model)
    data = summary.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    first, exact, left = data["layers"]
    assert (first["in_features"], first["out_features"]) == (64, 96)
    assert first["bytes_before"] == 4 * (64 * 96 + 96)
    assert first["bytes_after"] == sum(b.nbytes for b in model[1][0].buffers())
    # Rounding noise of step s is s^2/12, s = absmax/127; uniform weights in (-a, a) have power
    # a^2/3: 20 log10(2 * 127) = 48.1 dB, a little more as some rows fall short of a.
    assert first["sqnr_db"] == pytest.approx(48.1, abs=0.5)
    assert exact["sqnr_db"] is None
    assert summary.rows[1].sqnr_db == math.inf
    assert (left["scheme"], left["sqnr_db"]) == (None, None)
    assert data["other_bytes"] == {"Embedding": 4 * 640}
    assert data["bytes_before"] == sum(r["bytes_before"] for r in data["layers"]) + 4 * 640
    text = str(summary)
    assert "64 x 96" in text
    assert "left: its weight has dtype" in text
    assert "2 of 3 linear layers quantised" in repr(summary)


def test_long_tables_share_lines_between_like_layers() -> None:
    model = nn.Sequential(*(mlp() for _ in range(12)), nn.Linear(8, 8).double())
    text = str(quantize_(model, filter_fn=lambda module, name: name != "3.0"))
    assert "*.* (11)" in text
    assert "*.* (12)" in text
    assert "3.0 " in text
    assert len(text.splitlines()) < 15


def test_progress_bar_on_request_only(capfd: pytest.CaptureFixture[str]) -> None:
    quantize_(mlp())
    assert capfd.readouterr() == ("", "")
    quantize_(mlp(), progress=True)
    assert "Quantising" in capfd.readouterr().err


def test_transformers_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = transformers.BertModel(config).eval()
    tokens = torch.randint(0, 60, (2, 9))
    with torch.inference_mode():
        want = model(tokens).last_hidden_state
        summary = quantize_(model)
        got = model(tokens).last_hidden_state
    assert len(summary.quantized) == 2 * 6 + 1
    assert not summary.left
    assert relative_error(want, got) < RELATIVE_ERROR


def test_conv1d_of_transformers_becomes_int8() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=60, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    names = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    summary = quantize_(model)
    assert [row.name for row in summary.quantized] == [*names, "lm_head"]
    assert len(names) == 4
    assert "Conv1D" not in summary.to_dict()["other_bytes"]
