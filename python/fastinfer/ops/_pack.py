"""pack_w8, unpack_w8: checks, wrappers, fake kernels."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fastinfer.ops._common import MAX_K, check_tensor, check_vector, run, shape_text

Layout = Literal["dense", "sp24", "bitmask", "bsr"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

def pack_w8(w: Tensor, layout: Layout = "dense") -> Tensor:
    """Packs an int8 weight into the tagged block of bytes that the kernels read.

    The block describes itself (layout, version, shape), holds no address and is the same for
    every CPU: it may be stored and memory-mapped as it is. Every operator takes every layout, and
    the results have the same bits. With N padded to 16 and K to 64, beside 4 bytes a row:

    * "dense": a byte a weight;
    * "sp24": 5 bits a weight, for 2 of every 4 neighbours along K zero (the last group of a K that
      is no multiple of 4 counts as if zeros followed);
    * "bitmask": a bit a weight and a byte for each that is not zero;
    * "bsr": the tiles of 16 outputs by 64 of K that are not all zero, a byte a weight.

    Args:
        w: int8 ``[N, K]``, ``K <= 131071``, any strides.
        layout: one of these four.

    Returns:
        uint8 vector.

    Raises:
        TypeError: ``w`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w`` is not a matrix, K is too long, ``layout`` is not among the four, ``w``
            keeps more than 2 of 4 weights under "sp24", or the device has no kernels.
    """
    _check_pack_w8(w, layout)
    return run(torch.ops.fastinfer.pack_w8.default, w, layout)


def unpack_w8(w_packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of :func:`pack_w8`, lossless.

    Args:
        w_packed: uint8 vector that :func:`pack_w8` returned, of any layout.
        n: the rows of the weight.
        k: the columns of the weight.

    Returns:
        int8 ``[n, k]``.

    Raises:
        TypeError: ``w_packed`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w_packed`` is not a packed weight of shape ``[n, k]``, or is on a device
            without kernels.
    """
    _check_unpack_w8(w_packed, n, k)
    return run(torch.ops.fastinfer.unpack_w8.default, w_packed, n, k)


def packed_bytes(n: int, k: int) -> int:
    """The size in bytes of a dense packed int8 weight ``[n, k]``."""
    n_pad = (n + 15) // 16 * 16
    return 64 + 4 * n_pad + n_pad * ((k + 63) // 64 * 64)


def _check_pack_w8(w: Tensor, layout: str) -> None:
    check_tensor("pack_w8", "w", w, (torch.int8,))
    if w.dim() != 2:
        raise ValueError(f"pack_w8: w has shape {shape_text(w.shape)}, want [N, K]")
    if w.shape[1] > MAX_K:
        raise ValueError(
            f"pack_w8: w has K = {w.shape[1]}, want at most {MAX_K} (int32 sums stay exact up to "
            "there)"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"pack_w8: layout is {layout!r}, want one of {', '.join(LAYOUTS)}")


def _check_unpack_w8(w_packed: Tensor, n: int, k: int) -> None:
    check_vector("unpack_w8", "w_packed", w_packed, torch.uint8, None)
    if n < 0 or k < 0:
        raise ValueError(f"unpack_w8: n, k are {n}, {k}, want >= 0")


def check_packed_size(op: str, name: str, w_packed: Tensor, n: int, k: int) -> None:
    """All that can be said of a packed weight without its bytes; the operators read its header."""
    least = packed_bytes(n, 0)
    if w_packed.shape[0] < least:
        raise ValueError(
            f"{op}: {name} has {w_packed.shape[0]} bytes, want the {least} or more of a "
            f"packed weight with N = {n} and K = {k}"
        )


@torch.library.register_fake("fastinfer::pack_w8")
def _(w: Tensor, layout: str = "dense") -> Tensor:
    _check_pack_w8(w, layout)
    if layout == "dense":
        return w.new_empty(packed_bytes(w.shape[0], w.shape[1]), dtype=torch.uint8)
    return w.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.register_fake("fastinfer::unpack_w8")
def _(w_packed: Tensor, n: int, k: int) -> Tensor:
    _check_unpack_w8(w_packed, n, k)
    check_packed_size("unpack_w8", "w_packed", w_packed, n, k)
    return w_packed.new_empty((n, k), dtype=torch.int8)
