"""How often which values occur in tensors that come one by one, and which range of them to keep."""

import math

import torch
from torch import Tensor

BINS = 8192
_CHUNK = 1 << 20  # values converted to float64 at a time
_CANDIDATES = 512  # bins tried for either end of a range, before those in between
_STEPS = 254  # of int8 between the ends of a range: -127 to 127


class Histogram:
    """Counts and sums of values in `BINS` bins of one width, a power of two, that grow with them.

    Bin i holds the values in [(first + i) * width, (first + i + 1) * width). Where a value falls
    outside, the width doubles as often as needed, and neighbouring bins are added: no count is
    ever split, so the counts are exact whatever order the values came in. The least and greatest
    value lie more than BINS / 2 - 2 bins apart (if they differ by more than 2**-30 of the larger
    one), so a bin is at most 1 / 4094 of the range. The sums keep what piles up in one place, such
    as the zeros that a ReLU leaves, where it is.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.sums = torch.zeros(BINS, dtype=torch.float64)
        self._exponent: int | None = None  # width = 2 ** exponent
        self._first = 0

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self._exponent or 0)

    def add(self, values: Tensor, low: float, high: float) -> None:
        """Counts finite `values`, at least one, whose least and greatest are `low` and `high`."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = self._fitting_exponent()
        self._move(exponent, math.floor(math.ldexp(self.low, -exponent)))
        scale = math.ldexp(1.0, -exponent)
        for chunk in values.detach().flatten().split(_CHUNK):
            exact = chunk.double()
            index = (exact * scale).floor_().long().sub_(self._first)
            self.counts += torch.bincount(index, minlength=BINS)
            self.sums += torch.bincount(index, exact, minlength=BINS)

    def _fitting_exponent(self) -> int:
        """The least exponent, not below the present one, at which all values fit into the bins."""
        largest = max(abs(self.low), abs(self.high))
        # Indices stay below 2^30, and the scale of the subnormals finite.
        exponent = max(math.frexp(largest)[1] - 30, -149)
        if self._exponent is not None:
            exponent = max(exponent, self._exponent)
        while self._index(self.high, exponent) - self._index(self.low, exponent) >= BINS:
            exponent += 1
        return exponent

    @staticmethod
    def _index(value: float, exponent: int) -> int:
        return math.floor(math.ldexp(value, -exponent))

    def _move(self, exponent: int, first: int) -> None:
        """Re-bins for another width and another first bin."""
        if self._exponent is not None and (self._exponent, self._first) != (exponent, first):
            old = self.counts.nonzero().flatten()
            new = ((old + self._first) >> (exponent - self._exponent)) - first
            self.counts = torch.zeros_like(self.counts).index_add_(0, new, self.counts[old])
            self.sums = torch.zeros_like(self.sums).index_add_(0, new, self.sums[old])
        self._exponent, self._first = exponent, first

    def percentile_range(self, percentile: float) -> tuple[float, float]:
        """The range that leaves out the fraction 1 - percentile / 100 of the values at either end.

        Linear within a bin, so at most a bin's width from the percentile of the values.
        """
        tail = (1 - percentile / 100) * int(self.counts.sum())
        if tail == 0:
            return self.low, self.high
        low = (self._first + _bins_before(self.counts, tail)) * self.width
        high = (self._first + BINS - _bins_before(self.counts.flip(0), tail)) * self.width
        return min(max(low, self.low), self.high), max(min(high, self.high), self.low)

    def mse_range(self) -> tuple[float, float]:
        """The range that int8 around an offset holds with the least expected squared error.

            error = n_inside * step^2 / 12  +  sum_below (low - v)^2  +  sum_above (v - high)^2

        with step = (high - low) / 254 and every value v at the mean of its bin: rounding noise plus
        clipping, the terms of Banner, Nahshan, Soudry, "Post training 4-bit quantization of
        convolutional networks for rapid-deployment", 2019 (https://arxiv.org/abs/1810.05723), over
        the histogram where that paper has a Gaussian or a Laplace density. Either end is the mean
        of a bin, whose values int8 then holds as they are. The minimum is searched among 512 x 512
        pairs of bins, then among all bins next to the best pair.
        """
        used = self.counts.nonzero().flatten()
        first, last = int(used[0]), int(used[-1])
        if first == last:
            return self.low, self.high
        stride = -(-(last - first) // _CANDIDATES)
        coarse = torch.arange(0, last - first, stride)
        fine = torch.arange(-stride, stride + 1)
        i, j = self._best(first + coarse, last - coarse)
        i, j = self._best((i + fine).clamp(first, last), (j + fine).clamp(first, last))
        means = self._means()
        low = self.low if i == first else float(means[i])
        return low, self.high if j == last else float(means[j])

    def _means(self) -> Tensor:
        """The mean of each bin; of an empty one, its middle."""
        middles = (torch.arange(BINS, dtype=torch.float64) + self._first + 0.5) * self.width
        return torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), middles)

    def _best(self, lows: Tensor, highs: Tensor) -> tuple[int, int]:
        """The pair of bins with the least error."""
        values = self._means() / self.width - self._first  # in bins: 0 to BINS
        powers = torch.stack([self.counts * values**p for p in range(3)])
        upto = powers.cumsum(1)  # upto[p, b] = sum of n v^p over bins 0 to b
        below, above = (upto - powers)[:, lows], (upto[:, -1:] - upto)[:, highs]
        inside = (upto - powers)[0, highs] - upto[0, lows][:, None]
        length = values[highs] - values[lows][:, None]
        error = inside * (length / _STEPS) ** 2 / 12
        error += _squares(below, values[lows])[:, None] + _squares(above, values[highs])
        error[length <= 0] = math.inf
        best = int(error.argmin())
        return int(lows[best // len(highs)]), int(highs[best % len(highs)])


def _bins_before(counts: Tensor, number: float) -> float:
    """How many bins from the first hold `number` values."""
    sums = counts.cumsum(0).double()
    i = int(torch.searchsorted(sums, number))
    return i + 1 - (float(sums[i]) - number) / int(counts[i])


def _squares(sums: Tensor, end: Tensor) -> Tensor:
    """sum n (v - end)^2 of the sums n, n v, n v^2."""
    n, nv, nv2 = sums
    return nv2 - 2 * end * nv + n * end**2
