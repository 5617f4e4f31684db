"""fastinfer and its peers on one linear layer on a GPU: each makes, from a weight, what it stores
and a call that multiplies rows by it. All take bf16 rows and give bf16 rows; quantising rows
counts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfer import ops

# From a weight [N, K], bf16: the tensors stored, and a function of x and those. A peer that keeps
# its weight inside a module names none.
Stored = tuple[tuple[Tensor, ...], Callable[..., Tensor]]
Peer = Callable[[Tensor], Stored]


class Unfit(Exception):
    """This peer cannot run this cell; the message says why."""


def _int8_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = (w.float().abs().amax(1) / 127).clamp(min=1e-8)
    return (w.float() / scale[:, None]).round().to(torch.int8), scale


def _packed(w: Tensor) -> tuple[Tensor, Tensor]:
    quantized, scale = ops.quantize_rowwise(w)
    return ops.pack_w8(quantized, "cuda" if w.is_cuda else "dense"), scale


def ours_w8a8(w: Tensor) -> Stored:
    return _packed(w), torch.ops.fastinfer.linear_w8a8.default


def ours_w8a16(w: Tensor) -> Stored:
    return _packed(w), torch.ops.fastinfer.linear_w8a16.default


def two_of_four(w: Tensor) -> Tensor:
    """The larger two of every 4 along K, zeros in place of the others."""
    groups = w.view(w.shape[0], -1, 4)
    return groups.scatter(-1, groups.abs().topk(2, -1, largest=False).indices, 0).view_as(w)


def ours_sp24(w: Tensor) -> Stored:
    quantized, scale = ops.quantize_rowwise(two_of_four(w))
    packed = ops.pack_w8(quantized, "cuda_sp24" if w.is_cuda else "sp24")
    return (packed, scale), torch.ops.fastinfer.linear_w8a8.default


def torch_bf16(w: Tensor) -> Stored:
    return (w.clone(),), F.linear


def _quantize(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    scale = (x.float().abs().amax(-1, keepdim=True) / largest).clamp(min=1e-8)
    return x.float() / scale, scale


def _quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, scale = _quantize(x, 127.0)
    return rows.round().to(torch.int8), scale


def _quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, scale = _quantize(x, FP8_LARGEST)
    return rows.to(torch.float8_e4m3fn), scale


def _rescale(acc: Tensor, scale: Tensor, w_scale: Tensor) -> Tensor:
    return (acc.float() * scale * w_scale).to(torch.bfloat16)


FP8_LARGEST = 448.0
# One kernel each for all shapes (two: one row, and many), as peers' own documentation has it. Past
# the limit torch would run a peer uncompiled and say nothing.
torch._dynamo.config.recompile_limit = 64
_compiled = {f: torch.compile(f, dynamic=True) for f in (_quantize_int8, _quantize_fp8, _rescale)}


def _call(function: Callable[..., Any], x: Tensor, *args: Tensor) -> Any:
    return (_compiled[function] if x.is_cuda else function)(x, *args)


def torch_int_mm(w: Tensor) -> Stored:
    """torch._int_mm, symmetric rows quantised before it and scales after it."""

    def call(x: Tensor, quantized: Tensor, w_scale: Tensor) -> Tensor:
        if x.shape[0] <= 16 and x.is_cuda:
            raise Unfit("torch._int_mm wants more than 16 rows")
        rows, scale = _call(_quantize_int8, x)
        return _call(_rescale, torch._int_mm(rows, quantized.t()), scale, w_scale)

    return _int8_weight(w), call


def inductor_int_mm(w: Tensor) -> Stored:
    """The same compiled whole and tuned, which makes a Triton kernel of it where that is faster. It
    is tuned for every M, for seconds each: asked for by name (--triton)."""

    def product(x: Tensor, quantized: Tensor, w_scale: Tensor) -> Tensor:
        rows, scale = _quantize_int8(x)
        return _rescale(torch._int_mm(rows, quantized.t()), scale, w_scale)

    tuned = torch.compile(product, mode="max-autotune-no-cudagraphs", dynamic=False)
    return _int8_weight(w), tuned if w.is_cuda else product


def torch_weight_int8pack(w: Tensor) -> Stored:
    quantized, scale = _int8_weight(w)
    return (quantized, scale.to(torch.bfloat16)), torch._weight_int8pack_mm


def torch_fp8(w: Tensor) -> Stored:
    """torch._scaled_mm, rows and channels with scales of their own."""
    scaled, w_scale = _quantize(w, FP8_LARGEST)

    def call(x: Tensor, quantized: Tensor, scale_b: Tensor) -> Tensor:
        rows, scale = _call(_quantize_fp8, x)
        return torch._scaled_mm(
            rows, quantized.t(), scale_a=scale, scale_b=scale_b, out_dtype=torch.bfloat16
        )

    return (scaled.to(torch.float8_e4m3fn), w_scale.t().contiguous()), call


def torch_sparse_int8(w: Tensor) -> Stored:
    """cuSPARSELt's 2:4 product of int8, without the weight's scales: the best that it could be."""
    quantized = two_of_four(_int8_weight(w)[0])

    def call(x: Tensor, compressed: Tensor) -> Tensor:
        rows, _ = _call(_quantize_int8, x)
        return torch._cslt_sparse_mm(compressed, rows.t(), out_dtype=torch.bfloat16).t()

    return (torch._cslt_compress(quantized),), call


def torchao_int8(w: Tensor) -> Stored:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    return _swapped(w, lambda layer: quantize_(layer, Int8DynamicActivationInt8WeightConfig()))


def torchao_int8_weight_only(w: Tensor) -> Stored:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    return _swapped(w, lambda layer: quantize_(layer, Int8WeightOnlyConfig()))


def _swapped(w: Tensor, swap: Callable[[torch.nn.Module], object]) -> Stored:
    n, k = w.shape
    layer = torch.nn.Sequential(torch.nn.Linear(k, n, False, device=w.device, dtype=w.dtype))
    with torch.no_grad():
        layer[0].weight.copy_(w)
    swap(layer)
    return (), torch.compile(layer, dynamic=True) if w.is_cuda else layer


def bitsandbytes_int8(w: Tensor) -> Stored:
    import bitsandbytes

    n, k = w.shape
    layer = bitsandbytes.nn.Linear8bitLt(k, n, False, has_fp16_weights=False, threshold=0.0)
    layer.weight = bitsandbytes.nn.Int8Params(w.cpu(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(w.device)
    return (), lambda x: layer(x.half()).to(torch.bfloat16)


OURS = {
    "fastinfer_w8a8": ours_w8a8,
    "fastinfer_w8a16": ours_w8a16,
    "fastinfer_sp24": ours_sp24,
}
BASELINE = {"torch_bf16": torch_bf16}
PEERS: dict[str, Peer] = {
    **BASELINE,
    "torch_int_mm": torch_int_mm,
    "torch_weight_int8pack": torch_weight_int8pack,
    "torch_fp8": torch_fp8,
    "torch_sparse_int8": torch_sparse_int8,
    "torchao_int8": torchao_int8,
    "torchao_int8_weight_only": torchao_int8_weight_only,
    "bitsandbytes_int8": bitsandbytes_int8,
}
# Those whose answers are of two_of_four(w).
SPARSE = {"fastinfer_sp24"}
TRITON: dict[str, Peer] = {"inductor_int_mm": inductor_int_mm}
# Their answers are not those of the weight given: 2:4 drops half of it, and has no scales.
UNCHECKED = {"torch_sparse_int8"}
