"""sensitivity: the error of each layer in each scheme, against layers swapped by hand."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastinfer
from fastinfer import (
    Int8Dynamic,
    Int8Sparse,
    Magnitude,
    Sensitivity,
    Sparse24,
    SparseGPT,
    Unstructured,
    Wanda,
    sensitivity,
)
from fastinfer.nn import QuantizedLinear

Randn = Callable[..., Tensor]
SPARSE = Int8Sparse(Sparse24(), Magnitude())


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(48, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16)
    )


def relative(got: list[Tensor], want: list[Tensor]) -> float:
    a, b = (torch.cat([y.double().flatten() for y in side]) for side in (got, want))
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def by_hand(model: nn.Sequential, place: int, scheme: Any, batches: list[Tensor]) -> list[float]:
    """The error of the model's output, and of the layer's own."""
    model = copy.deepcopy(model).eval()
    want, inputs = [model(x) for x in batches], [model[:place](x) for x in batches]
    linear, own_want = model[place], [model[place](x) for x in inputs]
    if isinstance(scheme, Int8Sparse):
        fastinfer.prune_(nn.Sequential(linear), scheme.structure, scheme.criterion, batches=inputs)
        fastinfer.finalize_pruning_(linear)
    twin = QuantizedLinear.from_linear(linear)
    own = relative([twin(x) for x in inputs], own_want)
    model[place] = twin
    return [relative([model(x) for x in batches], want), own]


@pytest.mark.parametrize("criterion", [Magnitude(), Wanda(), SparseGPT()])
def test_errors_by_hand(criterion: Any, randn: Randn) -> None:
    model, batches = mlp(), [randn(40, 48), randn(24, 48)]
    schemes = [Int8Dynamic(), Int8Sparse(Sparse24(), criterion)]
    result = sensitivity(model, batches, schemes)
    assert [layer.name for layer in result.layers] == ["0", "3", "5"]
    # by SparseGPT a layer is pruned on the inputs that pruned layers before it give
    known = result.layers[:1] if isinstance(criterion, SparseGPT) else result.layers
    for layer in known:
        for scheme in schemes:
            got = layer.schemes[scheme.label]
            want = by_hand(model, int(layer.name), scheme, batches)
            assert [got.error, got.own_error] == pytest.approx(want, rel=1e-3)
            assert got.ms_before > 0
            assert got.ms_after > 0


def test_the_model_comes_out_as_it_was(randn: Randn) -> None:
    model = mlp()
    model[3].eval()
    modules, flags = list(model), [m.training for m in model]
    weights = [p.clone() for p in model.parameters()]
    sensitivity(model, [randn(8, 48)])
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert [m.training for m in model] == flags
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert not any(m._forward_pre_hooks for m in model)


def planted(randn: Randn) -> tuple[nn.Sequential, Tensor]:
    """A model whose middle layer no int8 row serves: a channel that no weight reads is so large
    that the others fall below the step."""
    model = mlp().eval()
    with torch.no_grad():
        model[0].bias[0] += 1000
        model[3].weight[:, 0] = 0
    return model, randn(16, 48)


def test_finds_the_planted_layer_and_its_code_runs(randn: Randn) -> None:
    model, x = planted(randn)
    result = sensitivity(model, [x], [Int8Dynamic(), SPARSE])
    assert result.worst_layers[0].name == "3"
    assert result.left_out("int8 dynamic", 0.05) == ("3",)
    assert sorted(result.left_out("int8 dynamic", 0.0)) == ["0", "3", "5"]
    assert result.left_out("int8 dynamic", 1e3) == ()
    errors = {layer.name: layer for layer in result.layers}
    for label, names in ((SPARSE.label, {"0", "5"}), ("int8 dynamic", {"0", "5"})):
        changed = copy.deepcopy(model)
        limit = 1.01 * math.hypot(*(errors[n].schemes[label].error for n in names))
        scope = {"fastinfer": fastinfer, "model": changed, "batches": [x]}
        exec(result.code(label, limit), scope)
        swapped = {n for n, m in changed.named_modules() if isinstance(m, QuantizedLinear)}
        assert swapped == names
        layouts = {changed[int(n)].layout for n in names}
        assert ("bitmask" in layouts) == (label == SPARSE.label)  # where it is smaller


def test_code_names_criteria_and_functions(randn: Randn) -> None:
    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    scheme = Int8Sparse(Unstructured(0.5), fastinfer.Taylor(loss_fn))
    result = sensitivity(mlp(), [randn(8, 48)], [scheme])
    code = result.code(scheme.label)
    assert "fastinfer.Unstructured(density=0.5), fastinfer.Taylor(loss_fn=loss_fn)" in code
    assert "batches=batches" in code


def test_tied_and_left_layers(randn: Randn) -> None:
    model = nn.ModuleDict({n: nn.Linear(16, 16) for n in ("a", "b", "unused", "kept")})
    model["b"].weight = model["a"].weight
    model.forward = lambda x: model["kept"](model["b"](model["a"](x)))
    result = sensitivity(model, [randn(4, 16)], filter_fn=lambda _, name: name != "kept")
    assert [(layer.name, layer.shared_with) for layer in result.measured] == [("a", ("b",))]
    reasons = {layer.name: layer.reason for layer in result.layers if layer.reason}
    assert reasons == {"unused": "not reached by batches", "kept": "filter_fn left it out"}
    assert "Left: unused: not reached by batches" in str(result)


def test_table_data_and_picture(randn: Randn, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, x = planted(randn)
    result = sensitivity(model, [x], [Int8Dynamic(), SPARSE])
    text = str(result)
    assert text.index("\n 3 ") < min(text.index("\n 0 "), text.index("\n 5 "))
    assert "int8 2:4, magnitude" in text
    data = json.loads(json.dumps(result.to_dict()))
    assert data["layers"][1]["schemes"]["int8 dynamic"]["error"] > 0.1
    result.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert repr(result).startswith("<Sensitivity: 3 layers under 2 schemes, 3 the most sensitive")


def test_picture_without_matplotlib_names_the_extra(
    randn: Randn, tmp_path: Path, hide_matplotlib: Callable[[], None]
) -> None:
    result: Sensitivity = sensitivity(mlp(), [randn(4, 48)], [Int8Dynamic()])
    hide_matplotlib()
    with pytest.raises(ImportError, match=r"fastinfer\[plot\]"):
        result.plot(tmp_path / "sensitivity.png")


def test_wrong_labels_and_limits(randn: Randn) -> None:
    result = sensitivity(mlp(), [randn(4, 48)], [Int8Dynamic()])
    with pytest.raises(ValueError, match="scheme: got 'int4', want one of int8 dynamic"):
        result.code("int4")
    with pytest.raises(ValueError, match="max_error: got -1, want a finite number"):
        result.left_out("int8 dynamic", -1)
    with pytest.raises(TypeError, match="batches: got Tensor"):
        sensitivity(mlp(), randn(4, 48))


def test_names_the_layer_whose_input_is_not_finite(randn: Randn) -> None:
    x = randn(4, 48)
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="the input of layer 0 holds NaN or Inf"):
        sensitivity(mlp(), [x], [Int8Sparse(Sparse24(), Wanda())])
