"""Int8WeightOnly and WeightOnlyLinear: the layer, casts, loading, tracing, models, the summary."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

import fastinfer
from fastinfer import Int8Dynamic, Int8Static, Int8WeightOnly, ops
from fastinfer.nn import QuantizedLinear, WeightOnlyLinear
from fastinfer.schemes import Scheme

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def linear(randn):
    """A float32 layer [96, 200] with numbers of this test, in eval mode."""
    layer = nn.Linear(200, 96).eval().requires_grad_(False)
    layer.weight.copy_(randn(96, 200))
    layer.bias.copy_(randn(96))
    return layer


@pytest.fixture
def layer(linear):
    return fastinfer.quantize_linear(linear, Int8WeightOnly())


@pytest.fixture
def model(linear, randn):
    down = nn.Linear(96, 17, bias=False).requires_grad_(False)
    down.weight.copy_(randn(17, 96))
    return nn.Sequential(linear, nn.GELU(), down).eval()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_is_the_operator_on_the_weight_of_the_dynamic_layer(
    linear, dtype, with_bias, randn
):
    if not with_bias:
        linear.bias = None
    layer = fastinfer.quantize_linear(linear, Int8WeightOnly())
    assert type(layer) is WeightOnlyLinear
    x = randn(2, 3, 200).to(dtype)
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (2, 3, 96))
    q, scale = ops.quantize_rowwise(linear.weight)
    assert torch.equal(y, ops.linear_w8a16(x, ops.pack_w8(q), scale, linear.bias))
    # A weight's error is uniform in a step of max / 127; a Gaussian row of 200 has a maximum of
    # about 3: 3 / 127 / sqrt(12) = 0.007. A bfloat16 output adds 2^-9 / sqrt(3) at the most.
    want = nn.functional.linear(x.float(), linear.weight, linear.bias)
    assert (y.float() - want).norm() / want.norm() < 0.009
    if dtype == torch.float32:  # the weight's error is the only one
        exact = x.double() @ layer.dequantize().double().T + (layer.bias if with_bias else 0)
        assert (y - exact).norm() / exact.norm() < 1e-6


def test_reads_like_a_linear(linear, layer):
    assert (layer.in_features, layer.out_features) == (200, 96)
    assert repr(layer) == (
        "WeightOnlyLinear(in_features=200, out_features=96, bias=True, scheme=w8a16)"
    )
    assert list(layer.state_dict()) == ["weight_packed", "weight_scale", "bias"]
    assert fastinfer.quantize_linear(linear.train(), Int8WeightOnly()).training
    assert isinstance(fastinfer.quantize_linear(linear, Int8Dynamic()), QuantizedLinear)


def same_layer(layer, other, x):
    state = layer.state_dict()
    assert type(other) is type(layer)
    assert other.state_dict().keys() == state.keys()
    for name, t in other.state_dict().items():
        assert t.dtype == state[name].dtype
        assert torch.equal(t, state[name]), name
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_casts_keep_every_bit(layer, dtype, randn):
    same_layer(copy.deepcopy(layer), layer.to(dtype), randn(3, 200))


def by_torch_save(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_state(load):
    def trip(layer):
        other = WeightOnlyLinear(200, 96).eval()
        other.load_state_dict(load(layer.state_dict()))
        return other

    return trip


TRIPS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": by_torch_save,
    "state": by_state(dict),
    "safetensors": by_state(lambda state: load_safetensors(save_safetensors(state))),
    "state of the dynamic layer": by_state(
        lambda state: state_of_a_dynamic_layer_that_loaded(state)
    ),
}


def state_of_a_dynamic_layer_that_loaded(state):
    dynamic = QuantizedLinear(200, 96)
    dynamic.load_state_dict(state)
    return dynamic.state_dict()


@pytest.mark.parametrize("trip", TRIPS.values(), ids=TRIPS)
def test_every_bit_comes_back(layer, trip, randn):
    same_layer(layer, trip(layer), randn(3, 200))


def test_an_empty_layer_says_so():
    with pytest.raises(ValueError, match=r"^WeightOnlyLinear: the layer is empty"):
        WeightOnlyLinear(200, 96).eval()(torch.ones(3, 200))


@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_state_is_refused_before_anything_changes(linear, layer, strict):
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    sparse = ops.pack_w8(torch.ones(96, 200, dtype=torch.int8), "bitmask")
    for change, match in (
        ({"weight_packed": sparse}, "layout bitmask, want dense"),
        ({"weight_packed": layer.weight_packed[:-1]}, "its size"),
        ({"weight": linear.weight}, "weight of a float layer"),
    ):
        with pytest.raises(RuntimeError, match=match):
            layer.load_state_dict({**before, **change}, strict=strict)
        assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.ones(2, 100), ValueError, r"^WeightOnlyLinear: x has shape \[2, 100\], want"),
        (torch.ones(2, 200).double(), TypeError, "x has dtype torch.float64, want"),
        (torch.ones(2, 200, dtype=torch.int8), TypeError, "x has dtype torch.int8, want"),
        (torch.ones(2, 200, device="meta"), ValueError, "w_packed is on cpu, want meta"),
        ([1.0], TypeError, "x is a list, want a torch.Tensor"),
    ],
    ids=["K", "float64", "int8", "meta", "list"],
)
def test_a_wrong_input_is_one_clear_error(layer, x, error, match):
    with pytest.raises(error, match=match) as raised:
        layer(x)
    assert raised.value.__context__ is None


def test_no_gradient(layer, randn):
    x = randn(3, 200).requires_grad_()
    y = layer(x)
    assert torch.equal(y, layer(x.detach()))
    with pytest.raises(RuntimeError, match="for inference only and has no gradient"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match=r"^WeightOnlyLinear: x requires a gradient and the lay"):
        layer.train()(x)


def test_what_does_not_go_with_it_is_refused(linear, layer):
    with pytest.raises(TypeError, match="it quantises no input"):
        layer.set_input_range(-1, 1)
    with pytest.raises(ValueError, match="layout is 'sp24', want 'dense'"):
        WeightOnlyLinear.from_linear(linear, "sp24")
    for config in ("int8", Int8WeightOnly, 8):
        with pytest.raises(TypeError, match=r"^quantize_linear: config is a"):
            fastinfer.quantize_linear(linear, config)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiled_and_exported(layer, dtype, randn):
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in [(5,), (1, 1), (2, 3), (0,), (40,)]:
        x = randn(*lead, 200).to(dtype)
        assert torch.equal(compiled(x), layer(x)), lead
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(layer, (randn(4, 200).to(dtype),), dynamic_shapes=shapes)
    for m in (2, 40):
        x = randn(m, 200).to(dtype)
        assert torch.equal(program.module()(x), layer(x)), m


def test_inference_mode_autocast_and_meta(layer, randn):
    x = randn(5, 200)
    want = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), want)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.to("meta")(x.to("meta")).shape == (5, 96)


def test_a_model_quantised_and_its_summary(model, randn):
    x, float_model = randn(64, 200), copy.deepcopy(model)
    summary = fastinfer.quantize_(model, Int8WeightOnly())
    assert [type(model[i]) for i in (0, 2)] == [WeightOnlyLinear] * 2
    assert [row.scheme for row in summary.rows] == ["int8 weight-only"] * 2
    assert all(row.sqnr_db > 35 for row in summary.rows)
    assert summary.bytes_after < 0.4 * summary.bytes_before  # 96 x 200 pads to 96 x 256
    y, want = model(x), float_model(x)
    dynamic = copy.deepcopy(float_model)
    fastinfer.quantize_(dynamic)
    error = (y - want).norm() / want.norm()
    assert 0 < error < 0.85 * (dynamic(x) - want).norm() / want.norm()

    again = fastinfer.quantize_(model, Int8Dynamic())
    assert [row.reason for row in again.rows] == ["it is quantised already"] * 2
    assert torch.equal(model(x), y)


def test_example_inputs_time_it(model, randn):
    summary = fastinfer.quantize_(model, Int8WeightOnly(), example_inputs=randn(1, 200))
    for i, row in zip((0, 2), summary.rows, strict=True):
        assert row.ms_before > 0
        assert row.ms_after > 0
        slower = row.ms_after > row.ms_before
        assert row.reason == ("int8 is slower here" if slower else None)
        assert isinstance(model[i], nn.Linear if slower else WeightOnlyLinear)


def test_tied_layers_stay_tied(randn):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    model[1].weight = model[0].weight
    fastinfer.quantize_(model, Int8WeightOnly())
    assert type(model[1]) is WeightOnlyLinear
    assert model[0].weight_packed is model[1].weight_packed
    assert not torch.equal(model[0].bias, model[1].bias)


def test_ranges_are_neither_looked_for_nor_set(model, randn):
    calibration = fastinfer.calibrate(model, [randn(8, 200)], progress=False)
    fastinfer.quantize_(model, Int8WeightOnly(), filter_fn=lambda _, name: name == "0")
    found = fastinfer.calibrate(model, [randn(8, 200)], progress=False)
    assert list(found.by_name) == ["2"]
    summary = fastinfer.quantize_(model, Int8Static(calibration))
    assert [row.scheme for row in summary.rows] == [None, "int8 static"]
    assert type(model[0]) is WeightOnlyLinear
    with pytest.raises(TypeError, match="config: got Int8WeightOnly, want Int8Dynamic"):
        fastinfer.prepare_qat_(model, Int8WeightOnly())


def test_fusing_leaves_it_and_says_so(model, randn):
    x = randn(3, 200)
    fastinfer.quantize_(model, Int8WeightOnly())
    want = model(x)
    with torch.inference_mode():
        fusion = fastinfer.fuse_(model, x)
        y = model(x)
    assert fusion.left["linear_w8a16"] == 2
    assert "linear_w8a16 2" in str(fusion)
    assert torch.allclose(y, want, rtol=1e-5, atol=1e-5)


def test_it_is_a_scheme(model, randn):
    assert isinstance(Int8WeightOnly(), Scheme)
    schemes = [Int8Dynamic(), Int8WeightOnly()]
    found = fastinfer.sensitivity(model, [randn(4, 200)], schemes=schemes, progress=False)
    for row in found.layers:
        assert row.schemes["int8 weight-only"].error < row.schemes["int8 dynamic"].error
    assert "Int8WeightOnly()" in found.code("int8 weight-only", max_error=0.1)
