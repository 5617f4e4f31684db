"""The measurements behind the "Numbers" table, a function a section; each yields Records.

A candidate's answer is compared with float64 before it is timed. Inputs are fresh Gaussian
numbers: zeros would let a clock run faster and a multiply finish early.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import roofline
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.nn import QuantizedLinear
from machine import set_threads
from peers import Peer, make_linear
from records import OURS, Record
from timing import SETTLE, Candidate, Timing, interleave, settle

SHAPES = (
    (384, 384),
    (384, 1536),
    (1536, 384),
    (768, 768),
    (768, 3072),
    (3072, 768),
    (4096, 4096),
    (4096, 11008),
    (11008, 4096),
)  # (K, N)
ROWS = (1, 8, 32, 128, 512, 2048)
COLD_BYTES = 600 << 20  # of int8 weights that the rotation goes through, beyond any cache ...
COLD_COPIES = 32  # ... as far as this many layers go: small ones leave L2, not L3
COLD_PEERS = (
    "fastinfer",
    "torch_ao_onednn",
    "torch_ao_x86",
    "onnxruntime",
    "openvino_static",
    "openvino_dynamic",
)
OUTLIERS = 0.01  # of the channels, times 30

# The largest relative error (Frobenius, against float64) that a right answer can have here.
# int8 with a scale a tensor reaches 0.03 on these inputs, 0.16 with outlier channels.
ERROR_LIMIT = {"fp32": 1e-5, "bf16": 1e-2, "int8": 5e-2, "ours": 1.5e-2}


@dataclass(frozen=True)
class Options:
    """What of the full run to do."""

    shapes: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    threads: tuple[int, ...]
    peers: tuple[Peer, ...]
    seconds: float  # of turns a cell, after the least number of samples
    report: Callable[[str], None]


def random_layer(k: int, n: int) -> tuple[Tensor, Tensor]:
    """Weight [N, K] whose outputs have unit variance for unit inputs, and bias [N]."""
    return torch.randn(n, k) * k**-0.5, torch.randn(n) * 0.1


def relative_error(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, rows: int = 8) -> float:
    """||y - y64|| / ||y64|| over the first and the last `rows` rows; y64 in float64."""
    pick = sorted({*range(min(rows, len(x))), *range(max(0, len(x) - rows), len(x))})
    want = x[pick].double() @ weight.double().T + bias.double()
    return float((torch.as_tensor(y)[pick].double() - want).norm() / want.norm())


def our_layer(k: int, n: int) -> QuantizedLinear:
    return QuantizedLinear.from_linear(make_linear(*random_layer(k, n)))


def as_record(section: str, candidate: str, timing: Timing, **fields: object) -> Record:
    if candidate == OURS:
        fields["kind"] = "ours"
    return Record(
        section=section,
        candidate=candidate,
        median_us=timing.median * 1e6,
        min_us=timing.minimum * 1e6,
        samples=timing.samples,
        **fields,  # type: ignore[arg-type]
    )


def _linear(
    section: str, options: Options, copies_of: Callable[[int, int], int]
) -> Iterator[Record]:
    """Every shape x threads x rows of the options, all peers interleaved."""
    for k, n in options.shapes:
        weight, bias = random_layer(k, n)
        sample = torch.randn(256, k)
        opens = {peer.name: peer.prepare(weight, bias, sample) for peer in options.peers}
        copies = copies_of(k, n)
        for threads, m in itertools.product(options.threads, options.rows):
            set_threads(threads)
            x = torch.randn(m, k)
            candidates, errors, left_out = {}, {}, []
            for peer in options.peers:
                layers = [opens[peer.name](x, threads, copies == 1) for _ in range(copies)]
                if copies > 1 and peer.gather is not None:
                    peer.gather(layers)
                error = relative_error(layers[-1](), x, weight, bias)
                if not error <= ERROR_LIMIT[peer.kind]:
                    left_out.append(f"{peer.name} wrong by {error:.3g}")
                    if peer.name == OURS:
                        raise SystemExit(f"wrong answer at M={m} K={k} N={n}: {left_out[-1]}")
                    continue
                errors[peer.name] = error
                run = layers[0] if copies == 1 else _rotate(layers)
                candidates[peer.name] = Candidate(run, peer.pool)
            timings = interleave(candidates, seconds=options.seconds, settle=settle(threads))
            cell = [
                as_record(
                    section,
                    peer.name,
                    timings[peer.name],
                    kind=peer.kind,
                    threads=threads,
                    m=m,
                    k=k,
                    n=n,
                    weights="hot" if section == "hot" else "rotated",
                    copies=copies,
                    relative_error=errors[peer.name],
                    value=2.0 * m * k * n / timings[peer.name].median,
                )
                for peer in options.peers
                if peer.name in timings
            ]
            options.report(_line(cell) + "".join(f"; {text}" for text in left_out))
            yield from cell


def _rotate(layers: Sequence[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    following = itertools.cycle(layers)
    return lambda: next(following)()


def _line(cell: list[Record]) -> str:
    """One line a cell: ours beside the best peer and the best int8 peer."""
    ours = next((r for r in cell if r.candidate == OURS), None)
    rivals = sorted((r for r in cell if r.candidate != OURS), key=lambda r: r.median_us)
    head = f"{cell[0].section:8} {cell[0].where:32}"
    if cell[0].copies > 1:
        head += f" x{cell[0].copies}"
    if ours:
        head += f" {ours.median_us:10.1f} us {ours.value / 1e12:6.3f} TOP/s"
    best = rivals[:1] + [r for r in rivals if r.kind == "int8"][:1]
    for rival in dict.fromkeys(best):
        ratio = f" {rival.median_us / ours.median_us:5.2f}x" if ours else ""
        head += f"  | {rival.candidate} {rival.median_us:.1f} us{ratio}"
    return head


def hot(options: Options) -> Iterator[Record]:
    """The same layer every call."""
    return _linear("hot", options, lambda k, n: 1)


def cold(options: Options) -> Iterator[Record]:
    """Few rows, rotated through copies of the layer."""
    few = replace(
        options,
        rows=tuple(m for m in options.rows if m <= 32),
        peers=tuple(peer for peer in options.peers if peer.name in COLD_PEERS),
    )
    return _linear("cold", few, lambda k, n: max(2, min(COLD_COPIES, COLD_BYTES // (k * n))))


def scaling(options: Options) -> Iterator[Record]:
    """fastinfer on one and on two threads, in turns."""
    if 2 not in options.threads:
        options.report("scaling  left out: it needs --threads with 2 in it")
        return
    for k, n in options.shapes:
        layer = our_layer(k, n)
        for m in (m for m in options.rows if m >= 128):
            x = torch.randn(m, k)
            candidates = {
                str(t): Candidate(partial(layer, x), f"openmp {t}", partial(set_threads, t))
                for t in (1, 2)
            }
            timings = interleave(
                candidates, seconds=options.seconds, least_samples=15, settle=SETTLE
            )
            options.report(
                f"scaling  M={m} K={k} N={n}: {timings['1'].median / timings['2'].median:.2f}"
            )
            for t in (1, 2):
                yield as_record("scaling", OURS, timings[str(t)], threads=t, m=m, k=k, n=n)


def peak(options: Options) -> Iterator[Record]:
    """One core at M=2048, K=N=4096 in turns with the loop that does nothing but multiply."""
    found = roofline.loop("amx_int8", seconds=20e-3)
    if found is None:
        options.report("peak     no AMX here")
        return
    loop, operations = found
    m, k, n = 2048, 4096, 4096
    set_threads(1)
    layer, x = our_layer(k, n), torch.randn(m, k)
    timings = interleave(
        {OURS: Candidate(partial(layer, x)), "amx_int8": Candidate(loop)},
        seconds=options.seconds * 2,
        least_samples=15,
        hopeless=float("inf"),
    )
    ours = 2.0 * m * k * n / timings[OURS].median
    limit = operations / timings["amx_int8"].median
    options.report(f"peak     {ours / 1e12:.2f} of {limit / 1e12:.2f} TOP/s on one core")
    where = {"threads": 1, "m": m, "k": k, "n": n}
    yield as_record("peak", OURS, timings[OURS], **where, value=ours)
    loop_timing = timings["amx_int8"]
    yield as_record("peak", "amx_int8", loop_timing, **where, kind="machine", value=limit)


def bandwidth(options: Options, total: int = 1 << 30) -> Iterator[Record]:
    """M = 1 over `total` bytes of packed weights, in turns with streaming reads of as many."""
    data = roofline.random_bytes(total)
    for k, n in options.shapes:
        state, x = our_layer(k, n).state_dict(), torch.randn(1, k)
        copies = -(-total // (k * n))
        layers = [QuantizedLinear(k, n) for _ in range(copies)]
        for layer in layers:
            layer.load_state_dict(state)
        to_huge_pages_(layers)  # where those of a model are
        runs = [partial(layer, x) for layer in layers]
        for threads in options.threads:
            set_threads(threads)
            read, chunk = roofline.reader(data, threads)
            timings = interleave(
                {OURS: Candidate(_rotate(runs), "openmp"), "read": Candidate(read, "read")},
                seconds=options.seconds,
                least_samples=15,
                sample_seconds=8e-3,  # about as long as one read
                hopeless=float("inf"),
                settle=settle(threads),
            )
            ours, limit = k * n / timings[OURS].median, chunk / timings["read"].median
            options.report(
                f"bandwidth K={k} N={n}, {threads} thr.: {ours / 1e9:.1f} of {limit / 1e9:.1f} GB/s"
            )
            where = {"threads": threads, "m": 1, "k": k, "n": n, "weights": "rotated"}
            yield as_record("bandwidth", OURS, timings[OURS], **where, copies=copies, value=ours)
            yield as_record(
                "bandwidth", "read", timings["read"], **where, kind="machine", value=limit
            )


def overhead(options: Options) -> Iterator[Record]:
    """The cost of a call: M=1, K=N=64."""
    small = replace(options, shapes=((64, 64),), rows=(1,), seconds=max(options.seconds, 1.0))
    return _linear("overhead", small, lambda k, n: 1)


def error(options: Options, m: int = 256, k: int = 4096, n: int = 4096) -> Iterator[Record]:
    """Relative error of every peer: Gaussian input, and 1 % of the channels times 30."""
    threads = max(options.threads)
    set_threads(threads)
    weight, bias = random_layer(k, n)
    gaussian, outliers = torch.randn(m, k), torch.randn(m, k)
    outliers[:, torch.randperm(k)[: round(k * OUTLIERS)]] *= 30
    for note, x in (("gaussian", gaussian), ("outliers", outliers)):
        line = []
        for peer in options.peers:
            y = peer.prepare(weight, bias, x)(x, threads)()
            value = relative_error(y, x, weight, bias, rows=m)
            line.append(f"{peer.name} {value:.4g}")
            threads = max(options.threads)
            yield Record(
                "error", peer.name, peer.kind, threads, m=m, k=k, n=n, value=value, note=note
            )
        options.report(f"error    {note}: " + ", ".join(line))


def steps(options: Options, last: int = 64) -> Iterator[Record]:
    """One layer at M = 1 .. last + 1, in turns."""
    for (k, n), threads in itertools.product(options.shapes, options.threads):
        set_threads(threads)
        layer, x = our_layer(k, n), torch.randn(last + 1, k)
        timings = interleave(
            {str(m): Candidate(partial(layer, x[:m])) for m in range(1, last + 2)},
            seconds=options.seconds * 3,
            least_samples=21,
            hopeless=float("inf"),
        )
        times = {m: timings[str(m)].median for m in range(1, last + 2)}
        for m in times:
            yield as_record("steps", OURS, timings[str(m)], threads=threads, m=m, k=k, n=n)
        worst = max(range(1, last + 1), key=lambda m: times[m + 1] / times[m])
        options.report(
            f"steps    K={k} N={n}, {threads} thr.: at most {times[worst + 1] / times[worst]:.3f}, "
            f"M={worst} -> {worst + 1}"
        )
