"""What int8 layers elsewhere get wrong on the same inputs, at the level of a user's call."""

import copy
import io
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import fastinfer

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def linear(randn):
    """[96, 200]: neither size is a multiple of a tile."""
    layer = nn.Linear(200, 96).eval().requires_grad_(False)
    layer.weight.copy_(randn(96, 200))
    return layer


@pytest.fixture
def layer(linear):
    return fastinfer.quantize_linear(linear)


def relative_error(y, want):
    return ((y.double() - want.double()).norm() / want.double().norm()).item()


# Gaussian operands: 0.0123 from int8 (see test_ops.test_relative_error), more spread over few
# numbers; bfloat16 adds 2^-9 on the way in and out.
CLOSE = 0.025


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_token_in_three_dimensions_under_compile(isa, linear, layer, dtype, randn):
    """x [1, 1, K] comes out as garbage."""
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    x = randn(1, 1, 200).to(dtype)
    y = compiled(x)
    assert y.shape == (1, 1, 96)
    assert torch.equal(y, layer(x))
    assert relative_error(y, linear(x.float())) < CLOSE


def test_sizes_that_are_no_multiple_of_a_tile():
    """K = 200, N = 96 ends in a segmentation fault, so this runs in a process of its own."""
    code = (
        "import torch, fastinfer\n"
        "linear = torch.nn.Linear(200, 96).requires_grad_(False)\n"
        "layer = fastinfer.quantize_linear(linear).eval()\n"
        "for isa in [row['name'] for row in fastinfer._C.isas() if row['supported']]:\n"
        "    fastinfer._C.force_isa(isa)\n"
        "    for m in (1, 2, 7, 33):\n"
        "        x = torch.randn(m, 200)\n"
        "        assert (layer(x) - linear(x)).norm() < 0.025 * linear(x).norm()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 3)], ids=str)
def test_no_rows(isa, layer, lead, dtype):
    """M = 0 is a SIGFPE or a TypeError."""
    y = layer(torch.empty(*lead, 200, dtype=dtype))
    assert (y.shape, y.dtype) == ((*lead, 96), dtype)


NON_CONTIGUOUS = {
    "transposed": lambda randn: randn(200, 6).T,
    "every other row": lambda randn: randn(12, 200)[::2],
    "every other column": lambda randn: randn(6, 400)[:, ::2],
    "permuted": lambda randn: randn(3, 200, 2).permute(2, 0, 1),
    "expanded": lambda randn: randn(1, 200).expand(6, 200),
}


@pytest.mark.parametrize("make", NON_CONTIGUOUS.values(), ids=NON_CONTIGUOUS)
def test_non_contiguous_input(isa, linear, layer, make, randn):
    """Strides are ignored, and the answer is silently wrong."""
    x = make(randn)
    assert not x.is_contiguous()
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert relative_error(layer(x), linear(x)) < CLOSE


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite(isa, layer, poison, dtype, randn):
    """A NaN row comes out finite, or an Inf row poisons the others."""
    x = randn(5, 200).to(dtype)
    clean = layer(x)
    x[2, 17] = poison
    y = layer(x)
    assert y.isnan().all(dim=1).tolist() == [False, False, True, False, False]
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], clean[others])


def through_safetensors(layer, path):
    safetensors.torch.save_model(layer, path)
    other = fastinfer.nn.QuantizedLinear(200, 96)
    safetensors.torch.load_model(other, path)
    return other.eval()


def through_torch_save(layer, path):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return through_state_dict(torch.load(file, weights_only=True))


def through_state_dict(state):
    other = fastinfer.nn.QuantizedLinear(200, 96)
    other.load_state_dict(state)
    return other.eval()


def through_export(layer, path):
    return torch.export.export(layer, (torch.ones(3, 200),)).module()


def through_compile(layer, path):
    torch.compiler.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


SIX = {
    "deepcopy": lambda layer, path: copy.deepcopy(layer),
    "safetensors": through_safetensors,
    "torch.save": through_torch_save,
    "torch.export": through_export,
    "fullgraph torch.compile": through_compile,
    "state_dict": lambda layer, path: through_state_dict(layer.state_dict()),
}


@pytest.mark.parametrize("way", SIX.values(), ids=SIX)
def test_all_six_ways_on(layer, way, randn, tmp_path):
    """deepcopy, safetensors, torch.save, torch.export, torch.compile, state_dict: none has all."""
    x = randn(3, 200)
    assert torch.equal(way(layer, tmp_path / "layer")(x), layer(x))


def test_a_float_checkpoint_is_not_accepted(linear, layer, randn):
    """It is accepted silently, and the layer computes something else."""
    x = randn(3, 200)
    want = layer(x)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="weight is the weight of a float layer"):
            layer.load_state_dict(linear.state_dict(), strict=strict)
    assert torch.equal(layer(x), want)
