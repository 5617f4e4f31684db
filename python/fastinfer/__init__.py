"""int8 inference for PyTorch models: own kernels, drop-in layers, measured on your machine."""

from importlib.metadata import version

from fastinfer import nn, ops
from fastinfer.nn import quantize_linear

__version__ = version("fastinfer")

__all__ = [
    "__version__",
    "nn",
    "ops",
    "quantize_linear",
]
