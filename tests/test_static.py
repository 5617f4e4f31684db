"""Int8Static: layers whose inputs have a fixed range, from calibration to stored state."""

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fastinfer
from fastinfer import Int8Dynamic, Int8Static, calibrate, ops, quantize_
from fastinfer.nn import QuantizedLinear

Randn = Callable[..., Tensor]
NAMES = ["weight_packed", "weight_scale", "bias", "input_scale", "input_offset"]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).eval()


def static_layer(randn: Randn) -> QuantizedLinear:
    linear = nn.Linear(200, 96).requires_grad_(False)
    linear.weight.copy_(randn(96, 200))
    layer = fastinfer.quantize_linear(linear.eval())
    layer.set_input_range(-3, 5)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("clipped", [False, True])
def test_output_by_the_documented_formula(dtype: torch.dtype, clipped: bool, randn: Randn) -> None:
    """Against float64: q is exact, so what is left are float32 roundings of the epilogue."""
    x, layer = randn(7, 200).to(dtype), static_layer(randn)
    low, high = (-0.5, 1.25) if clipped else (float(x.min()), float(x.max()))
    layer.set_input_range(low, high)
    f32 = np.float32
    offset = f32(high) / f32(2) + f32(low) / f32(2)
    scale = max(f32(high) - offset, offset - f32(low)) / f32(127)
    assert (layer.input_scale, layer.input_offset) == (scale, offset)
    q = np.rint((x.float().numpy() - offset) * (f32(1) / scale))
    assert (abs(q).max() > 127) == clipped
    seen = torch.from_numpy(q.clip(-127, 127)).double() * float(scale) + float(offset)
    terms = seen.abs() @ layer.weight.double().abs().T + layer.bias.double().abs()
    want = seen @ layer.weight.double().T + layer.bias.double()
    unit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    # Five float32 operations, none on a number above the sum of the terms; then the output's dtype.
    bound = 5 * 2.0**-23 * terms + unit * want.abs()
    got = layer(x)
    assert got.dtype == dtype
    assert ((got.double() - want).abs() <= bound).all()


def test_ends_beside_each_other_and_far_apart(randn: Randn) -> None:
    layer = static_layer(randn)
    for low, high in [(0.0, 0.0), (3.0, 3.0), (-1e-45, 0.0), (-3e38, 3e38)]:
        x = torch.full((2, 200), high)
        layer.set_input_range(low, high)
        assert 2.0**-126 <= float(layer.input_scale) < float("inf")
        assert layer(x).isfinite().all() == (high < 1e38)  # else the sums overflow, as in float
    for low, high in [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf")), (0.0, 1e39)]:
        with pytest.raises(ValueError, match=r"set_input_range: got .* want finite, low <= high"):
            layer.set_input_range(low, high)


def test_quantize_makes_static_layers(randn: Randn) -> None:
    model, x = mlp(), randn(40, 64)
    with torch.no_grad():
        want = model(x)
    calibration = calibrate(model, [x])
    summary = quantize_(model, Int8Static(calibration))
    assert [row.scheme for row in summary.rows] == ["int8 static"] * 2
    assert all(row.note is None for row in summary.rows)
    for layer, found in zip((model[0], model[2]), calibration.layers, strict=True):
        twin = copy.deepcopy(layer)
        twin.set_input_range(found.low, found.high)
        assert torch.equal(layer.input_scale, twin.input_scale)
        assert torch.equal(layer.input_offset, twin.input_offset)
    # One step for all 40 rows: the widest row's, about a third more than that of the mean row, so
    # up to twice the 1.2 % of dynamic int8 (test_quantize_model.py).
    assert (model(x) - want).norm() / want.norm() < 0.025
    assert "static" in repr(model[0])
    assert summary.bytes_after == sum(b.nbytes for b in model.buffers())


def test_dynamic_layers_are_as_before(randn: Randn) -> None:
    model, x = mlp(), randn(4, 64)
    quantize_(model, Int8Dynamic())
    assert "input_scale" not in dict(model[0].named_buffers())
    assert list(model[0].state_dict()) == NAMES[:3]
    layer = model[0]
    want = ops.linear_w8a8(x, layer.weight_packed, layer.weight_scale, layer.bias)
    assert torch.equal(layer(x), want)


class Sometimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.always, self.rarely = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, rare: bool = False) -> Tensor:
        return self.rarely(x) if rare else self.always(x)


def test_a_layer_that_calibration_did_not_reach_is_dynamic(randn: Randn) -> None:
    model, x = Sometimes().eval(), randn(3, 64)
    summary = quantize_(model, Int8Static(calibrate(model, [x])))
    always, rarely = summary.rows
    assert (always.scheme, always.note) == ("int8 static", None)
    assert (rarely.scheme, rarely.note) == ("int8 dynamic", "not reached in calibration")
    assert rarely.reason is None
    assert model.rarely.input_scale is None
    assert "int8 dynamic: not reached in calibration" in " ".join(str(summary).split())
    data = summary.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert model(x, rare=True).isfinite().all()


@pytest.mark.parametrize("guarded", [False, True])
def test_int8_layers_are_made_static_and_recalibrated(guarded: bool, randn: Randn) -> None:
    model, x = mlp(), randn(40, 64)
    quantize_(model)
    dynamic = model[0]
    config = Int8Static(calibrate(model, [x]))
    filter_fn = lambda module, name: name == "0"  # noqa: E731
    options = {"example_inputs": x} if guarded else {}
    first, second = quantize_(model, config, filter_fn=filter_fn, **options).rows
    assert second.reason == "filter_fn left it out"
    assert model[2].input_scale is None
    if guarded and first.reason is not None:
        assert first.reason == "int8 is slower here"
        assert model[0] is dynamic
        return
    assert (first.scheme, first.sqnr_db) == ("int8 static", None)
    assert first.bytes_after == first.bytes_before + 8
    assert model[0].weight_packed is dynamic.weight_packed
    assert dynamic.input_scale is None
    before = model[0].input_scale.clone()
    again = quantize_(model, Int8Static(calibrate(model, [2 * x])))
    assert [row.scheme for row in again.rows] == ["int8 static"] * 2
    assert torch.equal(model[0].input_scale, 2 * before)
    assert quantize_(model).rows[0].reason == "it is quantised already"


def test_the_guard_times_static_layers(randn: Randn) -> None:
    model, x = mlp(), randn(4, 64)
    rows = quantize_(model, Int8Static(calibrate(model, [x])), example_inputs=x).rows
    assert all(row.ms_before and row.ms_after for row in rows)
    assert all(row.scheme == "int8 static" or "slower" in str(row.reason) for row in rows)


def test_tied_weights_stay_tied_with_ranges_of_their_own(randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48)).eval()
    model[2].weight = model[0].weight
    quantize_(model, Int8Static(calibrate(model, [randn(9, 48)])))
    assert model[0].weight_packed is model[2].weight_packed
    assert not torch.equal(model[0].input_offset, model[2].input_offset)


def test_refuses_another_models_calibration(randn: Randn) -> None:
    calibration = calibrate(mlp(), [randn(3, 64)])
    model = nn.Sequential(nn.Linear(64, 96))
    with pytest.raises(ValueError, match="config: its calibration has a range for 2, which is no"):
        quantize_(model, Int8Static(calibration))
    assert type(model[0]) is nn.Linear
    with pytest.raises(TypeError, match="calibration is a dict, want what"):
        Int8Static(calibration.to_dict())  # type: ignore[arg-type]


def by_deepcopy(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    return copy.deepcopy(layer)


def by_pickle(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    return pickle.loads(pickle.dumps(layer))


def by_state_dict(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    other = QuantizedLinear(200, 96, static=True)
    assert str(other.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    return other


def by_safetensors(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    safetensors.torch.save_model(layer, path)
    with torch.device("meta"):
        other = QuantizedLinear(200, 96, static=True)
    other.load_state_dict(safetensors.torch.load_file(path), assign=True)
    return other


def by_torch_save(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_cast(layer: QuantizedLinear, path: Path) -> QuantizedLinear:
    return copy.deepcopy(layer).half().bfloat16().double()


@pytest.mark.parametrize(
    "trip", [by_deepcopy, by_pickle, by_state_dict, by_safetensors, by_torch_save, by_cast]
)
def test_every_bit_comes_back(trip: Any, randn: Randn, tmp_path: Path) -> None:
    layer, x = static_layer(randn), randn(3, 200)
    want = layer(x)
    other = trip(layer, tmp_path / "layer").eval()
    assert list(other.state_dict()) == NAMES
    for name, t in other.state_dict().items():
        assert t.dtype == layer.state_dict()[name].dtype
        assert torch.equal(t, layer.state_dict()[name]), name
    assert torch.equal(other(x), want)


def test_a_calibration_rebuilds_the_model_for_its_state(randn: Randn) -> None:
    model, x = mlp(), randn(5, 64)
    float_twin, calibration = copy.deepcopy(model), calibrate(model, [x])
    quantize_(model, Int8Static(calibration))
    stored = json.dumps(calibration.to_dict())
    other = float_twin
    for parameter in other.parameters():
        parameter.data.zero_()
    quantize_(other, Int8Static(fastinfer.Calibration.from_dict(json.loads(stored))))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_static_and_dynamic_states_do_not_mix(strict: bool, assign: bool, randn: Randn) -> None:
    static = static_layer(randn)
    dynamic = QuantizedLinear(200, 96)
    dynamic.load_state_dict(
        {name: t for name, t in static.state_dict().items() if name in NAMES[:3]}
    )
    states = [
        (dynamic, static.state_dict(), "input_scale belongs to a static layer, this one is dyn"),
        (static, dynamic.state_dict(), "input_scale is missing: the state is that of a dynamic"),
    ]
    for name, value, words in [
        ("input_scale", torch.zeros(1), "input_scale is 0.0, want"),
        ("input_scale", torch.full((1,), torch.inf), "input_scale is inf, want"),
        ("input_offset", torch.full((1,), torch.nan), "input_offset is nan, want"),
        ("input_offset", torch.full((1,), -torch.inf), "input_offset is -inf, want"),
        (
            "input_scale",
            torch.ones(2),
            r"input_scale has shape \[2\] and dtype torch.float32, want",
        ),
        ("input_offset", torch.ones(1).half(), r"input_offset has .* torch.float16, want \[1\]"),
    ]:
        states.append((static, {**static.state_dict(), name: value}, words))
    for layer, state, words in states:
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError, match=words):
            layer.load_state_dict(state, strict=strict, assign=assign)
        assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_an_empty_static_layer_says_so(randn: Randn) -> None:
    with pytest.raises(ValueError, match="QuantizedLinear: the layer is empty"):
        QuantizedLinear(200, 96, static=True).eval()(randn(3, 200))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.ones(2, 100), ValueError, r"x has shape \[2, 100\], want \[..., 200\]"),
        (torch.ones(2, 200).double(), TypeError, "x has dtype torch.float64, want"),
        ([1.0], TypeError, "x is a list, want a torch.Tensor"),
    ],
)
def test_a_wrong_input_is_one_clear_error(
    x: Any, error: type[Exception], match: str, randn: Randn
) -> None:
    with pytest.raises(error, match=match):
        static_layer(randn)(x)


def test_gradients_are_refused_alike(randn: Randn) -> None:
    layer, x = static_layer(randn), randn(3, 200).requires_grad_()
    y = layer(x)
    assert torch.equal(y.detach(), layer(x.detach()))
    with pytest.raises(RuntimeError, match="for inference only and has no gradient"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="in training mode"):
        layer.train()(x)
