"""The benchmark's own arithmetic, and a run of it on a tiny shape."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import sleep

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import machine
import norm
import peers
import records
import roofline
import sections
import sparse
import timing
import verdict
import weight_only
from fastinfer import _C
from records import Record


def cell(section: str, m: int, **times: float) -> list[Record]:
    """One interleaved run: microseconds by candidate."""
    kinds = {"fastinfer": "ours", "torch_fp32": "fp32", "torch_bf16": "bf16"}
    return [
        Record(section, name, kinds.get(name, "int8"), threads=1, m=m, k=64, n=64, median_us=us)
        for name, us in times.items()
    ]


def test_speedup_is_that_over_the_best_peer_allowed() -> None:
    found = [
        *cell("hot", 8, fastinfer=10, torch_bf16=15, onnxruntime=20),
        *cell("hot", 128, fastinfer=10, torch_bf16=50, onnxruntime=40),
        *cell("cold", 8, fastinfer=10, onnxruntime=1),
    ]
    assert [v for v, _ in verdict.speedups(found, "hot")] == [1.5, 4.0]
    int8 = verdict.speedups(found, "hot", lambda m: m <= 32, lambda r: r.kind == "int8")
    assert int8 == [(2.0, "M=8 K=64 N=64, 1 thr. (onnxruntime)")]


def test_a_cell_without_a_peer_gives_no_figure() -> None:
    assert verdict.speedups(cell("hot", 8, fastinfer=10), "hot") == []


@pytest.mark.parametrize(
    ("at_least", "figures", "word"),
    [
        (True, (3.0, 1.8), "must"),
        (True, (3.0, 3.5), "aim"),
        (True, (3.0, 1.79), "missed"),
        (False, (1.8, 0.5), "aim"),
        (False, (3.0, 0.5), "missed"),
        (True, (), "not run"),
    ],
)
def test_verdict_is_that_of_the_worst_figure(
    at_least: bool, figures: tuple[float, ...], word: str
) -> None:
    must, aim = (1.8, 3.0) if at_least else (2.0, 1.8)
    row = verdict.Row("what", must, aim, at_least, tuple((value, "") for value in figures))
    assert row.verdict == word


def test_scaling_steps_and_fractions() -> None:
    found = [
        Record("scaling", "fastinfer", threads=1, m=128, k=64, n=64, median_us=30),
        Record("scaling", "fastinfer", threads=2, m=128, k=64, n=64, median_us=20),
        *(
            Record("steps", "fastinfer", threads=1, m=m, k=64, n=64, median_us=us)
            for m, us in ((1, 10), (2, 12), (4, 50))
        ),
        Record("peak", "fastinfer", "ours", threads=1, m=2048, k=64, n=64, value=3e12),
        Record("peak", "amx_int8", "machine", threads=1, m=2048, k=64, n=64, value=4e12),
    ]
    assert [v for v, _ in verdict.scaling(found)] == [1.5]
    assert [v for v, _ in verdict.steps(found)] == [1.2]
    assert [v for v, _ in verdict.fractions(found, "peak")] == [0.75]


def test_numbers_of_nothing_are_not_run() -> None:
    assert {row.verdict for row in verdict.numbers([])} == {"not run"}


def test_a_hopeless_candidate_leaves_and_the_first_stays() -> None:
    found = timing.interleave(
        {
            "first": timing.Candidate(partial(sleep, 0.02)),
            "fast": timing.Candidate(lambda: None),
            "slow": timing.Candidate(partial(sleep, 0.02)),
        },
        seconds=0.0,
        least_samples=6,
    )
    assert [found[name].samples for name in ("first", "fast", "slow")] == [6, 6, 3]
    assert found["slow"].median >= found["slow"].minimum >= 0.02  # sleep never wakes early
    assert found["fast"].median < 0.02
    assert found["fast"].calls > 1 == found["slow"].calls


def test_every_turn_begins_with_before() -> None:
    seen: list[int] = []
    candidates = {
        str(t): timing.Candidate(partial(sleep, 1e-3), before=partial(seen.append, t))
        for t in (1, 2)
    }
    timing.interleave(candidates, seconds=0.0, least_samples=4)
    assert seen == [1, 2] * 5  # once to find the length of a sample, then a turn a round


def test_csv_holds_what_was_written(tmp_path: Path) -> None:
    here = machine.Machine("a CPU", 2, "avx2", "a compiler", "versions, with a comma")
    wrote = [*cell("hot", 8, fastinfer=10.5, onnxruntime=21), Record("error", "x", note="a,b")]
    path = tmp_path / "folder" / "records.csv"
    records.write_csv(path, wrote, here)
    assert records.read_csv(path) == wrote
    assert "a CPU" in path.read_text()


def test_relative_error(randn) -> None:
    x, weight, bias = randn(40, 32), randn(16, 32), randn(16)
    y = (x.double() @ weight.double().T + bias.double()) * 1.25
    # Exact up to the rounding of float64: every element is off by a quarter of itself.
    assert sections.relative_error(y, x, weight, bias) == pytest.approx(0.25, rel=1e-12)
    y[20] = torch.nan  # in none of the rows that are looked at
    assert sections.relative_error(y, x, weight, bias) == pytest.approx(0.25, rel=1e-12)


def test_unknown_peer_is_refused_and_a_missing_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got tensorflow, want some of fastinfer"):
        peers.available(["tensorflow"])
    absent = peers.Peer("absent", "int8", "", peers.torch_fp32, needs=("no_such_module",))
    monkeypatch.setattr(peers, "PEERS", (*peers.PEERS[:1], absent))
    chosen, skipped = peers.available()
    assert [peer.name for peer in chosen] == ["fastinfer"]
    assert skipped == ["absent left out: no_such_module not installed "
                       "(pip install 'fastinfer[bench]')"]  # fmt: skip


@pytest.mark.parametrize("name", ["fastinfer", "torch_fp32", "torch_bf16", "torch_ao_onednn"])
def test_peer_computes_the_layer(name: str, randn) -> None:
    (peer,), _ = peers.available([name])
    x, weight, bias = randn(24, 96), randn(40, 96) * 0.1, randn(40)
    with torch.inference_mode():
        y = peer.prepare(weight, bias, x)(x, 1)()
    assert y.dtype == torch.float32
    assert sections.relative_error(y, x, weight, bias) <= sections.ERROR_LIMIT[peer.kind]


def test_roofline_loops_and_reads_run() -> None:
    rates = {name: roofline.peak(name, seconds=0.01) for name in ("avx2_fma", "no such loop")}
    assert rates["no such loop"] == 0.0
    if any(row["name"] == "avx2" and row["supported"] for row in _C.isas()):
        assert rates["avx2_fma"] > 1e9  # 16 operations an instruction, one in 16 ns
    assert roofline.bandwidth(1 << 20, threads=1, seconds=0.01) > 1e8
    data = roofline.random_bytes(1 << 20)
    read, size = roofline.reader(data, threads=1, chunk=1 << 18)
    words = data.view(4, -1)
    for chunk in (0, 1, 2, 3, 0):  # goes round
        want = 0
        for word in words[chunk].tolist():
            want |= word
        assert read() == want, chunk
    assert size == 1 << 18


def test_a_tiny_run_writes_its_records(tmp_path: Path) -> None:
    path = tmp_path / "tiny.csv"
    command = [
        sys.executable,
        str(Path(sections.__file__).with_name("linear.py")),
        "--csv",
        str(path),
    ]
    command += ["--only", "hot,cold,overhead,steps", "--shapes", "64x48", "--m", "1,130"]
    command += ["--threads", "1", "--seconds", "0.01", "--peers", "fastinfer,torch_fp32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Numbers" in done.stdout
    found = records.read_csv(path)
    shapes = {(r.section, r.candidate, r.m) for r in found if r.section != "steps"}
    assert shapes == {
        *(("hot", name, m) for name in ("fastinfer", "torch_fp32") for m in (1, 130)),
        ("cold", "fastinfer", 1),
        *(("overhead", name, 1) for name in ("fastinfer", "torch_fp32")),
    }
    assert sorted(r.m for r in found if r.section == "steps") == list(range(1, 66))
    assert all(0 < r.min_us <= r.median_us and r.samples >= 3 for r in found)


def test_a_tiny_run_of_the_norms(tmp_path: Path) -> None:
    path = tmp_path / "norm.csv"
    shape = ["--rows", "70", "--columns", "48", "--threads", "1", "--dtypes", "bfloat16"]
    norm.main([*shape, "--seconds", "0.01", "--csv", str(path)])
    found = records.read_csv(path)
    assert {r.section for r in found} == {"norm rms", "norm layer"}
    ours = [r for r in found if r.candidate == "sum, int8 rows"]
    assert len(ours) == 2
    for r in ours:  # two reads and a write of bfloat16; int8, scale and offset
        assert r.value * r.median_us == pytest.approx(70 * (3 * 2 * 48 + 48 + 8) * 1e6, rel=1e-3)
        assert 0 < r.relative_error < 1e-2


def test_sparse_figures_are_over_the_dense_layer_and_the_right_peers() -> None:
    found = [
        *cell("sparse", 1, **{"dense": 30, "2:4": 20, "bitmask": 15, "tiles": 5}),
        *cell("sparse", 128, **{"dense": 30, "2:4": 32, "tiles": 6, "torch BSR": 90, "onnx": 24}),
    ]
    ours = ("dense", *sparse.STRUCTURES)
    found = [replace(r, kind="ours") if r.candidate in ours else r for r in found]
    figures = [[value for value, _ in row.figures] for row in sparse.numbers(found)]
    assert figures == [[1.5], [30 / 32], [5.0], [15.0], [4.0], [2.0]]


def test_a_tiny_run_of_sparse_layers() -> None:
    with torch.inference_mode():
        few, many = (list(sparse.measure((256, 192), m, 1, 0.01, [], 1 << 20)) for m in (1, 128))
    assert [r.candidate for r in few] == ["dense", "2:4", "bitmask", "tiles"]
    copies = {r.candidate: r.copies for r in few}
    assert copies["tiles"] > copies["bitmask"] > copies["2:4"] > copies["dense"] > 1
    assert [r.candidate for r in many] == ["dense", "2:4", "bitmask", "tiles", "torch BSR"]


def test_a_tiny_run_of_weight_only_layers(tmp_path: Path) -> None:
    path = tmp_path / "weight_only.csv"
    options = ["--shapes", "64x48", "--rows", "16", "--threads", "1", "--seconds", "0.01"]
    weight_only.main([*options, "--csv", str(path)])
    found = {r.candidate: r for r in records.read_csv(path)}
    layers = [found[name] for name in weight_only.LAYERS]
    for r in layers:
        assert r.value * r.median_us == pytest.approx(2e6 * 16 * 64 * 48, rel=1e-3)
        assert (r.weights, r.copies) == ("hot", 1)
    assert 0 < found["torch fp32"].relative_error < 1e-6 < found["w8a16 fp32"].relative_error
