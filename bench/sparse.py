"""Sparse int8 weights beside our dense ones, and tiles beside torch's BSR and the dense peers.

python bench/sparse.py                                  # 3 shapes, 1 and 2 threads, 5 minutes
python bench/sparse.py --shapes 768x3072 --rows 1,128 --threads 1 --csv sparse.csv

Weights: Gaussian, then 2 of 4 zero ("2:4"), 70 % zero anywhere ("bitmask"), or 90 % of the tiles
of 16 x 64 zero ("tiles"), chosen at random; "dense" is all of them, in int8. Every layer quantises
its input. With one row each weight is rotated through copies enough to leave the caches, with more
it is hot. Before it is timed, a layer is compared bit for bit with dense int8 on the same zeros.
Peers, from 128 rows on: torch's linear on a BSR weight in float32, and dense peers of linear.py.
"""

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import machine
from fastinfer import BlockSparse, Sparse24, Unstructured
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.nn import QuantizedLinear
from fastinfer.sparsify import layout_for
from peers import Peer, available, make_linear
from records import Record, write_csv
from sections import as_record, random_layer
from timing import Candidate, interleave, settle
from verdict import Row, cells, verdict_table

STRUCTURES = {
    "2:4": Sparse24(),
    "bitmask": Unstructured(0.3),
    "tiles": BlockSparse((16, 64), 0.9),
}
# Of each weight, all copies together: several times an L3, which keeps some of what passes it.
ROTATED_BYTES = 256 << 20
PEERS = ["torch_bf16", "torch_ao_onednn", "onnxruntime", "openvino_static"]
FEW, MANY = 1, 128  # rows of the requirements


def zeroed(weight: Tensor, name: str) -> Tensor:
    return weight * STRUCTURES[name].mask(torch.rand_like(weight))


def layer(weight: Tensor, bias: Tensor, name: str) -> QuantizedLinear:
    layout = layout_for(STRUCTURES[name], weight.shape[1]) if name in STRUCTURES else "dense"
    return QuantizedLinear.from_linear(make_linear(weight, bias), layout)


def check(weight: Tensor, bias: Tensor, name: str, x: Tensor) -> None:
    """Raises SystemExit unless the layer has the bits of the dense one on the same zeros."""
    if not torch.equal(layer(weight, bias, name)(x), layer(weight, bias, "dense")(x)):
        raise SystemExit(f"wrong answer: {name}, {list(x.shape)} x {list(weight.shape)}")


def rotating(layers: list[QuantizedLinear], x: Tensor) -> Callable[[], Tensor]:
    turn = itertools.cycle(layers)
    return lambda: next(turn)(x)


def torch_bsr(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    with warnings.catch_warnings():  # it says that it is in beta
        warnings.simplefilter("ignore")
        tiles = weight.to_sparse_bsr((16, 16))  # MKL wants square blocks: the same numbers
    got, want = F.linear(x, tiles, bias), F.linear(x, weight, bias)
    if not torch.allclose(got, want, rtol=1e-4, atol=1e-4):
        raise SystemExit("wrong answer: torch's BSR linear")
    return lambda: F.linear(x, tiles, bias)


def measure(
    shape: tuple[int, int],
    m: int,
    threads: int,
    seconds: float,
    rivals: Iterable[Peer],
    rotated_bytes: int = ROTATED_BYTES,
) -> Iterator[Record]:
    machine.set_threads(threads)
    k, n = shape
    weight, bias = random_layer(k, n)
    x = torch.randn(m, k)
    weights = {"dense": weight} | {name: zeroed(weight, name) for name in STRUCTURES}
    for name in STRUCTURES:
        check(weights[name], bias, name, x)
    candidates, copies = {}, {}
    for name, w in weights.items():
        first = layer(w, bias, name)
        copies[name] = 1 if m >= MANY else -(-rotated_bytes // first.weight_packed.nbytes)
        layers = [copy.deepcopy(first) for _ in range(copies[name])]
        to_huge_pages_(layers)  # where those of a model are
        candidates[name] = Candidate(rotating(layers, x))
    kinds = dict.fromkeys(candidates, "ours")
    if m >= MANY:
        candidates["torch BSR"] = Candidate(torch_bsr(weights["tiles"], bias, x))
        kinds["torch BSR"] = "fp32"
        for peer in rivals:
            open_layer = peer.prepare(weight, bias, torch.randn(256, k))
            candidates[peer.name] = Candidate(open_layer(x, threads), peer.pool)
            kinds[peer.name] = peer.kind
    timings = interleave(candidates, seconds=seconds, settle=settle(threads), hopeless=30.0)
    for name, timing in timings.items():
        yield as_record(
            *("sparse", name, timing),
            **{"kind": kinds[name], "threads": threads, "m": m, "k": k, "n": n},
            **{"weights": "hot" if m >= MANY else "rotated", "copies": copies.get(name, 1)},
            value=2.0 * m * k * n / timing.median,
        )


def numbers(records: list[Record]) -> list[Row]:
    """The requirements, from the records alone."""

    def against(name: str, rival: Callable[[Record], bool], few: bool) -> tuple:
        figures = []
        for cell in cells(records, "sparse"):
            ours = [r for r in cell if r.candidate == name]
            others = [r for r in cell if rival(r)]
            if ours and others and (ours[0].m == FEW if few else ours[0].m >= MANY):
                best = min(others, key=lambda r: r.median_us)
                where = f"{ours[0].where} ({best.candidate})"
                figures.append((best.median_us / ours[0].median_us, where))
        return tuple(figures)

    def dense(record: Record) -> bool:
        return record.candidate == "dense"

    def bsr(record: Record) -> bool:
        return record.candidate == "torch BSR"

    def peer(record: Record) -> bool:
        return record.kind != "ours" and not bsr(record)

    return [
        Row("2:4, M=1, out of cache, vs dense", 1.3, 1.5, True, against("2:4", dense, True)),
        Row("2:4, M >= 128, vs dense", 0.95, 1.05, True, against("2:4", dense, False)),
        Row("tiles, M >= 128, vs dense", 4, 7, True, against("tiles", dense, False)),
        Row("tiles, M >= 128, vs torch BSR", 4, 4, True, against("tiles", bsr, False)),
        Row("tiles, M >= 128, vs the best dense peer", 4, 4, True, against("tiles", peer, False)),
        Row("bitmask, M=1, vs dense", 1.8, 2.2, True, against("bitmask", dense, True)),
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="768x3072,3072x768,4096x4096", help="KxN, several")
    parser.add_argument("--rows", default="1,128,512")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2.0, help="of turns a cell")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    console = Console(highlight=False)
    here = machine.describe()
    console.print(f"{here.cpu}, {here.cores} cores, {here.isa} in use; {here.versions}")
    rivals, missing = available(PEERS)
    for text in missing:
        console.print(f"left out: {text}")
    records: list[Record] = []
    shapes = [tuple(int(size) for size in text.split("x")) for text in given.shapes.split(",")]
    for (k, n), m, threads in itertools.product(
        shapes, map(int, given.rows.split(",")), map(int, given.threads.split(","))
    ):
        found = list(measure((k, n), m, threads, given.seconds, rivals))
        records += found
        slow = next(record.median_us for record in found if record.candidate == "dense")
        times = [f"{r.candidate} {r.median_us:.0f} ({slow / r.median_us:.2f}x)" for r in found]
        console.print(f"{found[0].where}, us: {', '.join(times)}")
    console.print(verdict_table(numbers(records)))
    if given.csv is not None:
        write_csv(given.csv, records, here)


if __name__ == "__main__":
    main()
