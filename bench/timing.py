"""Interleaved medians: candidates take turns within one run, so that a slow second of a shared
machine falls on all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

Run = Callable[[], Any]
SETTLE = 20e-3  # seconds for the threads of another pool to stop spinning


def settle(threads: int) -> float:
    """The pause that `interleave` needs between two pools of so many threads each."""
    return SETTLE if threads > 1 else 0.0


@dataclass(frozen=True)
class Candidate:
    """What is timed, the thread pool it uses ("" for none), and what its turn starts with."""

    run: Run
    pool: str = ""
    before: Run | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, minimum and quartiles over samples of `calls` calls each."""

    median: float
    minimum: float
    samples: int
    calls: int
    quartiles: tuple[float, float]


def _sample(run: Run, calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def _warm_up(run: Run, least: float, usual: float) -> None:
    """Wakes the pool and brings code and data back into the caches: calls for `least` seconds, and
    on until one takes no more than twice its `usual` seconds, half a second at most."""
    begin = perf_counter()
    while True:
        seconds, spent = _sample(run, 1), perf_counter() - begin
        if spent >= least and (seconds <= 2 * usual or spent > 0.5):
            return


def calls_per_sample(run: Run, least: float) -> int:
    """How many calls take at least `least` seconds together."""
    calls = 1
    while True:
        seconds = _sample(run, calls) * calls
        if seconds >= least:
            return calls
        calls = max(calls * 2, int(calls * least / max(seconds, 1e-9) * 1.1))


def interleave(
    candidates: Mapping[str, Candidate],
    *,
    seconds: float = 1.0,
    least_samples: int = 7,
    sample_seconds: float = 200e-6,
    hopeless: float = 3.0,
    trial: int = 3,
    settle: float = 0.0,
) -> dict[str, Timing]:
    """Times all candidates in turns.

    Args:
        candidates: by name; each is called once before its first sample.
        seconds: how long to go on after `least_samples` rounds.
        least_samples: samples of every candidate that has a chance.
        sample_seconds: the least duration of a sample; short calls are repeated to fill it.
        hopeless: a candidate whose best sample is slower than that of the fastest by this factor
            leaves after `trial` rounds; the first candidate stays.
        settle: pause whenever the thread pool changes, then run untimed for as long. The threads of
            OpenMP and of ONNX Runtime spin for some milliseconds after their last work, on the
            cores that the next candidate needs; a thread that wakes up may find itself on the core
            of the one that waits for it, until the scheduler's next tick moves it.

    Returns:
        One Timing a candidate, in the order given.
    """
    calls, short, usual = {}, set(), {}
    for name, candidate in candidates.items():
        if candidate.before:
            candidate.before()
        candidate.run()
        calls[name] = calls_per_sample(candidate.run, sample_seconds)
        usual[name] = _sample(candidate.run, 1)
        if usual[name] < 20e-3:
            usual[name] = min(_sample(candidate.run, 1) for _ in range(5))
            short.add(name)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    active, pool, begin, rounds = list(candidates), "", perf_counter(), 0
    while rounds < least_samples or perf_counter() - begin < seconds:
        for name in active:
            candidate = candidates[name]
            wake = settle if candidate.pool != pool else 0.0
            sleep(wake)
            pool = candidate.pool
            if candidate.before:
                candidate.before()
            if name in short:
                _warm_up(candidate.run, wake, usual[name])
            samples[name].append(_sample(candidate.run, calls[name]))
            usual[name] = min(usual[name], samples[name][-1])
        rounds += 1
        if rounds == trial:
            limit = hopeless * min(min(taken) for taken in samples.values())
            active = active[:1] + [name for name in active[1:] if min(samples[name]) <= limit]
    return {name: _timing(taken, calls[name]) for name, taken in samples.items()}


def _timing(taken: list[float], calls: int) -> Timing:
    first, third = np.quantile(taken, (0.25, 0.75)).tolist()
    return Timing(median(taken), min(taken), len(taken), calls, (first, third))
