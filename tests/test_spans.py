"""take_spans: what a run spends in each layer and up to the next, by layers that sleep."""

import time

import pytest
import torch
from torch import Tensor, nn

from fastinfer.spans import Spans, median_spans, take_spans

_SECONDS = 0.02


class Slow(nn.Module):
    """Sleeps for so many units."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.units * _SECONDS)
        return x


def test_shares_reach_from_one_call_to_the_next() -> None:
    before, first, between, second, after = map(Slow, (2, 3, 4, 1, 5))
    model = nn.Sequential(before, first, between, second, first, after)
    unused = Slow(1)
    taken = take_spans(lambda: model(torch.ones(1)), [[first], [unused], [second]])
    # 2 before and 3 + 4, then 3 + 5 of the second call; 1. Sleep is never shorter than asked.
    whole = 18 * _SECONDS
    assert whole <= taken.seconds
    assert sum(taken.shares) == pytest.approx(1)
    assert taken.own[1] == taken.shares[1] == taken.span(1) == 0
    late = taken.seconds - whole  # a machine that is busy wakes sleepers late
    for place, own, span in ((0, 6, 17), (2, 1, 1)):
        assert own * _SECONDS <= taken.own[place] <= own * _SECONDS + late
        assert span * _SECONDS <= taken.span(place) <= span * _SECONDS + late
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model, unused))


def test_modules_of_one_place_add_up() -> None:
    first, second = Slow(1), Slow(2)
    taken = take_spans(lambda: second(first(torch.ones(1))), [[first, second]])
    assert 3 * _SECONDS <= taken.own[0] <= taken.span(0)
    assert taken.shares == [pytest.approx(1)]


def test_hooks_go_when_a_run_fails_and_when_nothing_is_called() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        take_spans(lambda: layer(torch.ones(1, 4)), [[layer]])
    with pytest.raises(ValueError, match="no layer was called"):
        take_spans(lambda: None, [[layer]])
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_medians_of_shares_add_up_to_1() -> None:
    runs = [Spans(1.0, [0.5, 0.1], [0.9, 0.1]), Spans(9.0, [4.0, 3.0], [0.6, 0.4])]
    taken = median_spans([*runs, Spans(2.0, [1.0, 0.2], [0.7, 0.3])])
    assert (taken.seconds, taken.own) == (2.0, [1.0, 0.2])
    assert taken.shares == [pytest.approx(0.7), pytest.approx(0.3)]
