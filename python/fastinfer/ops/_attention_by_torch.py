"""The attention operator in terms of torch's own kernels: what runs where there is none of ours."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_by_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    """``F.scaled_dot_product_attention`` with the arguments and the meaning of ``ops.attention``.

    Differences: the numbers are those of torch's kernels, so probabilities of 16-bit inputs are
    rounded to 16 bits and the order of sums is theirs; NaN or Inf in a key or value that is hidden
    spreads to the queries it is hidden from.

    Args:
        q: ``[B, Hq, Tq, D]``, as checked by ``ops.attention``; so the others.
        k: ``[B, Hkv, Tk, D]``.
        v: ``[B, Hkv, Tk, D]``.
        mask: True for visible, or added to the scores; broadcasts to ``[B, Hq, Tq, Tk]``.
        scale: factor of the scores; None for ``1 / sqrt(D)``.
        causal: key ``j`` is visible to query ``i`` if ``j <= i``.
        window: if not 0, only keys with ``i - j < window``.

    Returns:
        ``[B, Hq, Tq, D]``, in memory contiguous as ``[B, Tq, Hq, D]``.
    """
    b, heads, tq, d = q.shape
    dtype, kv_heads, tk = q.dtype, k.shape[1], k.shape[2]
    if q.numel() == 0 or tk == 0:
        return q.new_zeros((b, tq, heads, d)).transpose(1, 2)
    if mask is not None or 0 < window < tq:
        mask = _one_mask(q, tk, mask, causal, window)
        causal = False
    if mask is not None and mask.dtype == torch.float32 and dtype != torch.float32:
        # Torch's kernels want a mask of the dtype of q. Rounding this one could move a bias by
        # more than 1, or turn the least finite number into -Inf: the inputs are widened instead.
        q, k, v = q.float(), k.float(), v.float()
    grouped = heads != kv_heads
    if grouped and (mask is not None or q.dtype == torch.float32):
        # Groups of heads are known to torch's flash kernel alone, which takes neither.
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        grouped = False
    if scale is not None and scale <= 0:  # a running maximum of scores wants a positive factor
        q, scale = (-q, -scale) if scale < 0 else (q * 0, 1.0)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    return out.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _one_mask(q: Tensor, tk: int, mask: Tensor | None, causal: bool, window: int) -> Tensor:
    """All that hides keys in one mask ``[1 or B, 1 or Hq, 1 or Tq, Tk]`` with unit stride."""
    tq = q.shape[2]
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())]
        mask = mask.expand(*mask.shape[:3], tk)
    if causal:
        distance = torch.arange(tq, device=q.device)[:, None] - torch.arange(tk, device=q.device)
        seen = distance >= 0
        if window:
            seen &= distance < window
        if mask is None:
            mask = seen[None, None]
        elif mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.masked_fill(~seen, -torch.inf)
    assert mask is not None
    return mask if mask.stride(-1) == 1 else mask.contiguous()
