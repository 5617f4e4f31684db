"""linear_w8a16: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_activation, check_tensor, run
from fastinfer.ops._linear_checks import check_out_dtype, check_residual, check_rows, check_weight
from fastinfer.ops._pack import check_packed_size


def linear_w8a16(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` with an int8 weight and ``x`` as it is.

    Weight-only: products and sums are float32, so that the only error beside float32's own is that
    of the weight, ``W[n, k] = w_scale[n] * w[n, k]``. A sum is over ``x[k] * w[n, k]``, fused, 256
    of K at a time, and is scaled at the end; it is off by at most
    ``(min(K, 256) + K / 256) * 2**-24`` of the sum of the products' magnitudes. (It overflows where
    ``x`` is beyond ``2**128`` over the sum of a row of ``|w|``.)

    On CPUs the result is the same bits on every instruction set, thread count and split of the
    batch; on a GPU the order of a sum depends on how many rows there are. NaN and Inf in a row of
    ``x`` go as IEEE 754 has it, and touch no other row.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides, any number of rows.
        w_packed: uint8 vector, the int8 weight ``[N, K]`` as :func:`pack_w8` returns it in its
            layout "dense".
        w_scale: float32 ``[N]``.
        bias: float32 ``[N]``, or None.
        activation: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "quick_gelu"
            (``x * sigmoid(1.702 x)``).
        residual: ``[..., N]`` of the dtype of the output, any strides, added last, or None.
        out_dtype: float32, bfloat16 or float16; None for the dtype of ``x``.

    Returns:
        ``[..., N]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape, device or value, or ``w_packed`` holds
            something else than a dense int8 weight packed for this device.
    """
    _check(x, w_packed, w_scale, bias, activation, residual, out_dtype)
    return run(
        torch.ops.fastinfer.linear_w8a16.default,
        x,
        w_packed,
        w_scale,
        bias,
        activation,
        residual,
        out_dtype,
    )


def _check(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> torch.dtype:
    """The dtype of the output."""
    op = "linear_w8a16"
    check_tensor(op, "x", x, FLOATS)
    check_rows(op, x)
    n = check_weight(op, ("w_packed", "w_scale", "bias"), w_packed, w_scale, bias, x)
    check_activation(op, activation)
    out_dtype = check_out_dtype(op, x, out_dtype)
    check_residual(op, residual, x, n, out_dtype)
    return out_dtype


@torch.library.register_fake("fastinfer::linear_w8a16")
def _(
    x: Tensor,
    w_packed: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = _check(x, w_packed, w_scale, bias, activation, residual, out_dtype)
    check_packed_size("linear_w8a16", "w_packed", w_packed, w_scale.shape[0], x.shape[-1])
    return x.new_empty((*x.shape[:-1], w_scale.shape[0]), dtype=dtype)
