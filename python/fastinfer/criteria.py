"""What `prune_` goes by: scores for the weights of linear layers, the largest of which stay."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastinfer.masked import parameter_of
from fastinfer.observe import evaluating, run_batches, track_batches, watched_inputs
from fastinfer.projections import output_dim

Linears = Mapping[str, nn.Linear]
LossFn = Callable[[nn.Module, Any], Tensor]


class Criterion(Protocol):
    """Gives every weight a score."""

    label: ClassVar[str]  # in a table
    needs_batches: ClassVar[bool]
    across_layers: ClassVar[bool]  # whether scores of several layers can be compared
    within_rows: ClassVar[bool]  # whether a row's stand alone, unless layers are compared

    def scores(
        self, model: nn.Module, linears: Linears, batches: Iterable[Any], progress: bool | None
    ) -> dict[str, Tensor]:
        """By name, of those of `linears` that were reached: of the weight's shape, at least 0,
        float32 (float64 of float64 weights)."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """|w|. Needs no batches."""

    label: ClassVar[str] = "magnitude"
    needs_batches: ClassVar[bool] = False
    across_layers: ClassVar[bool] = True
    within_rows: ClassVar[bool] = False

    def scores(
        self, model: nn.Module, linears: Linears, batches: Iterable[Any], progress: bool | None
    ) -> dict[str, Tensor]:
        return {name: exact_weight(linear).abs() for name, linear in linears.items()}


@dataclass(frozen=True)
class Random:
    """Numbers from 0 to 1 of a seed: a control, which any criterion should beat."""

    seed: int = 0

    label: ClassVar[str] = "random"
    needs_batches: ClassVar[bool] = False
    across_layers: ClassVar[bool] = True
    within_rows: ClassVar[bool] = False

    def scores(
        self, model: nn.Module, linears: Linears, batches: Iterable[Any], progress: bool | None
    ) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(self.seed)
        return {
            name: torch.rand(linear.weight.shape, generator=source).to(linear.weight.device)
            for name, linear in linears.items()
        }


@dataclass(frozen=True)
class Taylor:
    """(sum over batches of (w * dL/dw)^2)^(1/2): how far, to first order, the loss of a batch moves
    when the weight becomes zero.

    The squares keep batches from cancelling each other, as they do at the end of a training, where
    the gradients of all of them add up to little. Within a batch they do cancel: batches of one
    example each, as in the paper, tell most.

    Compared among the weights of one output, as with Wanda: of an `Unstructured` weight every row
    keeps the same share. By one threshold a layer, outputs with large gradients would keep almost
    all of their weights and the others almost none, which a sum over single weights, each taken to
    go alone, does not account for. For `BlockSparse` tiles of the layer are compared, and with
    scope="global" those of all layers.

    loss_fn(model, batch) -> scalar tensor: calls the model, in eval mode and with gradients, on a
    batch of any kind, labels and all. No `.grad` is touched.

    Source: Molchanov et al., "Importance estimation for neural network pruning", 2019
    (https://arxiv.org/abs/1906.10771), the first-order criterion, for single weights; the root
    changes no order.

    Raises TypeError if loss_fn cannot be called.
    """

    loss_fn: LossFn

    label: ClassVar[str] = "Taylor"
    needs_batches: ClassVar[bool] = True
    across_layers: ClassVar[bool] = True
    within_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.loss_fn):
            raise TypeError(
                f"Taylor: loss_fn is a {type(self.loss_fn).__name__}, want a function "
                "(model, batch) -> scalar tensor"
            )

    def scores(
        self, model: nn.Module, linears: Linears, batches: Iterable[Any], progress: bool | None
    ) -> dict[str, Tensor]:
        weights = {name: parameter_of(linear) for name, linear in linears.items()}
        frozen = [weight for weight in weights.values() if not weight.requires_grad]
        total: dict[str, Tensor] = {}
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            for batch in track_batches(batches, progress):
                with torch.enable_grad(), evaluating(model):
                    gradients = torch.autograd.grad(
                        self._loss(model, batch), list(weights.values()), allow_unused=True
                    )
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        exact = gradient.to(_exact(gradient.dtype))
                        total[name] = total.get(name, 0) + exact.square()
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        return {name: exact_weight(linears[name]).abs() * total[name].sqrt() for name in total}

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self.loss_fn(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"Taylor: loss_fn returned {got}, want one number as a tensor with a gradient"
            )
        return loss.squeeze()


@dataclass(frozen=True)
class Wanda:
    """|w| * ||x||, x the layer's inputs of that channel over all tokens of all batches.

    Compared among the weights of one output: every row of an `Unstructured` weight keeps the same
    share, `Sparse24` compares in fours as ever. For `BlockSparse`, which no row can decide alone,
    tiles of the layer are compared. The inputs are those of the unpruned model, in one pass.

    Source: Sun et al., "A simple and effective pruning approach for large language models", 2023
    (https://arxiv.org/abs/2306.11695); the paper prunes block after block and takes each one's
    inputs from the pruned ones before it.
    """

    label: ClassVar[str] = "Wanda"
    needs_batches: ClassVar[bool] = True
    across_layers: ClassVar[bool] = False
    within_rows: ClassVar[bool] = True

    def scores(
        self, model: nn.Module, linears: Linears, batches: Iterable[Any], progress: bool | None
    ) -> dict[str, Tensor]:
        squares: dict[str, Tensor] = {}

        def look(name: str, x: Tensor) -> None:
            if len(x):
                norm = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64)
                squares[name] = squares.get(name, 0) + norm**2

        with watched_inputs(linears, look):
            for _ in run_batches(model, batches, progress):
                pass
        scores = {}
        for name in squares:
            weight = exact_weight(linears[name])
            norm = squares[name].sqrt().to(weight.dtype)
            scores[name] = weight.abs() * (
                norm if output_dim(linears[name]) == 0 else norm[:, None]
            )
        return scores


AnyScore = Magnitude | Random | Taylor | Wanda


def exact_weight(linear: nn.Linear) -> Tensor:
    """The weight as it is now, pruned if it is, in float32 or float64."""
    weight = linear.weight.detach()
    return weight.to(_exact(weight.dtype))


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
