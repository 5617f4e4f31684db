"""Linear layers on a GPU: fastinfer beside its peers, CUDA graphs replayed in turns.

    python bench/gpu.py                        # the sweep, some 6 minutes on one GPU
    python bench/gpu.py --shapes 8192x8192 --m 1,4,16,17,64 --rounds 30
    python bench/gpu.py --device cpu --quick   # does this file work? Its times mean nothing

A graph holds one call for each copy of the weight, of which there are as many as 256 MB hold, so
that no weight is in a cache when its turn comes. Inputs are fresh random numbers; every answer is
compared with float64 first. Rates are set beside a copy, a read and a bf16 product measured in the
same run.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fastinfer import _C, ops
from gpu_peers import OURS, PEERS, SPARSE, TRITON, UNCHECKED, Peer, Unfit, two_of_four
from gpu_timing import (
    capture,
    clocks,
    interleave,
    matmul_peak,
    read_rate,
    seconds_once,
    stream_rate,
)
from gpu_verdict import WRONG, Record, left_out, times, verdicts
from machine import describe

# N x K: Llama-3-8B's projections (q and o; k and v; gate and up; down), BERT-base's, ViT-L's, and
# those that the requirements name.
SHAPES = {
    "llama": ["4096x4096", "1024x4096", "14336x4096", "4096x14336"],
    "bert": ["768x768", "3072x768", "768x3072"],
    "vit": ["1024x1024", "4096x1024", "1024x4096"],
    "decode": ["8192x8192", "28672x8192"],
    "square": ["4096x4096", "8192x8192"],
}
M = [1, 2, 4, 5, 8, 16, 17, 28, 32, 33, 64, 65, 128, 256, 512, 1024, 2048, 4096, 8192]
ROTATED = 256 << 20  # bytes of weights that a graph goes through
# Relative to the norm of the exact product. int8: of Gaussian numbers, steps of 4 standard
# deviations / 127 in x and in the weight give 0.013; fp8 with 3 bits of fraction 0.026 in each.
TOLERANCE = 0.05

SLOW = 0.02  # seconds a call: a peer that takes longer is left out, for the sake of the others
# Seconds beside which launching a graph is little, and operations a second that no GPU here does.
LEAST_REPLAY, FASTEST = 2e-4, 2e15
# How a peer says that it cannot run a cell.
FAILURES = (Unfit, ImportError, RuntimeError, TypeError, AttributeError, AssertionError)


def copies_for(stored: int, m: int) -> int:
    """How many copies of a weight a graph goes through: enough to fill ROTATED where the weight's
    bytes are what matters, one where the product is bound by arithmetic."""
    return 1 if m > 512 else max(2, min(256, -(-ROTATED // max(stored, 1))))


class Shape:
    """The candidates on one weight, each made once for all M, and the copies that a graph needs."""

    def __init__(self, n: int, k: int, device: torch.device, peers: dict[str, Peer]) -> None:
        self.n, self.k, self.device, self.peers = n, k, device, peers
        self.w = random(n, k, device) * k**-0.5
        self.made: dict[str, list[tuple[tuple[Tensor, ...], Callable[..., Tensor]]]] = {}
        self.failed: dict[str, Exception] = {}
        for name, make in peers.items():
            try:
                self.made[name] = [make(self.w)]
            except FAILURES as error:
                self.failed[name] = error

    def copies(self, name: str, m: int) -> list[tuple[tuple[Tensor, ...], Callable[..., Tensor]]]:
        made = self.made[name]
        tensors, call = made[0]
        stored = sum(t.nbytes for t in tensors)
        # Of a module, whose copies are compiled one by one, two.
        count = copies_for(stored, m) if tensors else min(2, copies_for(self.w.numel(), m))
        while len(made) < count:
            make = self.peers[name]
            made.append((tuple(t.clone() for t in tensors), call) if tensors else make(self.w))
        return made[:count]


def random(rows: int, columns: int, device: torch.device) -> Tensor:
    """Fresh numbers, of a generator that no graph knows: a capture that failed spoils the default
    one."""
    generator = torch.Generator(device)
    generator.seed()
    return torch.randn(rows, columns, device=device, dtype=torch.bfloat16, generator=generator)


def measure_cell(shape: Shape, m: int, rounds: int) -> Iterator[Record]:
    n, k, device = shape.n, shape.k, shape.device
    x = random(m, k, device)
    rows = torch.tensor(sorted({*range(min(m, 8)), *range(max(0, m - 8), m)}), device=device)
    exact = {
        sparse: x[rows].double() @ weight.double().T
        for sparse, weight in ((False, shape.w), (True, two_of_four(shape.w)))
    }
    runs, about = {}, {}
    failed = dict(shape.failed)
    for name in shape.made:
        try:
            tensors, call = shape.made[name][0]
            error = relative_error(call(x, *tensors)[rows], exact[name in SPARSE])
            if name not in UNCHECKED and not error <= TOLERANCE:
                raise Unfit(f"{WRONG}: relative error {error:.3g}")
            one = seconds_once(bind(call, x, *tensors), device)
            if one > SLOW and name not in OURS and device.type == "cuda":
                raise Unfit(f"slow: {one * 1e3:.0f} ms a call")
            copies = shape.copies(name, m)
            calls = [bind(each, x, *held) for held, each in copies]
            if len(calls) == 1 and device.type == "cuda":
                calls *= math.ceil(LEAST_REPLAY / (2 * m * n * k / FASTEST))
            runs[name] = capture(calls, device)
            about[name] = sum(t.nbytes for t in tensors), error, len(copies)
        except FAILURES as failure:
            failed[name] = failure
    for name, failure in failed.items():
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        yield Record(name, m, n, k, reason=reason[:200])
    for name, seconds in interleave(runs, rounds).items():
        stored, error, count = about[name]
        yield Record(name, m, n, k, seconds * 1e6, stored, error, count)


def bind(call: Callable[..., Tensor], *args: Tensor) -> Callable[[], Tensor]:
    return lambda: call(*args)


def relative_error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


def norm_rate(device: torch.device, rows: int, columns: int, rounds: int) -> float:
    """Bytes a second of residual + RMSNorm + quantise, each tensor once."""
    x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
    residual, weight = torch.randn_like(x), torch.randn(columns, device=device).to(x.dtype)
    run = capture(
        [lambda: ops.rms_norm(x, weight, 1e-6, residual=residual, emit_fp=False, emit_rows=True)],
        device,
    )
    moved = x.numel() * (3 * 2 + 1)  # x, the residual and their sum in 2 bytes, the rows in 1
    return moved / interleave({"norm": run}, rounds)["norm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", help="NxK, comma-separated; all by default")
    parser.add_argument("--m", help="rows of x, comma-separated; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where the records go")
    parser.add_argument("--triton", action="store_true", help="tune Triton kernels, too: slow")
    parser.add_argument("--quick", action="store_true", help="one small shape")
    args = parser.parse_args()
    device = torch.device(args.device)
    peers: dict[str, Peer] = {**OURS, **PEERS, **(TRITON if args.triton else {})}
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py: torch sees no GPU here: run it on a machine with one")
    torch.manual_seed(0)
    shapes = args.shapes.split(",") if args.shapes else ["96x128"] if args.quick else None
    rows = [int(m) for m in args.m.split(",")] if args.m else [1, 17] if args.quick else M
    large = 1 << (24 if args.quick else 30)
    rates = {
        "copy": stream_rate(device, large, args.rounds),
        "read": read_rate(device, large, args.rounds),
        "bf16": matmul_peak(device, 256 if args.quick else 8192, args.rounds),
        "norm": norm_rate(device, 64 if args.quick else 8192, 4096, args.rounds),
    }
    console = Console(width=200)
    about: dict[str, Any] = {
        "machine": asdict(describe()),
        "torch": torch.__version__,
        "cutlass": has_cutlass(),
        "clocks before": clocks(),
    }
    records: list[Record] = []
    try:
        for name in dict.fromkeys(shapes or [s for group in SHAPES.values() for s in group]):
            n, k = (int(v) for v in name.split("x"))
            shape = Shape(n, k, device, peers)
            for m in rows:
                records += measure_cell(shape, m, args.rounds)
            about["clocks after"] = clocks()
            if args.json:  # after every shape: a run that is killed leaves what it has
                save(args.json, about, rates, records)
    finally:  # so does one that is interrupted
        report(console, records, rates, about)
    wrong = [r for r in records if r.candidate in OURS and r.reason.startswith(WRONG)]
    if wrong:
        raise SystemExit("\n".join(f"{r.candidate} at {r.cell}: {r.reason}" for r in wrong))


def report(
    console: Console, records: list[Record], rates: dict[str, float], about: dict[str, Any]
) -> None:
    console.print(times(records))
    console.print(verdicts(records, rates))
    console.print(
        f"copy {rates['copy'] / 1e12:.3f} TB/s, read {rates['read'] / 1e12:.3f} TB/s, bf16 "
        f"{rates['bf16'] / 1e12:.0f} TFLOP/s, add + RMSNorm + quantise {rates['norm'] / 1e12:.3f} "
        f"TB/s: {rates['norm'] / rates['copy']:.2f} of the copy"
    )
    for reason, names in left_out(records).items():
        console.print(f"left out: {', '.join(sorted(names))}: {reason}", markup=False)
    for key, value in about.items():
        console.print(f"{key}: {value}", markup=False)


def has_cutlass() -> bool:
    """Whether the library of kernels holds CUTLASS's: without them many rows take ours."""
    library = Path(_C.__file__).with_name("libfastinfer_cuda.so")
    return library.exists() and b"cutlass" in library.read_bytes()


def save(path: Path, about: dict[str, Any], rates: dict[str, float], records: list[Record]) -> None:
    everything = {"about": about, "rates": rates, "records": [asdict(r) for r in records]}
    path.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
