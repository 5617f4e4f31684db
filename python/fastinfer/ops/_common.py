"""What every operator's wrapper needs: the loaded library, calls, checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastinfer import _C

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu")
MAX_K = 131071
"""The longest row whose int32 sums are exact: 128 * 128 * MAX_K < 2**31."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _load_library(name: str) -> None:
    path = Path(_C.__file__).with_name(name)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"fastinfer needs torch>=2.11 for its operators; loading {path.name} under "
            f"torch {torch.__version__} failed: {error}"
        ) from error


def _why_no_cuda() -> str | None:
    """Loads the operators on CUDA; or a sentence on why there are none."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not Path(_C.__file__).with_name("libfastinfer_cuda.so").exists():
        return (
            "this build of fastinfer has no CUDA kernels: build it where nvcc is on PATH, or with "
            "FASTINFER_CUDA=ON to learn why it has none"
        )
    _load_library("libfastinfer_cuda.so")
    return None


_load_library("libfastinfer_ops.so")
WHY_NO_CUDA = _why_no_cuda()
DEVICES = ("cpu", "meta") if WHY_NO_CUDA else ("cpu", "meta", "cuda")


def why_not_on(device: torch.device) -> str | None:
    """Why the operators do not run on a device, as a sentence; None where they do."""
    if device.type in DEVICES:
        return None
    if device.type == "cuda" and WHY_NO_CUDA:
        return WHY_NO_CUDA
    return f"fastinfer has no kernels for {device.type}"


def run(op: Callable[..., Any], *args: object) -> Any:
    """Calls ``op``; what only the bytes of a packed weight reveal becomes a ValueError."""
    try:
        return op(*args)
    except RuntimeError as error:
        # The operators say "<where>, <op>: <argument> ...".
        _, found, what = str(error).partition(f"{op.__name__.removesuffix('.default')}: ")
        if not found or what.startswith(("out of memory", "CUDA: ")):
            raise
        message = what
    raise ValueError(f"{op.__name__.removesuffix('.default')}: {message}")


def shape_text(shape: torch.Size) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def check_tensor(op: str, name: str, t: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} is a {type(t).__name__}, want a torch.Tensor")
    if t.dtype not in dtypes:
        want = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} has dtype {t.dtype}, want {want}")
    if t.layout != torch.strided or t.is_nested:
        raise TypeError(f"{op}: {name} is sparse or nested, want a plain strided tensor")
    reason = why_not_on(t.device)
    if reason is not None:
        raise ValueError(f"{op}: {name} is on {t.device}, want cpu: {reason}")


def check_vector(op: str, name: str, t: Tensor, dtype: torch.dtype, n: int | None) -> None:
    check_tensor(op, name, t, (dtype,))
    if t.dim() != 1 or (n is not None and t.shape[0] != n):
        want = "one dimension" if n is None else f"[{n}]"
        raise ValueError(f"{op}: {name} has shape {shape_text(t.shape)}, want {want}")
    if not t.is_contiguous():
        raise ValueError(f"{op}: {name} has stride {t.stride(0)}, want a contiguous vector")


def check_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {activation!r}, want one of {', '.join(ACTIVATIONS)}"
        )
