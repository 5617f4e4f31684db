"""linear_w8a8: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import check_activation, run
from fastinfer.ops._linear_checks import (
    check_input,
    check_out_dtype,
    check_residual,
    check_weight,
)
from fastinfer.ops._pack import check_packed_size


def linear_w8a8(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` with int8 operands and exact int32 sums.

    Every row of ``x`` is quantised on the way in, around an offset of its own:
    ``x ~= scale * q + offset`` with ``offset = max / 2 + min / 2`` and
    ``scale = max(max - offset, offset - min, 2**-118) / 127``; the offset's share of the product,
    ``offset * sum_k W[n, k]``, is added in float32. The method is the vector-wise quantisation of
    "LLM.int8()" (Dettmers et al., 2022) with that offset and without the outlier decomposition.

    With ``x_scale`` and ``x_offset`` nothing is measured. Beside an int8 ``x`` they say what its
    rows stand for: those of :func:`quantize_rows` give the bits that the float rows would. Beside
    a float ``x`` they are a static scale: ``q = clamp(round_half_even((x - x_offset) * (1 /
    x_scale)), -127, 127)``, each step in float32.

    The result is the same bits on every instruction set, thread count and split of the batch. A
    row of ``x`` that holds NaN or Inf, or whose scale is NaN, gives NaN in that row alone; a zero
    row gives ``activation(bias) + residual``.

    Args:
        x: ``[..., K]`` float32, bfloat16, float16 or int8, any strides, any number of rows.
        w_packed: uint8 vector, the int8 weight ``[N, K]`` as :func:`pack_w8` returns it.
        w_scale: float32 ``[N]``; ``W[n, k] = w_scale[n] * w[n, k]``.
        bias: float32 ``[N]``, or None.
        activation: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "quick_gelu"
            (``x * sigmoid(1.702 x)``).
        residual: ``[..., N]`` of the dtype of the output, any strides, added last, or None.
        out_dtype: float32, bfloat16 or float16; None for the dtype of ``x``, if that is a float.
        x_scale: float32, any strides. Beside an int8 ``x``: ``[...]``, one a row, or ``[1]``, one
            for all. Beside a float ``x``: None (dynamic), or ``[1]``, finite and >= 2**-126.
        x_offset: float32 of the shape of ``x_scale``; beside a float ``x``, finite.

    Returns:
        ``[..., N]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape, device or value, one of ``x_scale`` and
            ``x_offset`` is missing, or ``w_packed`` holds something else than an int8 weight
            packed for this device.
    """
    _check(x, w_packed, w_scale, bias, activation, residual, out_dtype, x_scale, x_offset)
    return run(
        torch.ops.fastinfer.linear_w8a8.default,
        x,
        w_packed,
        w_scale,
        bias,
        activation,
        residual,
        out_dtype,
        x_scale,
        x_offset,
    )


def _check(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    x_scale: Tensor | None,
    x_offset: Tensor | None,
) -> torch.dtype:
    """The dtype of the output."""
    op = "linear_w8a8"
    check_input(op, x, x_scale, x_offset)
    n = check_weight(op, ("w_packed", "w_scale", "bias"), w_packed, w_scale, bias, x)
    check_activation(op, activation)
    out_dtype = check_out_dtype(op, x, out_dtype)
    check_residual(op, residual, x, n, out_dtype)
    return out_dtype


@torch.library.register_fake("fastinfer::linear_w8a8")
def _(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    dtype = _check(x, w_packed, w_scale, bias, activation, residual, out_dtype, x_scale, x_offset)
    check_packed_size("linear_w8a8", "w_packed", w_packed, w_scale.shape[0], x.shape[-1])
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)
