"""layer_norm, rms_norm: checks, wrappers, fake kernels."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_tensor, check_vector, run, shape_text

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> Outputs:
    """``torch.nn.functional.layer_norm`` over the last dimension, between its neighbours.

    With a residual, ``sum = x + residual`` is rounded to the dtype of ``x``, returned and
    normalised. The arithmetic is float32; the mean is corrected for its own rounding, so a
    constant row gives the bias exactly. The result comes as ``y``, as int8 rows that
    ``linear_w8a8`` would make of ``y`` (``y ~= scale * q + offset``, the same bits), or as both.
    The method is "Layer Normalization" (Ba, Kiros, Hinton, 2016).

    The bits are the same on every instruction set and thread count, but for the sign of a NaN. A
    row that holds NaN or Inf gives NaN in that row alone. A row of ``y`` that is not finite has
    ``q = 0, scale = NaN, offset = 0``.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides, any number of rows.
        weight: ``[K]`` float32, bfloat16 or float16, contiguous, or None.
        bias: the same; its dtype may differ from that of ``weight``.
        eps: added to the variance, as a float32.
        residual: of the shape and dtype of ``x``, any strides, or None.
        emit_fp: whether to return ``y``.
        emit_rows: whether to return ``q``, ``scale`` and ``offset``.

    Returns:
        ``sum`` and ``y``, of the shape and dtype of ``x``; ``q``, int8 of that shape; ``scale``
        and ``offset``, float32 ``[...]``. All contiguous; what was not asked for (``sum`` without
        a residual) has shape ``[0]``.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device, or nothing is to be emitted.
    """
    _check("layer_norm", x, {"weight": weight, "bias": bias}, residual, emit_fp, emit_rows)
    return run(
        *(torch.ops.fastinfer.layer_norm.default, x, weight, bias),
        *(eps, residual, emit_fp, emit_rows),
    )


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> Outputs:
    """``torch.nn.functional.rms_norm`` over the last dimension, between its neighbours.

    As :func:`layer_norm`, without a mean and a bias: ``y = s / sqrt(mean(s^2) + eps) * weight``
    with ``s = x`` or ``x + residual``. The method is "Root Mean Square Layer Normalization"
    (Zhang, Sennrich, 2019). A row that holds NaN is NaN; one that holds Inf is NaN there and 0
    elsewhere.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, any strides, any number of rows.
        weight: ``[K]`` float32, bfloat16 or float16, contiguous, or None.
        eps: added to the mean square, as a float32.
        residual: of the shape and dtype of ``x``, any strides, or None.
        emit_fp: whether to return ``y``.
        emit_rows: whether to return ``q``, ``scale`` and ``offset``.

    Returns:
        The five tensors of :func:`layer_norm`.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: an argument has the wrong shape or device, or nothing is to be emitted.
    """
    _check("rms_norm", x, {"weight": weight}, residual, emit_fp, emit_rows)
    return run(
        *(torch.ops.fastinfer.rms_norm.default, x, weight, eps, residual, emit_fp, emit_rows)
    )


def _check(
    op: str,
    x: Tensor,
    parameters: dict[str, Tensor | None],
    residual: Tensor | None,
    emit_fp: bool,
    emit_rows: bool,
) -> None:
    check_tensor(op, "x", x, FLOATS)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")
    for name, t in parameters.items():
        if t is not None:
            check_tensor(op, name, t, FLOATS)
            check_vector(op, name, t, t.dtype, x.shape[-1])
    if residual is not None:
        check_tensor(op, "residual", residual, (x.dtype,))
        if residual.shape != x.shape:
            raise ValueError(
                f"{op}: residual has shape {shape_text(residual.shape)}, want that of x, "
                f"{shape_text(x.shape)}"
            )
    for name, t in {**parameters, "residual": residual}.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {x.device}, where x is")
    if not (emit_fp or emit_rows):
        raise ValueError(f"{op}: emit_fp and emit_rows are False, want one of them")


def _outputs(x: Tensor, residual: Tensor | None, emit_fp: bool, emit_rows: bool) -> Outputs:
    def empty(shape: torch.Size, dtype: torch.dtype, asked: bool) -> Tensor:
        return x.new_empty(shape if asked else (0,), dtype=dtype)

    return (
        empty(x.shape, x.dtype, residual is not None),
        empty(x.shape, x.dtype, emit_fp),
        empty(x.shape, torch.int8, emit_rows),
        empty(x.shape[:-1], torch.float32, emit_rows),
        empty(x.shape[:-1], torch.float32, emit_rows),
    )


@torch.library.register_fake("fastinfer::layer_norm")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> Outputs:
    _check("layer_norm", x, {"weight": weight, "bias": bias}, residual, emit_fp, emit_rows)
    return _outputs(x, residual, emit_fp, emit_rows)


@torch.library.register_fake("fastinfer::rms_norm")
def _(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    emit_fp: bool = True,
    emit_rows: bool = False,
) -> Outputs:
    _check("rms_norm", x, {"weight": weight}, residual, emit_fp, emit_rows)
    return _outputs(x, residual, emit_fp, emit_rows)
