"""A graph of torch functions, as torch.compile hands it to a backend, in one normal form.

Models spell the same computation in many ways (methods, functions, operators). Traced once more
above the dispatcher's autograd layer, all become operators of `torch.ops.aten`, with `linear`,
`layer_norm`, `scaled_dot_product_attention` and the like still whole.
"""

from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fastinfer.ops._common import why_not_on

aten = torch.ops.aten


def normal_form(module: GraphModule) -> GraphModule:
    """`module` as a graph of aten operators on the same inputs; node.meta["val"] has the shapes."""
    inputs = [n.meta["example_value"] for n in module.graph.nodes if n.op == "placeholder"]
    modes = {x.fake_mode for x in inputs if isinstance(x, FakeTensor)}
    if len(modes) != 1:
        raise ValueError("the graph has no tensor among its inputs")
    with modes.pop(), enable_python_dispatcher():
        return make_fx(
            module,
            decomposition_table={
                aten._transformer_encoder_layer_fwd.default: _transformer_encoder_layer
            },
            tracing_mode="real",  # the inputs are fake already, with the sizes torch.compile gave
            pre_dispatch=True,
            _allow_non_fake_inputs=True,
        )(*inputs)


def why_not(module: GraphModule) -> str | None:
    """Why a graph is run as it is: None if it may be rewritten.

    The operators have no gradients, and autocast decides about casts call by call.
    """
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")) or any(
        "autocast" in getattr(node.target, "__name__", "") for node in module.graph.nodes
    ):
        return "it runs under autocast"
    if any("checkpoint" in getattr(node.target, "__name__", "") for node in module.graph.nodes):
        return "it is checkpointed"
    if any(
        node.target is torch._C._set_grad_enabled and node.args[0] for node in module.graph.nodes
    ):
        return "it switches gradients on"
    inputs = [n.meta.get("example_value") for n in module.graph.nodes if n.op == "placeholder"]
    if any(not isinstance(x, Tensor | SymInt | SymFloat | int | float) for x in inputs):
        return "it takes something else than tensors and numbers"
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if not tensors:
        return "it takes no tensor"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "it records gradients: call it under torch.inference_mode() or torch.no_grad()"
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        return f"its inputs are on several devices: {', '.join(sorted(map(str, devices)))}"
    no_kernels = why_not_on(devices.pop())
    if no_kernels is not None:
        return no_kernels
    return None


def _transformer_encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Any:
    """What nn.TransformerEncoderLayer's one fused operator computes, from its parts.

    A mask is [T, T] (mask_type 0), [B, T] (1) or [B, heads, T, T] (2) and forbids attention
    wherever it is not zero, whatever its dtype.
    """
    if mask is not None:
        mask = mask[:, None, None, :] if mask_type == 1 else mask
        mask = mask.to(torch.bool).logical_not()
    batch, length = src.shape[0], src.shape[1]

    def attend(x: Tensor) -> Tensor:
        qkv = functional.linear(x, qkv_weight, qkv_bias)
        heads = qkv.view(batch, length, 3, num_heads, embed_dim // num_heads)
        q, k, v = (heads.select(2, i).transpose(1, 2) for i in range(3))
        y = functional.scaled_dot_product_attention(q, k, v, mask)
        return functional.linear(
            y.transpose(1, 2).reshape(batch, length, embed_dim), proj_weight, proj_bias
        )

    def feed_forward(x: Tensor) -> Tensor:
        h = functional.linear(x, ffn_weight_1, ffn_bias_1)
        h = functional.gelu(h) if use_gelu else functional.relu(h)
        return functional.linear(h, ffn_weight_2, ffn_bias_2)

    def norm_1(x: Tensor) -> Tensor:
        return functional.layer_norm(x, [embed_dim], norm_weight_1, norm_bias_1, eps)

    def norm_2(x: Tensor) -> Tensor:
        return functional.layer_norm(x, [embed_dim], norm_weight_2, norm_bias_2, eps)

    if norm_first:
        src = src + attend(norm_1(src))
        return src + feed_forward(norm_2(src))
    src = norm_1(src + attend(src))
    return norm_2(src + feed_forward(src))
