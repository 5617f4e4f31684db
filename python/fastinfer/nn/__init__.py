"""Layers that take the place of torch's."""

from fastinfer.nn.quantized_linear import QuantizedLinear, quantize_linear, why_not_quantizable

__all__ = ["QuantizedLinear", "quantize_linear", "why_not_quantizable"]
