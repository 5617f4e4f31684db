"""What surrounds the loop of `distill`: accelerate, TensorBoard's writer, training mode."""

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from fastinfer import _C

Write = Callable[[str, float, int], None]


@contextmanager
def accelerated(student: nn.Module, mixed_precision: str) -> Iterator[Any]:
    """An accelerate.Accelerator for the student's device. accelerate keeps its state for the whole
    process; that of other users comes back after."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError as error:
        raise _missing(error) from error
    states = [s._shared_state for s in (AcceleratorState, GradientState, PartialState)]
    held = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        on_cpu = next(student.parameters()).device.type == "cpu"
        if on_cpu and mixed_precision == "bf16" and _lacks_bf16():
            warnings.warn(
                "mixed_precision: this CPU has no bf16 instructions, so that 'bf16' is slower than "
                "'no', by several times without AVX-512",
                stacklevel=5,
            )
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"distill: it runs in {accelerator.num_processes} processes, want a single one"
            )
        yield accelerator
    finally:
        for state, before in zip(states, held, strict=True):
            state.clear()
            state.update(before)


def _lacks_bf16() -> bool:
    """Whether this is an x86 CPU that computes bf16 by way of float32."""
    has = any(isa["name"] == "avx512bf16" and isa["supported"] for isa in _C.isas())
    return platform.machine() in ("x86_64", "AMD64") and not has


def scalar_writer(stack: ExitStack, log_dir: Any, steps: int) -> Write:
    """Writes TensorBoard scalars until `stack` closes; what is there from `steps` on is void."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing(error) from error
    writer = SummaryWriter(log_dir, purge_step=steps)
    stack.callback(writer.close)
    return writer.add_scalar


def _missing(error: ImportError) -> ImportError:
    return ImportError(f'{error.name} is not installed: pip install "fastinfer[distill]"')


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside; the flags come back after."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = True
        yield
    finally:
        for module, flag in flags:
            module.training = flag
