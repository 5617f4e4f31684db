"""int8 inference for PyTorch models: own kernels, drop-in layers, measured on your machine."""

from importlib.metadata import version

from fastinfer import nn, ops
from fastinfer.calibrate import calibrate
from fastinfer.calibration import Calibration
from fastinfer.checkpoint import load
from fastinfer.compare import Comparison, compare
from fastinfer.config import Int8Dynamic, Int8Static
from fastinfer.fuse import Fusion, fuse_
from fastinfer.info import show_config
from fastinfer.nn import quantize_linear
from fastinfer.optimize import optimize
from fastinfer.optimized import Optimized
from fastinfer.qat import convert_qat_, prepare_qat_
from fastinfer.quantize import quantize_
from fastinfer.smooth import smooth_
from fastinfer.smoothing import Smoothing
from fastinfer.summary import Summary

__version__ = version("fastinfer")

__all__ = [
    "Calibration",
    "Comparison",
    "Fusion",
    "Int8Dynamic",
    "Int8Static",
    "Optimized",
    "Smoothing",
    "Summary",
    "__version__",
    "calibrate",
    "compare",
    "convert_qat_",
    "fuse_",
    "load",
    "nn",
    "ops",
    "optimize",
    "prepare_qat_",
    "quantize_",
    "quantize_linear",
    "show_config",
    "smooth_",
]
