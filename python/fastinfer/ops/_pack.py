"""pack_w8, unpack_w8: checks, wrappers, fake kernels."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fastinfer.ops._common import MAX_K, check_tensor, check_vector, run, shape_text

Layout = Literal["dense", "sp24", "bitmask", "bsr", "cuda", "cuda_sp24"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CUDA_LAYOUTS: tuple[Layout, ...] = ("cuda", "cuda_sp24")
_TAGS = (
    "s8_n16k4",
    "s8_sp24_n16k4",
    "s8_bits_n16k4",
    "s8_bsr_n16k64",
    "s8_rows_cuda",
    "s8_sp24_cuda",
)  # in a packed weight's header


def pack_w8(w: Tensor, layout: Layout = "dense") -> Tensor:
    """Packs an int8 weight into the tagged block of bytes that the kernels read.

    The block describes itself (layout, version, shape), holds no address and is the same for
    every CPU: it may be stored and memory-mapped as it is. On a CPU every operator takes each of
    the first four layouts, on CUDA each of the last two; the results have the same bits. With N
    padded to 16 and K to 64, beside 4 bytes a row:

    * "dense": a byte a weight;
    * "sp24": 5 bits a weight, for 2 of every 4 neighbours along K zero (the last group of a K that
      is no multiple of 4 counts as if zeros followed);
    * "bitmask": a bit a weight and a byte for each that is not zero;
    * "bsr": the tiles of 16 outputs by 64 of K that are not all zero, a byte a weight;
    * "cuda": a byte a weight, row after row;
    * "cuda_sp24": 5 bits a weight, for the zeros of "sp24".

    Args:
        w: int8 ``[N, K]``, ``K <= 131071``, any strides.
        layout: one of these six; any of them is made on a CPU, the last two of a ``w`` on CUDA
            too.

    Returns:
        uint8 vector on the device of ``w``.

    Raises:
        TypeError: ``w`` is not a tensor, or has the wrong dtype or layout.
        ValueError: ``w`` is not a matrix, K is too long, ``layout`` is not among the six, ``w``
            keeps more than 2 of 4 weights under "sp24" or "cuda_sp24", or the device has no
            kernels.
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


def repack_w8(w_packed: Tensor, layout: Layout) -> Tensor:
    """The same weight in another layout; ``w_packed`` itself if it has that one already.

    Args:
        w_packed: uint8 vector on the CPU that :func:`pack_w8` returned, of any layout.
        layout: see :func:`pack_w8`.

    Returns:
        uint8 vector.

    Raises:
        TypeError, ValueError: as :func:`unpack_w8` and :func:`pack_w8`.
    """
    check_vector("repack_w8", "w_packed", w_packed, torch.uint8, None)
    has = layout_of(w_packed)
    if has is None:
        raise ValueError("repack_w8: w_packed is not a packed int8 weight")
    if has == layout:
        return w_packed
    n, k = w_packed[32:48].clone().view(torch.int64).tolist()
    return pack_w8(unpack_w8(w_packed, n, k), layout)


def packed_bytes(n: int, k: int, layout: Layout = "dense") -> int:
    """The size in bytes of a packed int8 weight ``[n, k]``, "dense", "cuda" or "cuda_sp24"."""
    n_pad = (n + 15) // 16 * 16
    front, weights = 64 + 4 * n_pad, n_pad * ((k + 63) // 64 * 64)
    if layout in CUDA_LAYOUTS:
        front = (front + 64 + 127) // 128 * 128
    return front + (weights * 5 // 8 if layout == "cuda_sp24" else weights)


def layout_of(w_packed: Tensor) -> Layout | None:
    """The layout of a packed int8 weight, by its header; None if there is none to read."""
    if w_packed.is_meta:
        return None
    tag = bytes(w_packed[8:24].tolist()).rstrip(b"\0").decode("latin-1")
    return LAYOUTS[_TAGS.index(tag)] if tag in _TAGS else None


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
    if w.device.type == "cuda" and layout not in CUDA_LAYOUTS:
        raise ValueError(
            f"pack_w8: layout is {layout!r}, want cuda or cuda_sp24: w is on {w.device}"
        )


def _check_unpack_w8(w_packed: Tensor, n: int, k: int) -> None:
    check_vector("unpack_w8", "w_packed", w_packed, torch.uint8, None)
    if n < 0 or k < 0:
        raise ValueError(f"unpack_w8: n, k are {n}, {k}, want >= 0")


def check_packed_size(op: str, name: str, w_packed: Tensor, n: int, k: int) -> None:
    """All that can be said of a packed weight without its bytes; the operators of CPUs read its
    header.

    The largest is a bitmask of which nothing is zero.
    """
    if w_packed.device.type == "cuda":
        want, sp24 = packed_bytes(n, k, "cuda"), packed_bytes(n, k, "cuda_sp24")
        if w_packed.shape[0] not in (want, sp24):
            raise ValueError(
                f"{op}: {name} has {w_packed.shape[0]} bytes, want the {want} of an int8 weight "
                f'packed for CUDA (layout "cuda"; {sp24} of "cuda_sp24") with N = {n} and K = {k}'
            )
        return
    panels, slices = (n + 15) // 16, (n + 15) // 16 * ((k + 63) // 64)
    least = packed_bytes(n, 0)
    most = least + (panels * 8 + 71) // 64 * 64 + slices * (1024 + 128) + (1024 + 128 + 64)
    if not least <= w_packed.shape[0] <= most:
        raise ValueError(
            f"{op}: {name} has {w_packed.shape[0]} bytes, want the {packed_bytes(n, k)} of a "
            f"dense packed weight with N = {n} and K = {k}, or at most {most} of a sparse one"
        )


@torch.library.register_fake("fastinfer::pack_w8")
def _(w: Tensor, layout: Layout = "dense") -> Tensor:
    _check_pack_w8(w, layout)
    if layout == "dense" or layout in CUDA_LAYOUTS:
        return w.new_empty(packed_bytes(w.shape[0], w.shape[1], layout), dtype=torch.uint8)
    return w.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.register_fake("fastinfer::unpack_w8")
def _(w_packed: Tensor, n: int, k: int) -> Tensor:
    _check_unpack_w8(w_packed, n, k)
    check_packed_size("unpack_w8", "w_packed", w_packed, n, k)
    return w_packed.new_empty((n, k), dtype=torch.int8)


@torch.library.impl("fastinfer::pack_w8", "CUDA")
def _(w: Tensor, layout: str = "dense") -> Tensor:
    """Packed on the host: once a weight, when a layer is made or moves."""
    return torch.ops.fastinfer.pack_w8.default(w.cpu(), layout).to(w.device)


@torch.library.impl("fastinfer::unpack_w8", "CUDA")
def _(w_packed: Tensor, n: int, k: int) -> Tensor:
    return torch.ops.fastinfer.unpack_w8.default(w_packed.cpu(), n, k).to(w_packed.device)
