"""quantize_ with example_inputs: the never-slower guard."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastinfer import guard, quantize_
from fastinfer.nn import QuantizedLinear

Randn = Callable[..., Tensor]
Clock = Callable[[MethodType, Tensor], float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], None]:
    """`clock(seconds)`: seconds(forward, x) stands in for the time that forward(x) takes."""

    def set_clock(seconds: Clock) -> None:
        def timed(forward: MethodType, x: Tensor) -> float:
            forward(x)
            return seconds(forward, x)

        monkeypatch.setattr(guard, "_seconds", timed)
        monkeypatch.setattr(guard, "_BURST_SECONDS", 0)

    return set_clock


def slow_int8_at(rows: int) -> Clock:
    """int8 takes 3 s on inputs of `rows` rows and 1 s on others; float always 2 s."""

    def seconds(forward: MethodType, x: Tensor) -> float:
        if not isinstance(forward.__self__, QuantizedLinear):
            return 2.0
        return 3.0 if x.shape[0] == rows else 1.0

    return seconds


class TwoShapes(nn.Module):
    """Calls `layer` once with 1 row and `times` times with 8."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x[:1])
        for _ in range(self.times):
            out = out + self.layer(input=x)
        return out


def test_real_times_agree_with_the_verdicts(randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4), nn.Linear(4, 4))
    summary = quantize_(model, example_inputs=randn(32, 512))
    for row, layer in zip(summary.rows, (model[0], model[2], model[3]), strict=True):
        assert row.ms_before > 0
        assert row.ms_after > 0
        if row.scheme is None:
            assert row.reason == "int8 is slower here"
            assert row.ms_after > row.ms_before
            assert type(layer) is nn.Linear
        else:
            assert row.ms_after <= row.ms_before
            assert type(layer) is QuantizedLinear


def test_weighs_shapes_by_their_calls(clock: Callable[[Clock], None], randn: Randn) -> None:
    clock(slow_int8_at(rows=1))
    model = TwoShapes(times=2)
    (row,) = quantize_(model, example_inputs=randn(8, 16)).rows
    assert (row.ms_before, row.ms_after) == (6000, 5000)  # 3 calls of 2 s; 3 + 1 + 1
    assert isinstance(model.layer, QuantizedLinear)

    clock(slow_int8_at(rows=8))
    model = TwoShapes(times=2)
    (row,) = quantize_(model, example_inputs=randn(8, 16)).rows
    assert (row.ms_before, row.ms_after) == (6000, 7000)  # 1 + 3 + 3
    assert (row.scheme, row.reason) == (None, "int8 is slower here")
    assert type(model.layer) is nn.Linear


def test_leaves_layers_that_are_not_reached(randn: Randn, clock: Callable[[Clock], None]) -> None:
    clock(slow_int8_at(rows=-1))
    model = nn.ModuleDict({"used": nn.Linear(16, 16), "unused": nn.Linear(16, 16)})
    model.forward = lambda x: model["used"](x)
    summary = quantize_(model, example_inputs=randn(2, 16))
    assert [row.name for row in summary.quantized] == ["used"]
    (left,) = summary.left
    assert left.reason == "not reached by example_inputs"
    assert left.ms_before is None
    assert "not reached" in str(summary)


def test_times_on_the_real_inputs(monkeypatch: pytest.MonkeyPatch, randn: Randn) -> None:
    seen: list[tuple[Any, Tensor]] = []

    def record(forward: MethodType, x: Tensor) -> float:
        seen.append((forward.__self__, x.clone()))
        return 1.0

    monkeypatch.setattr(guard, "_seconds", record)
    model, x = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)), randn(5, 16)
    first, second = model[0], model[2]
    with torch.no_grad():
        hidden = torch.relu(first(x))
    quantize_(model, example_inputs=x)
    assert all(torch.equal(got, x) for layer, got in seen if layer is first)
    assert all(torch.equal(got, hidden) for layer, got in seen if layer is second)
    kinds = [type(layer) for layer, _ in seen[:4]]
    assert kinds == [nn.Linear, QuantizedLinear] * 2  # in turns


def test_tied_layers_get_one_verdict(clock: Callable[[Clock], None], randn: Randn) -> None:
    clock(slow_int8_at(rows=1))
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["b"].weight = model["a"].weight
    model.forward = lambda x: model["a"](x[:1]) + model["b"](x)
    summary = quantize_(model, example_inputs=randn(8, 16))  # 3 + 1 s against 2 + 2: no loss
    assert len(summary.quantized) == 2
    assert model["a"].weight_packed is model["b"].weight_packed


def test_keeps_a_layer_whose_input_int8_cannot_take(randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    ragged = torch.nested.nested_tensor([randn(2, 16), randn(3, 16)])  # nn.Linear takes these
    summary = quantize_(model, example_inputs=ragged)
    (row,) = summary.left
    assert row.reason.startswith("int8 cannot take its input: ")
    assert row.ms_before is None
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("inputs", ["tensor", "tuple", "dict"])
def test_inputs_as_the_model_takes_them(inputs: str, randn: Randn) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(16, 16)

        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return self.up(x) if gate is None else gate * self.up(x)

    x, gate = randn(3, 16), randn(3, 16)
    given = {"tensor": x, "tuple": (x, gate), "dict": {"x": x, "gate": gate}}[inputs]
    (row,) = quantize_(Gated(), example_inputs=given).rows
    assert row.ms_before > 0


@pytest.mark.parametrize("inference_mode", [False, True])
def test_leaves_flags_hooks_statistics_and_random_state(inference_mode: bool, randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 4))
    model[3].eval()
    mean, x = model[1].running_mean.clone(), randn(6, 16)
    state = torch.get_rng_state()
    with torch.inference_mode(inference_mode):
        quantize_(model, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[1].running_mean, mean)
    assert [layer.training for layer in model] == [True, True, True, False]
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(layer._forward_pre_hooks for layer in model)


def test_reaches_the_layers_of_a_masked_transformer_encoder(
    clock: Callable[[Clock], None], randn: Randn
) -> None:
    clock(slow_int8_at(rows=-1))
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    mask = torch.tensor([[False, False, True]])
    inputs = {"src": randn(1, 3, 16), "src_key_padding_mask": mask}
    assert len(quantize_(model, example_inputs=inputs).quantized) == 6


def test_times_a_compiled_model_layer_by_layer(randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    compiled, x = torch.compile(model, fullgraph=True, backend="eager"), randn(4, 16)
    with torch.inference_mode():
        compiled(x)
        rows = quantize_(compiled, example_inputs=x).rows  # the guard cannot be traced
        compiled(x)
    assert [row.name for row in rows] == ["_orig_mod.0", "_orig_mod.2"]
    assert all(row.ms_before > 0 for row in rows)
