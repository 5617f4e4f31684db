"""The operators ``torch.ops.fastinfer.*``: loaded, given shapes for tracing, and wrapped.

The functions here check their arguments and then call the operator of the same name. They work in
eager mode, under ``torch.inference_mode``, ``torch.compile`` and ``torch.export``. No operator
has a gradient.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastinfer import _C

__all__ = ["linear_w8a8", "pack_w8", "quantize_rowwise", "unpack_w8"]

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
MAX_K = 131071
"""The longest row whose int32 sums are exact: 128 * 128 * MAX_K < 2**31."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "meta")


def _load_library() -> None:
    path = Path(_C.__file__).with_name("libfastinfer_ops.so")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"fastinfer needs torch>=2.11 for its operators; loading {path.name} under "
            f"torch {torch.__version__} failed: {error}"
        ) from error


_load_library()


def linear_w8a8(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` with int8 operands and exact int32 sums.

    Every row of ``x`` is quantised on the way in, around an offset of its own:
    ``x ~= scale * q + offset`` with ``offset = max / 2 + min / 2`` and
    ``scale = max(max - offset, offset - min, 2**-118) / 127``; the offset's share of the product,
    ``offset * sum_k W[n, k]``, is added in float32. The method is the vector-wise quantisation of
    "LLM.int8()" (Dettmers et al., 2022) with that offset and without the outlier decomposition.

    The result is the same bits on every instruction set, thread count and split of the batch. A
    row of ``x`` that holds NaN or Inf gives NaN in that row alone; a zero row gives
    ``activation(bias) + residual``.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides, any number of rows.
        w_packed: uint8 vector, the int8 weight ``[N, K]`` as :func:`pack_w8` returns it.
        w_scale: float32 ``[N]``; ``W[n, k] = w_scale[n] * w[n, k]``.
        bias: float32 ``[N]``, or None.
        activation: "none", "relu", "gelu" (erf), "gelu_tanh" or "silu".
        residual: ``[..., N]`` of the dtype of the output, any strides, added last, or None.
        out_dtype: float32, bfloat16 or float16; None for the dtype of ``x``.

    Returns:
        ``[..., N]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device, or ``w_packed`` holds something
            else than an int8 weight packed for this device.
    """
    _check_linear_w8a8(x, w_packed, w_scale, bias, activation, residual, out_dtype)
    return _run(
        torch.ops.fastinfer.linear_w8a8.default,
        x,
        w_packed,
        w_scale,
        bias,
        activation,
        residual,
        out_dtype,
    )


def quantize_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale a row: how weights are quantised.

    :func:`linear_w8a8` quantises its input by itself, around an offset of each row.

    ``a = max(absmax(row), 2**-118)``, ``scale = a / 127`` and
    ``q = round_half_even(row * (127 / a))``, each step in float32. A row that holds NaN or
    Inf gives ``scale = NaN`` and ``q = 0``.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides.

    Returns:
        ``q``, int8 ``[..., K]``, and ``scale``, float32 ``[...]``.

    Raises:
        TypeError: ``x`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``x`` has no dimension, or is on a device without kernels.
    """
    _check_quantize_rowwise(x)
    return _run(torch.ops.fastinfer.quantize_rowwise.default, x)


def pack_w8(w: Tensor) -> Tensor:
    """Packs an int8 weight into the tagged block of bytes that the kernels read.

    The block describes itself (layout, version, shape), holds no address and is the same for
    every CPU: it may be stored and memory-mapped as it is.

    Args:
        w: int8 ``[N, K]``, ``K <= 131071``, any strides.

    Returns:
        uint8 vector of ``64 + 4 * N_pad + N_pad * K_pad`` bytes, N padded to 16 and K to 64.

    Raises:
        TypeError: ``w`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w`` is not a matrix, K is too long, or the device has no kernels.
    """
    _check_pack_w8(w)
    return _run(torch.ops.fastinfer.pack_w8.default, w)


def unpack_w8(w_packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of :func:`pack_w8`, lossless.

    Args:
        w_packed: uint8 vector that :func:`pack_w8` returned.
        n: the rows of the weight.
        k: the columns of the weight.

    Returns:
        int8 ``[n, k]``.

    Raises:
        TypeError: ``w_packed`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w_packed`` is not a packed weight of shape ``[n, k]``, or is on a device
            without kernels.
    """
    _check_unpack_w8(w_packed, n, k)
    return _run(torch.ops.fastinfer.unpack_w8.default, w_packed, n, k)


def _run(op: Callable[..., Any], *args: object) -> Any:
    """Calls ``op``; what only the bytes of a packed weight reveal becomes a ValueError."""
    try:
        return op(*args)
    except RuntimeError as error:
        # The operators say "<where>, <op>: <argument> ...".
        _, found, what = str(error).partition(f"{op.__name__.removesuffix('.default')}: ")
        if not found or what.startswith("out of memory"):
            raise
        message = what
    raise ValueError(f"{op.__name__.removesuffix('.default')}: {message}")


# --- checks, by the operator and by its fake kernel ---------------------------------------------


def _shape_text(shape: torch.Size) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _check_tensor(op: str, name: str, t: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} is a {type(t).__name__}, want a torch.Tensor")
    if t.dtype not in dtypes:
        want = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} has dtype {t.dtype}, want {want}")
    if t.layout != torch.strided or t.is_nested:
        raise TypeError(f"{op}: {name} is sparse or nested, want a plain strided tensor")
    if t.device.type not in _DEVICES:
        raise ValueError(
            f"{op}: {name} is on {t.device}, want cpu: this build of fastinfer has no kernels "
            f"for {t.device.type}"
        )


def _check_vector(op: str, name: str, t: Tensor, dtype: torch.dtype, n: int | None) -> None:
    _check_tensor(op, name, t, (dtype,))
    if t.dim() != 1 or (n is not None and t.shape[0] != n):
        want = "one dimension" if n is None else f"[{n}]"
        raise ValueError(f"{op}: {name} has shape {_shape_text(t.shape)}, want {want}")
    if not t.is_contiguous():
        raise ValueError(f"{op}: {name} has stride {t.stride(0)}, want a contiguous vector")


def packed_bytes(n: int, k: int) -> int:
    """The size in bytes of a packed int8 weight ``[n, k]``."""
    n_pad = (n + 15) // 16 * 16
    return 64 + 4 * n_pad + n_pad * ((k + 63) // 64 * 64)


def _check_linear_w8a8(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    op = "linear_w8a8"
    _check_tensor(op, "x", x, _FLOATS)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")
    _check_vector(op, "w_packed", w_packed, torch.uint8, None)
    _check_vector(op, "w_scale", w_scale, torch.float32, None)
    n = w_scale.shape[0]
    if bias is not None:
        _check_vector(op, "bias", bias, torch.float32, n)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {activation!r}, want one of {', '.join(ACTIVATIONS)}"
        )
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if out_dtype not in _FLOATS:
        want = " or ".join(str(dtype) for dtype in _FLOATS)
        raise TypeError(f"{op}: out_dtype is {out_dtype}, want {want}")
    if residual is not None:
        _check_tensor(op, "residual", residual, (out_dtype,))
        if residual.shape != (*x.shape[:-1], n):
            raise ValueError(
                f"{op}: residual has shape {_shape_text(residual.shape)}, want that of the "
                f"output, {_shape_text(torch.Size((*x.shape[:-1], n)))}"
            )
    others = {"w_packed": w_packed, "w_scale": w_scale, "bias": bias, "residual": residual}
    for name, t in others.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {x.device}, where x is")


def _check_quantize_rowwise(x: Tensor) -> None:
    _check_tensor("quantize_rowwise", "x", x, _FLOATS)
    if x.dim() < 1:
        raise ValueError("quantize_rowwise: x has shape [], want [..., K]")


def _check_pack_w8(w: Tensor) -> None:
    _check_tensor("pack_w8", "w", w, (torch.int8,))
    if w.dim() != 2:
        raise ValueError(f"pack_w8: w has shape {_shape_text(w.shape)}, want [N, K]")
    if w.shape[1] > MAX_K:
        raise ValueError(
            f"pack_w8: w has K = {w.shape[1]}, want at most {MAX_K} (int32 sums stay exact up to "
            "there)"
        )


def _check_unpack_w8(w_packed: Tensor, n: int, k: int) -> None:
    _check_vector("unpack_w8", "w_packed", w_packed, torch.uint8, None)
    if n < 0 or k < 0:
        raise ValueError(f"unpack_w8: n, k are {n}, {k}, want >= 0")


# --- fake kernels: shapes and dtypes for tracing and meta tensors -------------------------------


def _check_packed_size(op: str, w_packed: Tensor, n: int, k: int) -> None:
    """All that can be said of a packed weight without its bytes; the operators read its header."""
    if w_packed.shape[0] != packed_bytes(n, k):
        raise ValueError(
            f"{op}: w_packed has {w_packed.shape[0]} bytes, want the {packed_bytes(n, k)} of a "
            f"packed weight with N = {n} and K = {k}"
        )


@torch.library.register_fake("fastinfer::linear_w8a8")
def _(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _check_linear_w8a8(x, w_packed, w_scale, bias, activation, residual, out_dtype)
    _check_packed_size("linear_w8a8", w_packed, w_scale.shape[0], x.shape[-1])
    shape = (*x.shape[:-1], w_scale.shape[0])
    return x.new_empty(shape, dtype=x.dtype if out_dtype is None else out_dtype)


@torch.library.register_fake("fastinfer::quantize_rowwise")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _check_quantize_rowwise(x)
    q = x.new_empty(x.shape, dtype=torch.int8)
    return q, x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("fastinfer::pack_w8")
def _(w: Tensor) -> Tensor:
    _check_pack_w8(w)
    return w.new_empty(packed_bytes(w.shape[0], w.shape[1]), dtype=torch.uint8)


@torch.library.register_fake("fastinfer::unpack_w8")
def _(w_packed: Tensor, n: int, k: int) -> Tensor:
    _check_unpack_w8(w_packed, n, k)
    _check_packed_size("unpack_w8", w_packed, n, k)
    return w_packed.new_empty((n, k), dtype=torch.int8)
