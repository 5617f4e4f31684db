"""optimize: the best form of a model within an error, and the model as it was on the way there."""

import copy
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import fastinfer
from fastinfer import guard, optimize
from fastinfer.nn import QuantizedLinear
from fastinfer.trial import Form, Trial

Randn = Callable[..., Tensor]
Times = Callable[..., None]
FORMS = {"as given": (False, False), "fused": (False, True), "int8": (True, False)}
FORMS["int8, fused"] = (True, True)
optimize_module = sys.modules["fastinfer.optimize"]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    """`times(fastest)`: the form of that name takes 1 s, the others 2 s; int8 layers gain."""

    def set_times(fastest: str) -> None:
        def time(trial: Trial, forms: Sequence[Form]) -> list[float]:
            for form in (*forms, *forms):  # the turns are taken all the same
                trial.become(form)
            form_of = {(bool(form.int8), form.fusion is not None): form for form in forms}
            return [1.0 if form is form_of.get(FORMS[fastest]) else 2.0 for form in forms]

        monkeypatch.setattr(Trial, "time", time)
        monkeypatch.setattr(guard, "_BURST_SECONDS", 0)
        monkeypatch.setattr(guard, "_seconds", _seconds)

    return set_times


def _seconds(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    forward(x)
    return 1.0 if isinstance(forward.__self__, QuantizedLinear) else 2.0


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fusing, which takes a second, is not tried."""

    def skip(trial: Trial, name: str, max_error: float) -> object:
        return optimize_module._Tried(trial.form, name, note="not tried", out=True)

    monkeypatch.setattr(optimize_module, "_fused", skip)


def make(randn: Randn) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(
        nn.Linear(64, 96), nn.GELU(), nn.Dropout(), nn.Linear(96, 64), nn.LayerNorm(64)
    )
    model[0].bias.requires_grad_(False)
    model[3].eval()  # flags that differ
    return model, randn(5, 64)


class Picture:
    """Everything about a model that must be as before."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.training = {name: m.training for name, m in self.modules.items()}
        self.gradients = {name: p.requires_grad for name, p in self.parameters.items()}
        self.attributes = vars(model).keys() - {"training"}

    def check(self, model: nn.Module) -> None:
        now = Picture(model)
        assert all(now.modules[name] is module for name, module in self.modules.items())
        assert now.parameters.keys() == self.parameters.keys()
        assert all(now.parameters[name] is p for name, p in self.parameters.items())
        assert all(torch.equal(now.values[name], value) for name, value in self.values.items())
        assert (now.training, now.gradients) == (self.training, self.gradients)
        assert now.attributes == self.attributes


def relative(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    pairs = [(g.double().flatten(), w.double().flatten()) for g, w in zip(got, want, strict=True)]
    got64, want64 = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float((got64 - want64).norm() / want64.norm())


@pytest.mark.parametrize("fastest", FORMS)
def test_becomes_the_fastest_form(fastest: str, times: Times, randn: Randn) -> None:
    times(fastest)
    model, x = make(randn)
    picture, original = Picture(model), copy.deepcopy(model).eval()
    state = torch.get_rng_state()
    result = optimize(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.model is model
    assert [c.name for c in result.candidates] == list(FORMS)
    assert [c.kept for c in result.candidates] == [name == fastest for name in FORMS]
    assert result.kept.speedup == (1 if fastest == "as given" else 2)
    int8, fused = FORMS[fastest]
    assert (model._compiled_call_impl is not None) == fused
    assert len(result.summary.quantized) == 2 * int8
    assert (result.summary.fusion is not None) == fused
    if int8:
        linears = original[0], original[3]
        assert result.summary.bytes_before - result.summary.bytes_after > sum(
            linear.weight.nbytes // 2 for linear in linears
        )
        assert [row.bytes_before for row in result.summary.rows] == [
            linear.weight.nbytes + linear.bias.nbytes for linear in linears
        ]
        assert all(row.sqnr_db > 40 for row in result.summary.rows)
    else:
        if fused:
            picture.attributes |= {"_compiled_call_impl"}
        picture.check(model)
    assert [module.training for module in model] == [True, True, True, False, True]
    with torch.inference_mode():
        got, want = model.eval()(x), original(x)
    error = relative([got], [want])
    assert result.kept.error == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert (error > 1e-4) == int8
    if fastest == "as given":
        assert torch.equal(got, want)


def test_measures_for_real(randn: Randn) -> None:
    model, x = make(randn)
    result = optimize(model, {"input": x}, speedup=1e6, progress=False)
    assert all(c.ms > 0 and c.error <= 0.05 for c in result.candidates)
    assert result.candidates[0].error == 0
    given = result.candidates[0].ms
    assert all(c.speedup == pytest.approx(given / c.ms) for c in result.candidates)
    kept = result.kept
    assert kept.ms == min(c.ms for c in result.candidates) or kept.name == "as given"
    assert result.missed == (f"speedup: {kept.speedup:.2f}x reached, 1e+06x wanted",)
    data = json.loads(json.dumps(result.to_dict()))
    assert data["kept"] == kept.name
    assert [c["ms"] for c in data["candidates"]] == [c.ms for c in result.candidates]
    text = str(result)
    assert all(name in text for name in FORMS)
    assert "Missed: speedup" in text
    assert repr(result).startswith(f"<Optimized: {kept.name}, ")


def test_two_percent_is_not_worth_a_change(
    monkeypatch: pytest.MonkeyPatch, times: Times, unfused: None, randn: Randn
) -> None:
    times("int8")
    for gain, name in ((1.015, "as given"), (1.025, "int8")):
        model, x = make(randn)
        monkeypatch.setattr(Trial, "time", lambda trial, forms, gain=gain: [gain, 1.0])
        assert optimize(model, x).kept.name == name
        assert isinstance(model[0], QuantizedLinear) == (name == "int8")


# --- max_error -----------------------------------------------------------------------------------


class Outlier(nn.Module):
    """A chain; layer 3 reads, and ignores, one channel that is far larger than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.layers[3].weight.data[:, 7] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        scale = torch.ones(64)
        scale[7] = 3000
        for i, layer in enumerate(self.layers):
            x = layer(x * scale if i == 3 else x)
            x = x / x.std()
        return x, {"half": x / 2, "number": torch.ones(2, dtype=torch.int64)}


def test_worst_layers_go_back_to_float(times: Times, unfused: None, randn: Randn) -> None:
    times("int8")
    model = Outlier().eval()
    batches = [(randn(4, 64),), (randn(9, 64),)]
    with torch.inference_mode():
        want = [model(*batch) for batch in batches]
    original = Picture(model)
    result = optimize(model, batches, max_error=0.05)
    by_name = {row.name: row for row in result.summary.rows}
    assert by_name["layers.3"].reason == "back to float to keep within max_error"
    assert result.kept.name == "int8"
    assert len(result.summary.quantized) >= 3
    assert model.layers[3] is original.modules["layers.3"]
    assert torch.equal(model.layers[3].weight, original.values["layers.3.weight"])
    with torch.inference_mode():
        got = [model(*batch) for batch in batches]

    def floats(outputs: list[tuple[Tensor, dict[str, Tensor]]]) -> list[Tensor]:
        return [y for x, others in outputs for y in (x, others["half"])]

    error = relative(floats(got), floats(want))
    assert result.kept.error == pytest.approx(error, rel=1e-6)
    assert error <= 0.05
    back = sum(row.reason is not None for row in by_name.values())
    assert result.kept.note.startswith(f"{back} layers back to float, with all in int8 the error")


def test_nothing_is_int8_if_nothing_is_exact_enough(
    times: Times, unfused: None, randn: Randn
) -> None:
    times("int8")
    model, x = make(randn)
    picture = Picture(model)
    result = optimize(model, x, max_error=0)
    picture.check(model)
    assert result.kept.name == "as given"
    assert result.candidates[2].note == "no layer of it is within an error of 0"
    assert {row.reason for row in result.summary.rows} == {"back to float to keep within max_error"}


# --- the model as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 9])
def test_an_exception_leaves_the_model_as_it_was(
    error: type[BaseException],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
    unfused: None,
    randn: Randn,
) -> None:
    """The model raises in its call of that number: 1 as given, 2 in the guard, 3 in int8, 4 and 9
    when timed. A ValueError in int8 alone is a reason not to keep it."""
    monkeypatch.setattr(guard, "_seconds", _seconds)
    model, x = make(randn)
    count = 0

    def fail(*_: object) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise error("no more")

    model[4].register_forward_hook(fail)
    picture = Picture(model)
    if error is ValueError and calls == 3:
        result = optimize(model, x)
        assert result.candidates[2].note == "it fails: no more"
    else:
        with pytest.raises(error, match="no more"):
            optimize(model, x)
    picture.check(model)
    assert len(model[4]._forward_hooks) == 1
    assert not any(module._forward_pre_hooks for module in model)


@pytest.mark.parametrize("fastest", ["as given", "int8"])
def test_ties_and_views_survive(fastest: str, times: Times, unfused: None, randn: Randn) -> None:
    times(fastest)
    flat = randn(2 * 64 * 64)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    model[1].weight = model[0].weight
    model[3].weight, model[4].weight = (nn.Parameter(w.view(64, 64)) for w in flat.chunk(2))
    addresses = model[3].weight.data_ptr(), model[4].weight.data_ptr()
    held, picture, x = model[2], Picture(model), randn(3, 64)
    values = {name: value for name, value in picture.values.items() if name.startswith("2.")}
    result = optimize(model, x)
    assert result.kept.name == fastest
    if fastest == "as given":
        picture.check(model)
        assert model[1].weight is model[0].weight
        assert (model[3].weight.data_ptr(), model[4].weight.data_ptr()) == addresses
    else:
        assert model[1].weight_packed is model[0].weight_packed
        assert isinstance(model[2], QuantizedLinear)
    assert torch.equal(held.weight, values["2.weight"])  # of use to who holds it, in place or not


def test_replaced_weights_are_freed(times: Times, randn: Randn) -> None:
    times("int8, fused")
    model, x = make(randn)
    weights = [weakref.ref(model[i].weight) for i in (0, 3)]
    assert optimize(model, x).kept.name == "int8, fused"
    gc.collect()
    assert [weight() for weight in weights] == [None, None]


@pytest.mark.parametrize("fastest", ["as given", "int8"])
def test_torchs_own_encoder(fastest: str, times: Times, unfused: None, randn: Randn) -> None:
    times(fastest)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), randn(2, 3, 16)
    original = copy.deepcopy(model)
    result = optimize(model, x)
    assert len(result.summary.quantized) == (12 if fastest == "int8" else 0)
    assert (model.state_dict().keys() == original.state_dict().keys()) == (fastest == "as given")
    kept = [(m.use_nested_tensor, *(layer.activation_relu_or_gelu for layer in m.layers))
            for m in (original, model)]  # fmt: skip
    assert (kept[0] == kept[1]) == (fastest == "as given")
    with torch.inference_mode():
        assert relative([model(x)], [original(x)]) == pytest.approx(result.kept.error, rel=1e-5)


def test_a_fusion_that_fails_is_out(
    monkeypatch: pytest.MonkeyPatch, times: Times, randn: Randn
) -> None:
    times("int8")

    def broken(model: nn.Module) -> fastinfer.Fusion:
        def fail(*_: object) -> None:
            raise RuntimeError("no graph\nand more")

        model._compiled_call_impl = fail
        return fastinfer.Fusion()

    monkeypatch.setattr(optimize_module, "fuse_", broken)
    model, x = make(randn)
    result = optimize(model, x)
    assert [result.candidates[i].note for i in (1, 3)] == ["it fails: no graph"] * 2
    assert result.kept.name == "int8"
    assert "_compiled_call_impl" not in vars(model)


def test_filter_and_layers_that_lose_stay_float(
    times: Times, unfused: None, monkeypatch: pytest.MonkeyPatch, randn: Randn
) -> None:
    times("int8")
    model, x = make(randn)
    result = optimize(model, x, filter_fn=lambda module, name: name != "0")
    assert [row.reason for row in result.summary.rows] == ["filter_fn left it out", None]
    monkeypatch.setattr(guard, "_seconds", lambda f, x: 4.0 - _seconds(f, x))
    model, x = make(randn)
    picture = Picture(model)
    result = optimize(model, x)
    picture.check(model)
    assert [row.reason for row in result.summary.rows] == ["int8 is slower here"] * 2
    assert [c.note for c in result.candidates[2:]] == ["no linear layer gains by it"] * 2


# --- arguments -----------------------------------------------------------------------------------

_X = torch.ones(1, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, _X), {}, TypeError, "model: got int, want an nn.Module"),
        ((nn.ReLU(), "x"), {}, TypeError, "example_inputs: got str, want a tensor"),
        ((nn.ReLU(), []), {}, ValueError, "example_inputs: got an empty list"),
        ((nn.ReLU(), [_X, 3]), {}, TypeError, "example_inputs: got int, want a tensor"),
        ((nn.ReLU(), _X), {"max_error": "1"}, TypeError, "max_error: got str, want a number"),
        ((nn.ReLU(), _X), {"max_error": True}, TypeError, "max_error: got bool, want a number"),
        ((nn.ReLU(), _X), {"max_error": -1}, ValueError, "max_error: got -1, want a finite"),
        ((nn.ReLU(), _X), {"max_error": float("nan")}, ValueError, "max_error: got nan, want"),
        ((nn.ReLU(), _X), {"speedup": 0}, ValueError, "speedup: got 0, want a finite number above"),
        ((nn.ReLU(), _X), {"speedup": "2x"}, TypeError, "speedup: got str, want a number"),
        ((nn.ReLU(), _X), {"filter_fn": 1}, TypeError, "filter_fn: got int, want a function"),
        ((nn.Linear(4, 4), _X), {}, ValueError, "model: got an nn.Linear"),
        ((nn.LayerNorm(4, device="meta"), _X), {}, ValueError, "model: weight is on meta"),
    ],
)
def test_wrong_arguments(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        optimize(*arguments, **options)


def test_a_model_without_float_outputs_is_refused() -> None:
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    with pytest.raises(ValueError, match="model: its output holds no floating-point tensor"):
        optimize(Largest(), _X)


# --- memory --------------------------------------------------------------------------------------

_MEMORY = """
import gc, re
import torch, transformers, fastinfer
from torch import nn

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1))

torch.set_num_threads(1)
kind = KIND
def chain(n, size):
    blocks = [nn.Sequential(kind(size, size), nn.GELU()) for _ in range(n)]
    return nn.Sequential(*blocks, nn.LayerNorm(size)).eval()

fastinfer.fuse_(chain(1, 64), torch.randn(4, 64))  # loads the code of torch.compile
fastinfer.trial._ROUNDS = 2
model, x = chain(6, 3072), torch.randn(2, 3072)
with torch.inference_mode():
    model(x)
gc.collect()
before, layer = memory("VmRSS"), model[0][0].weight.nbytes
for max_error in (0, 1e9):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is now what is in use
    result = fastinfer.optimize(model, x, max_error=max_error)
    print(len(result.summary.quantized), (memory("VmHWM") - before) / layer)
print((memory("VmRSS") - before) / layer)
"""


@pytest.mark.parametrize("kind", ["nn.Linear", "transformers.pytorch_utils.Conv1D"])
def test_memory_on_top_of_the_model_is_about_one_layer(kind: str) -> None:
    """At most 1.3 times the largest layer: 38 MB of a model of 226 MB, whose int8 weights are 57.
    The tracing of torch.compile, some 33 MB by itself, is part of it, at another time. Afterwards
    three quarters of the model are gone, but for 33 MB of what torch.compile may keep.

    The least of three runs: on a busy machine one in six peaks a quarter or a half of a layer
    higher."""
    peaks = []
    script = _MEMORY.replace("KIND", kind)
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        lines = (line.split() for line in run.stdout.splitlines())
        (as_given, first), (int8, second), (after,) = lines
        assert (as_given, int8) == ("0", "6")
        assert float(after) <= -6 * 0.74 + 1
        peaks.append(max(float(first), float(second)))
        if peaks[-1] <= 1.3:
            break
    assert min(peaks) <= 1.3
