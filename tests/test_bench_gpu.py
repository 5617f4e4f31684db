"""The GPU benchmark as far as a CPU can run it: every line but the times."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from rich.console import Console

import gpu
from gpu_peers import OURS
from gpu_verdict import Record, neighbours, verdicts

ROOT = Path(__file__).parents[1]


def test_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    command = ["gpu.py", "--device", "cpu", "--quick", "--rounds", "2", "--triton", "--json", path]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT / "bench", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Requirements" in done.stdout
    records = [Record(**r) for r in json.loads(path.read_text())["records"]]
    ran = {r.candidate for r in records if not r.reason}
    assert ran >= {*OURS, "torch_bf16", "torch_int_mm", "inductor_int_mm"}
    assert all(r.microseconds > 0 for r in records if not r.reason)


def test_sanitized_script_runs_on_a_cpu() -> None:
    command = [sys.executable, ROOT / "scripts" / "gpu_sanitize.py", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "every kernel ran\n"


def cell(m: int, n: int, k: int, bf16: float, ours: float) -> list[Record]:
    times = {"torch_bf16": bf16, **dict.fromkeys(OURS, ours)}
    return [Record(name, m, n, k, us, 1, 0.0, 1) for name, us in times.items()]


def test_verdicts_name_the_worst() -> None:
    records = [*cell(1, 8192, 8192, 40.0, 20.0), *cell(2, 8192, 8192, 40.0, 32.0)]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(verdicts(records, {"read": 4e12}))
    row = next(line for line in console.export_text().splitlines() if "w8a8, M 1-4, over" in line)
    assert [part.strip() for part in row.split("│")[1:-1]] == [
        "w8a8, M 1-4, over bf16", "1.6", "1.25", "2", "1/2", "M=2 N=8192 K=8192"
    ]  # fmt: skip


def test_neighbours() -> None:
    records = [*cell(16, 8, 8, 1.0, 10.0), *cell(17, 8, 8, 1.0, 15.0), *cell(70, 8, 8, 1.0, 1.0)]
    cells: dict[tuple[int, int, int], dict[str, Record]] = {}
    for r in records:
        cells.setdefault(r.cell, {})[r.candidate] = r
    assert neighbours(cells) == [(1.5, (16, 8, 8))]


def test_copies_fill_the_rotation() -> None:
    assert gpu.copies_for(8192 * 8192, 1) * 8192 * 8192 >= gpu.ROTATED
    assert gpu.copies_for(768 * 768, 4) == 256
    assert gpu.copies_for(8192 * 8192, 4096) == 1
