"""What the tests of the int8 linears share."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastinfer import ops

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


class Weight(NamedTuple):
    packed: Tensor
    scale: Tensor
    bias: Tensor | None


def random_weight(rng: np.random.Generator, n: int, k: int, bias: bool = True) -> Weight:
    w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype=np.int8))
    scale = torch.from_numpy(rng.uniform(0.5, 2, n).astype(np.float32) / 127)
    shift = torch.from_numpy(rng.standard_normal(n, dtype=np.float32))
    return Weight(ops.pack_w8(w), scale, shift if bias else None)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit; NaN is NaN, whatever its payload."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    same = a.contiguous().view(whole) == b.contiguous().view(whole)
    return bool((same | (a.isnan() & b.isnan())).all())


def poisoned(x: Tensor, poison: float) -> Tensor:
    """A copy of ``x`` whose row 1 holds ``poison``."""
    x = x.clone()
    x[1, x.shape[1] - 1] = poison
    return x


def opcheck(op, *arguments):
    results = torch.library.opcheck(op.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4
