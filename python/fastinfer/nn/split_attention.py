"""Attention with the interface of nn.MultiheadAttention whose heads need not fill its width."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer.projections import linear_of


class SplitAttention(nn.Module):
    """What nn.MultiheadAttention computes, from linear layers of its own for q, k, v and output.

    torch's layer holds the three projections in one parameter, and fixes heads * head size to the
    width of the model. Here q_proj: [heads * head size, width], k_proj and v_proj alike,
    out_proj: [width, heads * head size], so heads can go and the layers can become int8.

    The arguments of `forward`, their shapes and what it returns are those of nn.MultiheadAttention;
    an attn_mask of three dimensions has as many heads as are left.
    """

    # nn.TransformerEncoderLayer asks for these: they say that its fused path is not for this one
    _qkv_same_embed_dim = False
    in_proj_bias = None
    # others may
    bias_k = bias_v = None
    add_zero_attn = False

    def __init__(
        self, layers: dict[str, nn.Linear], num_heads: int, dropout: float, batch_first: bool
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj = layers["q"], layers["k"]
        self.v_proj, self.out_proj = layers["v"], layers["out"]
        self.num_heads, self.dropout, self.batch_first = num_heads, dropout, batch_first

    @classmethod
    def from_torch(cls, attention: nn.MultiheadAttention, copy: bool = True) -> Self:
        """The same numbers in parameters of their own; training mode and requires_grad stay.

        copy: False lets them share the memory of those of `attention`.

        Raises ValueError if it has add_bias_kv or add_zero_attn.
        """
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("attention: it has add_bias_kv or add_zero_attn, want neither")
        packed, bias = attention.in_proj_weight, attention.in_proj_bias
        given = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        weights: list[Tensor] = given if packed is None else list(packed.chunk(3))
        biases = [None] * 3 if bias is None else bias.chunk(3)
        layers = {
            name: linear_of(
                *(weight, b),
                weight_trains=(weight if packed is None else packed).requires_grad,
                bias_trains=bias is not None and bias.requires_grad,
                copy=copy,
            )
            for name, weight, b in zip("qkv", weights, biases, strict=True)
        }
        out = attention.out_proj
        trains = out.weight.requires_grad, out.bias is not None and out.bias.requires_grad
        layers["out"] = linear_of(out.weight, out.bias, *trains, copy=copy)
        made = cls(layers, attention.num_heads, attention.dropout, attention.batch_first)
        return made.train(attention.training)

    @property
    def embed_dim(self) -> int:
        return self.out_proj.out_features

    @property
    def kdim(self) -> int:
        return self.k_proj.in_features

    @property
    def vdim(self) -> int:
        return self.v_proj.in_features

    @property
    def head_dim(self) -> int:
        return self.q_proj.out_features // self.num_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: got None with is_causal, want the causal mask")
        batched = query.dim() == 3
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask[None]
        q = self._heads(self.q_proj(query))
        k, v = self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # as torch does: it is that of is_causal, and need not be read
        else:
            is_causal = False
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        if not batched:
            y, weights = y[0].transpose(0, 1), None if weights is None else weights[0]
        else:
            y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return self.out_proj(y.flatten(-2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, heads, tokens, head size], a view of x: the order of its dimensions before is
        that of `forward`, so that query, key and value stay one tensor if they were."""
        x = x.unflatten(-1, (self.num_heads, -1))
        if x.dim() == 3:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores, [batch or 1, heads or 1, queries or 1, keys]."""
        parts = []
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            parts.append(mask.unflatten(0, (len(q), self.num_heads)) if mask.dim() == 3 else mask)
        if padding is not None:
            parts.append(_additive(padding, q.dtype)[:, None, None])
        return sum(parts[1:], parts[0]) if parts else None

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, batch_first={self.batch_first}"


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool or a floating-point type")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
