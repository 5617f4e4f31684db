"""Layers that take the place of torch's."""

from fastinfer.nn.qat_linear import QATLinear
from fastinfer.nn.quantized_linear import QuantizedLinear, quantize_linear, why_not_quantizable

__all__ = ["QATLinear", "QuantizedLinear", "quantize_linear", "why_not_quantizable"]
