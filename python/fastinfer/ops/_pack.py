"""pack_w8, unpack_w8: checks, wrappers, fake kernels."""

import torch
from torch import Tensor

from fastinfer.ops._common import MAX_K, check_tensor, check_vector, run, shape_text


def pack_w8(w: Tensor) -> Tensor:
    """Packs an int8 weight into the tagged block of bytes that the kernels read.

    The block describes itself (layout, version, shape), holds no address and is the same for
    every CPU: it may be stored and memory-mapped as it is.

    Args:
        w: int8 ``[N, K]``, ``K <= 131071``, any strides.

    Returns:
        uint8 vector of ``64 + 4 * N_pad + N_pad * K_pad`` bytes, N padded to 16 and K to 64.

    Raises:
        TypeError: ``w`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w`` is not a matrix, K is too long, or the device has no kernels.
    """
    _check_pack_w8(w)
    return run(torch.ops.fastinfer.pack_w8.default, w)


def unpack_w8(w_packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of :func:`pack_w8`, lossless.

    Args:
        w_packed: uint8 vector that :func:`pack_w8` returned.
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
    """The size in bytes of a packed int8 weight ``[n, k]``."""
    n_pad = (n + 15) // 16 * 16
    return 64 + 4 * n_pad + n_pad * ((k + 63) // 64 * 64)


def _check_pack_w8(w: Tensor) -> None:
    check_tensor("pack_w8", "w", w, (torch.int8,))
    if w.dim() != 2:
        raise ValueError(f"pack_w8: w has shape {shape_text(w.shape)}, want [N, K]")
    if w.shape[1] > MAX_K:
        raise ValueError(
            f"pack_w8: w has K = {w.shape[1]}, want at most {MAX_K} (int32 sums stay exact up to "
            "there)"
        )


def _check_unpack_w8(w_packed: Tensor, n: int, k: int) -> None:
    check_vector("unpack_w8", "w_packed", w_packed, torch.uint8, None)
    if n < 0 or k < 0:
        raise ValueError(f"unpack_w8: n, k are {n}, {k}, want >= 0")


def check_packed_size(op: str, name: str, w_packed: Tensor, n: int, k: int) -> None:
    """All that can be said of a packed weight without its bytes; the operators read its header."""
    if w_packed.shape[0] != packed_bytes(n, k):
        raise ValueError(
            f"{op}: {name} has {w_packed.shape[0]} bytes, want the {packed_bytes(n, k)} of a "
            f"packed weight with N = {n} and K = {k}"
        )


@torch.library.register_fake("fastinfer::pack_w8")
def _(w: Tensor) -> Tensor:
    _check_pack_w8(w)
    return w.new_empty(packed_bytes(w.shape[0], w.shape[1]), dtype=torch.uint8)


@torch.library.register_fake("fastinfer::unpack_w8")
def _(w_packed: Tensor, n: int, k: int) -> Tensor:
    _check_unpack_w8(w_packed, n, k)
    check_packed_size("unpack_w8", "w_packed", w_packed, n, k)
    return w_packed.new_empty((n, k), dtype=torch.int8)
