"""The int8 twins of a model's linear layers: making them, and what their places need."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastinfer.candidates import Layer
from fastinfer.config import Int8Dynamic, Int8Static
from fastinfer.footprint import tensor_bytes
from fastinfer.guard import Timing
from fastinfer.nn import QATLinear, QuantizedEmbedding, QuantizedLinear, SplitAttention
from fastinfer.ops import unpack_w8
from fastinfer.summary import Row

_CHUNK = 1 << 17  # values of a weight that are compared at a time
FusedPath = tuple[nn.Module, str, object]  # (module, attribute, its value)
_FUSED_PATHS: dict[type[nn.Module], str] = {
    nn.TransformerEncoder: "use_nested_tensor",
    nn.TransformerEncoderLayer: "activation_relu_or_gelu",
}
Make = Callable[[nn.Linear], QuantizedLinear]


def make_twins(
    group: Sequence[Layer], make: Make = QuantizedLinear.from_linear
) -> dict[nn.Module, Any]:
    """The int8 layer of each float one of a group; they share their weight, made of the first,
    which is a linear layer."""
    # Made as normal tensors even within inference_mode, or nothing could be loaded into them later.
    with torch.inference_mode(False), torch.no_grad():
        first = make(group[0].module)
        made: dict[nn.Module, Any] = {group[0].module: first}
        for layer in group[1:]:
            if isinstance(layer.module, nn.Embedding):
                made[layer.module] = QuantizedEmbedding.from_embedding(layer.module, first)
                continue
            twin = made[layer.module] = same_buffers(first)
            bias = layer.module.bias
            twin.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
            twin.train(layer.module.training)
    return made


def same_buffers(layer: QuantizedLinear) -> QuantizedLinear:
    """Another layer with the buffers of an int8 one."""
    twin = copy.copy(layer)
    twin._buffers = dict(layer._buffers)
    return twin


def put(layer: Layer, module: nn.Module) -> None:
    """Sets `module` in every place of the model where `layer` stands."""
    for parent, attribute in layer.places:
        setattr(parent, attribute, module)


def make_row(
    layer: Layer,
    twin: QuantizedLinear | None,
    timing: Timing | None,
    sqnr_db: float | None,
    static: bool = False,
    label: str | None = None,
    note: str | None = None,
) -> Row:
    """The summary's row of a layer; `twin`: the int8 layer that replaces it, None if it stays.

    label: the scheme of the twin, if it is another than `static` says.
    """
    module = layer.module
    measured = timing if timing is not None and timing.error is None else None
    bytes_before = tensor_bytes(module)
    missed = static and twin is not None and twin.input_scale is None
    if label is None:
        label = Int8Static.label if static and not missed else Int8Dynamic.label
    return Row(
        name=layer.name,
        in_features=module.in_features,
        out_features=module.out_features,
        scheme=label if twin else None,
        reason=layer.reason,
        bytes_before=bytes_before,
        bytes_after=tensor_bytes(twin) if twin else bytes_before,
        sqnr_db=sqnr_db if twin else None,
        ms_before=measured.ms_before if measured else None,
        ms_after=measured.ms_after if measured else None,
        note="not reached in calibration" if missed else note if twin else None,
        embeddings=layer.embeddings if twin else (),
    )


@torch.no_grad()
def weight_sqnr_db(linear: nn.Linear, quantized: QuantizedLinear) -> float:
    """20 log10(|W| / |W - W_int8|), Frobenius norms; inf if int8 holds the weight exactly."""
    signal = error = 0.0
    rows = max(1, _CHUNK // max(1, linear.in_features))
    packed = unpack_w8(quantized.weight_packed, linear.out_features, linear.in_features)
    parts = zip(
        linear.weight.split(rows),
        packed.split(rows),
        quantized.weight_scale.split(rows),
        strict=True,
    )
    for weight, integers, scale in parts:
        exact = weight.float()
        signal += _squares(exact)
        error += _squares(exact - integers * scale[:, None])
    return 10 * math.log10(signal / error) if error > 0 else math.inf


def _squares(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def fused_paths(model: nn.Module) -> list[FusedPath]:
    """What `close_fused_paths` may change, as it is now."""
    return [
        (module, attribute, getattr(module, attribute))
        for module in model.modules()
        for kind, attribute in _FUSED_PATHS.items()
        if isinstance(module, kind)
    ]


def close_fused_paths(model: nn.Module) -> None:
    """Makes torch's transformer encoder call its layers where they are int8, to be, or not torch's.

    nn.TransformerEncoderLayer.forward hands the weights of linear1 and linear2 to one fused float
    operator if activation_relu_or_gelu is not 0; the activation itself comes from elsewhere.
    nn.TransformerEncoder.forward makes nested tensors for that operator if use_nested_tensor.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            encoder_layers: list[nn.Module] = list(module.layers)
            if any(_must_be_called(layer) for layer in encoder_layers):
                module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer) and _must_be_called(module):
            module.activation_relu_or_gelu = 0


def open_fused_paths(paths: Sequence[FusedPath]) -> None:
    """Undoes `close_fused_paths`; paths: what `fused_paths` gave before."""
    for module, attribute, value in paths:
        setattr(module, attribute, value)


def _must_be_called(layer: nn.Module) -> bool:
    kinds = QuantizedLinear | QATLinear | SplitAttention
    return any(isinstance(child, kinds) for child in layer.children())
