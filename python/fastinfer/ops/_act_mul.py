"""act_mul: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_activation, check_tensor, run, shape_text


def act_mul(
    x: Tensor,
    other: Tensor | None = None,
    *,
    activation: str,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``y = activation(x) * other``, or ``activation(x)``: the middle of a gated feed-forward.

    SwiGLU and its kin are "GLU Variants Improve Transformer" (Shazeer, 2020). The activation and
    the product are float32, each rounded once, then ``y`` is rounded to the dtype of ``x``. The
    int8 rows are those of :func:`quantize_rows` of ``y``, bit for bit, made while ``y`` is in
    cache. The result is the same bits on every instruction set and thread count.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16; copied only if its strides are not those of
            rows with unit stride and one step between them (half of a wider tensor is).
        other: of the shape and dtype of ``x``, the same strides allowed, or None.
        activation: "none", "relu", "gelu" (erf), "gelu_tanh", "silu" or "quick_gelu"
            (``x * sigmoid(1.702 x)``).
        emit_fp: whether to return ``y``.
        emit_rows: whether to return the int8 rows of ``y``.

    Returns:
        ``y``, ``[..., K]`` of the dtype of ``x``; ``q``, int8 ``[..., K]``; ``scale`` and
        ``offset``, float32 ``[...]``. All contiguous; what was not asked for has shape ``[0]``.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device, the activation is unknown, or
            neither output is asked for.
    """
    _check_act_mul(x, other, activation, emit_fp, emit_rows)
    op = torch.ops.fastinfer.act_mul.default
    return run(op, x, other, activation, emit_fp, emit_rows)


def _check_act_mul(
    x: Tensor, other: Tensor | None, activation: str, emit_fp: bool, emit_rows: bool
) -> None:
    op = "act_mul"
    check_tensor(op, "x", x, FLOATS)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")
    if other is not None:
        check_tensor(op, "other", other, (x.dtype,))
        if other.shape != x.shape:
            raise ValueError(
                f"{op}: other has shape {shape_text(other.shape)}, want that of x, "
                f"{shape_text(x.shape)}"
            )
        if other.device != x.device:
            raise ValueError(f"{op}: other is on {other.device}, want {x.device}, where x is")
    check_activation(op, activation)
    if not (emit_fp or emit_rows):
        raise ValueError(f"{op}: emit_fp and emit_rows are False, want one of them")


@torch.library.register_fake("fastinfer::act_mul")
def _(
    x: Tensor,
    other: Tensor | None,
    activation: str,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_act_mul(x, other, activation, emit_fp, emit_rows)
    shape, lead = (x.shape, x.shape[:-1]) if emit_rows else ((0,), (0,))
    return (
        x.new_empty(x.shape if emit_fp else (0,)),
        x.new_empty(shape, dtype=torch.int8),
        x.new_empty(lead, dtype=torch.float32),
        x.new_empty(lead, dtype=torch.float32),
    )
