"""One option for each of many items, the cheapest that keep within a budget: solved exactly."""

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

_libc = ctypes.CDLL(None)


def check_scipy() -> None:
    """Raises ImportError, naming the extra, without scipy."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError('search needs scipy: pip install "fastinfer[search]"') from error


def cheapest(
    costs: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """The place of the option taken of each item, so that the sum of their costs is least and that
    of their weights at most `budget`.

    costs, weights: a row an item, a number an option; weights at least 0 or infinite, the first of
    each item 0, so that there always is an answer. budget: at least 0, or infinite.

    A multiple-choice knapsack (Kellerer, Pferschy and Pisinger, "Knapsack problems", 2004, chapter
    11) as an integer programme: x[i, j] in {0, 1} says that item i takes option j,

        minimise sum cost[i, j] x[i, j]   with   sum_j x[i, j] = 1 for each i
                                          and    sum weight[i, j] x[i, j] <= budget

    by the branch and bound of HiGHS. Its tolerances are absolute, so costs are scaled to a largest
    of 1000 and weights to a budget of 1; the gap between the answer and the bound has to be 0.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(row) for row in costs]
    cost = np.array([c for row in costs for c in row])
    weight = np.array([w for row in weights for w in row])
    if not len(cost):
        return []
    allowed = (weight <= budget) & (weight < math.inf)
    ends = np.cumsum(sizes)
    # [items, options of all]: 1 where the option is the item's
    own = csr_array((np.ones_like(cost), np.arange(len(cost)), [0, *ends]))
    share = np.where(allowed, weight, 0) / (budget if 0 < budget < math.inf else 1)
    constraints = [LinearConstraint(own, 1, 1)]
    if budget < math.inf:
        constraints.append(LinearConstraint(share[None, :], -math.inf, 1))
    with _stdout_to_stderr():
        result = milp(
            1e3 * cost / max(np.abs(cost).max(), 1e-300),
            integrality=np.ones_like(cost),
            bounds=Bounds(0, allowed.astype(float)),
            constraints=constraints,
            options={"mip_rel_gap": 0},
        )
    if not result.success:
        raise RuntimeError(f"the integer programme was not solved: {result.message}")
    return [int(np.argmax(taken)) for taken in np.split(result.x, ends[:-1])]


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Some versions of HiGHS print lines of debugging to C's stdout, whatever they are told; what a
    program prints there itself must not be mixed with them."""
    _libc.fflush(None)
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        _libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
