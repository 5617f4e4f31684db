"""What the int8 linears check alike: the input with its scales, weights, the residual."""

import torch
from torch import Tensor

from fastinfer.ops._common import FLOATS, check_tensor, check_vector, shape_text


def check_out_dtype(op: str, x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the output."""
    if out_dtype is None and x.dtype == torch.int8:
        raise TypeError(f"{op}: out_dtype is None, want a dtype: x is int8")
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if out_dtype not in FLOATS:
        want = " or ".join(str(dtype) for dtype in FLOATS)
        raise TypeError(f"{op}: out_dtype is {out_dtype}, want {want}")
    return out_dtype


def check_rows(op: str, x: Tensor) -> None:
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], want [..., K]")


def check_input(op: str, x: Tensor, x_scale: Tensor | None, x_offset: Tensor | None) -> None:
    check_tensor(op, "x", x, (*FLOATS, torch.int8))
    check_rows(op, x)
    if (x_scale is None) != (x_offset is None):
        missing = "x_scale" if x_scale is None else "x_offset"
        raise ValueError(f"{op}: {missing} is None, want it beside the other")
    if x_scale is None or x_offset is None:
        if x.dtype == torch.int8:
            raise ValueError(f"{op}: x_scale and x_offset are None, want them: x is int8")
        return
    for name, t in {"x_scale": x_scale, "x_offset": x_offset}.items():
        check_tensor(op, name, t, (torch.float32,))
        check_device(op, name, t, x)
    want = [torch.Size([1])] if x.dtype != torch.int8 else [x.shape[:-1], torch.Size([1])]
    if all(x_scale.shape != shape for shape in want):
        shapes = " or ".join(shape_text(shape) for shape in want)
        raise ValueError(f"{op}: x_scale has shape {shape_text(x_scale.shape)}, want {shapes}")
    if x_offset.shape != x_scale.shape:
        raise ValueError(
            f"{op}: x_offset has shape {shape_text(x_offset.shape)}, want that of x_scale, "
            f"{shape_text(x_scale.shape)}"
        )


def check_weight(
    op: str,
    names: tuple[str, str, str],
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    x: Tensor,
) -> int:
    """N. ``names``: those of the three in messages."""
    check_vector(op, names[0], packed, torch.uint8, None)
    check_vector(op, names[1], scale, torch.float32, None)
    n = scale.shape[0]
    if bias is not None:
        check_vector(op, names[2], bias, torch.float32, n)
    for name, t in zip(names, (packed, scale, bias), strict=True):
        if t is not None:
            check_device(op, name, t, x)
    return n


def check_residual(
    op: str, residual: Tensor | None, x: Tensor, n: int, out_dtype: torch.dtype
) -> None:
    if residual is None:
        return
    check_tensor(op, "residual", residual, (out_dtype,))
    check_device(op, "residual", residual, x)
    if residual.shape != (*x.shape[:-1], n):
        raise ValueError(
            f"{op}: residual has shape {shape_text(residual.shape)}, want that of the "
            f"output, {shape_text(torch.Size((*x.shape[:-1], n)))}"
        )


def check_device(op: str, name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device}, want {x.device}, where x is")
