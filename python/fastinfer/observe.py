"""Runs a model once to look at it, and leaves it and the process as they were."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn


def check_inputs(name: str, inputs: object) -> None:
    """Raises TypeError unless `inputs` is a tensor, a tuple of arguments or a dict of them."""
    if not isinstance(inputs, torch.Tensor | tuple | Mapping):
        raise TypeError(
            f"{name}: got {type(inputs).__name__}, want a tensor, a tuple of positional "
            "arguments or a dict of keyword arguments"
        )


def check_batches(batches: object) -> None:
    """Raises TypeError unless `batches` is an iterable that can be one of batches."""
    if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches: got {type(batches).__name__}, want an iterable of batches, such as a list; "
            "[inputs] for a single one"
        )


def list_batches(batches: Iterable[Any]) -> list[Any]:
    """`batches` as a list. Raises TypeError or ValueError unless they are batches, one at least."""
    check_batches(batches)
    given = list(batches)
    for number, batch in enumerate(given, 1):
        check_inputs(f"batches: number {number}", batch)
    if not given:
        raise ValueError("batches: it is empty, want at least one batch")
    return given


def track_batches(batches: Iterable[Any], progress: bool | None) -> Iterator[Any]:
    """`batches`, with a bar: True or False shows or hides it; None shows it on a terminal.

    Raises ValueError if there is none.
    """
    console = Console(stderr=True)
    if progress is None:
        progress = console.is_terminal
    with Progress(console=console, transient=console.is_terminal, disable=not progress) as bar:
        empty = True
        for batch in bar.track(batches, description="Running batches"):
            empty = False
            yield batch
        if empty:
            raise ValueError("batches: it is empty, want at least one batch")


def run_batches(model: nn.Module, batches: Iterable[Any], progress: bool | None) -> Iterator[Any]:
    """Calls `model` on each of `batches` as `observed` does; yields what it returns.

    progress: True or False shows or hides a bar; None shows it on a terminal.
    Raises TypeError if a batch is not one, ValueError if there is none.
    """
    for number, batch in enumerate(track_batches(batches, progress), 1):
        check_inputs(f"batches: number {number}", batch)
        with observed(model):
            output = call(model, batch)
        yield output


@contextmanager
def watched_inputs(
    linears: Mapping[str, nn.Module], look: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Inside, look(name, x) sees what arrives at each of `linears`, x: [rows, in_features].

    Raises ValueError, naming the layer, if x holds NaN or Inf.
    """

    def hook(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        if not x.isfinite().all():
            raise ValueError(
                f"batches: the input of layer {name} holds NaN or Inf, want finite values"
            )
        look(name, x.reshape(-1, x.shape[-1]))

    with ExitStack() as stack:
        for name, linear in linears.items():
            handle = linear.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: hook(name, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def call(model: nn.Module, inputs: Any) -> Any:
    """model(tensor), model(*tuple) or model(**mapping)."""
    if isinstance(inputs, torch.Tensor):
        return model(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs)


@contextmanager
def observed(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; flags, torch's random state and settings come back after.

    nn.TransformerEncoder's fused path calls none of its layers and hands nested tensors to those
    that carry hooks, so it is off inside: the layers are then called one by one and can be seen.
    So is what torch.compile made, which would trace the hooks instead of running them.
    """
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(*models))
        stack.enter_context(layer_by_layer())
        yield


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Inside, torch's attention and encoder take no fused path, which writes zeros where a sequence
    is padded; the setting comes back after."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside; training flags and torch's random state come back after."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    with torch.random.fork_rng(devices=[]):
        try:
            for module, _ in flags:
                module.training = False  # not .eval(): a model may have overridden train()
            yield
        finally:
            for module, flag in flags:
                module.training = flag
