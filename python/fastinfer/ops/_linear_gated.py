"""linear_w8a8_gated: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import check_activation, run
from fastinfer.ops._linear_checks import (
    check_input,
    check_out_dtype,
    check_weight,
)
from fastinfer.ops._pack import check_packed_size


def linear_w8a8_gated(
    x: Tensor,
    gate_packed: Tensor,
    gate_scale: Tensor,
    gate_bias: Tensor | None,
    up_packed: Tensor,
    up_scale: Tensor,
    up_bias: Tensor | None,
    *,
    activation: str,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    """``activation(x @ Wg.T + bg) * (x @ Wu.T + bu)``: a gated linear unit with int8 operands.

    ``x`` is quantised once. Both factors are those of :func:`linear_w8a8` in float32; their
    product is rounded to float32 and then to the output, and neither is stored as a matrix. With
    "silu" this is SwiGLU, with "gelu" GEGLU ("GLU Variants Improve Transformer", Shazeer, 2020).

    Args:
        x: as in :func:`linear_w8a8`.
        gate_packed: the packed weight ``[N, K]`` of the gate.
        gate_scale: float32 ``[N]``.
        gate_bias: float32 ``[N]``, or None.
        up_packed: the packed weight ``[N, K]`` of the other factor.
        up_scale: float32 ``[N]``.
        up_bias: float32 ``[N]``, or None.
        activation: of the gate, as in :func:`linear_w8a8`.
        out_dtype: as in :func:`linear_w8a8`.
        x_scale: as in :func:`linear_w8a8`.
        x_offset: as in :func:`linear_w8a8`.

    Returns:
        ``[..., N]`` of dtype ``out_dtype``, contiguous.

    Raises:
        TypeError: as :func:`linear_w8a8`.
        ValueError: as :func:`linear_w8a8`, or the two weights differ in shape.
    """
    gate, up = (gate_packed, gate_scale, gate_bias), (up_packed, up_scale, up_bias)
    _check(x, gate, up, activation, out_dtype, x_scale, x_offset)
    return run(
        torch.ops.fastinfer.linear_w8a8_gated.default,
        x,
        *gate,
        *up,
        activation,
        out_dtype,
        x_scale,
        x_offset,
    )


_OP = "linear_w8a8_gated"
_Weight = tuple[Tensor, Tensor, Tensor | None]


def _check(
    x: Tensor,
    gate: _Weight,
    up: _Weight,
    activation: str,
    out_dtype: torch.dtype | None,
    x_scale: Tensor | None,
    x_offset: Tensor | None,
) -> torch.dtype:
    """The dtype of the output."""
    check_input(_OP, x, x_scale, x_offset)
    n = check_weight(_OP, ("gate_packed", "gate_scale", "gate_bias"), *gate, x)
    n_up = check_weight(_OP, ("up_packed", "up_scale", "up_bias"), *up, x)
    if n_up != n:
        raise ValueError(f"{_OP}: up_scale has shape [{n_up}], want that of gate_scale, [{n}]")
    check_activation(_OP, activation)
    return check_out_dtype(_OP, x, out_dtype)


@torch.library.register_fake("fastinfer::linear_w8a8_gated")
def _(
    x: Tensor,
    gate_packed: Tensor,
    gate_scale: Tensor,
    gate_bias: Tensor | None,
    up_packed: Tensor,
    up_scale: Tensor,
    up_bias: Tensor | None,
    activation: str,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
    x_offset: Tensor | None = None,
) -> Tensor:
    gate, up = (gate_packed, gate_scale, gate_bias), (up_packed, up_scale, up_bias)
    dtype = _check(x, gate, up, activation, out_dtype, x_scale, x_offset)
    n = gate_scale.shape[0]
    check_packed_size(_OP, "gate_packed", gate_packed, n, x.shape[-1])
    check_packed_size(_OP, "up_packed", up_packed, n, x.shape[-1])
    return x.new_empty((*x.shape[:-1], n), dtype=dtype)
