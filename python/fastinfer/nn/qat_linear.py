"""QATLinear: an nn.Linear that trains as the int8 layer that it will become."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastinfer import ops
from fastinfer.nn.quantized_linear import scale_and_offset

Fixed = tuple[Tensor, Tensor]  # scale and offset, float32 [1]


class _FakeQuantized(torch.autograd.Function):
    """The int8 product, with the gradient of the float one at the values that int8 stands for.

    The straight-through estimator of Bengio, Leonard and Courville, 2013
    (https://arxiv.org/abs/1308.3432): rounding counts as the identity. Scales that follow the
    largest element never clip, so nothing is masked; with a fixed range, what falls outside it has
    no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, fixed: Fixed | None
    ) -> Tensor:
        w, w_scale = ops.quantize_rowwise(weight)
        packed, shift = ops.pack_w8(w), None if bias is None else bias.float()
        if fixed is None:  # the integers are what backward needs, a quarter of the floats' size
            seen, x_scale, x_offset = ops.quantize_rows(x)
        else:
            seen, (x_scale, x_offset) = x, fixed
        ctx.save_for_backward(seen, x_scale, x_offset, w, w_scale)
        ctx.is_fixed = fixed is not None
        return ops.linear_w8a8(
            seen, packed, w_scale, shift, out_dtype=x.dtype, x_scale=x_scale, x_offset=x_offset
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        seen, x_scale, x_offset, w, w_scale = ctx.saved_tensors
        rows = math.prod(grad.shape[:-1])
        grad_rows = grad.reshape(rows, w.shape[0])
        if ctx.is_fixed:
            steps = ((seen.float() - x_offset) * (1 / x_scale)).round()
        grad_x = grad_w = grad_bias = None
        if ctx.needs_input_grad[0]:
            w_seen = (w * w_scale[:, None]).to(grad.dtype)
            grad_x = (grad_rows @ w_seen).reshape(seen.shape)
            if ctx.is_fixed:
                grad_x = grad_x * (steps.abs() <= 127)
        if ctx.needs_input_grad[1]:
            if ctx.is_fixed:
                x_seen = steps.clamp(-127, 127) * x_scale + x_offset
            else:
                x_seen = seen * x_scale[..., None] + x_offset[..., None]
            grad_w = grad_rows.T @ x_seen.to(grad.dtype).reshape(rows, w.shape[1])
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0)
        return grad_x, grad_w, grad_bias, None


class QATLinear(nn.Linear):
    """``nn.Linear`` whose forward is that of the int8 layer made of it, bit for bit, in training
    and in evaluation mode; gradients go straight through the rounding.

    Weight and bias stay float parameters, under the names and in the state dict of ``nn.Linear``;
    the weight is quantised and packed anew at every call. A parametrised weight (a mask of pruning)
    is quantised as the parametrisation gives it. :func:`fastinfer.prepare_qat_` makes these layers
    of a model's, :func:`fastinfer.convert_qat_` makes them int8.

    ``input_range``: the least and the greatest ``x`` of a static layer, or None: a scale and an
    offset a row.
    """

    input_range: tuple[float, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` float32, bfloat16 or float16 -> ``[..., out_features]``.

        Gradients: with ``w`` and ``x`` as int8 has them, ``grad @ w``, ``grad.T @ x`` and the sum
        of ``grad`` over rows, in the dtype of ``x``; elements of ``x`` that a fixed range clips get
        0. There is no second derivative.

        Raises:
            TypeError, ValueError: as :func:`fastinfer.ops.linear_w8a8`.
        """
        fixed = None if self.input_range is None else scale_and_offset(*self.input_range)
        y: Tensor = _FakeQuantized.apply(x, self.weight, self.bias, fixed)
        return y

    def extra_repr(self) -> str:
        static = "" if self.input_range is None else ", static"
        return f"{super().extra_repr()}, scheme=fake w8a8{static}"
