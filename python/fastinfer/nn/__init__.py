"""Layers that take the place of torch's."""

from fastinfer.nn.qat_linear import QATLinear
from fastinfer.nn.quantized_embedding import QuantizedEmbedding, why_not_quantizable_embedding
from fastinfer.nn.quantized_linear import QuantizedLinear, quantize_linear, why_not_quantizable
from fastinfer.nn.split_attention import SplitAttention
from fastinfer.nn.weight_only_linear import WeightOnlyLinear

__all__ = [
    "QATLinear",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "SplitAttention",
    "WeightOnlyLinear",
    "quantize_linear",
    "why_not_quantizable",
    "why_not_quantizable_embedding",
]
