"""prepare_qat_ and convert_qat_: the bits of the int8 layers in training, and their gradients."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastinfer import Calibration, Int8Dynamic, Int8Static, calibrate, quantize_
from fastinfer import convert_qat_ as convert
from fastinfer import prepare_qat_ as prepare
from fastinfer.calibration import InputRange
from fastinfer.nn import QATLinear, QuantizedLinear
from linears import FLOATS, same_bits

Randn = Callable[..., Tensor]


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def mlp(k: int = 67, n: int = 21) -> nn.Sequential:
    return nn.Sequential(nn.Linear(k, 33), nn.GELU(), nn.Linear(33, n, bias=False))


def static(low: float, high: float, name: str = "0") -> Int8Static:
    return Int8Static(Calibration((InputRange(name, "absmax", low, high, 1, 1),)))


@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("w_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("config", [Int8Dynamic(), static(-0.75, 2)], ids=["dynamic", "static"])
@pytest.mark.parametrize("shape", [(5, 67), (0, 67), (2, 3, 67), (67,)], ids=str)
def test_forward_has_the_bits_of_the_converted_layer(
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
    config: Any,
    shape: tuple[int, ...],
    randn: Randn,
) -> None:
    model = nn.Sequential(nn.Linear(67, 21)).to(w_dtype)
    prepare(model, config)
    x = randn(*shape).to(x_dtype)
    trained, evaluated = model.train()(x.requires_grad_()), model.eval()(x.detach())
    convert(model)
    want = model(x.detach())
    assert same_bits(want, trained)
    assert same_bits(want, evaluated)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("config", [Int8Dynamic(), static(-2, 2)], ids=["dynamic", "static"])
def test_a_row_of_nan_stays_one_row(poison: float, config: Any, randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(16, 5))
    prepare(model, config)
    x = randn(3, 16)
    x[1, 4] = poison
    y = model(x)
    convert(model)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    assert same_bits(y.detach(), model(x))


def test_k_and_n_of_zero() -> None:
    for k, n in ((0, 3), (3, 0)):
        layer = nn.Linear(2, 2)
        layer.in_features, layer.out_features = k, n
        layer.weight, layer.bias = nn.Parameter(torch.ones(n, k)), nn.Parameter(torch.ones(n))
        model = nn.Sequential(layer)
        prepare(model)
        x = torch.ones(4, k, requires_grad=True)
        model(x).sum().backward()
        assert torch.equal(x.grad, torch.full((4, k), float(n)))
        assert torch.equal(layer.bias.grad, torch.full((n,), 4.0))


def seen_weight(weight: Tensor) -> Tensor:
    """float64: what symmetric int8 a row keeps; float32 up to the integers, as documented."""
    largest = weight.abs().amax(1, keepdim=True).clamp(min=2.0**-118)
    return (weight * (127 / largest)).round().double() * (largest / 127).double()


def seen_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float64: the same of rows around their offset; what is not clipped, which is all; and the
    sizes of scale * q and offset together, to which the float32 sum of both is rounded."""
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    offset = high / 2 + low / 2
    reach = torch.maximum(high - offset, offset - low).clamp(min=2.0**-118)
    part = ((x - offset) * (127 / reach)).round().double() * (reach / 127).double()
    return part + offset.double(), torch.ones_like(x), part.abs() + offset.double().abs()


def seen_static(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    offset = torch.tensor(high) / 2 + torch.tensor(low) / 2
    scale = torch.maximum(high - offset, offset - low) / 127
    q = ((x - offset) * (1 / scale)).round()
    part = q.clamp(-127, 127).double() * scale.double()
    return part + offset.double(), q.abs() <= 127, part.abs() + offset.double().abs()


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("shape", [(7, 67), (2, 3, 67), (67,)], ids=str)
def test_gradients_are_straight_through(
    clipped: bool, shape: tuple[int, ...], randn: Randn
) -> None:
    """Against float64. Each gradient is a product of float32 numbers summed in float32 over T
    terms: off by at most (T + 4) * 2**-24 * sum |terms|, four roundings being in the factors."""
    model = nn.Sequential(nn.Linear(67, 21))
    prepare(model, static(-0.5, 1) if clipped else Int8Dynamic())
    x, grad = randn(*shape), randn(*shape[:-1], 21)
    x_seen, inside, size = seen_static(x, -0.5, 1) if clipped else seen_rows(x)
    assert bool(inside.all()) != clipped
    w = seen_weight(model[0].weight.detach())
    x.requires_grad_()
    model(x).backward(grad)

    g, rows = grad.double().reshape(-1, 21), x_seen.reshape(-1, 67)
    wants = [
        (x.grad, (g @ w).reshape(shape) * inside, (g.abs() @ w.abs()).reshape(shape), 21),
        (model[0].weight.grad, g.T @ rows, g.abs().T @ size.reshape(-1, 67), len(g)),
        (model[0].bias.grad, g.sum(0), g.abs().sum(0), len(g)),
    ]
    for got, want, terms, count in wants:
        assert got.dtype == torch.float32
        assert ((got.double() - want).abs() <= (count + 4) * 2.0**-24 * terms).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_precision_have_its_dtype(dtype: torch.dtype, randn: Randn) -> None:
    model, x = mlp().to(dtype), randn(6, 67).to(dtype).requires_grad_()
    prepare(model)
    model(x).sum().backward()
    assert x.grad.dtype == dtype
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())


def test_autocast_gives_float_gradients_and_the_converted_bits(randn: Randn) -> None:
    model, x = nn.Sequential(nn.Linear(67, 40), nn.Conv1d(1, 1, 1), nn.Linear(40, 7)), randn(1, 67)
    prepare(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.parameters())
    convert(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert same_bits(y.detach(), model(x))


def test_converts_to_what_quantize_makes(randn: Randn) -> None:
    model, x = mlp(), randn(9, 67)
    twin = copy.deepcopy(model)
    prepared, state = prepare(model), copy.deepcopy(model.state_dict())
    assert state.keys() == twin.state_dict().keys()
    assert [row.scheme for row in prepared.rows] == ["fake int8 dynamic"] * 2
    want, got = quantize_(twin), convert(model)
    assert got.to_dict() == want.to_dict()
    assert [type(m) for m in model] == [QuantizedLinear, nn.GELU, QuantizedLinear]
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert torch.equal(model(x), twin(x))


def test_static_converts_to_what_quantize_makes(randn: Randn) -> None:
    model, x = mlp(), randn(9, 67)
    model.append(nn.Linear(4, 4)).append(nn.Identity())
    model[-1].unused, model[3] = model[3], nn.Identity()
    config = Int8Static(calibrate(model, [x]))
    twin = copy.deepcopy(model)
    assert prepare(model, config).rows[2].note == "not reached in calibration"
    y = model(x)
    converted, quantized = convert(model), quantize_(twin, config)
    schemes = ["int8 static", "int8 static", "int8 dynamic"]
    assert [row.scheme for row in converted.rows] == schemes
    assert [row.scheme for row in quantized.rows] == schemes
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert torch.equal(y, model(x))


def test_training_improves_the_int8_model(randn: Randn) -> None:
    """Least squares at few integers: rounding the float solution is not the best int8 model."""
    x, target = randn(64, 24), randn(64, 3)
    model = nn.Sequential(nn.Linear(24, 3))
    model[0].weight.data = torch.linalg.lstsq(x, target).solution.T.contiguous()
    model[0].weight.data[:, 0] *= 20  # a large weight makes the steps of the others coarse
    prepare(model)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    convert(model)
    assert float(nn.functional.mse_loss(model(x), target)) < 0.5 * losses[0]


@pytest.mark.parametrize("baked", [False, True])
def test_a_mask_stays_and_the_float_weight_below_it_trains(baked: bool, randn: Randn) -> None:
    model, x, mask = mlp(), randn(8, 67), (randn(33, 67) > 0).float()
    parametrize.register_parametrization(model[0], "weight", Mask(mask))
    seen: list[str] = []
    summary = prepare(model, filter_fn=lambda module, name: bool(seen.append(name)) or True)
    assert seen == ["0", "2"]
    assert not summary.left
    assert isinstance(model[0], QATLinear)
    assert parametrize.is_parametrized(model[0], "weight")
    copied = copy.deepcopy(model)
    y = model(x)
    assert torch.equal(copied(x), y)
    y.square().sum().backward()
    original = model[0].parametrizations.weight.original
    assert (original.grad[mask == 0] == 0).all()
    assert original.grad[mask == 1].any()

    if baked:
        parametrize.remove_parametrizations(model[0], "weight")
        assert type(model[0]) is QATLinear
    convert(model)
    assert torch.equal(model(x), y)
    assert torch.equal(model[0].weight[mask == 0], torch.zeros(int((mask == 0).sum())))


def test_tied_layers_stay_tied_and_a_head_tied_to_an_embedding_stays_float(randn: Randn) -> None:
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(16, 16),
            "head": nn.Linear(16, 16, bias=False),
            "a": nn.Linear(16, 16),
            "b": nn.Linear(16, 16),
            "masked": nn.Linear(16, 16),
            "plain": nn.Linear(16, 16),
        }
    )
    model["head"].weight = model["tokens"].weight
    model["b"].weight = model["a"].weight
    model["plain"].weight = model["masked"].weight
    parametrize.register_parametrization(model["masked"], "weight", Mask(torch.eye(16)))
    summary = prepare(model)
    assert {row.name: row.reason for row in summary.left} == {
        "head": "its weight is tied to tokens.weight",
        "masked": "its weight is tied to plain.weight",
        "plain": "its weight is tied to masked.parametrizations.weight.original",
    }
    assert model["a"].weight is model["b"].weight
    convert(model)
    assert model["a"].weight_packed is model["b"].weight_packed
    assert type(model["head"]) is nn.Linear


def test_copies_and_states_keep_the_bits(randn: Randn) -> None:
    model, x = mlp(), randn(4, 67)
    prepare(model, static(-1, 1.5))
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    other = mlp()
    other.load_state_dict(model.state_dict())  # a float model takes it
    prepare(other, static(-1, 1.5))
    assert torch.equal(other(x), y)
    assert "static" in repr(other[0])


def test_transformer_encoder_layer_runs_its_prepared_layers_in_eval_mode(randn: Randn) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    prepare(model.eval())
    x = randn(2, 5, 16)
    with torch.no_grad():
        y = model(x)
        convert(model)
        assert torch.equal(model(x), y)
    assert isinstance(model.layers[0].linear1, QuantizedLinear)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("model",), TypeError, "model: got str"),
        ((nn.Linear(4, 4),), ValueError, "got an nn.Linear"),
        ((mlp(), "int8"), TypeError, "config: got str"),
        ((mlp(), static(-1, 1, "7")), ValueError, "a range for 7"),
    ],
)
def test_refuses_wrong_arguments(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prepare(*arguments)


def test_refuses_a_filter_that_is_none() -> None:
    with pytest.raises(TypeError, match="filter_fn: got str"):
        prepare(mlp(), filter_fn="0")


def test_says_why_layers_are_left() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda module, args, out: out)
    assert "hooks" in prepare(model).left[0].reason
    assert type(model[0]) is nn.Linear
    assert {row.reason for row in prepare(model).left} == {"it has hooks", "it is prepared already"}


def test_convert_refuses_what_cannot_be_int8_untouched() -> None:
    with pytest.raises(TypeError, match="model: got str"):
        convert("model")
    with pytest.raises(ValueError, match="no layer that prepare_qat_ prepared"):
        convert(mlp())
    model = mlp()
    prepare(model)
    model[2].weight.data[1, 1] = math.nan
    with pytest.raises(ValueError, match=re.escape("layer 2 cannot be int8")):
        convert(model)
    model[2].weight.data[1, 1] = 0
    hook = model[0].register_forward_hook(lambda module, args, out: out)
    with pytest.raises(ValueError, match=re.escape("layer 0 cannot be int8: it has hooks")):
        convert(model)
    assert [type(m) for m in model] == [QATLinear, nn.GELU, QATLinear]
    hook.remove()
    assert len(convert(model).quantized) == 2


@pytest.mark.parametrize("x", [torch.ones(3, 66), torch.ones(3, 67).double()])
def test_refuses_wrong_inputs(x: Tensor) -> None:
    model = mlp()
    prepare(model)
    with pytest.raises((TypeError, ValueError), match="x has"):
        model(x)
