"""linear_w8a8: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import ACTIVATIONS, FLOATS, check_tensor, check_vector, run, shape_text
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
    return run(
        torch.ops.fastinfer.linear_w8a8.default,
        x,
        w_packed,
        w_scale,
        bias,
        activation,
        residual,
        out_dtype,
    )


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
    check_tensor(op, "x", x, FLOATS)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")
    check_vector(op, "w_packed", w_packed, torch.uint8, None)
    check_vector(op, "w_scale", w_scale, torch.float32, None)
    n = w_scale.shape[0]
    if bias is not None:
        check_vector(op, "bias", bias, torch.float32, n)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {activation!r}, want one of {', '.join(ACTIVATIONS)}"
        )
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if out_dtype not in FLOATS:
        want = " or ".join(str(dtype) for dtype in FLOATS)
        raise TypeError(f"{op}: out_dtype is {out_dtype}, want {want}")
    if residual is not None:
        check_tensor(op, "residual", residual, (out_dtype,))
        if residual.shape != (*x.shape[:-1], n):
            raise ValueError(
                f"{op}: residual has shape {shape_text(residual.shape)}, want that of the "
                f"output, {shape_text(torch.Size((*x.shape[:-1], n)))}"
            )
    others = {"w_packed": w_packed, "w_scale": w_scale, "bias": bias, "residual": residual}
    for name, t in others.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {x.device}, where x is")


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
    check_packed_size("linear_w8a8", w_packed, w_scale.shape[0], x.shape[-1])
    shape = (*x.shape[:-1], w_scale.shape[0])
    return x.new_empty(shape, dtype=x.dtype if out_dtype is None else out_dtype)
