"""The whole-model benchmark's own arithmetic, on made-up records and a model of one layer."""

import io
import math
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import contenders
import layers
import machine
import models
import records
import verdict
import zoo
from contenders import Cell, Contender
from records import ModelRecord

KINDS = {"fastinfer": "ours", "fastinfer_int8": "ours", "torch_fp32": "fp32", "torch_bf16": "bf16"}


def cell(model: str, size: zoo.Size, sqnr: float = 30.0, **times: float) -> list[ModelRecord]:
    """One interleaved run: microseconds by candidate."""
    return [
        ModelRecord(
            model, name, KINDS.get(name, "int8"), size.batch, size.length, 2, us, sqnr_db=sqnr
        )
        for name, us in times.items()
    ]


def rows(found: list[ModelRecord]) -> dict[str, verdict.Row]:
    return {row.what: row for row in verdict.model_numbers(found)}


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


def test_speed_is_over_the_best_peer_that_is_right() -> None:
    size = zoo.Size(8, 128)
    times = {"fastinfer": 10, "fastinfer_int8": 11, "torch_fp32": 40, "openvino_int8": 18}
    found = cell("BERT-base", size, **times, torch_ao_x86=5)
    found[-1] = replace(found[-1], reason="wrong: SQNR 1.0 dB")
    got = rows(found)
    assert got["BERT-base 8x128, vs the best peer"].worst == (
        1.8,
        "BERT-base 8x128, 2 thr. (openvino_int8)",
    )
    assert got["BERT-base 8x128, vs the best peer"].verdict == "must"
    assert got["BERT-base 1x128, vs the best peer"].verdict == "not run"


def test_the_decoder_is_compared_with_torch_alone() -> None:
    found = cell("Qwen2-0.5B", zoo.Size(1, 512), fastinfer=10, torch_bf16=36, openvino_int8=12)
    row = rows(found)["Qwen2-0.5B 1x512, vs the best torch peer"]
    assert row.worst == (3.6, "Qwen2-0.5B 1x512, 2 thr. (torch_bf16)")
    assert row.verdict == "aim"


def test_sqnr_is_over_the_fastest_int8_peers_and_the_most_exact_is_named() -> None:
    size = zoo.Size(1)
    found = [
        *cell("ViT-B/16", size, 30.0, fastinfer=10),
        *cell("ViT-B/16", size, 28.5, openvino_int8=20),
        *cell("ViT-B/16", size, 33.0, torch_ao_x86=40),
        *cell("ViT-B/16", size, 40.0, torch_bf16=15),
    ]
    row = rows(found)["ViT-B/16, SQNR over the fastest int8 peer's, dB"]
    value, where = row.worst
    assert value == 1.5
    assert row.verdict == "aim"
    assert "openvino_int8; the most exact, torch_ao_x86, has 33.0 dB" in where


def test_cosines_are_those_of_the_worst_size() -> None:
    found = []
    for batch, worst in ((1, 0.999), (8, 0.989)):
        (record,) = cell("MiniLM-L6", zoo.Size(batch, 128), fastinfer=10)
        found.append(replace(record, cosine_mean=0.9985, cosine_worst=worst))
    assert rows(found)["MiniLM-L6, mean cosine"].verdict == "must"
    assert rows(found)["MiniLM-L6, worst cosine"].worst[0] == 0.989
    assert rows(found)["MiniLM-L6, worst cosine"].verdict == "missed"


def test_numbers_of_nothing_are_not_run() -> None:
    assert {row.verdict for row in verdict.model_numbers([])} == {"not run"}
    assert {row.verdict for row in layers.numbers([])} == {"not run"}


def test_every_requirement_is_of_a_model() -> None:
    assert verdict.MODEL_SPEED.keys() <= zoo.MODELS.keys()


def test_table_has_the_figures_and_the_reasons() -> None:
    found = cell("BERT-base", zoo.Size(1, 128), torch_fp32=30e3, fastinfer=10e3)
    found.append(ModelRecord("BERT-base", "openvino_bf16", "bf16", 1, 128, 2, reason="no bf16"))
    lines = shown(models.cell_table(found)).splitlines()
    (ours,) = (line for line in lines if "fastinfer" in line)
    assert "10.00" in ours
    assert "3.00" in ours  # times fp32
    assert "30.0" in ours  # dB
    assert any("openvino_bf16" in line and "no bf16" in line for line in lines)


def test_csv_holds_what_was_written(tmp_path: Path) -> None:
    here = machine.Machine("a CPU", 2, "avx2", "a compiler", "versions, with a comma")
    wrote = [*cell("ViT-B/16", zoo.Size(8), math.inf, torch_fp32=10.5), *cell("x", zoo.Size(1))]
    wrote.append(ModelRecord("x", "y", "int8", 1, 0, 1, reason="because, of a comma"))
    path = tmp_path / "models.csv"
    records.write_csv(path, wrote, here)
    assert records.read_csv(path, ModelRecord) == wrote


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from picture import draw

    found = [
        *cell("BERT-base", zoo.Size(1, 128), torch_fp32=30, fastinfer=10),
        *cell("BERT-base", zoo.Size(8, 128), math.inf, torch_fp32=30, fastinfer=10),
        *cell("ViT-B/16", zoo.Size(1), fastinfer=10),  # nothing to compare with
        ModelRecord("MiniLM-L6", "fastinfer", "ours", 1, 128, 1, reason="failed"),
    ]
    path = tmp_path / "folder" / "models.png"
    draw(found, path, "a machine")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="got none with a time"):
        draw(found[-1:], path, "a machine")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "GPT-5"], "--models: got GPT-5, want some of BERT-base,"),
        (["--contenders", "fastinfer,abacus"], "--contenders: got abacus, want some of torch_fp32"),
        (["--sizes", "3x3"], "--sizes: got 3x3, want some of 1x128,"),
        (["--models", "ViT-B/16", "--sizes", "1x512"], "none of them is a size of these models"),
        (["--threads", "0"], "--threads: got 0, want at least 1"),
        (["--seconds", "nan"], "--seconds: invalid positive value: 'nan'"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.parse(arguments)
    assert said in " ".join(capsys.readouterr().err.split()).replace(", ", ",").replace(
        ",want", ", want"
    )


class Doubler(nn.Module):
    """One linear layer; x [batch, tokens, 16] -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.linear(x) * 2


def draw_tiny(size: zoo.Size, count: int, skip: int) -> list[zoo.Inputs]:
    random = torch.Generator().manual_seed(skip)
    mask = torch.ones(size.batch, size.length, dtype=torch.int64)
    mask[:, -1] = 0
    shape = (size.batch, size.length, 16)
    return [
        {"x": torch.randn(shape, generator=random), "attention_mask": mask} for _ in range(count)
    ]


TINY = zoo.Model(
    "tiny",
    (zoo.Size(2, 5),),
    lambda attention: Doubler().eval(),
    draw_tiny,
    onnx_type="",
    heads=1,
    hidden=16,
    calibration=1,
    checked=5,
    embeds=True,
)


@pytest.fixture
def tiny(tmp_path: Path) -> Cell:
    return Cell(TINY, TINY.sizes[0], 1, tmp_path / "cache")


def test_answers_go_through_all_batches_and_the_inputs_are_the_first_again(tiny: Cell) -> None:
    assert len(tiny.batches) == 3  # of 2 inputs make the 5 to check
    found = models.answers(contenders.torch_eager(tiny), tiny)
    for batch, y in zip(tiny.batches, found, strict=True):
        assert torch.equal(y, tiny.fp32(**batch))
    assert torch.equal(tiny.inputs["x"], tiny.batches[0]["x"])


def test_quality_leaves_padding_out(tiny: Cell) -> None:
    want = [torch.ones(2, 5, 16) for _ in tiny.batches]
    got = [y * 1.5 for y in want]
    for y in got:
        y[:, -1] = 100  # the padded token
    found = models.quality(tiny, got, want)
    # The error is half the signal in every element: 20 log10(2).
    assert found.sqnr_db == pytest.approx(20 * math.log10(2), rel=1e-12)
    assert found.cosine_mean == pytest.approx(1, abs=1e-6)
    got[2][1, 0] = -3  # tokens -3, 1.5, 1.5, 1.5 where the mean was all ones: orthogonal to nothing
    got[2][1, :, 8:] *= -1  # half the channels against the other half: cosine 0
    assert models.quality(tiny, got, want).cosine_worst == pytest.approx(0, abs=1e-6)
    assert models.quality(tiny, want, want).sqnr_db == math.inf
    with pytest.raises(ValueError, match="got shape"):
        models.quality(tiny, [y[:1] for y in want], want)


def test_nan_is_wrong(tiny: Cell) -> None:
    want = [torch.ones(2, 5, 16) for _ in tiny.batches]
    assert math.isnan(models.quality(tiny, [y * math.nan for y in want], want).sqnr_db)


def test_a_contender_that_fails_or_errs_is_recorded_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(cell: Cell) -> contenders.Run:
        raise BrokenProcessPool

    def wrong(cell: Cell) -> contenders.Run:
        return lambda: cell.fp32(**cell.inputs) * 3

    def refusing(cell: Cell) -> contenders.Run:
        raise RuntimeError("\n no such operator\nand a stack")

    tried = (
        *contenders.CONTENDERS[:2],
        Contender("broken", "int8", "", broken),
        Contender("wrong", "int8", "", wrong),
        Contender("refusing", "int8", "", refusing),
        Contender("absent", "int8", "", broken, needs=("no_such_module",)),
    )
    monkeypatch.setattr(models, "CONTENDERS", tried)
    monkeypatch.setattr(models, "MODELS", {"tiny": TINY})
    names = [c.name for c in tried]
    found = models.measure("tiny", TINY.sizes[0], names, 1, 0.01, tmp_path)
    assert [r.candidate for r in found] == names
    by_name = {r.candidate: r for r in found}
    for name in names[:2]:
        r = by_name[name]
        assert not r.reason
        assert 0 < r.min_us <= r.first_quartile_us <= r.median_us <= r.third_quartile_us
    assert by_name["torch_fp32"].sqnr_db == math.inf
    assert 30 < by_name["torch_bf16"].sqnr_db < 60  # 8 bits of mantissa
    assert "process died" in by_name["broken"].reason
    assert by_name["wrong"].reason == "ValueError: wrong: SQNR -6.0 dB"
    assert by_name["refusing"].reason == "RuntimeError: no such operator"
    assert "no_such_module not installed" in by_name["absent"].reason


def test_each_contender_is_compiled_for_itself(tiny: Cell) -> None:
    """Options of the second must not be lost to what the first compiled."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    with torch.inference_mode():
        want = tiny.fp32(**tiny.inputs)
        for count in (1, 2):
            run = contenders.call(contenders.compiled(tiny.fp32, backend), tiny)
            assert torch.equal(run(), want)
            assert torch.equal(run(), want)
            assert len(graphs) == count


def test_a_large_model_is_measured_a_runtime_at_a_time() -> None:
    names = ("torch_fp32", "torch_bf16", "fastinfer_int8", "fastinfer", "openvino_int8")
    assert contenders.turns(TINY, names) == [names]
    assert contenders.turns(replace(TINY, large=True), names) == [
        ("torch_fp32", "torch_bf16", "fastinfer"),
        ("torch_fp32", "fastinfer_int8", "fastinfer"),
        ("torch_fp32", "fastinfer", "openvino_int8"),
    ]


def test_a_process_that_dies_leaves_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, ...]] = []

    def apart(function: object, *arguments: object) -> list[ModelRecord]:
        runs.append(arguments[2])
        if "openvino_fp32" in arguments[2]:
            raise BrokenProcessPool
        us = float(len(runs))
        return [ModelRecord("Qwen2-0.5B", n, "", 1, 128, 1, us) for n in arguments[2]]

    monkeypatch.setattr(models, "apart", apart)
    given = models.parse(["--contenders", "torch_fp32,fastinfer,openvino_fp32"])
    found = models.measure_apart(zoo.MODELS["Qwen2-0.5B"], zoo.Size(1, 128), given, Path("x"))
    assert [(r.candidate, r.median_us) for r in found] == [
        ("torch_fp32", 1.0),
        ("fastinfer", 1.0),
        ("openvino_fp32", 0.0),
    ]
    assert "process died" in found[-1].reason
    assert len(runs) == 3


def test_artefacts_are_made_once_and_unfinished_ones_removed(
    tiny: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "apart", lambda function, *arguments: function(*arguments))
    made: list[tuple[str, int, int]] = []

    def make(name: str, length: int, folder: Path, extra: int) -> None:
        (folder / "part").write_text("x")
        made.append((name, length, extra))
        if extra:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tiny.artefact("kind", make, 1)
    assert list(tiny.cache.iterdir()) == []
    folder = tiny.artefact("kind", make, 0)
    assert (folder / "part").read_text() == "x"
    assert tiny.artefact("kind", make, 0) == folder
    assert made == [("tiny", 5, 1), ("tiny", 5, 0)]
    assert list(tiny.cache.iterdir()) == [folder]


def test_shares_of_the_wall_time() -> None:
    operators = [
        ("fastinfer::linear_w8a8", 40.0),
        ("aten::addmm", 10.0),
        ("fastinfer::attention", 20.0),
        ("fastinfer::layer_norm", 5.0),
        ("aten::embedding", 5.0),
    ]
    assert layers.shares(100.0, operators) == pytest.approx(
        {"matmul": 0.5, "attention": 0.2, "other": 0.1, "python": 0.2}
    )


def test_profile_finds_the_matmul() -> None:
    module = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
    found = layers.profile_shares(module, {"input": torch.randn(512, 512)}, calls=3)
    assert sum(found.values()) == pytest.approx(1)
    assert found["matmul"] > 0  # how much is up to what else runs here
    assert found["other"] > 0
    assert found["attention"] == 0


def test_layer_numbers_are_ours() -> None:
    found = [
        records.Record("outside", "torch_fp32", "fp32", value=0.5),
        records.Record("outside", "fastinfer", "ours", value=0.2),
        records.Record("dispatch", "fastinfer", "ours", median_us=29.0),
    ]
    assert [row.verdict for row in layers.numbers(found)] == ["must", "aim"]
