"""`distill`: trains a student to do what a teacher does."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastinfer.accelerated import accelerated, scalar_writer, training_mode
from fastinfer.distillation import Distillation
from fastinfer.losses import KD, FeatureMatch
from fastinfer.observe import check_batches
from fastinfer.resume import load_checkpoint, restored_random
from fastinfer.training import Training

Loss = KD | FeatureMatch
_KD = KD()


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    loss: Loss | Sequence[Loss] = _KD,
    *,
    labels: str | int = "labels",
    epochs: int | None = None,
    steps: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-4,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    accumulate: int = 1,
    mixed_precision: Literal["no", "bf16"] = "no",
    seed: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    resume: bool = False,
    log_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Distillation:
    """Trains `student`, in place, to the outputs or the inner features of `teacher`.

    student: the model to train: smaller, pruned (masks as parametrisations stay), prepared by
    `prepare_qat_`, or all of it. Its parameters that require a gradient are trained, in training
    mode; the modes come back after. Dropout is on, then: a student that is to match features
    closely learns better with a rate of 0, since no label is there to be learnt by heart. teacher:
    runs in eval mode without gradients and does not change. Both on one device, in one process.

    batches: what both models are called with: an iterable that can be gone through again, such as
    a list or a DataLoader, of tensors, tuples (or lists) of positional arguments or dicts of
    keyword arguments. labels: where a batch holds hard labels: the key in a dict, the position in a
    tuple. They are taken out before the models are called; a batch that has none there has none.

    loss: KD(temperature, alpha), FeatureMatch(pairs, kind, weight), or a list, whose sum counts.

    epochs, steps: the run ends after so many passes through the batches or so many steps,
    whichever comes first; one pass if neither is given. A step is one of the optimizer's, on the
    mean loss of `accumulate` batches (of those that are left, at the end of a pass).

    optimizer(parameters, lr=lr): torch.optim.AdamW or another class or function.
    scheduler(optimizer): a learning rate scheduler, which steps once a step; None: `lr` throughout.
    mixed_precision: "bf16" runs both models under autocast; losses are float32 anyway. seed: of the
    random numbers of Python, numpy and torch during the run; their states come back after.

    checkpoint_dir: an existing directory; every `save_every` steps and at the end the file
    checkpoint.pt in it is replaced as a whole: the student's state dict, the optimizer's, the
    scheduler's, the projections', the losses, the random states (that of a DataLoader's generator
    too) and the place in the batches. resume: go on from it, if there is one. The losses are then
    those of a run that was never interrupted, as long as the batches come in an order that depends
    on nothing but these random states. log_dir: where TensorBoard finds the losses and the learning
    rate. progress: True or False shows or hides a bar; None shows it on a terminal.

    Raises ImportError that names the extra where `fastinfer[distill]` is not installed; TypeError
    on arguments of other types; ValueError on values out of range, no batches, nothing to train,
    features that do not match, or a checkpoint of a run with another seed, lr, loss or
    `accumulate`: all before the first step. RuntimeError if a loss is not finite: the student then
    is as after the last good step. What the models raise comes through.
    """
    losses = [loss] if isinstance(loss, Loss) else loss
    _check_models(student, teacher)
    _check_batches(batches)
    _check_losses(losses)
    _check_options(labels, lr, mixed_precision, optimizer, scheduler)
    for name, number, least in (
        ("epochs", epochs, 1),
        ("steps", steps, 1),
        ("accumulate", accumulate, 1),
        ("save_every", save_every, 1),
        ("seed", seed, 0),
    ):
        _check_count(name, number, least, optional=name in ("epochs", "steps"))
    if epochs is None and steps is None:
        epochs = 1
    directory = _directory(checkpoint_dir, resume)
    settings = {"seed": seed, "lr": float(lr), "loss": repr(losses), "accumulate": accumulate}
    checkpoint = None if directory is None else load_checkpoint(directory)
    if checkpoint is not None and checkpoint["settings"] != settings:
        was = checkpoint["settings"]
        name = next(name for name in settings if was[name] != settings[name])
        raise ValueError(
            f"{name}: got {settings[name]}, but the run of the checkpoint in {directory} had "
            f"{was[name]}; want the same to resume"
        )

    generator = getattr(batches, "generator", None)
    if not isinstance(generator, torch.Generator):
        generator = None
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(student, mixed_precision))
        stack.enter_context(restored_random(generator))
        stack.enter_context(training_mode(student))
        training = Training(student, teacher, batches, losses, labels, accelerator, generator)
        stack.callback(training.close)
        training.begin(seed, optimizer, lr, scheduler, settings)
        if checkpoint is not None:
            training.resume(checkpoint)
        write = None if log_dir is None else scalar_writer(stack, log_dir, training.steps)
        training.run(epochs, steps, accumulate, directory, save_every, write, progress)
        return training.result()


def _check_models(student: object, teacher: object) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: got {type(model).__name__}, want an nn.Module")
    if student is teacher:
        raise ValueError("teacher: got the student itself, want another model, such as a copy")
    assert isinstance(student, nn.Module)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError("student: none of its parameters requires a gradient, nothing to train")


def _check_batches(batches: object) -> None:
    check_batches(batches)
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches: got {type(batches).__name__}, which can be gone through once; want an "
            "iterable that starts anew each time, such as a list or a DataLoader"
        )


def _check_losses(losses: object) -> None:
    if not isinstance(losses, Sequence) or not all(isinstance(e, Loss) for e in losses):
        raise TypeError(
            f"loss: got {losses!r}, want fastinfer.KD(), fastinfer.FeatureMatch(pairs) or a list "
            "of them"
        )
    if not losses:
        raise ValueError("loss: got an empty list, want at least one loss")


def _check_options(
    labels: object, lr: object, mixed_precision: object, optimizer: object, scheduler: object
) -> None:
    if not isinstance(labels, str | int):
        raise TypeError(f"labels: got {type(labels).__name__}, want a dict key or a position")
    if not isinstance(lr, int | float):
        raise TypeError(f"lr: got {type(lr).__name__}, want a number")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: got {lr}, want a finite number above 0")
    if mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed_precision: got {mixed_precision!r}, want 'no' or 'bf16'")
    if not callable(optimizer):
        raise TypeError(
            f"optimizer: got {type(optimizer).__name__}, want a class or a function "
            "(parameters, lr) -> optimizer"
        )
    if scheduler is not None and not callable(scheduler):
        raise TypeError(
            f"scheduler: got {type(scheduler).__name__}, want a function (optimizer) -> scheduler"
        )


def _check_count(name: str, value: object, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, want an int")
    if value < least:
        raise ValueError(f"{name}: got {value}, want at least {least}")


def _directory(path: str | os.PathLike[str] | None, resume: bool) -> Path | None:
    if path is None:
        if resume:
            raise ValueError("checkpoint_dir: got None, want the directory to resume from")
        return None
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"checkpoint_dir: {directory} is no directory")
    if not resume and load_checkpoint(directory) is not None:
        raise ValueError(
            f"checkpoint_dir: {directory} holds a checkpoint; want resume=True to go on from it, "
            "or another directory"
        )
    return directory
