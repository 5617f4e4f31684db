"""Every CUDA kernel once or twice at small odd sizes, for compute-sanitizer, which takes a hundred
times as long as the kernels do. An argument names another device, to try this file without a
GPU."""

import sys

import torch
from torch import nn

from fastinfer import ops, quantize_linear


def main(device: str) -> None:
    torch.manual_seed(0)
    for k, n in ((70, 37), (1030, 130), (256, 128)):  # the last as CUTLASS wants it
        layer = quantize_linear(nn.Linear(k, n)).to(device)
        packed, scale, bias = layer.weight_packed, layer.weight_scale, layer.bias
        half = ops.unpack_w8(packed, n, k)
        half[:, ::2] = 0
        sp24 = ops.pack_w8(half, "cuda_sp24" if device == "cuda" else "sp24")
        for m in (1, 3, 9, 20, 40, 70):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(m, k, device=device, dtype=dtype)
                ops.linear_w8a8(x, packed, scale, bias, activation="gelu")
                ops.linear_w8a8(x, sp24, scale, bias)
                ops.linear_w8a16(x, packed, scale, bias)
                ops.linear_w8a8_cat(x, [packed, sp24], [scale, scale], [bias, None])
                pair = (packed, scale, bias, packed, scale, None)
                ops.linear_w8a8_gated(x, *pair, activation="silu")
        x = torch.randn(5, k, device=device, dtype=torch.float16)
        ops.quantize_rowwise(x)
        ops.layer_norm(x, None, None, 1e-5, residual=x, emit_rows=True)
        ops.rms_norm(x, None, 1e-5, emit_rows=True)
        ops.act_mul(x, x, activation="silu", emit_rows=True)
        heads = torch.randn(2, 3, 5, 64, device=device, dtype=torch.bfloat16)
        angles = torch.randn(5, 64, device=device, dtype=torch.bfloat16)
        ops.rope(heads, angles, angles)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
