"""Each instruction set's kernels on shapes of real models, under pytest-benchmark.

    pytest bench/micro.py                        # needs the extra fastinfer[bench]
    pytest bench/micro.py -k "amx and 768x3072" --benchmark-json=micro.json

One thread, through the op, selection held to the instruction set: the registry's own calls on
numpy arrays pack their operands every time, which would be most of what is timed. Under
`extra_info` of the JSON: the kernels, the rate, and its share of the peak or bandwidth measured
beforehand.
"""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import roofline
from fastinfer import _C, ops
from sections import our_layer

ISAS = [row["name"] for row in _C.isas() if row["supported"] and row["name"] != "generic"]
QUANTIZERS = [
    row["name"] for row in _C.kernels() if row["family"] == "quantize_rowwise" and row["supported"]
]
peak = functools.cache(roofline.peak)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads, cap = torch.get_num_threads(), _C.isa_cap()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)
    _C.force_isa(cap)


@pytest.mark.parametrize(
    "shape", [(384, 1536), (768, 3072), (4096, 4096)], ids="{0[0]}x{0[1]}".format
)
@pytest.mark.parametrize("m", [1, 8, 32, 128, 512])
@pytest.mark.parametrize("isa", ISAS)
def test_linear(benchmark, isa: str, m: int, shape: tuple[int, int]) -> None:
    k, n = shape
    layer, x = our_layer(k, n), torch.randn(m, k)
    _C.force_isa(isa)
    benchmark(layer, x)
    rate = 2.0 * m * k * n / benchmark.stats.stats.median
    benchmark.extra_info |= {**_C.select(m, n, k), "tops": rate / 1e12}
    limit = peak(roofline.LOOP_OF_ISA.get(isa, ""))
    if limit:
        benchmark.extra_info["of_peak"] = rate / limit


@pytest.mark.parametrize("emit", ["fp", "rows"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(
    "shape", [(1, 4096), (32, 768), (512, 768), (512, 4096)], ids="{0[0]}x{0[1]}".format
)
@pytest.mark.parametrize("isa", ISAS)
def test_norm(benchmark, isa: str, shape: tuple[int, int], kind: str, emit: str) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    _C.force_isa(isa)
    options = (residual, emit == "fp", emit == "rows")
    if kind == "layer":
        outputs = benchmark(torch.ops.fastinfer.layer_norm, x, weight, bias, 1e-5, *options)
    else:
        outputs = benchmark(torch.ops.fastinfer.rms_norm, x, weight, 1e-5, *options)
    moved = sum(t.nbytes for t in (x, residual, *outputs))
    benchmark.extra_info["gigabytes_per_second"] = moved / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("shape", [(1, 4096), (512, 768)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("kernel", QUANTIZERS)
def test_quantize_rowwise(benchmark, kernel: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng().standard_normal(shape, dtype=np.float32)
    benchmark(_C.quantize_rowwise, kernel, x)
    benchmark.extra_info["gigabytes_per_second"] = x.nbytes / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("emit_rows", [False, True], ids=["fp", "rows"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("tokens", [1, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_act_mul(benchmark, isa: str, tokens: int, activation: str, emit_rows: bool) -> None:
    """Both halves of one float32 tensor of 11008 columns each."""
    gate, up = torch.randn(tokens, 2 * 11008).chunk(2, -1)
    _C.force_isa(isa)
    benchmark(
        ops.act_mul,
        *(gate, up),
        activation=activation,
        emit_fp=not emit_rows,
        emit_rows=emit_rows,
    )
    rate = gate.numel() / benchmark.stats.stats.median
    benchmark.extra_info["elements_per_second"] = rate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 512])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("isa", ISAS)
def test_rope(benchmark, isa: str, interleaved: bool, tokens: int, dtype: torch.dtype) -> None:
    """32 heads of 128, the queries in a tensor of queries, keys and values."""
    x = torch.randn(1, tokens, 3 * 4096, dtype=dtype)[..., :4096]
    heads = x.view(1, tokens, 32, 128).transpose(1, 2)
    cos, sin = torch.randn(2, tokens, 128, dtype=dtype)
    _C.force_isa(isa)
    benchmark(ops.rope, heads, cos, sin, interleaved=interleaved)
    moved = 2 * heads.numel() * x.element_size()
    benchmark.extra_info["gigabytes_per_second"] = moved / benchmark.stats.stats.median / 1e9
