"""The operators ``torch.ops.fastinfer.*``: loaded, given shapes for tracing, and wrapped.

The functions here check their arguments and then call the operator of the same name. They work in
eager mode, under ``torch.inference_mode``, ``torch.compile`` and ``torch.export``. No operator
has a gradient. One file an operator, or a pair of inverse ones: check, wrapper, fake kernel.
"""

from fastinfer.ops._act_mul import act_mul
from fastinfer.ops._attention import MAX_HEAD_DIM, attention
from fastinfer.ops._common import ACTIVATIONS, MAX_K
from fastinfer.ops._embedding import embedding_w8
from fastinfer.ops._linear import linear_w8a8
from fastinfer.ops._linear_cat import linear_w8a8_cat
from fastinfer.ops._linear_gated import linear_w8a8_gated
from fastinfer.ops._linear_w8a16 import linear_w8a16
from fastinfer.ops._norm import layer_norm, rms_norm
from fastinfer.ops._pack import (
    CUDA_LAYOUTS,
    LAYOUTS,
    Layout,
    layout_of,
    pack_w8,
    packed_bytes,
    repack_w8,
    unpack_w8,
)
from fastinfer.ops._quantize import quantize_rows, quantize_rowwise
from fastinfer.ops._rope import rope

__all__ = [
    "ACTIVATIONS",
    "CUDA_LAYOUTS",
    "LAYOUTS",
    "MAX_HEAD_DIM",
    "MAX_K",
    "Layout",
    "act_mul",
    "attention",
    "embedding_w8",
    "layer_norm",
    "layout_of",
    "linear_w8a8",
    "linear_w8a8_cat",
    "linear_w8a8_gated",
    "linear_w8a16",
    "pack_w8",
    "packed_bytes",
    "quantize_rows",
    "quantize_rowwise",
    "repack_w8",
    "rms_norm",
    "rope",
    "unpack_w8",
]
