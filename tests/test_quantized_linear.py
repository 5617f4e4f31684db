"""fastinfer.nn.QuantizedLinear as a module: values, casts, moves, loading, refusals."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import fastinfer
from fastinfer import ops, quantize_linear
from fastinfer.nn import QuantizedLinear, why_not_quantizable

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ["weight_packed", "weight_scale", "bias"]


@pytest.fixture
def linear(randn):
    """A float32 layer [96, 200] with numbers of this test, in eval mode."""
    layer = nn.Linear(200, 96).eval().requires_grad_(False)
    layer.weight.copy_(randn(96, 200))
    layer.bias.copy_(randn(96))
    return layer


def bits(layer):
    return {name: t.clone() for name, t in layer.state_dict().items()}


def assert_same_bits(layer, before):
    after = layer.state_dict()
    assert after.keys() == before.keys()
    for name, t in before.items():
        assert after[name].dtype == t.dtype
        assert torch.equal(after[name], t), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantises_by_the_documented_formula(linear, dtype):
    linear = linear.to(dtype)
    layer = fastinfer.quantize_linear(linear)
    w = linear.weight.float().numpy()
    a = np.maximum(abs(w).max(axis=1), np.float32(2.0**-118))
    q = np.rint(w * (np.float32(127) / a)[:, None])
    np.testing.assert_array_equal(layer.weight_scale.numpy(), a / np.float32(127))
    np.testing.assert_array_equal(ops.unpack_w8(layer.weight_packed, 96, 200).numpy(), q)
    assert torch.equal(layer.bias, linear.bias.float())
    want = torch.from_numpy(q).float() * layer.weight_scale[:, None]
    assert torch.equal(layer.dequantize(), want)
    assert torch.equal(layer.weight, want)
    # Half a step, and the float32 roundings of the way there and back.
    step = layer.weight_scale[:, None] * (0.5 + 2.0**-15)
    assert ((want - linear.weight.float()).abs() <= step).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_is_the_operator(linear, dtype, with_bias, randn):
    if not with_bias:
        linear.bias = None
    layer = fastinfer.quantize_linear(linear)
    x = randn(2, 3, 200).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (2, 3, 96)
    q, scale = ops.quantize_rowwise(linear.weight)
    assert torch.equal(y, ops.linear_w8a8(x, ops.pack_w8(q), scale, linear.bias))
    # int8 keeps about two digits: 0.0123 for Gaussian operands, and bfloat16 adds 2^-9.
    want = nn.functional.linear(x.float(), linear.weight, linear.bias)
    assert (y.float() - want).norm() / want.norm() < 0.016


def test_the_original_is_left_alone_and_nothing_is_shared(linear):
    before = bits(linear)
    layer = fastinfer.quantize_linear(linear)
    layer.bias.fill_(7)
    assert_same_bits(linear, before)


def test_reads_like_a_linear(linear):
    layer = fastinfer.quantize_linear(linear)
    assert (layer.in_features, layer.out_features) == (200, 96)
    assert layer.weight.shape == (96, 200)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.device == torch.device("cpu")
    assert repr(layer) == (
        "QuantizedLinear(in_features=200, out_features=96, bias=True, scheme=w8a8)"
    )
    assert list(layer.state_dict()) == NAMES
    assert not list(layer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_kept(linear, training):
    assert fastinfer.quantize_linear(linear.train(training)).training == training


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "float": lambda m: m.float(),
    "to dtype": lambda m: m.to(torch.float16),
    "to device and dtype": lambda m: m.to("cpu", torch.bfloat16),
    "to like": lambda m: m.to(torch.empty(0, dtype=torch.float16)),
    "type": lambda m: m.type(torch.float16),
    "inside a model": lambda m: nn.Sequential(nn.ReLU(), m).half()[1],
    "share memory": lambda m: m.share_memory(),
    "cpu": lambda m: m.cpu(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_keep_every_bit(linear, cast, randn):
    layer = fastinfer.quantize_linear(linear)
    before, x = bits(layer), randn(3, 200)
    y = layer(x)
    assert cast(layer) is layer
    assert_same_bits(layer, before)
    assert torch.equal(layer(x), y)


def test_share_memory_shares(linear):
    layer = fastinfer.quantize_linear(linear).share_memory()
    assert all(getattr(layer, name).is_shared() for name in NAMES)


def test_moves_to_meta_and_to_empty(linear):
    layer = fastinfer.quantize_linear(linear)
    before = bits(layer)
    layer.to("meta", torch.float16)
    assert {(t.device.type, t.dtype) for t in layer.buffers()} == {
        ("meta", torch.uint8),
        ("meta", torch.float32),
    }
    layer.to_empty(device="cpu")
    assert all(t.device.type == "cpu" for t in layer.buffers())
    layer.load_state_dict(before)
    assert_same_bits(layer, before)


def test_made_on_meta_and_filled_by_assignment(linear, randn):
    full = fastinfer.quantize_linear(linear)
    with torch.device("meta"):
        layer = QuantizedLinear(200, 96)
        from_meta = fastinfer.quantize_linear(nn.Linear(200, 96))
    assert layer(torch.empty(2, 200, device="meta")).shape == (2, 96)
    for empty in (layer, from_meta):
        assert all(t.is_meta for t in empty.buffers())
        empty.load_state_dict(full.state_dict(), assign=True)
        x = randn(3, 200)
        assert torch.equal(empty.eval()(x), full(x))


def test_made_and_run_with_fake_tensors():
    with FakeTensorMode():
        layer = QuantizedLinear(200, 96)
        y = layer.eval()(torch.empty(2, 5, 200, dtype=torch.bfloat16))
    assert (y.shape, y.dtype) == ((2, 5, 96), torch.bfloat16)


@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_layer_says_so_and_can_be_filled(linear, bias, randn):
    if not bias:
        linear.bias = None
    layer = QuantizedLinear(200, 96, bias=bias).eval()
    x = randn(3, 200)
    with pytest.raises(ValueError, match="QuantizedLinear: the layer is empty"):
        layer(x)
    full = fastinfer.quantize_linear(linear)
    layer.load_state_dict(full.state_dict())
    assert torch.equal(layer(x), full(x))


def without(state, *names):
    return {name: t for name, t in state.items() if name not in names}


def packed_of(n, k):
    return ops.pack_w8(torch.ones(n, k, dtype=torch.int8))


def other_tag(state):
    packed = state["weight_packed"].clone()
    packed[15] = ord("7")
    return {**state, "weight_packed": packed}


BAD_STATES = {
    "float checkpoint": (
        lambda s: {"weight": torch.ones(96, 200), "bias": torch.ones(96)},
        "weight is the weight of a float layer, want weight_packed .* then quantise",
    ),
    "other N": (
        lambda s: {**s, "weight_packed": packed_of(80, 200), "weight_scale": torch.ones(80)},
        r"weight_scale has shape \[80\], want \[96\]",
    ),
    "other K": (
        lambda s: {**s, "weight_packed": packed_of(96, 100)},
        r"want \[..., K\] with K = 100",
    ),
    "other K of the same size": (
        lambda s: {**s, "weight_packed": packed_of(96, 199)},
        r"want \[..., K\] with K = 199",
    ),
    "packed of other N": (
        lambda s: {**s, "weight_packed": packed_of(95, 200)},
        r"w_scale has shape \[96\], want \[95\]",
    ),
    "other tag": (other_tag, "layout tag is none of the int8 layouts"),
    "half scale": (
        lambda s: {**s, "weight_scale": s["weight_scale"].half()},
        "w_scale has dtype torch.float16, want torch.float32",
    ),
    "bias shape": (lambda s: {**s, "bias": torch.ones(7)}, r"bias has shape \[7\], want \[96\]"),
    "scale alone": (lambda s: without(s, "weight_packed"), "weight_packed is missing"),
    "packed alone": (lambda s: without(s, "weight_scale"), "weight_scale is missing"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("change", "match"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_wrong_state_is_refused_before_anything_changes(linear, change, match, strict, assign):
    layer = fastinfer.quantize_linear(linear)
    before = bits(layer)
    state = change(bits(fastinfer.quantize_linear(linear)))
    for t in state.values():
        t[-1:] = 3  # so that a change would show
    with pytest.raises(RuntimeError, match=match):
        layer.load_state_dict(state, strict=strict, assign=assign)
    assert_same_bits(layer, before)


def test_names_in_a_model_are_told_in_full(linear):
    model = nn.Sequential(nn.ReLU(), fastinfer.quantize_linear(linear))
    with pytest.raises(RuntimeError, match=r"1\.weight is the weight of a float layer"):
        model.load_state_dict(nn.Sequential(nn.ReLU(), linear).state_dict())


def test_strict_loading_reports_missing_and_unexpected_keys(linear):
    layer = fastinfer.quantize_linear(linear)
    state = bits(layer)
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        layer.load_state_dict(without(state, "bias"))
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"extra"'):
        layer.load_state_dict({**state, "extra": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})


def test_training_with_gradients_is_one_clear_error(linear, randn):
    layer = fastinfer.quantize_linear(linear)
    x = randn(3, 200).requires_grad_()
    want = layer(x.detach())
    layer.train()
    with pytest.raises(RuntimeError, match="requires a gradient and the layer is in training mode"):
        layer(x)
    assert torch.equal(layer(x.detach()), want)
    with torch.no_grad():
        assert torch.equal(layer(x), want)
    assert torch.equal(layer.eval()(x), want)


BAD_INPUTS = {
    "K": (torch.ones(2, 100), ValueError, r"x has shape \[2, 100\], want \[..., 200\]"),
    "K padded alike": (torch.ones(2, 199), ValueError, r"x has shape \[2, 199\], want"),
    "no dimension": (torch.tensor(1.0), ValueError, r"x has shape \[\], want \[..., 200\]"),
    "float64": (torch.ones(2, 200).double(), TypeError, "x has dtype torch.float64, want"),
    "int": (torch.ones(2, 200).long(), TypeError, "x has dtype torch.int64, want"),
    "meta": (torch.ones(2, 200, device="meta"), ValueError, "w_packed is on cpu, want meta"),
    "list": ([1.0], TypeError, "x is a list, want a torch.Tensor"),
}


@pytest.mark.parametrize(("x", "error", "match"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_a_wrong_input_is_one_clear_error(linear, x, error, match):
    with pytest.raises(error, match=match) as raised:
        fastinfer.quantize_linear(linear)(x)
    assert raised.value.__context__ is None  # one error, not a chain


class Subclass(nn.Linear):
    pass


def hooked(register):
    layer = nn.Linear(8, 8)
    getattr(layer, register)(lambda *_: None)
    return layer


def parametrised():
    layer = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


REFUSED = {
    "subclass": (lambda: Subclass(8, 8), "it is a Subclass, a subclass of nn.Linear"),
    "conv": (lambda: nn.Conv1d(8, 8, 1), "it is a Conv1d, not an nn.Linear"),
    "parametrised": (parametrised, "it is a ParametrizedLinear, a subclass"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        "it is a ParametrizedLinear",
    ),
    "forward hook": (lambda: hooked("register_forward_hook"), "it has hooks"),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "it has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "it has hooks"),
    "float64": (lambda: nn.Linear(8, 8).double(), "its weight has dtype torch.float64"),
    "quantised": (
        lambda: fastinfer.quantize_linear(nn.Linear(8, 8)),
        "it is a QuantizedLinear, not an nn.Linear",
    ),
}


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_quantised_is_refused_with_the_reason(make, match):
    module = make()
    assert why_not_quantizable(module).startswith(match)
    with pytest.raises(TypeError, match=f"^quantize_linear: linear: {match}"):
        fastinfer.quantize_linear(module)


def test_what_can_be_quantised_has_no_reason(linear):
    assert why_not_quantizable(linear) is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(linear, poison):
    linear.weight[5, 199] = poison
    with pytest.raises(ValueError, match=r"weight holds NaN or Inf \(first in row 5\)"):
        fastinfer.quantize_linear(linear)


def test_rows_longer_than_int32_allows_are_refused():
    assert QuantizedLinear(131071, 1).in_features == 131071
    with pytest.raises(ValueError, match="in_features is 131072, want 0 to 131071"):
        QuantizedLinear(131072, 1)
    with pytest.raises(ValueError, match="K = 131072, want at most 131071"):
        fastinfer.quantize_linear(nn.Linear(131072, 1))


def test_the_longest_rows_work(randn):
    linear = nn.Linear(131071, 32).eval().requires_grad_(False)
    x = randn(8, 131071)
    y, want = fastinfer.quantize_linear(linear)(x), linear(x)
    # Steps of about 4.5 / 127 (Gaussian rows) and sqrt(3) / 127 (uniform weights) of a standard
    # deviation, rounding errors uniform: 0.011 relative; 256 outputs keep the ratio within 20 %.
    assert (y - want).norm() / want.norm() < 0.0135


def test_zero_weights_and_tiny_weights(randn):
    linear = nn.Linear(64, 3, bias=False).eval().requires_grad_(False)
    linear.weight.copy_(randn(3, 64))
    linear.weight[0] = 0
    linear.weight[1] *= 1e-40
    layer = fastinfer.quantize_linear(linear)
    y = layer(randn(5, 64))
    assert not y[:, 0].any()
    assert y.isfinite().all()
    assert torch.equal(layer.weight_scale[:2], torch.full((2,), 2.0**-118 / 127))


def test_no_inputs_and_no_outputs(randn):
    assert fastinfer.quantize_linear(nn.Linear(8, 0, bias=False)).eval()(randn(3, 8)).shape == (
        3,
        0,
    )
    with pytest.warns(UserWarning, match="zero-element"):
        linear = nn.Linear(0, 5)
    assert torch.equal(
        fastinfer.quantize_linear(linear).eval()(torch.empty(2, 0)), linear.bias.expand(2, 5)
    )


def test_backward_through_the_layer_is_an_error(randn):
    layer = quantize_linear(nn.Linear(64, 32)).eval()
    x = randn(3, 64).requires_grad_()
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(y, layer(x))
    with pytest.raises(RuntimeError, match="for inference only and has no gradient"):
        (y.sum() + x.sum()).backward()


@pytest.mark.parametrize("x", [None, [1.0] * 64, 3])
@pytest.mark.parametrize("training", [True, False])
def test_x_is_no_tensor(x, training):
    layer = quantize_linear(nn.Linear(64, 32)).train(training)
    with pytest.raises(TypeError, match="x is a"):
        layer(x)


def altered(change):
    linear = nn.Linear(64, 32)
    change(linear)
    return linear


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "forward", lambda x: x), "its forward was replaced"),
        (lambda m: setattr(m, "weight", nn.Parameter(torch.ones(8, 64))), r"shape \[8, 64\]"),
        (lambda m: setattr(m, "bias", nn.Parameter(torch.ones(1))), r"bias has shape \[1\]"),
        (lambda m: m.add_module("lora", nn.Linear(64, 2)), "more than a weight and a bias: lora"),
        (lambda m: m.register_buffer("mask", torch.ones(3)), "more than a weight and a bias: mask"),
        (lambda m: m.register_state_dict_post_hook(lambda *a: None), "it has hooks"),
    ],
)
def test_a_linear_that_is_more_is_refused(change, reason):
    with pytest.raises(TypeError, match=reason):
        quantize_linear(altered(change))
