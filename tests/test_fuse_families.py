"""fuse_ on every model family: the right blocks found, and the answers of the original."""

import copy

import pytest
import torch

import fastinfer
from families import FAMILIES, answer, inputs, make
from fastinfer import entry, fuse_
from fastinfer.graph import attention, linears, narrow, norms, rope
from fastinfer.nn import QuantizedLinear

pytestmark = pytest.mark.usefixtures("fresh_inference")

ATTENTION_AND_NORMS = ("scaled_dot_product_attention", "layer_norm", "rms_norm", "rsqrt")
SIZES = [(2, 9), (3, 16), (1, 7)]  # batch, length: two graphs, of more than one sequence and of one


def error(got, exact):
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def check_float(name, model):
    """The fused float32 model is as near to float64 as the original, within a factor of four (its
    sums run in another order) and one rounding of the output."""
    exact = copy.deepcopy(make(name)).double()
    original = make(name)
    for size in SIZES:
        given = inputs(name, *size)
        wide = {k: v.double() if _is_float(v) else v for k, v in given.items()}
        reference = answer(exact, wide)
        bound = 4 * error(answer(original, given), reference) + 2.0**-24
        assert error(answer(model, given), reference) <= bound, (name, size)


def check_int8(name, model, unfused):
    """The fused int8 model differs from the unfused one by less than int8 does from float: a
    rounding that falls to the other side moves an activation by one step of int8, no more."""
    original = make(name)
    for size in SIZES[:2]:
        given = inputs(name, *size)
        reference = answer(original, given)
        int8_error = error(answer(unfused, given), reference)
        got = answer(model, given)
        assert error(got, answer(unfused, given)) <= 0.5 * int8_error, (name, size)
        assert error(got, reference) <= 1.2 * int8_error, (name, size)


def _is_float(v):
    return isinstance(v, torch.Tensor) and v.is_floating_point()


@pytest.mark.parametrize("name", FAMILIES)
def test_float(name, monkeypatch):
    model = make(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fusion = fuse_(model)
    check_float(name, model)
    assert not fusion.reasons
    assert len(fusion.graphs) == 2, "batch and length are symbols, one sequence a graph of its own"
    assert fusion.fused.get("attention", 0) == FAMILIES[name].attention
    assert sum(fusion.fused.values()) > 0 or name == "image mlp"
    for left in (*ATTENTION_AND_NORMS, "gelu", "silu", "sigmoid"):
        assert left not in fusion.left
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    for size in SIZES[1:]:
        given = inputs(name, *size)
        want = answer(model, given)
        with monkeypatch.context() as patch:
            patch.setattr(entry.CompiledCode, "find", None)  # guards are not asked again
            assert torch.equal(answer(model, given), want)


def _attention_in(dtype, monkeypatch):
    """Whatever is faster here."""
    monkeypatch.setattr(narrow, "_is_faster", lambda device, mask: dtype == torch.bfloat16)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "multi-head attention"])
def test_int8(name, monkeypatch):
    _attention_in(torch.float32, monkeypatch)
    unfused = make(name)
    fastinfer.quantize_(unfused)
    model = make(name)
    summary = fastinfer.quantize_(model, fuse=True)
    check_int8(name, model, unfused)
    layers = sum(isinstance(m, QuantizedLinear) for m in model.modules())
    assert layers == len(summary.rows) > 0
    assert summary.fusion.fused.get("attention", 0) == FAMILIES[name].attention
    assert "gelu" not in summary.fusion.left
    kinds = summary.fusion.fused
    assert kinds.get("linear + activation", 0) + kinds.get("gated linear", 0) == 1


@pytest.mark.parametrize("name", ["bert", "clip text", "gemma", "llama", "mistral", "qwen2", "vit"])
def test_attention_in_bfloat16(name, monkeypatch):
    """It costs no accuracy to speak of. A rounding to bfloat16 sends activations to the other side
    of a step of int8, where they are no further off than before: the answers differ by less than
    int8 does from float, and are as near to those of float."""
    _attention_in(torch.bfloat16, monkeypatch)
    original, unfused, model = make(name), make(name), make(name)
    fastinfer.quantize_(unfused)
    fusion = fastinfer.quantize_(model, fuse=True).fusion
    for size in SIZES:
        given = inputs(name, *size)
        reference, int8 = answer(original, given), answer(unfused, given)
        got = answer(model, given)
        assert got.dtype == reference.dtype
        assert 0 < error(got, int8) <= error(int8, reference)
        assert error(got, reference) <= 1.2 * error(int8, reference)
    assert fusion.fused["attention in bfloat16"] == FAMILIES[name].attention


# --- a fusion that is wrong must be seen ---------------------------------------------------------


def _drop(argument):
    """Makes a fusion forget an argument of the operator that it puts in."""

    def plant(monkeypatch, module):
        call = module.call

        def wrong(graph, before, like, op, *args, **kwargs):
            kwargs.pop(argument, None)
            names = [a.name for a in op._schema.arguments]
            if argument in names and names.index(argument) < len(args):
                args = [*args]
                args[names.index(argument)] = None
            return call(graph, before, like, op, *args, **kwargs)

        monkeypatch.setattr(module, "call", wrong)

    return plant


def _swapped_weights(monkeypatch, module):
    weights = module._weights
    monkeypatch.setattr(module, "_weights", lambda node: (*weights(node)[:2], None))


def _other_columns(monkeypatch, module):
    """Keys for values: their columns are as many."""
    output = module.output

    def wrong(graph, node, index, like=None):
        if node.target is torch.ops.aten.split_with_sizes.default:
            index = {1: 2, 2: 1}.get(index, index)
        return output(graph, node, index, like)

    monkeypatch.setattr(module, "output", wrong)


def _cos_for_sin(monkeypatch, module):
    match = module._match

    def wrong(node):
        found = match(node)
        return found and (found[0], found[1], found[1])

    monkeypatch.setattr(module, "_match", wrong)


@pytest.mark.parametrize(
    ("name", "int8", "module", "plant"),
    [
        ("bert", False, attention, _drop("mask")),
        ("gpt2", False, attention, _drop("mask")),
        ("bert", False, norms, _drop("weight")),
        ("bert", False, norms, _drop("bias")),
        ("llama", False, norms, _drop("weight")),
        ("llama", False, rope, _cos_for_sin),
        ("bert", True, linears, _swapped_weights),
        ("qwen2", True, linears, _other_columns),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_a_planted_wrong_fusion_is_seen(name, int8, module, plant, monkeypatch):
    _attention_in(torch.float32, monkeypatch)
    plant(monkeypatch, module)
    model, unfused = make(name), make(name)
    if int8:
        fastinfer.quantize_(unfused)
        fastinfer.quantize_(model, fuse=True)
    else:
        fuse_(model)
    with pytest.raises(AssertionError, match=name):
        check_int8(name, model, unfused) if int8 else check_float(name, model)


def test_many_models():
    """torch.compile keeps eight graphs for one piece of code: each model has a limit of its own."""
    x = torch.randn(2, 64)
    fusions = []
    for _ in range(10):
        model = make("mlp")
        fusions.append(fuse_(model))
        model(x)
    assert [len(f.graphs) for f in fusions] == [1] * 10
