"""Modules that multiply by matrices of their own: given linear layers, and back as they were."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fastinfer
from fastinfer import Int8Dynamic, checkpoint, expose_linears_, fuse, quantize_
from fastinfer.candidates import list_layers
from fastinfer.expose import Exposure, exposed
from fastinfer.nn import QuantizedLinear, SplitAttention
from fastinfer.pairs import Pair

Randn = Callable[..., Tensor]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Block(nn.Module):
    """Attention over a memory, and a Conv1D as in GPT-2."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)
        self.conv = hf.pytorch_utils.Conv1D(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, x[:, :3], x[:, :3])[0]
        return self.conv(y.contiguous())  # which Conv1D needs and nn.Linear does not


def make(**options: Any) -> nn.Module:
    model = nn.Sequential(Block(**options), nn.Linear(24, 8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def modules(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.named_modules()]


def same_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[name], state[name]) for name in now)


@pytest.fixture(params=[False, True])
def in_inference_mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    with torch.inference_mode(request.param):
        yield request.param


def test_linears_compute_the_same_on_memory_of_their_own(randn: Randn) -> None:
    model, x = make(), randn(2, 5, 16)
    want = model(x)
    assert expose_linears_(model) == ("0.attention", "0.conv")
    assert isinstance(model[0].attention, SplitAttention)
    assert type(model[0].conv) is nn.Linear
    assert len(list_layers(model)) == 6
    assert torch.allclose(model(x), want, rtol=1e-5, atol=1e-6)
    for parameter in model.parameters():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.requires_grad
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert expose_linears_(model) == ()


def test_training_tools_find_them(randn: Randn) -> None:
    model, x = make(), randn(2, 5, 16)
    expose_linears_(model)
    pruning = fastinfer.prune_(model, fastinfer.Sparse24())
    assert len(pruning.rows) == 6
    assert all(row.structure == "2:4" for row in pruning.rows)
    assert len(fastinfer.sparsify_(model).quantized) == 6
    assert model(x).isfinite().all()


def test_others_stay(randn: Randn) -> None:
    class Mine(nn.MultiheadAttention):
        pass

    def forward(x: Tensor) -> Tensor:
        return x

    hooked, replaced = make()[0], make()[0]
    hooked.attention.register_forward_hook(lambda *_: None)
    hooked.conv.register_forward_pre_hook(lambda *_: None)
    replaced.conv.forward = forward
    replaced.attention.out_proj.forward = forward
    added = [nn.MultiheadAttention(8, 2, add_zero_attn=True)]
    added += [nn.MultiheadAttention(8, 2, add_bias_kv=True), Mine(8, 2)]
    masked = nn.MultiheadAttention(8, 2)
    nn.utils.parametrize.register_parametrization(masked, "in_proj_weight", nn.Identity())
    scaled, low_rank, empty = (nn.MultiheadAttention(8, 2) for _ in range(3))
    scaled.scale = nn.Parameter(torch.ones(()))
    low_rank.out_proj.lora = nn.Parameter(torch.ones(8, 8))
    empty.in_proj_weight = None
    odd = hf.pytorch_utils.Conv1D(4, 8)
    odd.weight = nn.Parameter(torch.empty(0))
    model = nn.ModuleList([hooked, replaced, *added, masked, scaled, low_rank, empty, odd])
    before = modules(model)
    assert expose_linears_(model) == ()
    quantize_(model)
    assert modules(model) == before
    with pytest.raises(TypeError, match="model: got str"):
        expose_linears_("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got an nn\.Linear"):
        expose_linears_(nn.Linear(2, 2))


def test_what_does_not_become_int8_comes_back(randn: Randn, in_inference_mode: bool) -> None:
    model, x = make(), randn(2, 5, 16)
    before, state, want = modules(model), copy.deepcopy(model.state_dict()), model(x)
    seen = []

    def refuse(module: nn.Module, name: str) -> bool:
        seen.append((name, type(module)))
        return False

    summary = quantize_(model, filter_fn=refuse)
    names = [*(f"0.attention.{name}" for name in PROJECTIONS), "0.conv", "1"]
    assert seen == [(name, nn.Linear) for name in names]
    assert [row.name for row in summary.rows] == names
    assert modules(model) == before
    assert same_state(model, state)
    assert torch.equal(model(x), want)
    assert summary.to_dict()["other_bytes"].keys() == {"MultiheadAttention", "Conv1D"}


def test_an_exception_leaves_the_model_as_it_was(randn: Randn) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    model.eval()
    before = modules(model), model.use_nested_tensor, model.layers[0].activation_relu_or_gelu

    def fail(module: nn.Module, name: str) -> bool:
        assert isinstance(model.layers[0].self_attn, SplitAttention)
        raise KeyboardInterrupt

    for run in (
        lambda: quantize_(model, filter_fn=fail),
        lambda: fastinfer.optimize(model, randn(2, 3, 16), filter_fn=fail),
        lambda: fastinfer.sensitivity(model, [randn(2, 3, 16)], filter_fn=fail),
        lambda: fastinfer.search(model, [randn(2, 3, 16)], filter_fn=fail),
    ):
        with pytest.raises(KeyboardInterrupt):
            run()
        flags = model.use_nested_tensor, model.layers[0].activation_relu_or_gelu
        assert (modules(model), *flags) == before


def test_a_part_in_int8(randn: Randn, in_inference_mode: bool) -> None:
    """The others of its layers stay float, in memory of their own."""
    model, x = make(), randn(2, 5, 16)
    original = copy.deepcopy(model)
    conv = model[0].conv
    summary = quantize_(model, filter_fn=lambda module, name: name == "0.attention.k_proj")
    assert [row.name for row in summary.quantized] == ["0.attention.k_proj"]
    attention = model[0].attention
    assert isinstance(attention.k_proj, QuantizedLinear)
    assert model[0].conv is conv
    packed = original[0].attention.in_proj_weight
    assert torch.equal(attention.q_proj.weight, packed[:16])
    for parameter in attention.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.requires_grad != in_inference_mode or not parameter.is_inference()
    want, got = original(x), model(x)
    assert 0 < (got - want).norm() <= 0.02 * want.norm()
    assert len(fastinfer.compare(original, model, x).layers) == 1
    quantize_(model)
    assert len([m for m in model.modules() if isinstance(m, QuantizedLinear)]) == 6
    assert len(fastinfer.compare(original, model, x).layers) == 6


def test_state_goes_into_another_that_was_quantised_alike(randn: Randn) -> None:
    model, other, x = make(bias=False), make(bias=False), randn(2, 5, 16)
    quantize_(model)
    quantize_(other)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_one_attention_in_two_places(randn: Randn) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x, x, x, need_weights=False)[0]
            return self.second(x, x, x, need_weights=False)[0]

    model, x = nn.Sequential(Twice()).eval(), randn(2, 5, 16)
    want = model(x)
    names = {row.name for row in quantize_(model, example_inputs=x).rows}
    assert names == {f"0.first.{name}" for name in PROJECTIONS}
    quantize_(model)
    assert model[0].first is model[0].second
    assert isinstance(model[0].first.v_proj, QuantizedLinear)
    assert 0 < (model(x) - want).norm() <= 0.05 * want.norm()


def test_shared_projections_stay_shared(randn: Randn) -> None:
    model, x = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(2)]).eval(), randn(5, 16)
    model[1].in_proj_weight = model[0].in_proj_weight
    want = [attention(x, x, x)[0] for attention in model]
    assert len(quantize_(model).quantized) == 8
    for name in ("q_proj", "k_proj", "v_proj"):
        first, second = (getattr(attention, name).weight_packed for attention in model)
        assert first is second
    for attention, y in zip(model, want, strict=True):
        assert 0 < (attention(x, x, x)[0] - y).norm() <= 0.05 * y.norm()


def test_ranges_of_their_inputs(randn: Randn) -> None:
    model, x = make(), randn(2, 5, 16)
    before, want = modules(model), model(x)
    calibration = fastinfer.calibrate(model, [x])
    assert modules(model) == before
    assert calibration.by_name.keys() >= {"0.attention.v_proj", "0.conv"}
    assert len(quantize_(model, fastinfer.Int8Static(calibration)).quantized) == 6
    assert float(model[0].conv.input_scale) > 0
    assert 0 < (model(x) - want).norm() <= 0.05 * want.norm()
    with torch.inference_mode():  # ranges of int8 layers found anew
        assert len(fastinfer.calibrate(model, [x]).by_name) == 6


def test_sensitivity_and_search(randn: Randn, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    model, x = model.eval(), randn(2, 3, 16)
    before, original = modules(model), copy.deepcopy(model)
    layers = fastinfer.sensitivity(model, [x], [Int8Dynamic()]).measured
    assert [layer.name.rpartition(".")[2] for layer in layers] == [
        *("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2")
    ]
    assert all(0 < layer.schemes["int8 dynamic"].error < 0.05 for layer in layers)
    assert modules(model) == before
    # Every layer gains, and the more are int8 the less time a model takes.
    monkeypatch.setattr(fastinfer.options.Option, "gains", True)
    monkeypatch.setattr(
        fastinfer.trial.Trial, "time", lambda self, forms: [1.0 / (1 + len(f.int8)) for f in forms]
    )
    result = fastinfer.search(model, [x], schemes=[Int8Dynamic()])
    assert len(result.summary.quantized) == 6
    with torch.inference_mode():
        want, got = original(x), model(x)
    assert float((got - want).norm() / want.norm()) == pytest.approx(result.kept.error, rel=1e-5)
    assert not model.use_nested_tensor
    assert [c.name for c in result.candidates][:2] == ["as given", "all int8 dynamic"]
    assert all(candidate.predicted_ms > 0 for candidate in result.candidates)


def test_files(tmp_path: Path) -> None:
    """A model of transformers that holds an nn.MultiheadAttention, part of it in int8."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 16}
    hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes)).save_pretrained(tmp_path / "model")
    model = hf.SiglipVisionModel.from_pretrained(tmp_path / "model").eval()
    summary = quantize_(model, filter_fn=lambda module, name: not name.endswith("q_proj"))
    kept = fastinfer.optimized.Candidate("int8", kept=True)
    result = fastinfer.Optimized(model, summary, [kept], [])
    checkpoint.save(result, tmp_path / "model", tmp_path / "out")
    loaded = fastinfer.load(tmp_path / "out")
    head = loaded.head.attention
    assert isinstance(head.k_proj, QuantizedLinear)
    assert type(head.q_proj) is nn.Linear
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(x).pooler_output, model(x).pooler_output)


def test_files_of_a_model_that_was_exposed(tmp_path: Path) -> None:
    """A square Conv1D that stayed float is turned round, which no shape tells."""
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    hf.GPT2Model(hf.GPT2Config(**sizes)).save_pretrained(tmp_path / "model")
    model = hf.GPT2Model.from_pretrained(tmp_path / "model").eval()
    expose_linears_(model)
    summary = quantize_(model, filter_fn=lambda module, name: not name.endswith("attn.c_proj"))
    kept = fastinfer.optimized.Candidate("int8", kept=True)
    result = fastinfer.Optimized(model, summary, [kept], [])
    checkpoint.save(result, tmp_path / "model", tmp_path / "out")
    loaded, ids = fastinfer.load(tmp_path / "out"), torch.arange(12).view(2, 6)
    with torch.inference_mode():
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)


def test_training_flags_of_single_parameters() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32), hf.pytorch_utils.Conv1D(4, 16))
    model.append(nn.MultiheadAttention(16, 2, kdim=8, vdim=8))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
    model[2].v_proj_weight.requires_grad_()
    expose_linears_(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("bias" in name or name == "2.v_proj.weight")


def test_ties_stay_or_keep_the_module() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    twins = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(2)])
    twins[1].in_proj_weight = twins[0].in_proj_weight
    twins[1].out_proj.weight = twins[0].out_proj.weight
    convs = nn.ModuleList([hf.pytorch_utils.Conv1D(8, 16) for _ in range(2)])
    convs[1].weight = convs[0].weight
    elsewhere = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.Embedding(48, 16)])
    elsewhere[1].weight = elsewhere[0].in_proj_weight
    model = nn.ModuleList([twins, convs, elsewhere])
    before = count(model)
    assert expose_linears_(model) == ("0.0", "0.1", "1.0", "1.1")
    assert count(model) == before
    assert twins[0].k_proj.weight is twins[1].k_proj.weight
    assert convs[0].weight is convs[1].weight
    assert type(elsewhere[0]) is nn.MultiheadAttention
    names = {row.name for row in quantize_(model).quantized}
    assert not any(name.startswith("2") for name in names)
    assert len(names) == 10


class Reader(nn.Module):
    """Reads attributes of the attention that it holds, and its packed weight if `deep`."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 16)
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        a, x = self.attention, self.linear(x)
        assert (a.embed_dim, a.kdim, a.vdim, a.head_dim, a.num_heads) == (16, 16, 16, 8, 2)
        assert a.bias_k is a.bias_v is None
        if self.deep:
            x = x + a.in_proj_weight.mean()
        return a(x, x, x, need_weights=False)[0]


def test_models_that_read_the_module(randn: Randn) -> None:
    plain, deep = (nn.Sequential(Reader(deep)).eval() for deep in (False, True))
    x, before, want = randn(2, 5, 16), modules(deep), deep(randn(2, 5, 16))
    quantize_(plain)
    assert plain(x).isfinite().all()
    names = [layer.name for layer in fastinfer.sensitivity(deep, [x], [Int8Dynamic()]).measured]
    assert names == ["0.linear"]
    assert fastinfer.calibrate(deep, [x]).by_name.keys() == {"0.linear"}
    assert fastinfer.optimize(deep, x, max_error=0.0).kept.name in ("as given", "fused")
    assert modules(deep) == before
    rows = quantize_(deep, example_inputs=x).rows
    assert [row.name for row in rows] == ["0.attention.out_proj", "0.linear"]
    assert type(deep[0].attention) is nn.MultiheadAttention
    assert deep(x).shape == want.shape
    assert fastinfer.compare(copy.deepcopy(deep), deep, x).outputs["output"].sqnr_db == math.inf


def test_errors_where_a_sequence_is_padded(randn: Randn) -> None:
    """torch's fused path, which int8 layers switch off, writes zeros there: no error of int8."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=padding))

    model, x = Tagger().eval(), randn(2, 6, 16)
    padding = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    before = modules(model), model.encoder.use_nested_tensor
    layers = fastinfer.sensitivity(model, [(x, padding)], [Int8Dynamic()]).measured
    assert len(layers) == 13
    assert all(0 < layer.schemes["int8 dynamic"].error < 0.05 for layer in layers)
    assert (modules(model), model.encoder.use_nested_tensor) == before
    assert torch.backends.mha.get_fastpath_enabled()
    result = fastinfer.optimize(model, (x, padding))
    errors = {candidate.name: candidate.error for candidate in result.candidates}
    assert errors["fused"] < 1e-5
    assert errors["int8"] is None or errors["int8"] < 0.05


@pytest.mark.parametrize("run", ["expose", "quantize"])
def test_no_memory_left(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    before, calls = modules(model), []

    def fail(exposure: Exposure) -> None:
        calls.append(exposure)
        raise MemoryError

    monkeypatch.setattr(Exposure, "own_memory_", fail)
    if run == "expose":
        with pytest.raises(MemoryError):
            expose_linears_(model)
        assert modules(model) == before
        assert model.use_nested_tensor
    else:
        with pytest.raises(MemoryError):
            quantize_(model, filter_fn=lambda module, name: name == "layers.1.self_attn.q_proj")
        assert type(model.layers[0].self_attn) is nn.MultiheadAttention
        assert not model.use_nested_tensor
    padding = torch.tensor([[False] * 3 + [True]])
    model.eval()(torch.randn(1, 4, 16), src_key_padding_mask=padding)
    assert len(calls) == 1


def test_no_memory_left_at_the_end_of_a_trial(
    randn: Randn, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), randn(2, 5, 16)
    before, state = modules(model), copy.deepcopy(model.state_dict())

    def fail(exposure: Exposure) -> None:
        raise MemoryError

    monkeypatch.setattr(Exposure, "own_memory_", fail)
    monkeypatch.setattr(
        fastinfer.trial.Trial, "time", lambda self, forms: [*range(len(forms), 0, -1)]
    )
    monkeypatch.setattr(sys.modules["fastinfer.optimize"], "verdict", lambda timings: None)
    with pytest.raises(MemoryError):
        fastinfer.optimize(model, x, max_error=1.0)
    assert modules(model) == before
    assert same_state(model, state)


def test_a_full_disk_leaves_the_model_given(randn: Randn, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))).eval(), randn(2, 16)
    before, state, to_int8, calls = (
        modules(model),
        copy.deepcopy(model.state_dict()),
        Pair.to_int8,
        [],
    )

    def fail(pair: Pair) -> None:
        calls.append(pair)
        if len(calls) == 2:
            raise OSError("no space left")
        to_int8(pair)

    monkeypatch.setattr(Pair, "to_int8", fail)
    monkeypatch.setattr(sys.modules["fastinfer.optimize"], "verdict", lambda timings: None)
    result = fastinfer.optimize(model, x)
    assert "no space left" in str([candidate.note for candidate in result.candidates])
    assert not result.summary.quantized
    assert modules(model) == before
    assert same_state(model, state)


def test_code_to_paste_exposes(randn: Randn) -> None:
    model, x = make(), randn(2, 5, 16)
    sparse = fastinfer.Int8Sparse(fastinfer.Sparse24(), fastinfer.Magnitude())
    found = fastinfer.sensitivity(model, [x], [sparse, Int8Dynamic()])
    assert "expose_linears_" not in found.code("int8 dynamic", 10.0)
    exec(found.code(sparse.label, 10.0), {"fastinfer": fastinfer, "model": model})
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 6


def test_fused_encoders_are_traced_once(randn: Randn) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Linear(16, 4)).eval()
    traced, graphs = [], fuse.Fusion.__init__

    def counted(fusion: fuse.Fusion, *args: Any) -> None:
        traced.append(fusion)
        graphs(fusion, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse.Fusion, "__init__", counted)
        fastinfer.optimize(model, randn(2, 5, 16), max_error=1.0)
    assert [len(fusion.graphs) for fusion in traced[:1]] == [1]


def test_compare_where_the_original_was_not_exposed(randn: Randn) -> None:
    model, x = make(), randn(2, 5, 16)
    original = copy.deepcopy(model)
    original[0].attention.register_forward_hook(lambda *_: None)
    quantize_(model)
    names = {layer.name for layer in fastinfer.compare(original, model, x).layers}
    assert names == {"0.conv", "1"}  # torch's attention calls no layers


def test_nothing_to_expose_changes_nothing(randn: Randn) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before = modules(model)
    with exposed(model):
        assert modules(model) == before
    assert modules(model) == before
