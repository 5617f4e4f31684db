"""rope: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_tensor, run, shape_text


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotary position embedding of queries or keys (Su et al., 2021, "RoFormer").

    The first R elements of every head are taken in pairs ``(a, b)``, and a pair becomes
    ``(a * cos_a - b * sin_a, b * cos_b + a * sin_b)`` with the cosines and sines of its token;
    the elements from R on pass through. The pairs are ``(d, d + R / 2)``, the two halves, or
    with ``interleaved`` the neighbours ``(2 * i, 2 * i + 1)``.

    Products and sums are in float32, each rounded once, then rounded to the dtype of ``x``: what
    torch makes of the formula in float32. The result is the same bits on every instruction set
    and thread count.

    Args:
        x: ``[B, H, T, D]`` float32, bfloat16 or float16; any strides, copied only where the last
            one is not 1.
        cos: ``[T, R]``, ``[1, T, R]`` or ``[B, T, R]`` with an even ``R <= D``, one value for
            each of the R elements; float32 or the dtype of ``x``, any strides.
        sin: the same; of the dtype and the R of ``cos``.
        interleaved: False for pairs of halves (Llama), True for pairs of neighbours (GPT-J).

    Returns:
        ``[B, H, T, D]`` of the dtype of ``x``, in memory contiguous as ``[B, T, H, D]``.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device.
    """
    _check_rope(x, cos, sin)
    return run(torch.ops.fastinfer.rope.default, x, cos, sin, interleaved)


def _check_rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    op = "rope"
    check_tensor(op, "x", x, FLOATS)
    if x.dim() != 4:
        raise ValueError(f"{op}: x has shape {shape_text(x.shape)}, want [B, H, T, D]")
    b, _, tokens, d = x.shape
    for name, t in (("cos", cos), ("sin", sin)):
        check_tensor(op, name, t, tuple(dict.fromkeys((x.dtype, torch.float32))))
        good = t.dim() in (2, 3) and t.shape[-2] == tokens
        good = good and t.shape[-1] % 2 == 0 and t.shape[-1] <= d
        if not good or (t.dim() == 3 and t.shape[0] != 1 and t.shape[0] != b):
            raise ValueError(
                f"{op}: {name} has shape {shape_text(t.shape)}, want [T, R], [1, T, R] or "
                f"[B, T, R] with an even R <= D, where x is [B, H, T, D] = {shape_text(x.shape)}"
            )
        if t.device != x.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {x.device}, where x is")
    if sin.dtype != cos.dtype:
        raise TypeError(f"{op}: sin has dtype {sin.dtype}, want that of cos, {cos.dtype}")
    if sin.shape[-1] != cos.shape[-1]:
        raise ValueError(
            f"{op}: sin has shape {shape_text(sin.shape)}, want R = {cos.shape[-1]}, as cos has"
        )


@torch.library.register_fake("fastinfer::rope")
def _(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    _check_rope(x, cos, sin)
    b, h, tokens, d = x.shape
    return x.new_empty((b, tokens, h, d)).transpose(1, 2)
