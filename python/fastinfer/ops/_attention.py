"""attention: check, wrapper, fake kernel."""

import torch
from torch import Tensor

from fastinfer.ops._attention_by_torch import attention_by_torch
from fastinfer.ops._common import FLOATS, check_tensor, run, shape_text

MAX_HEAD_DIM = 256


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    """``softmax(q @ k.mT * scale + mask) @ v`` without the matrix of scores in memory.

    The method is FlashAttention (Dao et al., 2022) with the online softmax of Milakov and
    Gimelshein (2018), a running maximum and sum over blocks of keys. All arithmetic is float32,
    whatever the dtype; the result is rounded once. It is the same bits on every thread count, and
    on every instruction set but for bfloat16: AVX512-BF16 and AMX multiply that in pairs, sum in
    an order of their own, and round the probabilities to bfloat16.

    Query heads share key and value heads in groups: head ``h`` of ``q`` reads head
    ``h // (Hq // Hkv)`` of ``k`` and ``v``. A key is hidden from a query where a boolean mask is
    False, an additive one is -Inf, or ``causal`` or ``window`` say so; what ``k`` and ``v`` hold
    there does not matter, NaN included. A query that sees no key gives zeros, as
    ``F.scaled_dot_product_attention`` does; an additive mask with the least finite number instead
    of -Inf hides nothing, so that a row full of it is the mean of ``v``, as it is there.

    On CUDA it is torch's own attention with this meaning: the numbers are those of its kernels, and
    what is hidden must be finite.

    Args:
        q: ``[B, Hq, Tq, D]`` float32, bfloat16 or float16, D from 1 to 256. Any strides; a copy is
            made only if the last is not 1. So for ``k`` and ``v``.
        k: ``[B, Hkv, Tk, D]`` of the dtype of ``q``, Hq a multiple of Hkv.
        v: ``[B, Hkv, Tk, D]`` of the dtype of ``q``.
        mask: bool (True: visible), or float32 or the dtype of ``q`` (added to the scaled scores),
            any shape and strides that broadcast to ``[B, Hq, Tq, Tk]``; or None.
        scale: factor of the scores; None for ``1 / sqrt(D)``.
        causal: key ``j`` is visible to query ``i`` if ``j <= i``, both counted from 0 (the
            ``is_causal`` of torch); together with a mask, both apply.
        window: if not 0, only keys with ``i - j < window`` are visible (sliding window, as in
            Mistral 7B, Jiang et al., 2023); needs ``causal``.

    Returns:
        ``[B, Hq, Tq, D]`` of the dtype of ``q``; the memory is contiguous as ``[B, Tq, Hq, D]``,
        so that joining the heads copies nothing.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype or layout.
        ValueError: shapes that do not fit, D out of range, a negative window, a window without
            ``causal``, or a device without kernels.
    """
    _check_attention(q, k, v, mask, causal, window)
    return run(torch.ops.fastinfer.attention.default, q, k, v, mask, scale, causal, window)


def _check_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, window: int
) -> None:
    op = "attention"
    check_tensor(op, "q", q, FLOATS)
    check_tensor(op, "k", k, (q.dtype,))
    check_tensor(op, "v", v, (q.dtype,))
    if q.dim() != 4 or not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(
            f"{op}: q has shape {shape_text(q.shape)}, want [B, H, T, D] with D from 1 to "
            f"{MAX_HEAD_DIM}"
        )
    if k.dim() != 4 or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"{op}: k has shape {shape_text(k.shape)}, want [B, H, T, D] with B = {q.shape[0]} "
            f"and D = {q.shape[3]}, as q has"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads != 0 if kv_heads == 0 else heads % kv_heads != 0:
        raise ValueError(f"{op}: k has {kv_heads} heads, want a divisor of the {heads} of q")
    if v.shape != k.shape:
        raise ValueError(
            f"{op}: v has shape {shape_text(v.shape)}, want that of k, {shape_text(k.shape)}"
        )
    if mask is not None:
        check_tensor(op, "mask", mask, tuple(dict.fromkeys((torch.bool, torch.float32, q.dtype))))
        want = (*q.shape[:3], k.shape[2])
        fits = mask.dim() <= 4 and all(
            size in (1, full) for size, full in zip(mask.shape, want[4 - mask.dim() :], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{op}: mask has shape {shape_text(mask.shape)}, want one that broadcasts to "
                f"{shape_text(torch.Size(want))}"
            )
    if window < 0:
        raise ValueError(f"{op}: window is {window}, want >= 0")
    if window > 0 and not causal:
        raise ValueError(
            f"{op}: window is {window} and causal is False, want a window with causal alone"
        )
    for name, t in {"k": k, "v": v, "mask": mask}.items():
        if t is not None and t.device != q.device:
            raise ValueError(f"{op}: {name} is on {t.device}, want {q.device}, where q is")


@torch.library.register_fake("fastinfer::attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    _check_attention(q, k, v, mask, causal, window)
    b, h, t, d = q.shape
    return q.new_empty((b, t, h, d)).transpose(1, 2)


@torch.library.impl("fastinfer::attention", "cuda")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    _check_attention(q, k, v, mask, causal, window)
    with torch.autocast("cuda", enabled=False):  # it would cast what is float32 on purpose
        return attention_by_torch(q, k, v, mask, scale, causal, window)
