"""compare: the error of a quantised model, by output and by layer, as data, table and picture."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastinfer import Comparison, compare, quantize_
from fastinfer.compare import Error

Randn = Callable[..., Tensor]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80), nn.Linear(80, 32))


def quantized_copy(model: nn.Module, **options: Any) -> nn.Module:
    model = copy.deepcopy(model)
    quantize_(model, **options)
    return model


class Returns(nn.Module):
    """Returns `wrap` of its linear layer's output."""

    def __init__(self, wrap: Callable[[Tensor], Any], scale: float = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.wrap = nn.Linear(16, 16), wrap
        self.layer.weight.data *= scale

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


def test_output_figures_against_float64(randn: Randn) -> None:
    model, x = mlp(), randn(9, 64)
    quantized = quantized_copy(model)
    error = compare(model, quantized, x).outputs["output"]
    with torch.no_grad():
        want, got = model(x).double().flatten(), quantized(x).double().flatten()
    noise = (want - got).norm()
    assert error.sqnr_db == pytest.approx(20 * math.log10(want.norm() / noise), abs=1e-9)
    assert error.cosine == pytest.approx(float(want.dot(got) / want.norm() / got.norm()), abs=1e-12)
    assert error.max_abs == float((want - got).abs().max())
    assert (error.count, error.nonfinite) == (9 * 32, 0)


def test_layers_show_their_own_and_the_accumulated_error(randn: Randn) -> None:
    model, x = mlp(), randn(9, 64)
    quantized = quantized_copy(model)
    with torch.no_grad():
        x2 = torch.relu(model[0](x))  # what reaches the second linear layer in the float model
        want, own, accumulated = model[2](x2), quantized[2](x2), quantized[:3](x)
    comparison = compare(model, quantized, x)
    assert [layer.name for layer in comparison.layers] == ["0", "2", "3"]
    first, second, _ = comparison.layers
    assert first.own.sqnr_db == first.accumulated.sqnr_db  # nothing before it
    assert second.own.max_abs == float((want.double() - own.double()).abs().max())
    assert second.accumulated.max_abs == float((want.double() - accumulated.double()).abs().max())


def test_the_layer_that_hurts_comes_first(randn: Randn) -> None:
    model = mlp()
    model[2].weight.data[:, 0] = 30.0  # an outlier in every channel: a step of 30/127 for the rest
    comparison = compare(model, quantized_copy(model), randn(9, 64))
    assert comparison.worst_layers[0].name == "2"
    first_line = str(comparison).partition("Replaced layers")[2].splitlines()[4]
    assert first_line.split("│")[1].strip() == "2"


def test_layers_left_float_are_not_listed(randn: Randn) -> None:
    model = mlp()
    quantized = quantized_copy(model, filter_fn=lambda module, name: name == "3")
    comparison = compare(model, quantized, randn(9, 64))
    assert [layer.name for layer in comparison.layers] == ["3"]


def test_equal_models(randn: Randn) -> None:
    model = mlp()
    comparison = compare(model, copy.deepcopy(model), randn(4, 64))
    error = comparison.outputs["output"]
    assert (error.sqnr_db, error.cosine, error.max_abs) == (math.inf, 1.0, 0.0)
    assert comparison.layers == ()
    assert error.to_dict()["sqnr_db"] is None
    assert "exact" in str(comparison)


def test_shared_layer_sums_over_its_calls(randn: Randn) -> None:
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict({"a": shared})
    model.forward = lambda x: model["a"](torch.relu(model["a"](x)))
    quantized = nn.ModuleDict({"a": copy.deepcopy(shared)})
    quantized.forward = lambda x: quantized["a"](torch.relu(quantized["a"](x)))
    quantize_(quantized)
    (layer,) = compare(model, quantized, randn(5, 16)).layers
    assert layer.own.count == layer.accumulated.count == 2 * 5 * 16


def test_nan_is_counted_and_kept_apart(randn: Randn) -> None:
    model, x = mlp(), randn(6, 64)
    x[2, 5] = math.nan
    comparison = compare(model, quantized_copy(model), x)
    error = comparison.outputs["output"]
    assert error.nonfinite == 32  # the row that holds it, in both models
    assert 20 < error.sqnr_db < 60
    everywhere = compare(model, quantized_copy(model), torch.full((2, 64), math.nan))
    assert math.isnan(everywhere.outputs["output"].sqnr_db)
    data = everywhere.to_dict()
    assert data["outputs"]["output"]["sqnr_db"] is None
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert "NaN" in str(everywhere)


def test_relative_error() -> None:
    error = Error()
    error.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert error.relative == 0.1  # ||(0, 0.5)|| / ||(3, 4)||
    error.add(torch.tensor([math.nan]), torch.tensor([math.inf]))
    assert (error.relative, error.mismatched) == (0.1, 0)
    error.add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]))
    assert (error.relative, error.mismatched) == (math.inf, 1)
    zero = Error()
    zero.add(torch.zeros(2), torch.zeros(2))
    assert zero.relative == 0
    zero.add(torch.zeros(2), torch.ones(2))
    assert zero.relative == math.inf


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Boxed:
    inner: Tensor


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda y: y, ["output"]),
        (lambda y: (y, [y.relu()]), ["0", "1.0"]),
        (lambda y: {"logits": y, "ids": y.argmax(-1), "note": "text"}, ["logits"]),
        (lambda y: Pair(y, y), ["left", "right"]),
        (lambda y: {"box": Boxed(y.bfloat16())}, ["box.inner"]),
    ],
)
def test_finds_float_tensors_in_any_output(
    wrap: Callable[[Tensor], Any], names: list[str], randn: Randn
) -> None:
    model = Returns(wrap)
    comparison = compare(model, quantized_copy(model), randn(4, 16))
    assert list(comparison.outputs) == names
    assert all(20 < error.sqnr_db < 60 for error in comparison.outputs.values())


def test_layer_output_changed_in_place_afterwards(randn: Randn) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True))
    (layer,) = compare(model, quantized_copy(model), randn(4, 64)).layers
    assert layer.own.max_abs == layer.accumulated.max_abs


def test_transformers_output(randn: Randn) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = transformers.BertModel(config)  # in training mode: compared without its dropout
    inputs = {"input_ids": torch.randint(0, 60, (2, 9))}
    comparison = compare(model, quantized_copy(model), inputs)
    assert list(comparison.outputs) == ["last_hidden_state", "pooler_output"]
    assert len(comparison.layers) == 13
    assert comparison.outputs["last_hidden_state"].sqnr_db > 25
    assert model.training


def test_masked_transformer_encoder_on_equal_terms(randn: Randn) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False, False, False], [False, True, True]])
    inputs = {"src": randn(2, 3, 16), "src_key_padding_mask": mask}
    comparison = compare(model, quantized_copy(model), inputs)
    assert len(comparison.layers) == 12
    assert comparison.outputs["output"].sqnr_db > 25


def test_refuses_what_cannot_be_compared(randn: Randn) -> None:
    model, x = mlp(), randn(4, 64)
    with pytest.raises(ValueError, match=r"deepcopy"):
        compare(model, model, x)
    with pytest.raises(TypeError, match="quantized: got str"):
        compare(model, "model", x)
    with pytest.raises(TypeError, match="inputs: got int"):
        compare(model, mlp(), 3)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        compare(Returns(torch.argmax), Returns(torch.argmax), randn(4, 16))
    with pytest.raises(ValueError, match=r"outputs are \['0'\], want \['output'\]"):
        compare(Returns(lambda y: y), Returns(lambda y: (y,)), randn(4, 16))
    with pytest.raises(ValueError, match=r"shape \(4,\), want \(4, 16\)"):
        compare(Returns(lambda y: y), Returns(lambda y: y[:, 0]), randn(4, 16))
    assert not model[0]._forward_hooks


def deep_comparison(randn: Randn) -> Comparison:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(100)))
    return compare(model, quantized_copy(model), randn(4, 16))


def test_table_shows_the_worst_and_data_all(randn: Randn) -> None:
    comparison = deep_comparison(randn)
    assert "85 better layers not shown" in str(comparison)
    assert len(comparison.to_dict()["layers"]) == 100
    assert "100 replaced layers" in repr(comparison)


def test_picture(randn: Randn, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, x = mlp(), randn(6, 64)
    compare(model, quantized_copy(model), x).plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    deep_comparison(randn).plot(tmp_path / "deep.svg")
    assert "worst 80 of 100 layers" in (tmp_path / "deep.svg").read_text()
    x[:] = math.nan
    compare(model, quantized_copy(model), x).plot(tmp_path / "nan.svg")
    assert "no finite values" in (tmp_path / "nan.svg").read_text()
    with pytest.raises(ValueError, match="no replaced layer"):
        compare(model, mlp(), x).plot(tmp_path / "none.png")


def test_picture_without_matplotlib_names_the_extra(
    randn: Randn, tmp_path: Path, hide_matplotlib: Callable[[], None]
) -> None:
    model = mlp()
    comparison = compare(model, quantized_copy(model), randn(6, 64))
    hide_matplotlib()
    with pytest.raises(ImportError, match=r"fastinfer\[plot\]"):
        comparison.plot(tmp_path / "layers.png")
