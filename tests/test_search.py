"""search: the fastest choice of schemes within an error; its programme against brute force."""

import builtins
import copy
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastinfer
from fastinfer import (
    BlockSparse,
    Int8Dynamic,
    Int8Sparse,
    Magnitude,
    Sparse24,
    Unstructured,
    guard,
    search,
)
from fastinfer.knapsack import cheapest
from fastinfer.nn import QuantizedLinear
from fastinfer.search import choose, measure
from fastinfer.spans import Spans
from fastinfer.trial import Form, Trial, on_trial

Randn = Callable[..., Tensor]
SPARSE = Int8Sparse(Sparse24(), Magnitude())
SCHEMES = [Int8Dynamic(), SPARSE, Int8Sparse(BlockSparse(sparsity=0.5), Magnitude())]
GAINS = {"int8 dynamic": 1.0, SPARSE.label: 1.5, SCHEMES[2].label: 1.75}
LAYER_MS = 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer takes 2 s in float and GAINS less in a scheme; the model what its layers take, and
    10 s. So what is chosen can be told beforehand."""
    trials: list[Trial] = []
    scheme_of: dict[int, str] = {}  # by the twin
    twin = fastinfer.pairs.Pair.twin

    def remember(pair: Any, module: nn.Module) -> QuantizedLinear:
        made = twin(pair, module)
        number = [p for p in trials[-1].pairs if p.layers[0] is pair.layers[0]].index(pair)
        for layer in pair.twins().values():
            scheme_of[id(layer)] = SCHEMES[number].label
        return made

    def seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
        forward(x)
        return LAYER_MS - GAINS.get(scheme_of.get(id(forward.__self__), ""), 0)

    def gain(form: Form, modules: Sequence[nn.Module]) -> float:
        twins = {linear: t for pair in form.int8 for linear, t in pair.twins().items()}
        return sum(GAINS[scheme_of[id(twins[m])]] for m in modules if m in twins)

    def time(trial: Trial, forms: Sequence[Form]) -> list[float]:
        linears = list({layer.module for pair in trial.pairs for layer in pair.layers})
        return [10 + LAYER_MS * 4 - gain(form, linears) for form in forms]

    def time_layers(
        trial: Trial, forms: Sequence[Form], places: Sequence[Sequence[nn.Module]]
    ) -> list[Spans]:
        runs = []
        for form, seconds in zip(forms, time(trial, forms), strict=True):
            own = [LAYER_MS * len(modules) - gain(form, modules) for modules in places]
            rest = (seconds - sum(own)) / len(own)
            runs.append(Spans(seconds, own, [(taken + rest) / seconds for taken in own]))
        return runs

    def start(trial: Trial, *arguments: Any) -> None:
        trials.append(trial)
        init(trial, *arguments)

    init = Trial.__init__
    monkeypatch.setattr(Trial, "__init__", start)
    monkeypatch.setattr(fastinfer.pairs.Pair, "twin", remember)
    monkeypatch.setattr(guard, "_seconds", seconds)
    monkeypatch.setattr(guard, "_BURST_SECONDS", 0)
    # layers share no samples: twins of one size may be of two schemes
    monkeypatch.setattr(guard, "_kind", id)
    monkeypatch.setattr(Trial, "time", time)
    monkeypatch.setattr(Trial, "time_layers", time_layers)


def make() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 64),
    )


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


# --- the programme -------------------------------------------------------------------------------


def test_programme_against_brute_force(rng: np.random.Generator) -> None:
    for _ in range(40):
        sizes = rng.integers(0, 4, rng.integers(1, 7))
        costs = [[0.0, *(-rng.uniform(-0.2, 1, size))] for size in sizes]
        scale = 10.0 ** rng.integers(-12, 3)  # squares of errors may be tiny
        weights = [[0.0, *(scale * rng.uniform(0, 1, size))] for size in sizes]
        budget = scale * rng.uniform(0, len(sizes) / 2)

        def total(rows: list[list[float]], places: Sequence[int]) -> float:
            return sum(row[place] for row, place in zip(rows, places, strict=True))

        places = itertools.product(*(range(len(row)) for row in costs))
        best = min(total(costs, p) for p in places if total(weights, p) <= budget)
        got = cheapest(costs, weights, budget)
        assert total(costs, got) == pytest.approx(best, abs=1e-9)
        assert total(weights, got) <= budget * (1 + 1e-6)  # the solver's tolerance


def test_programme_at_the_ends() -> None:
    assert cheapest([], [], 1.0) == []
    assert cheapest([[0.0, -1.0]], [[0.0, 1.0]], 0.0) == [0]
    assert cheapest([[0.0, -1.0], [0.0, -2.0]], [[0.0, 0.0], [0.0, math.inf]], 0.0) == [1, 0]
    assert cheapest([[0.0, -1.0], [0.0, -2.0]], [[0.0, 1.0], [0.0, math.inf]], math.inf) == [1, 0]


# --- search --------------------------------------------------------------------------------------


def all_choices(model: nn.Sequential, x: Tensor) -> dict[tuple[str | None, ...], float]:
    """The real error of every choice of schemes."""
    places = [n for n, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    with torch.inference_mode():
        want = model(x)
        twins = [
            {None: model[place]}
            | {
                s.label: s.prepare(model, {str(place): model[place]}, [x])(model[place])
                for s in SCHEMES
            }
            for place in places
        ]
        errors = {}
        for choice in itertools.product(*twins):
            mixed = copy.copy(model)
            mixed._modules = dict(model._modules)
            for place, forms, label in zip(places, twins, choice, strict=True):
                mixed._modules[str(place)] = forms[label]
            errors[choice] = relative(mixed(x), want)
    return errors


@pytest.mark.parametrize("max_error", [0.0, 0.02, 0.3, 0.5, 10.0])
def test_never_over_the_budget_nor_slower_than_a_uniform_scheme(
    max_error: float, clock: None, randn: Randn
) -> None:
    model, x = make(), randn(8, 64)
    with torch.inference_mode():
        want = model(x)
    errors = all_choices(model, x)
    result = search(model, [x], max_error=max_error, schemes=SCHEMES)
    choice = tuple(result.schemes.get(name) for name in ("0", "2", "4", "6"))
    with torch.inference_mode():
        error = relative(model(x), want)
    assert error <= max_error
    assert result.kept.error == pytest.approx(errors[choice], rel=1e-4)
    gain = sum(GAINS[label] for label in choice if label)
    assert result.kept.ms == pytest.approx(1e3 * (18 - gain))
    assert result.kept.predicted_ms == pytest.approx(result.kept.ms)
    for label, scheme_gain in GAINS.items():
        if errors[(label,) * 4] <= max_error:
            assert gain >= 4 * scheme_gain
    if max_error == 0:
        assert result.kept.name == "as given"
    if max_error == 10:
        assert set(choice) == {SCHEMES[2].label}
    json.dumps(result.to_dict())
    assert str(result.kept.error)[:3] in str(result)


def test_chooses_many_times_from_what_was_measured_once(clock: None, randn: Randn) -> None:
    model, x = make(), randn(8, 64)
    budgets = [0.3, 0.0, 10.0, 0.02]
    with on_trial(model, [x], False) as (trial, spill, say):
        measured = measure(trial, spill, [x], SCHEMES, None, say)
        found = []
        for budget in budgets:
            result = choose(measured, budget, say)
            found.append((result, copy.deepcopy(model)))
        trial.undo()
    for budget, (result, left) in zip(budgets, found, strict=True):
        alone = copy.deepcopy(model)
        want = search(alone, [x], max_error=budget, schemes=SCHEMES)
        assert result.to_dict() == want.to_dict()
        with torch.inference_mode():
            assert torch.equal(left(x), alone(x))


def test_predicts_on_a_machine_that_has_become_slower(
    clock: None, randn: Randn, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), randn(8, 64)
    time = Trial.time
    with on_trial(model, [x], False) as (trial, spill, say):
        measured = measure(trial, spill, [x], SCHEMES, None, say)
        monkeypatch.setattr(Trial, "time", lambda *given: [3 * taken for taken in time(*given)])
        result = choose(measured, 0.9 * measured.uniform[1].error, say)
        trial.undo()
    assert result.kept.name == "mixed"
    for candidate in result.candidates:
        assert candidate.predicted_ms == pytest.approx(candidate.ms)


def test_mixes_schemes_where_no_uniform_one_fits_as_well(clock: None, randn: Randn) -> None:
    model, x = make(), randn(8, 64)
    errors = all_choices(model, x)
    # a budget that some mixed choice meets, and of the uniform ones int8 alone
    max_error = 0.9 * errors[(SPARSE.label,) * 4]
    fits = [c for c, error in errors.items() if error <= max_error]
    optimum = max(sum(GAINS[label] for label in choice if label) for choice in fits)
    assert optimum > 4 * GAINS["int8 dynamic"]
    result = search(model, [x], max_error=max_error, schemes=SCHEMES)
    assert result.kept.name == "mixed"
    assert set(result.schemes.values()) > {SPARSE.label}
    gain = sum(GAINS[label] for label in result.schemes.values())
    assert 4 * GAINS["int8 dynamic"] < gain <= optimum
    assert next(c for c in result.candidates if c.name == "all int8 dynamic").note == (
        "mixed is faster"
    )


def test_a_sensitive_layer_stays_float(clock: None, randn: Randn) -> None:
    model, x = make(), randn(8, 64)
    with torch.no_grad():
        # a channel that no weight reads and whose values are so large that the others fall below
        # the step of an int8 row
        model[0].bias[0] += 1000
        model[2].weight[:, 0] = 0
    result = search(model, [x], max_error=0.05, schemes=[Int8Dynamic()])
    assert type(model[2]) is nn.Linear
    assert set(result.schemes) >= {"4", "6"}
    (row,) = (row for row in result.summary.rows if row.name == "2")
    assert row.reason == "float, to keep within max_error"


def test_tied_layers_choose_together(clock: None, randn: Randn) -> None:
    model, x = make(), randn(8, 64)
    model[4].weight = model[2].weight
    result = search(model, [x], max_error=10.0, schemes=[Int8Dynamic(), SPARSE])
    assert model[4].weight_packed is model[2].weight_packed
    assert not torch.equal(model[4].bias, model[2].bias)
    assert result.schemes["2"] == result.schemes["4"] == SPARSE.label
    zeros = (model[2].dequantize() == 0).view(64, 16, 4).sum(-1)
    assert bool((zeros >= 2).all())


def test_measures_for_real(randn: Randn) -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))).eval()
    original, x = copy.deepcopy(model), randn(64, 512)
    result = search(model, [x, x[:32]], max_error=0.1)
    with torch.inference_mode():
        got, want = (torch.cat([m(x), m(x[:32])]) for m in (model, original))
    assert relative(got, want) <= 0.1
    assert result.kept.error == pytest.approx(relative(got, want), rel=1e-4)
    fit = [c for c in result.candidates if c.error <= 0.1]
    assert result.kept.ms <= min(c.ms for c in fit) or result.kept.name == "as given"
    assert [row.scheme for row in result.summary.rows] == [
        result.schemes.get(str(place)) for place in range(4)
    ]


def test_an_exception_leaves_the_model_as_it_was(
    clock: None, randn: Randn, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), randn(8, 64)
    modules, weights = list(model), [p.clone() for p in model.parameters()]
    error = Trial.error
    for last in range(0, 16, 3):  # 12 layers alone, 3 uniform models, then mixed ones
        calls = itertools.count()

        def fail(trial: Trial, calls: Any = calls, last: int = last) -> float:
            if next(calls) == last:
                raise KeyboardInterrupt
            return error(trial)

        monkeypatch.setattr(Trial, "error", fail)
        with pytest.raises(KeyboardInterrupt):
            search(model, [x], max_error=0.3, schemes=SCHEMES)
        assert all(a is b for a, b in zip(model, modules, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_layers_that_cannot_change_say_why(clock: None, randn: Randn) -> None:
    model = nn.ModuleDict({"used": make(), "unused": nn.Linear(64, 64), "kept": nn.Linear(64, 64)})
    model.forward = lambda x: model["kept"](model["used"](x))
    result = search(
        model, [randn(8, 64)], schemes=[Int8Dynamic()], filter_fn=lambda _, name: name != "kept"
    )
    reasons = {row.name: row.reason for row in result.summary.left}
    assert reasons == {"unused": "not reached by batches", "kept": "filter_fn left it out"}


def test_without_scipy_names_the_extra(randn: Randn, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_scipy(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ImportError, match=r"fastinfer\[search\]"):
        search(make(), [randn(8, 64)])


_X = torch.ones(1, 4)
_MODEL = nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, [_X]), {}, TypeError, "model: got int, want an nn.Module"),
        ((nn.Linear(4, 4), [_X]), {}, ValueError, "model: got an nn.Linear"),
        ((nn.ReLU(), [_X]), {}, ValueError, "model: no linear layer in it can change"),
        ((_MODEL, _X), {}, TypeError, "batches: got Tensor, want an iterable of batches"),
        ((_MODEL, [_X, 3]), {}, TypeError, "batches: number 2: got int, want a tensor"),
        ((_MODEL, []), {}, ValueError, "batches: it is empty"),
        ((_MODEL, [_X]), {"max_error": "1"}, TypeError, "max_error: got str, want a number"),
        ((_MODEL, [_X]), {"max_error": -1}, ValueError, "max_error: got -1, want a finite"),
        ((_MODEL, [_X]), {"filter_fn": 1}, TypeError, "filter_fn: got int, want a function"),
        ((_MODEL, [_X]), {"schemes": []}, ValueError, "schemes: it is empty"),
        ((_MODEL, [_X]), {"schemes": Int8Dynamic()}, TypeError, "schemes: got Int8Dynamic, want a"),
        ((_MODEL, [_X]), {"schemes": [Int8Dynamic]}, TypeError, "schemes: got Int8Dynamic in it"),
        ((_MODEL, [_X]), {"schemes": [SPARSE, SPARSE]}, ValueError, "two are 'int8 2:4"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        search(*arguments, **options)


def test_wrong_schemes() -> None:
    with pytest.raises(TypeError, match="structure: got the class Sparse24"):
        Int8Sparse(Sparse24)
    with pytest.raises(ValueError, match="SparseGPT cannot make BlockSparse"):
        Int8Sparse(BlockSparse(), fastinfer.SparseGPT())
    assert (
        Int8Sparse(Unstructured(0.3), Magnitude()).label
        == "int8 unstructured, 70 % zero, magnitude"
    )
