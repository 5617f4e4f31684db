"""The forms that an example's model is put into, each by the public functions of fastinfer."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import fastinfer

TILE = (16, 64)
LEAST_TILES = 16


@dataclass(frozen=True)
class Metric:
    """What a model is judged by. accuracy: how good its answers are, which is what a student must
    keep, rather than how close they are to fp32's."""

    name: str
    lower_is_better: bool = False
    accuracy: bool = True

    def kept(self, score: float, fp32: float) -> float:
        """The share of fp32's score that is left: 1 if nothing is lost."""
        return fp32 / score if self.lower_is_better else score / fp32


@dataclass(frozen=True)
class Example:
    """A trained model, and all that is needed to make it smaller and to judge what is left.

    name: of the picture. data: a sentence on it. metrics: of what `score` gives; the picture shows
    the first. inputs: by description, what the model is timed on; the picture shows the last.
    batches: what a student is distilled on, from the training split; calibration: a few of them,
    for the criteria of pruning. blocks: the share of 16 x 64 tiles that go. channels: the share of
    an MLP's channels that stays. mixed_precision: of distillation, on a CPU that has bf16.
    distilled: makes of a model what is distilled: a module around it that gives what `loss` wants.
    """

    name: str
    title: str
    data: str
    model: nn.Module
    metrics: Sequence[Metric]
    score: Callable[[nn.Module], Sequence[float]]
    inputs: dict[str, Any]
    batches: Iterable[Any]
    calibration: Sequence[Any]
    loss: Any
    steps: int
    lr: float
    blocks: float
    channels: float
    mixed_precision: Literal["no", "bf16"] = "no"
    distilled: Callable[[nn.Module], nn.Module] = lambda model: model


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate rises for a twentieth of the steps, then falls to 0 as half a cosine."""
    rise = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * min(1, (step - rise) / max(1, steps - rise)))

    return LambdaLR(optimizer, factor)


def recover_(student: nn.Module, example: Example, steps: int) -> None:
    """Trains the student to the fp32 model's outputs, without labels."""
    fastinfer.distill(
        example.distilled(student),
        example.distilled(example.model),
        example.batches,
        example.loss,
        steps=steps,
        optimizer=partial(torch.optim.AdamW, fused=True),
        lr=example.lr,
        scheduler=partial(warm_up_and_cosine, steps=steps),
        mixed_precision=example.mixed_precision if has_bf16() else "no",
    )


@cache
def has_bf16() -> bool:
    isas = fastinfer.show_config().isas
    return any(isa["name"] == "avx512bf16" and isa["supported"] for isa in isas)


def pruned(model: nn.Module, structure: Any, criterion: Any, batches: Sequence[Any]) -> nn.Module:
    """A pruned copy, masks on."""
    student = copy.deepcopy(model)
    fastinfer.prune_(student, structure, criterion, batches=batches, progress=False)
    return student


def has_many_tiles(linear: nn.Module, name: str) -> bool:
    """Whether a layer has so many tiles that a share of them can go; an output layer often has
    few, and would be cut off altogether."""
    assert isinstance(linear, nn.Linear)
    return linear.weight.numel() >= LEAST_TILES * math.prod(TILE)


def forms(example: Example) -> Iterator[tuple[str, nn.Module]]:
    """Every form but fp32 by name, in float still: masks on weights, narrower layers."""
    batches = example.calibration
    half = partial(
        pruned, structure=fastinfer.Sparse24(), criterion=fastinfer.SparseGPT(), batches=batches
    )

    yield "int8", copy.deepcopy(example.model)

    student = half(example.model)
    yield "2:4", copy.deepcopy(student)
    recover_(student, example, example.steps)
    yield "2:4 + distil", student

    # Tiles go little by little: five rounds of pruning and a short recovery, then the long one.
    student = copy.deepcopy(example.model)
    schedule = fastinfer.CubicSchedule(0, example.blocks, 5)
    for stage in range(1, schedule.steps + 1):
        fastinfer.prune_(
            student,
            fastinfer.BlockSparse(TILE, schedule.sparsity_at(stage)),
            fastinfer.Wanda(),
            batches=batches,
            filter_fn=has_many_tiles,
            progress=False,
        )
        last = stage == schedule.steps
        recover_(student, example, example.steps if last else max(1, example.steps // 10))
    yield "block + distil", student

    student = copy.deepcopy(example.model)
    fastinfer.prune_channels_(
        student,
        batches[0],
        example.channels,
        fastinfer.Wanda(),
        batches=batches,
        progress=False,
    )
    recover_(student, example, example.steps)
    yield "channel + distil", copy.deepcopy(student)

    # All combined: the narrow student pruned to 2:4 as well, and trained with int8 in view.
    student = half(student)
    trained = aware_of_int8(student)
    recover_(trained, example, example.steps)
    student.load_state_dict(trained.state_dict())
    yield "all combined", student


def aware_of_int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers compute as int8 ones; it has the same state dict."""
    prepared = copy.deepcopy(model)
    fastinfer.prepare_qat_(prepared)
    return prepared


def to_int8_(model: nn.Module, fuse: bool) -> fastinfer.Summary:
    """Makes the linear layers int8, and sparse where they were pruned: wherever that is smaller,
    whether it is faster at the sizes timed here or not."""
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    if any(fastinfer.sparsity_of(linear) for linear in linears):
        return fastinfer.sparsify_(model, fuse=fuse)
    return fastinfer.quantize_(model, fuse=fuse, progress=False)
