"""The core of the demo, on an environment that holds torch and the wheel alone."""

from __future__ import annotations

import torch

import fastinfer
from fastinfer import Int8Dynamic, quantize_


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(384, 1536), torch.nn.GELU(), torch.nn.Linear(1536, 384)
    ).eval()
    x = torch.randn(64, 384)
    with torch.inference_mode():
        before = model(x)
        summary = quantize_(model, Int8Dynamic())
        after = model(x)
    print(summary)
    swapped = [type(m).__name__ for m in model if isinstance(m, fastinfer.nn.QuantizedLinear)]
    assert len(swapped) == 2, "want both linears quantised"
    cosine = torch.nn.functional.cosine_similarity(before, after).min().item()
    # Two int8 matmuls in a row: about 0.7 % noise each for Gaussian rows, 1 - cosine ~ 1e-4.
    assert cosine > 0.999, f"cosine to float32: got {cosine:.6f}, want > 0.999"
    print(f"wheel works: ISA in use {fastinfer._C.isa_in_use()}, worst cosine {cosine:.6f}")


if __name__ == "__main__":
    main()
