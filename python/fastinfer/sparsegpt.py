"""SparseGPT: each weight that goes is made up for by those that stay."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fastinfer.criteria import Linears, exact_weight
from fastinfer.masked import set_mask_
from fastinfer.observe import call, observed, run_batches, watched_inputs
from fastinfer.sparsity import Sparse24, Unstructured, check_fraction


@dataclass(frozen=True)
class SparseGPT:
    """Prunes so that the outputs of each layer move least, and updates the weights that stay.

    For a layer's inputs X, a token a column, H = 2 X X^T + damp * mean(diag(2 X X^T)) * I. Column
    after column, the weights that go are those of the smallest w^2 / [H^-1]_jj, H over the columns
    that are left, and the columns after take up the error. `Unstructured`: chosen, the same share
    in each, for `block_size` columns of all rows together. `Sparse24`: for 4 columns of a row.

    Layers are pruned in the order in which the model calls them first, each on the inputs that it
    gets with all before it pruned, so every layer costs a run of all batches as far as to it;
    layers that get the same tensor, as those of queries, keys and values do, share one run and one
    H. They run on a copy of the model; a layer takes about 4 * in_features**2 * 8 bytes for H and
    its inverse.

    damp: above 0. block_size: columns, at least 1, for `Sparse24` a multiple of 4.

    Source: Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in
    one-shot", 2023 (https://arxiv.org/abs/2301.00774), which prunes the layers of one transformer
    block on the same pass.

    Raises TypeError or ValueError on values out of their range.
    """

    damp: float = 0.01
    block_size: int = 128

    label: ClassVar[str] = "SparseGPT"
    needs_batches: ClassVar[bool] = True
    across_layers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("SparseGPT: damp", self.damp)
        if not self.damp > 0:
            raise ValueError(f"SparseGPT: damp is {self.damp}, want above 0")
        if type(self.block_size) is not int:
            raise TypeError(
                f"SparseGPT: block_size is a {type(self.block_size).__name__}, want an int"
            )
        if self.block_size < 1:
            raise ValueError(f"SparseGPT: block_size is {self.block_size}, want at least 1")

    def check(self, structure: object) -> None:
        """Raises ValueError if it cannot make `structure`."""
        if not isinstance(structure, Sparse24 | Unstructured):
            raise ValueError(
                f"criterion: SparseGPT cannot make {type(structure).__name__}, whose tiles span "
                "columns that it goes through one by one; want Sparse24 or Unstructured"
            )
        if isinstance(structure, Sparse24) and self.block_size % 4:
            raise ValueError(
                f"SparseGPT: block_size is {self.block_size}, want a multiple of 4 for Sparse24"
            )

    def prune(
        self,
        model: nn.Module,
        linears: Linears,
        structure: Sparse24 | Unstructured,
        batches: Iterable[Any],
        progress: bool | None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By name, of those of `linears` that were reached: the mask and the new weight, [N, K]."""
        batches = list(batches)
        pruned = copy.deepcopy(model)
        layers: dict[str, Any] = {name: pruned.get_submodule(name) for name in linears}
        result = {}
        console = Console(stderr=True)
        shown = console.is_terminal if progress is None else progress
        stages = _stages(pruned, layers, batches)
        with Progress(console=console, transient=console.is_terminal, disable=not shown) as bar:
            for stage in bar.track(stages, description="Pruning"):
                hessian = _hessian(pruned, layers[stage.names[0]], stage, batches)
                factor, dead = self._inverse_factor(hessian)
                for name in stage.names:
                    linear = layers[name]
                    mask, weight = self.solve(exact_weight(linear), factor, dead, structure)
                    result[name] = mask, weight.to(linear.weight.dtype)
                    set_mask_(linear, structure, *result[name])
        return result

    def solve(
        self, weight: Tensor, factor: Tensor, dead: Tensor, structure: Sparse24 | Unstructured
    ) -> tuple[Tensor, Tensor]:
        """The mask and the new weight of one layer.

        weight: [N, K], float32 or float64. factor, dead: what `_inverse_factor` returns.
        """
        weight = weight.clone()
        weight[:, dead] = 0
        mask = torch.ones_like(weight, dtype=torch.bool)
        factor = factor.to(weight.dtype)
        chosen_at_once = 4 if isinstance(structure, Sparse24) else self.block_size
        for start in range(0, weight.shape[1], self.block_size):
            block = slice(start, min(start + self.block_size, weight.shape[1]))
            errors = torch.zeros_like(weight[:, block])
            for j in range(block.start, block.stop):
                if (j - start) % chosen_at_once == 0:
                    few = slice(j, min(j + chosen_at_once, block.stop))
                    mask[:, few] = structure.mask((weight[:, few] / factor.diagonal()[few]) ** 2)
                error = torch.where(mask[:, j], 0, weight[:, j] / factor[j, j])
                inside = slice(j, block.stop)
                weight[:, inside].addr_(error, factor[j, inside], alpha=-1)
                errors[:, j - start] = error
            weight[:, block.stop :].addmm_(errors, factor[block, block.stop :], alpha=-1)
        return mask, torch.where(mask, weight, 0)

    def _inverse_factor(self, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """U, upper, with U^T U = H^-1: row j over its first number is the row j of the inverse of
        H over the columns j and after, by its own first number, whose root is U_jj. And which
        inputs were always zero: their weights do nothing.

        hessian: 2 X X^T, [K, K], float64; it is overwritten.
        """
        diagonal = hessian.diagonal()
        damping = self.damp * diagonal.mean()
        dead = diagonal == 0
        diagonal[dead] = 1
        diagonal += damping
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True), dead


@dataclass(frozen=True)
class _Stage:
    """Layers that get the same inputs. once: whether that is just once, by batch."""

    names: tuple[str, ...]
    once: tuple[bool, ...]


def _stages(model: nn.Module, layers: dict[str, nn.Linear], batches: Sequence[Any]) -> list[_Stage]:
    """The layers that were reached, in the order of their first calls; those together that are
    called once a batch at most, and then on the same tensor."""
    inputs: dict[str, list[tuple[int, int]]] = {}  # of each call: the batch, and which tensor
    batch = count = 0
    last: Any = None
    held = None  # else another tensor could come to lie where the last one lay

    def look(name: str, x: Tensor) -> None:
        nonlocal count, last, held
        if not len(x):
            return
        # Tensors of inference mode do not count their changes: each may be another.
        version = object() if x.is_inference() else x._version
        identity = x.data_ptr(), x.shape, x.stride(), x.dtype, version
        if identity != last:
            count, last, held = count + 1, identity, x
        inputs.setdefault(name, []).append((batch, count))

    with watched_inputs(layers, look):
        for _ in run_batches(model, batches, False):
            batch += 1
    counts = {name: Counter(number for number, _ in calls) for name, calls in inputs.items()}
    stages: dict[Any, list[str]] = {}
    for name, calls in inputs.items():
        at_most_once = max(counts[name].values()) == 1
        stages.setdefault(tuple(calls) if at_most_once else name, []).append(name)
    return [
        _Stage(tuple(names), tuple(counts[names[0]][number] == 1 for number in range(batch)))
        for names in stages.values()
    ]


class _Reached(BaseException):
    """Ends a run of a model; no Exception, which a model might catch."""


def _hessian(model: nn.Module, linear: nn.Linear, stage: _Stage, batches: list[Any]) -> Tensor:
    size = linear.in_features
    hessian = torch.zeros(size, size, dtype=torch.float64, device=linear.weight.device)
    once = False

    def look(_: str, x: Tensor) -> None:
        exact = x.to(hessian.dtype)
        hessian.addmm_(exact.T, exact, alpha=2)
        if len(x) and once:
            raise _Reached

    with watched_inputs({stage.names[0]: linear}, look):
        for batch, ends_there in zip(batches, stage.once, strict=True):
            once = ends_there
            with observed(model), suppress(_Reached):
                call(model, batch)
    return hessian
