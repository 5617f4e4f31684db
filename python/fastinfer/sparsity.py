"""Which weights of a linear layer may be zero together, one small frozen dataclass a structure."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sparse24:
    """Of every 4 weights side by side along K, the 2 of the largest scores stay.

    A group is 4 in_features of one output: columns 4g to 4g + 3 of a weight [N, K]. If K is not a
    multiple of 4, the last group counts as if zeros followed it, so 1 or 2 columns stay whole.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021
    (https://arxiv.org/abs/2104.08378).
    """

    label: ClassVar[str] = "2:4"  # in a table

    def mask(self, scores: Tensor) -> Tensor:
        """scores: [N, K], any float dtype. bool [N, K], True where a weight stays."""
        groups = _groups_of_4(scores, float("-inf"))
        return largest(groups, 2).reshape(len(scores), -1)[:, : scores.shape[1]].contiguous()

    def check(self, mask: Tensor, name: str) -> None:
        """Raises ValueError, naming layer `name`, if a group keeps more than 2 weights."""
        most = int(_groups_of_4(mask, False).sum(-1).amax())
        if most > 2:
            raise ValueError(f"{name}: its mask keeps {most} of 4 weights in a group, want 2")

    def cover(self, used: Tensor) -> Tensor:
        """The least mask of this form, bool [N, K], that keeps all of `used`, bool [N, K]."""
        return used


@dataclass(frozen=True)
class BlockSparse:
    """Tiles of the weight go whole, those of the smallest scores.

    block: (N, K) size of a tile: outputs by in_features. Tiles that the edge of the weight cuts
    off count like whole ones, for so they do in the time of a kernel. sparsity: the share of the
    tiles that go, from 0 to below 1, rounded to a whole number of tiles. A tile's score is the sum
    of its weights' scores.

    Raises TypeError or ValueError on a block that is not two positive integers, or a sparsity out
    of its range.
    """

    block: tuple[int, int] = (16, 64)
    sparsity: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.block, tuple) or [type(size) for size in self.block] != [int, int]:
            raise TypeError(f"BlockSparse: block is {self.block!r}, want two integers (N, K)")
        if min(self.block) < 1:
            raise ValueError(f"BlockSparse: block is {self.block}, want both at least 1")
        check_fraction("BlockSparse: sparsity", self.sparsity)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"BlockSparse: sparsity is {self.sparsity}, want 0 to below 1")

    @property
    def label(self) -> str:
        return f"blocks of {self.block[0]} x {self.block[1]}"

    @property
    def kept(self) -> float:
        """The share of the tiles that stay."""
        return 1 - self.sparsity

    def units(self, scores: Tensor) -> Tensor:
        """The score of each tile: [ceil(N / block N), ceil(K / block K)]."""
        return self._tiles(scores).sum((1, 3))

    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """A mask of `shape` [N, K] from one of the tiles."""
        rows, columns = self.block
        whole = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return whole[: shape[0], : shape[1]].contiguous()

    def mask(self, scores: Tensor) -> Tensor:
        """scores: [N, K], any float dtype. bool [N, K], True where a weight stays."""
        units = self.units(scores)
        kept = largest(units.flatten(), round(self.kept * units.numel()))
        return self.spread(kept.view_as(units), scores.shape)

    def check(self, mask: Tensor, name: str) -> None:
        """Raises ValueError, naming layer `name`, if a tile stays in part."""
        if not torch.equal(mask, self.cover(mask)):
            raise ValueError(
                f"{name}: its mask keeps a part of one of the {self.label}, want all or nothing"
            )

    def cover(self, used: Tensor) -> Tensor:
        """The least mask of this form, bool [N, K], that keeps all of `used`, bool [N, K]."""
        return self.spread(self._tiles(used).any(3).any(1), used.shape)

    def _tiles(self, x: Tensor) -> Tensor:
        (n, k), (rows, columns) = x.shape, self.block
        padded = F.pad(x, (0, -k % columns, 0, -n % rows))
        return padded.reshape(-(-n // rows), rows, -(-k // columns), columns)


@dataclass(frozen=True)
class Unstructured:
    """Single weights anywhere, those of the largest scores stay.

    density: the share of the weights that stay, above 0 to 1, rounded to a whole number of
    weights: of the layer, or of each row with a criterion that compares within rows (`Wanda`).

    Raises TypeError or ValueError on a density out of its range.
    """

    density: float = 0.3

    label: ClassVar[str] = "unstructured"  # in a table

    def __post_init__(self) -> None:
        check_fraction("Unstructured: density", self.density)
        if not 0 < self.density <= 1:
            raise ValueError(f"Unstructured: density is {self.density}, want above 0 to 1")

    @property
    def kept(self) -> float:
        """The share of the weights that stay."""
        return self.density

    def units(self, scores: Tensor) -> Tensor:
        """The scores themselves: every weight stands alone."""
        return scores

    def spread(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """`kept`, which is a mask of `shape` already."""
        return kept

    def mask(self, scores: Tensor, within_rows: bool = False) -> Tensor:
        """scores: [N, K], any float dtype. bool [N, K], True where a weight stays.

        within_rows: every row keeps the same share; else the layer as a whole.
        """
        compared = scores if within_rows else scores.flatten()
        return largest(compared, round(self.kept * compared.shape[-1])).view_as(scores)

    def check(self, mask: Tensor, name: str) -> None:
        """Any mask has this form."""

    def cover(self, used: Tensor) -> Tensor:
        """The least mask of this form, bool [N, K], that keeps all of `used`, bool [N, K]."""
        return used


Structure = Sparse24 | BlockSparse | Unstructured


def largest(scores: Tensor, count: int) -> Tensor:
    """bool like `scores`, True at the `count` largest along the last dimension.

    Exactly so many: of equal scores the first ones. scores: without NaN.
    """
    size = scores.shape[-1]
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(size - count + 1, dim=-1, keepdim=True).values
    above = scores > threshold
    ties = scores == threshold
    room = count - above.sum(-1, keepdim=True)
    return above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= room))


def check_fraction(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a {type(value).__name__}, want a number")


def _groups_of_4(x: Tensor, fill: float) -> Tensor:
    return F.pad(x, (0, -x.shape[1] % 4), value=fill).reshape(len(x), -1, 4)
