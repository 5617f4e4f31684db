"""int8 inference for PyTorch models: own kernels, drop-in layers, measured on your machine."""

from importlib.metadata import version

from fastinfer import nn, ops
from fastinfer.calibrate import calibrate
from fastinfer.calibration import Calibration
from fastinfer.channels import prune_channels_
from fastinfer.checkpoint import load
from fastinfer.compare import Comparison, compare
from fastinfer.config import Int8Dynamic, Int8Static, Int8WeightOnly
from fastinfer.criteria import Magnitude, Random, Taylor, Wanda
from fastinfer.distill import distill
from fastinfer.distillation import Distillation
from fastinfer.expose import expose_linears_
from fastinfer.fuse import Fusion, fuse_
from fastinfer.heads import prune_heads_
from fastinfer.info import show_config
from fastinfer.layer_pruning import LayerPruning
from fastinfer.layers import prune_layers_
from fastinfer.losses import KD, FeatureMatch
from fastinfer.masked import Sparsity, finalize_pruning_, sparsity_of
from fastinfer.narrowing import ChannelPruning, HeadPruning, WidthPruning
from fastinfer.nn import quantize_linear
from fastinfer.optimize import optimize
from fastinfer.optimized import Optimized
from fastinfer.prune import prune_
from fastinfer.pruning import Pruning
from fastinfer.qat import convert_qat_, prepare_qat_
from fastinfer.quantize import quantize_
from fastinfer.schedule import CubicSchedule
from fastinfer.schemes import Int8Sparse
from fastinfer.search import search
from fastinfer.searched import Searched
from fastinfer.sensitivity import Sensitivity, sensitivity
from fastinfer.smooth import smooth_
from fastinfer.smoothing import Smoothing
from fastinfer.sparsegpt import SparseGPT
from fastinfer.sparsify import sparsify_
from fastinfer.sparsity import BlockSparse, Sparse24, Unstructured
from fastinfer.summary import Summary
from fastinfer.width import prune_width_

__version__ = version("fastinfer")

__all__ = [
    "KD",
    "BlockSparse",
    "Calibration",
    "ChannelPruning",
    "Comparison",
    "CubicSchedule",
    "Distillation",
    "FeatureMatch",
    "Fusion",
    "HeadPruning",
    "Int8Dynamic",
    "Int8Sparse",
    "Int8Static",
    "Int8WeightOnly",
    "LayerPruning",
    "Magnitude",
    "Optimized",
    "Pruning",
    "Random",
    "Searched",
    "Sensitivity",
    "Smoothing",
    "Sparse24",
    "SparseGPT",
    "Sparsity",
    "Summary",
    "Taylor",
    "Unstructured",
    "Wanda",
    "WidthPruning",
    "__version__",
    "calibrate",
    "compare",
    "convert_qat_",
    "distill",
    "expose_linears_",
    "finalize_pruning_",
    "fuse_",
    "load",
    "nn",
    "ops",
    "optimize",
    "prepare_qat_",
    "prune_",
    "prune_channels_",
    "prune_heads_",
    "prune_layers_",
    "prune_width_",
    "quantize_",
    "quantize_linear",
    "search",
    "sensitivity",
    "show_config",
    "smooth_",
    "sparsify_",
    "sparsity_of",
]
