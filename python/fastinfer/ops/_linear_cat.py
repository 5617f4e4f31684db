"""linear_w8a8_cat: check, wrapper, fake kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinfer.ops._common import check_activation, run
from fastinfer.ops._linear_checks import (
    check_input,
    check_out_dtype,
    check_weight,
)
from fastinfer.ops._pack import check_packed_size


def linear_w8a8_cat(
    x: Tensor,
    w_packed: Sequence[Tensor],
    w_scale: Sequence[Tensor],
    bias: Sequence[Tensor | None],
    *,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    """Several :func:`linear_w8a8` of one input, which is quantised once; outputs side by side.

    The same bits as ``torch.cat([linear_w8a8(x, *weight) for weight in weights], -1)``.

    Args:
        x: as in :func:`linear_w8a8`.
        w_packed: at least one packed weight, ``[N_i, K]`` with one K.
        w_scale: as many float32 vectors ``[N_i]``.
        bias: as many float32 vectors ``[N_i]`` or None.
        activation: as in :func:`linear_w8a8`, of all outputs.
        out_dtype: as in :func:`linear_w8a8`.
        x_scale: as in :func:`linear_w8a8`.
        x_offset: as in :func:`linear_w8a8`.

    Returns:
        ``[..., N_0 + N_1 + ...]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: as :func:`linear_w8a8`, or the weights are not sequences.
        ValueError: as :func:`linear_w8a8`, or there is no weight, their K differ, or the three
            sequences differ in length.
    """
    _check(x, w_packed, w_scale, bias, activation, out_dtype, x_scale, x_offset)
    return run(
        torch.ops.fastinfer.linear_w8a8_cat.default,
        x,
        list(w_packed),
        list(w_scale),
        list(bias),
        activation,
        out_dtype,
        x_scale,
        x_offset,
    )


def _check(
    x: Tensor,
    w_packed: Sequence[Tensor],
    w_scale: Sequence[Tensor],
    bias: Sequence[Tensor | None],
    activation: str,
    out_dtype: torch.dtype | None,
    x_scale: Tensor | None,
    x_offset: Tensor | None,
) -> torch.dtype:
    """The dtype of the output."""
    op = "linear_w8a8_cat"
    check_input(op, x, x_scale, x_offset)
    for name, given in {"w_packed": w_packed, "w_scale": w_scale, "bias": bias}.items():
        if not isinstance(given, list | tuple):
            raise TypeError(f"{op}: {name} is a {type(given).__name__}, want a list of tensors")
    lengths = len(w_packed), len(w_scale), len(bias)
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{op}: w_packed, w_scale and bias have lengths {', '.join(map(str, lengths))}, want "
            "equal ones"
        )
    if not w_packed:
        raise ValueError(f"{op}: w_packed is empty, want at least one weight")
    for i, (packed, scale, one_bias) in enumerate(zip(w_packed, w_scale, bias, strict=True)):
        names = f"w_packed[{i}]", f"w_scale[{i}]", f"bias[{i}]"
        check_weight(op, names, packed, scale, one_bias, x)
    check_activation(op, activation)
    return check_out_dtype(op, x, out_dtype)


@torch.library.register_fake("fastinfer::linear_w8a8_cat")
def _(
    x: Tensor,
    w_packed: list[Tensor],
    w_scale: list[Tensor],
    bias: list[Tensor | None],
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    dtype = _check(x, w_packed, w_scale, bias, activation, out_dtype, x_scale, x_offset)
    for i, (packed, scale) in enumerate(zip(w_packed, w_scale, strict=True)):
        check_packed_size("linear_w8a8_cat", f"w_packed[{i}]", packed, scale.shape[0], x.shape[-1])
    return x.new_empty((*x.shape[:-1], sum(scale.shape[0] for scale in w_scale)), dtype=dtype)
