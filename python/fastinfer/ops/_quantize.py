"""quantize_rowwise, quantize_rows: check, wrappers, fake kernels."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_tensor, run


def quantize_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale a row: how weights are quantised.

    :func:`linear_w8a8` quantises its input as :func:`quantize_rows` does.

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
    _check("quantize_rowwise", x)
    return run(torch.ops.fastinfer.quantize_rowwise.default, x)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int8 with a scale and an offset a row: how :func:`linear_w8a8` quantises its input.

    ``offset = max / 2 + min / 2`` of the row, ``a = max(max - offset, offset - min, 2**-118)``,
    ``scale = a / 127`` and ``q = round_half_even((row - offset) * (127 / a))``, each step in
    float32; ``row ~= scale * q + offset``. A row that holds NaN or Inf gives ``scale = NaN``,
    ``offset = 0`` and ``q = 0``.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides.

    Returns:
        ``q``, int8 ``[..., K]``, ``scale`` and ``offset``, float32 ``[...]``; all contiguous.

    Raises:
        TypeError: ``x`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``x`` has no dimension, or is on a device without kernels.
    """
    _check("quantize_rows", x)
    return run(torch.ops.fastinfer.quantize_rows.default, x)


def _check(op: str, x: Tensor) -> None:
    check_tensor(op, "x", x, FLOATS)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")


@torch.library.register_fake("fastinfer::quantize_rowwise")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _check("quantize_rowwise", x)
    q = x.new_empty(x.shape, dtype=torch.int8)
    return q, x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("fastinfer::quantize_rows")
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check("quantize_rows", x)
    q = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return q, scale, torch.empty_like(scale)
