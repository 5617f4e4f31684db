"""The native library: CPU features, the ISA in use, kernels by name on numpy arrays, selection."""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class Isa(TypedDict):
    name: str
    supported: bool
    allowed: bool
    reason: str

class Kernel(TypedDict, total=False):
    name: str
    family: str
    isa: str
    supported: bool
    mr: int
    nr: int
    kr: int

class Selection(TypedDict):
    gemm: str
    quantize: str
    mc: int
    tasks_m: int
    tasks_n: int

class BuildInfo(TypedDict):
    compiler: str
    build_type: str
    sanitize: str

def isas() -> list[Isa]: ...
def isa_in_use() -> str: ...
def isa_cap() -> str: ...
def force_isa(name: str) -> None: ...
def kernels() -> list[Kernel]: ...
def attention_in_pairs() -> bool: ...
def select(m: int, n: int, k: int, threads: int = 1) -> Selection: ...
def quantize_rowwise(
    kernel: str,
    x: NDArray[np.generic],
    dtype: str = "f32",
    symmetric: bool = True,
    static_scale: float = 0.0,
    static_offset: float = 0.0,
) -> tuple[NDArray[np.generic], ...]: ...
def gemm_s8s8s32(
    kernel: str,
    a: NDArray[np.int8],
    w: NDArray[np.int8],
    a_scale: NDArray[np.float32],
    w_scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    activation: int = 0,
    residual: NDArray[np.generic] | None = None,
    out_dtype: str = "f32",
    a_offset: NDArray[np.float32] | None = None,
    multiplier: NDArray[np.float32] | None = None,
) -> NDArray[np.generic]: ...
def gemm_f32s8f32(
    kernel: str,
    x: NDArray[np.generic],
    w: NDArray[np.int8],
    w_scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    activation: int = 0,
    residual: NDArray[np.generic] | None = None,
    dtype: str = "f32",
    out_dtype: str = "f32",
) -> NDArray[np.generic]: ...
def norm(
    kernel: str,
    x: NDArray[np.generic],
    kind: str,
    weight: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
    eps: float = 1e-5,
    residual: NDArray[np.generic] | None = None,
    dtype: str = "f32",
) -> tuple[NDArray[np.generic], ...]: ...
def rope(
    kernel: str,
    x: NDArray[np.generic],
    cos: NDArray[np.generic],
    sin: NDArray[np.generic],
    heads: int,
    interleaved: bool = False,
    dtype: str = "f32",
    table_dtype: str = "f32",
) -> NDArray[np.generic]: ...
def act_mul(
    kernel: str,
    x: NDArray[np.generic],
    other: NDArray[np.generic] | None = None,
    activation: int = 0,
    dtype: str = "f32",
) -> NDArray[np.generic]: ...
def expand_s8(kernel: str, w: NDArray[np.int8], layout: str) -> NDArray[np.int8]: ...
def gemm_masked_s8s8s32(
    kernel: str, a: NDArray[np.int8], w: NDArray[np.int8], layout: str
) -> NDArray[np.int32]: ...
def gemm_bsr_s8s8s32(
    kernel: str, a: NDArray[np.int8], w: NDArray[np.int8]
) -> NDArray[np.int32]: ...
def build_info() -> BuildInfo: ...
def unchanged(places: tuple[object, ...], versions: bytearray) -> bool: ...
def values_at(
    entries: tuple[object, ...], more: tuple[object, ...], others: list[Any]
) -> tuple[Any, ...] | None: ...
def signature(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensor_types: tuple[type, ...],
    layout: object,
) -> tuple[tuple[Any, ...], list[Any]] | None: ...
