"""calibrate: ranges of the layers' inputs, and the histogram behind two of its methods."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastinfer import Calibration, calibrate, quantize_
from fastinfer.histogram import BINS, Histogram
from fastinfer.nn import QuantizedLinear

Randn = Callable[..., Tensor]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32))


def histogram(*tensors: Tensor) -> Histogram:
    found = Histogram()
    for x in tensors:
        found.add(x, float(x.min()), float(x.max()))
    return found


def squared_error(x: Tensor, low: float, high: float) -> float:
    """Of int8 in that range, by the formula of the operators, in float64."""
    x, offset = x.double(), high / 2 + low / 2
    scale = max(high - offset, offset - low) / 127
    q = ((x - offset) / scale).round().clamp(-127, 127)
    return float((q * scale + offset - x).square().mean())


def test_absmax_is_the_least_and_the_greatest(randn: Randn) -> None:
    model, batches = mlp().train(), [randn(5, 7, 64), randn(3, 64) + 1]
    calibration = calibrate(model, batches)
    first, second = calibration.layers
    assert (first.name, second.name, first.method) == ("0", "2", "absmax")
    seen = torch.cat([x.flatten() for x in batches])
    assert (first.low, first.high) == (float(seen.min()), float(seen.max()))
    with torch.no_grad():
        inner = torch.cat([model[:2](x).flatten() for x in batches])
    assert (second.low, second.high) == (float(inner.min()), float(inner.max()))
    assert (first.elements, second.elements) == (38 * 64, 38 * 96)
    assert first.batches == second.batches == 2
    assert model.training
    assert not model[0]._forward_pre_hooks


class TwoInputs(nn.Module):
    """A layer that is called twice, one that is called on request, one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.some, self.never = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor, more: bool = False) -> Tensor:
        y = self.both(input=a) + self.both(b)
        return self.some(y) if more else y


def test_batches_of_any_form_and_layers_reached_now_and_then(randn: Randn) -> None:
    a, b = randn(4, 8), 3 * randn(2, 4, 8)
    batches = [(a, b), {"a": b, "b": a, "more": True}, (a, a, False)]
    both, some = calibrate(TwoInputs(), iter(batches)).layers
    assert (both.name, both.batches, some.name, some.batches) == ("both", 3, "some", 1)
    assert both.elements == 2 * a.numel() + 2 * b.numel() + 2 * a.numel()
    assert (both.low, both.high) == (float(b.min()), float(b.max()))


def test_calibrates_an_int8_model_alike(randn: Randn) -> None:
    model, x = mlp().eval(), randn(50, 64)
    (want0, want2), _ = calibrate(model, [x]).layers, quantize_(model)
    got0, got2 = calibrate(model, [x]).layers
    assert got0 == want0
    # The first layer's int8 error is about 1 % of its output (test_quantize_model.py).
    assert got2.high == pytest.approx(want2.high, rel=0.05)
    assert isinstance(model[0], QuantizedLinear)


def test_only_layers_that_can_be_int8(randn: Randn) -> None:
    class Subclass(nn.Linear):
        pass

    head = nn.Linear(8, 8)
    model = nn.ModuleList([Subclass(8, 8), nn.Linear(8, 8), head, nn.Embedding(8, 8, sparse=True)])
    model[3].weight = head.weight
    model.forward = lambda x: model[2](model[1](model[0](x)))
    assert [layer.name for layer in calibrate(model, [randn(2, 8)]).layers] == ["1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
def test_every_dtype_and_method(method: Any, dtype: torch.dtype, randn: Randn) -> None:
    x = randn(500, 64).to(dtype)
    layer = calibrate(mlp().to(dtype), [x[:100], x[100:]], method, 99).layers[0]
    low, high = float(x.min()), float(x.max())
    assert low <= layer.low < layer.high <= high
    if method == "absmax":
        assert (layer.low, layer.high) == (low, high)
    else:  # 1 % of a Gaussian lies beyond 2.33, the best int8 range ends near 3.9
        assert layer.high < high
    assert layer.method == ("percentile 99" if method == "percentile" else method)


@pytest.mark.parametrize("percentile", [60, 99, 99.9, 99.99, 100])
def test_percentile_to_a_bin(percentile: float, randn: Randn) -> None:
    x = torch.cat([0.01 * randn(20000), randn(30000), randn(30000).exp()])
    found = histogram(*x.split(20000))
    low, high = found.percentile_range(percentile)
    bin_width = (float(x.max()) - float(x.min())) / (BINS / 2 - 2)
    assert found.width <= bin_width
    ends = np.quantile(x.double().numpy(), [1 - percentile / 100, percentile / 100])
    # The two differ by a bin's width, and by the gap between neighbours where few values are.
    tail = np.sort(x.numpy())
    k = math.ceil((1 - percentile / 100) * len(tail))
    gap = max(tail[k + 1] - tail[max(k - 1, 0)], tail[-1 - max(k - 1, 0)] - tail[-2 - k])
    assert abs(low - ends[0]) <= bin_width + (gap if percentile < 100 else 0)
    assert abs(high - ends[1]) <= bin_width + (gap if percentile < 100 else 0)
    if percentile == 100:
        assert (low, high) == (float(x.min()), float(x.max()))


def test_counts_are_exact_whatever_the_order(randn: Randn) -> None:
    parts = [0.001 * randn(1000), randn(1000), torch.zeros(10), randn(1000) - 300, 40 * randn(7)]
    one, other = histogram(*parts), histogram(*reversed(parts))
    assert one.width == other.width
    assert torch.equal(one.counts, other.counts)
    x = torch.cat(parts).double().numpy()
    first = math.floor(x.min() / one.width)
    want = np.bincount((np.floor(x / one.width) - first).astype(int), minlength=BINS)
    np.testing.assert_array_equal(one.counts.numpy(), want)
    assert float(one.sums.sum()) == pytest.approx(x.sum(), rel=1e-12)
    assert (x.max() - x.min()) / one.width >= BINS / 2 - 2


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0e38, 1e-45, -0.1])
def test_a_constant_and_what_comes_after(value: float) -> None:
    found = histogram(torch.full((5,), value), torch.full((3,), value))
    ends = (float(torch.tensor(value)),) * 2
    assert found.mse_range() == ends
    assert found.percentile_range(99) == ends
    x = torch.tensor([2.0, 5.0])
    found.add(x, 2, 5)
    assert int(found.counts.sum()) == 10
    assert found.percentile_range(100) == (min(ends[0], 2.0), 5.0)


VALUES = {
    "gaussian": lambda: torch.randn(20000),
    "laplace": lambda: torch.distributions.Laplace(1.0, 2.0).sample((20000,)),
    "after relu": lambda: torch.randn(20000).relu(),
    "exponential": lambda: -torch.rand(20000).log(),
    "outliers": lambda: torch.cat([torch.randn(19000), 30 + torch.randn(1000)]),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_mse_is_near_the_best_range(values: Callable[[], Tensor]) -> None:
    """The error is that of the best of 21 x 21 ranges, the whole one among them, to 2 %.

    The search takes rounding noise as step^2 / 12, and its own grid is finer; 2 % is for where the
    true noise of these 20000 samples differs from that.
    """
    x = values()
    found = histogram(x)
    got = squared_error(x, *found.mse_range())
    middle = float(x.median())
    shrinks = torch.linspace(0, 0.8, 21).tolist()
    best = min(
        squared_error(x, *(end + (middle - end) * by for end, by in zip(ends, shrunk, strict=True)))
        for ends in [(found.low, found.high)]
        for shrunk in itertools.product(shrinks, shrinks)
    )
    assert got <= 1.02 * best


def test_input_that_is_not_finite_names_the_layer(randn: Randn) -> None:
    model, x = mlp(), randn(4, 64)
    model[0].bias.data[3] = math.inf
    with pytest.raises(ValueError, match="input of layer 2 holds NaN or Inf"):
        calibrate(model, [x])
    x[1, 2] = math.nan
    with pytest.raises(ValueError, match="input of layer 0 holds NaN or Inf"):
        calibrate(model, [x], "mse")
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_is_given_no_rows_has_no_range(randn: Randn) -> None:
    assert calibrate(mlp(), [torch.empty(0, 64), randn(2, 64)]).layers[0].batches == 1
    with pytest.raises(ValueError, match="no linear layer that can be int8 was reached"):
        calibrate(mlp(), [torch.empty(0, 64)])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("model", []), TypeError, "model: got str"),
        ((mlp(), torch.ones(3, 64)), TypeError, r"batches: got Tensor, .*\[inputs\]"),
        ((mlp(), {"x": torch.ones(3, 64)}), TypeError, "batches: got dict"),
        ((mlp(), 3), TypeError, "batches: got int"),
        ((mlp(), [torch.ones(3, 64), 3]), TypeError, "batches: number 2: got int"),
        ((mlp(), []), ValueError, "batches: it is empty"),
        ((mlp(), [torch.ones(3, 64)], "kl"), ValueError, "method: got 'kl', want one of absmax"),
        ((mlp(), [torch.ones(3, 64)], "percentile", 50), ValueError, "percentile: got 50"),
        ((mlp(), [torch.ones(3, 64)], "percentile", "99"), TypeError, "percentile: got str"),
        ((nn.ReLU(), [torch.ones(3)]), ValueError, "no linear layer"),
    ],
)
def test_refuses_wrong_arguments(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        calibrate(*arguments)


def test_plain_data_and_a_table(randn: Randn) -> None:
    model = nn.Sequential(*(mlp() for _ in range(12)))
    for part in model:
        part[2] = nn.Linear(96, 64)
    calibration = calibrate(model, [randn(2, 64)], "mse")
    data = json.loads(json.dumps(calibration.to_dict(), allow_nan=False))
    assert Calibration.from_dict(data) == calibration
    assert calibration.by_name["3.2"].name == "3.2"
    assert repr(calibration) == "<Calibration: the ranges of 24 layers' inputs>"
    text = str(calibration)
    assert "*.* (24)" in text
    assert "mse" in text
    assert len(text.splitlines()) < 10


def test_progress_bar_on_request_only(randn: Randn, capfd: pytest.CaptureFixture[str]) -> None:
    calibrate(mlp(), [randn(2, 64)])
    assert capfd.readouterr() == ("", "")
    calibrate(mlp(), [randn(2, 64)], progress=True)
    assert "Running batches" in capfd.readouterr().err
