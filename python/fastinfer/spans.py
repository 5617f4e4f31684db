"""Where a run of a model spends its time, layer by layer, in place."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from torch import nn


@dataclass(frozen=True)
class Spans:
    """One run of `seconds`. By place: `own`, seconds inside its layers; `shares`, of the run, from
    the calls of its layers to the call of whatever layer comes next, so that they add up to 1."""

    seconds: float
    own: list[float]
    shares: list[float]

    def span(self, place: int) -> float:
        """Seconds of its share."""
        return self.seconds * self.shares[place]


def take_spans(run: Callable[[], None], places: Sequence[Sequence[nn.Module]]) -> Spans:
    """Calls run() once, with hooks on the modules of each of `places`.

    What comes before the first layer goes to that layer's share. A module that is called several
    times takes the sum. Raises ValueError if none is called.
    """
    calls: list[tuple[int, float]] = []  # place and time
    own = [0.0] * len(places)

    def enter(place: int) -> None:
        calls.append((place, perf_counter()))

    def leave(place: int) -> None:
        own[place] += perf_counter() - calls[-1][1]

    with ExitStack() as stack:
        for place, modules in enumerate(places):
            for module in modules:
                before = module.register_forward_pre_hook(lambda *_, place=place: enter(place))
                after = module.register_forward_hook(lambda *_, place=place: leave(place))
                stack.callback(before.remove)
                stack.callback(after.remove)
        start = perf_counter()
        run()
        end = perf_counter()
    if not calls:
        raise ValueError("no layer was called")
    shares = [0.0] * len(places)
    times = [start, *(time for _, time in calls[1:]), end]
    for (place, _), begin, next_begin in zip(calls, times, times[1:], strict=False):
        shares[place] += (next_begin - begin) / (end - start)
    return Spans(end - start, own, shares)


def median_spans(runs: Sequence[Spans]) -> Spans:
    """The medians over several runs; shares that add up to 1 again.

    A share is taken within its run, so that a run that is slow as a whole distorts none.
    """
    own = [median(values) for values in zip(*(run.own for run in runs), strict=True)]
    shares = [median(values) for values in zip(*(run.shares for run in runs), strict=True)]
    seconds = median(run.seconds for run in runs)
    return Spans(seconds, own, [share / sum(shares) for share in shares])
