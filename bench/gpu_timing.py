"""Time on a GPU: CUDA graphs replayed in turns, between events. On a CPU the same calls, timed by
the clock, so that the benchmark itself can be tried where there is no GPU."""

import subprocess
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import torch

Call = Callable[[], object]


class Graph:
    """Calls captured once; a replay runs them all, and costs the host one launch."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what a first call sets up must not be captured
            for call in (*calls[:2], calls[-1]):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for call in calls:
                call()

    def seconds(self) -> float:
        """Of one replay."""
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


class Loop:
    """The same interface without a GPU."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = len(calls)
        self._calls = calls
        self.seconds()

    def seconds(self) -> float:
        begin = perf_counter()
        for call in self._calls:
            call()
        return perf_counter() - begin


def capture(calls: Sequence[Call], device: torch.device) -> Graph | Loop:
    return Graph(calls) if device.type == "cuda" else Loop(calls)


def seconds_once(call: Call, device: torch.device) -> float:
    """Of a call that is not the first, launches and all."""
    call()
    _wait(device)
    begin = perf_counter()
    call()
    _wait(device)
    return perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(runs: dict[str, Graph | Loop], rounds: int) -> dict[str, float]:
    """Median seconds a call: one replay each, round after round, so that a clock that drifts falls
    on all of them."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run.seconds()
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run.seconds() / run.calls)
    return {name: median(taken) for name, taken in samples.items()}


def clocks() -> str:
    """What the card says of itself now: clocks, temperature, power."""
    query = "name,clocks.sm,clocks.mem,temperature.gpu,power.draw,driver_version"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() or f"unknown: {done.stderr.strip()}"


def stream_rate(device: torch.device, size: int, rounds: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    run = capture([lambda: target.copy_(source)], device)
    return 2 * source.nbytes / interleave({"copy": run}, rounds)["copy"]


def read_rate(device: torch.device, size: int, rounds: int) -> float:
    """Bytes a second that a sum reads: the floor of a product with few rows."""
    source = torch.randn(size // 4, device=device)
    run = capture([lambda: source.sum()], device)
    return source.nbytes / interleave({"sum": run}, rounds)["sum"]


def matmul_peak(device: torch.device, size: int, rounds: int) -> float:
    """bf16 operations a second of a large square product."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    run = capture([lambda: a @ b], device)
    return 2 * size**3 / interleave({"matmul": run}, rounds)["matmul"]
