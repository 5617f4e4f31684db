"""torch.compile, torch.export, autocast, inference_mode: the same bits as eager."""

import pytest
import torch
from torch import nn

import fastinfer
from fastinfer import ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LEADS = [(5,), (1, 1), (2, 3), (0,), (1,), (40,), (2, 1, 3)]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


@pytest.fixture
def model(randn):
    up, down = nn.Linear(200, 96), nn.Linear(96, 17, bias=False)
    for linear in (up, down):
        linear.requires_grad_(False).weight.copy_(randn(*linear.weight.shape))
    return nn.Sequential(
        fastinfer.quantize_linear(up), nn.GELU(), fastinfer.quantize_linear(down)
    ).eval()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_compiled_graph_matches_eager_for_every_shape(model, dtype, randn):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in LEADS:
        x = randn(*lead, 200).to(dtype)
        y = compiled(x)
        assert y.dtype == dtype
        assert torch.equal(y, model(x)), lead


def test_inductor_matches_eager(randn):
    """Layer by layer: between them Inductor's own GELU may round otherwise."""
    layer = fastinfer.quantize_linear(nn.Linear(200, 96).requires_grad_(False)).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for lead in LEADS:
        x = randn(*lead, 200)
        assert torch.equal(compiled(x), layer(x)), lead


def test_compiled_without_dynamic_shapes(model, randn):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for lead in [(1, 1), (4,), (7,)]:
        x = randn(*lead, 200)
        assert torch.equal(compiled(x), model(x)), lead


def test_compiled_under_inference_mode_and_no_grad(model, randn):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    x = randn(5, 200)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(compiled(x), model(x))


def test_compiled_strided_input(model, randn):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in (randn(200, 6).T, randn(6, 400)[:, ::2], randn(1, 200).expand(6, 200)):
        assert torch.equal(compiled(x), model(x))


def test_the_wrappers_compile(randn, rng):
    w = torch.from_numpy(rng.integers(-128, 128, (96, 200)).astype("int8"))

    def everything(x, w, residual):
        packed = ops.pack_w8(w)
        _, scale = ops.quantize_rowwise(ops.unpack_w8(packed, *w.shape).float())
        return ops.linear_w8a8(
            *(x, packed, scale), activation="silu", residual=residual, out_dtype=torch.float32
        )

    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (5, 9, 1):
        x, residual = randn(m, 200).half(), randn(m, 96)
        assert torch.equal(compiled(x, w, residual), everything(x, w, residual))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(model, strict, randn):
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (randn(4, 200),), dynamic_shapes=({0: batch},), strict=strict
    )
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("fastinfer.linear_w8a8.default") == 2
    for m in (2, 3, 40):
        x = randn(m, 200)
        assert torch.equal(program.module()(x), model(x)), m


def test_exported_program_round_trips(model, randn, tmp_path):
    x = randn(4, 200)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(x), model(x))


def test_static_layers_compiled_and_exported(model, randn):
    for layer in (model[0], model[2]):
        layer.set_input_range(-3, 3)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead in LEADS:
        x = randn(*lead, 200)
        assert torch.equal(compiled(x), model(x)), lead
    x = randn(4, 200)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_export_refuses_a_wrong_shape(model, randn):
    with pytest.raises(ValueError, match=r"w_packed has \d+ bytes, want the"):
        torch.export.export(model, (randn(4, 100),), strict=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_layer_alone(model, dtype, randn):
    """The layer takes what comes: the output keeps the dtype of the input."""
    layer, x = model[0], randn(5, 200)
    want = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer(x), want)
        assert layer(x.to(dtype)).dtype == dtype
        mixed = nn.Sequential(nn.Linear(8, 200), layer)(randn(5, 8))
    assert mixed.dtype == dtype
    assert mixed.isfinite().all()


def test_inference_mode(model, randn):
    x = randn(5, 200)
    want = model(x)
    with torch.inference_mode():
        y = model(x)
        made_inside = fastinfer.quantize_linear(nn.Linear(200, 96))
    assert torch.equal(y, want)
    assert y.is_inference()
    assert torch.equal(made_inside.eval()(x), made_inside.eval()(x.clone()))


def test_the_training_error_is_raised_when_traced_too(model, randn):
    layer = model[0].train()
    compiled = torch.compile(layer, backend="aot_eager")
    with pytest.raises(RuntimeError, match="requires a gradient and the layer is in training mode"):
        compiled(randn(5, 200).requires_grad_())


def test_vmap(model, randn):
    """torch.func.vmap falls back to a loop over the batch."""
    x = randn(3, 5, 200)
    assert torch.equal(torch.func.vmap(model[0])(x), model[0](x))
