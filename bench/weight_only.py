"""Weight-only int8 layers beside float ones, torch's weight-only product and our int8 x int8.

python bench/weight_only.py                                  # 3 shapes, 1 and 2 threads, 4 minutes
python bench/weight_only.py --shapes 768x3072 --rows 1,128 --threads 1 --csv weight_only.csv

Weights and inputs are fresh Gaussian numbers, layers have no bias, inputs and outputs are float32
or bfloat16 as the name says. Every answer is compared with float64 before it is timed. With a few
rows, as where a language model writes a token at a time, every candidate rotates through copies of
its weights that no cache holds together; with more they are hot. In the same turns: streaming reads
of memory, or the multiply-adds of one core in float32 and in pairs of bfloat16. ``value`` is
operations a second, of the reads bytes a second.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import machine
import roofline
from fastinfer.nn import QuantizedLinear, WeightOnlyLinear
from peers import make_linear
from records import Record, write_csv
from sections import as_record, relative_error
from timing import Candidate, interleave

FEW = 4  # rows up to which the weights are rotated
ROTATED_BYTES = 200 << 20  # of each candidate's copies together, at least
READS = "memory reads"
PEAKS = {"peak fp32": ("avx512_fma", "avx2_fma"), "peak bf16": ("avx512_bf16",)}  # loops, of a core
MOST_ERROR = 0.02  # of Gaussian operands: int8 x int8 0.012, weights alone 0.009, bfloat16 0.004

Layer = Callable[[Tensor], Tensor]


def int8pack(weight: Tensor) -> Layer:
    """torch._weight_int8pack_mm, which takes bfloat16 and plain int8 rows."""
    scale = weight.abs().amax(1) / 127
    q, scale = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x, q, scale)


def torch_linear(dtype: torch.dtype) -> Callable[[Tensor], Layer]:
    def make(weight: Tensor) -> Layer:
        held = weight.to(dtype, copy=True)
        return lambda x: F.linear(x, held)

    return make


def ours(kind: type[QuantizedLinear]) -> Callable[[Tensor], Layer]:
    def make(weight: Tensor) -> Layer:
        linear = make_linear(weight, torch.zeros(len(weight)))
        linear.bias = None
        return kind.from_linear(linear)

    return make


# name: (kind, dtype of x, bytes a weight, from weight [N, K])
LAYERS: dict[str, tuple[str, torch.dtype, int, Callable[[Tensor], Layer]]] = {
    "w8a16 bf16": ("ours", torch.bfloat16, 1, ours(WeightOnlyLinear)),
    "w8a16 fp32": ("ours", torch.float32, 1, ours(WeightOnlyLinear)),
    "w8a8 bf16": ("ours", torch.bfloat16, 1, ours(QuantizedLinear)),
    "torch bf16": ("bf16", torch.bfloat16, 2, torch_linear(torch.bfloat16)),
    "torch fp32": ("fp32", torch.float32, 4, torch_linear(torch.float32)),
    "torch int8pack bf16": ("int8", torch.bfloat16, 1, int8pack),
}


def rotating(layers: list[Layer], x: Tensor) -> Callable[[], Tensor]:
    turn = itertools.cycle(layers)
    return lambda: next(turn)(x)


def measure(shape: tuple[int, int], m: int, threads: int, seconds: float) -> Iterator[Record]:
    machine.set_threads(threads)
    k, n = shape
    weight, x = torch.randn(n, k) * k**-0.5, torch.randn(m, k)
    candidates, errors, copies = {}, {}, {}
    for name, (_, dtype, size, make) in LAYERS.items():
        copies[name] = -(-ROTATED_BYTES // (n * k * size)) + 1 if m <= FEW else 1
        layers = [make(weight) for _ in range(copies[name])]
        given = x.to(dtype)
        errors[name] = relative_error(layers[0](given).float(), x, weight, torch.zeros(n))
        if errors[name] > MOST_ERROR:
            raise SystemExit(f"wrong answer: {name}, {m} x {k} x {n}: off by {errors[name]:.3f}")
        candidates[name] = Candidate(rotating(layers, given))
    work = dict.fromkeys(candidates, 2.0 * m * k * n)
    if m <= FEW:
        memory = roofline.random_bytes(1 << 29)
        run, work[READS] = roofline.reader(memory, threads)
        candidates[READS] = Candidate(run)
    for name, loops in PEAKS.items() if m > FEW else ():
        loop = next(filter(None, map(roofline.loop, loops)), None)
        if loop is not None:
            candidates[name], work[name] = Candidate(loop[0]), loop[1]
    for name, timing in interleave(candidates, seconds=seconds, hopeless=30.0).items():
        yield as_record(
            *("weight only", name, timing),
            **{"kind": LAYERS[name][0] if name in LAYERS else "machine", "threads": threads},
            **{"m": m, "k": k, "n": n, "weights": "rotated" if m <= FEW else "hot"},
            **{"copies": copies.get(name, 1), "relative_error": errors.get(name, 0.0)},
            value=work[name] / timing.median,
        )


def sentence(found: list[Record]) -> str:
    """The times of a cell and what part of the machine's best our layers reach."""
    by_name = {record.candidate: record for record in found}
    times = ", ".join(f"{name} {by_name[name].median_us:.0f}" for name in LAYERS)
    shares = []
    for name, peak in (("w8a16 bf16", "peak bf16"), ("w8a16 fp32", "peak fp32")):
        layer = by_name[name]
        if READS in by_name:
            rate = layer.k * layer.n / layer.median_us * 1e6
            shares.append(f"{name} {rate / by_name[READS].value:.2f} of the bandwidth")
        elif peak in by_name:
            best = by_name[peak].value * layer.threads
            shares.append(f"{name} {layer.value / best:.2f} of the peak")
    return f"{found[0].where}, us: {times}; {', '.join(shares)}"


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="768x3072,4096x4096,8192x8192", help="KxN, several")
    parser.add_argument("--rows", default="1,4,16,128")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=4.0, help="of turns a cell")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    here = machine.describe()
    console.print(f"{here.cpu}, {here.cores} cores, {here.isa} in use; {here.versions}")
    torch.manual_seed(time.time_ns() % (1 << 63))  # fresh numbers every run
    records: list[Record] = []
    shapes = [tuple(int(size) for size in text.split("x")) for text in given.shapes.split(",")]
    for (k, n), m, threads in itertools.product(
        shapes, map(int, given.rows.split(",")), map(int, given.threads.split(","))
    ):
        found = list(measure((k, n), m, threads, given.seconds))
        records += found
        console.print(sentence(found), soft_wrap=True)
    if given.csv is not None:
        write_csv(given.csv, records, here)
    return records


if __name__ == "__main__":
    main()
