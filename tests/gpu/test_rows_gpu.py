"""The operators over rows on a GPU, beside the same operators on the CPU: bit for bit but for
attention, which is torch's own."""

import os

import pytest
import torch

from fastinfer import ops
from test_attention import apart, masks
from test_attention_by_torch import limits

# What does not ask for CUDA itself can be tried on a CPU: FASTINFER_GPU_TESTS_ON=cpu.
DEVICE = torch.device(os.environ.get("FASTINFER_GPU_TESTS_ON", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="graphs and streams are CUDA's")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"]
EMITS = [(True, False), (False, True), (True, True)]
# Lengths of a row: a warp's, odd ones, several elements a thread, more than shared memory holds.
# Of 12,288 floats or 24,576 in 16 bits dynamic shared memory has 48 KiB, and there is static, too.
LENGTHS = [0, 1, 7, 64, 768, 1031, 4096, 8200, 12_288, 24_576, 25_001, 50_008]
VIEWS = {
    "contiguous": lambda x: x,
    "half": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "by columns": lambda x: x.mT.contiguous().mT,
}


def bits(t):
    """The bits of ``t`` as integers, every NaN the same."""
    if not t.is_floating_point():
        return t
    wide = torch.where(t.isnan(), torch.nan, t.float())
    return wide.view(torch.int32)


def assert_same(got, want):
    """The bits, dtype, shape and strides of ``want``, on the GPU."""
    assert got.device.type == DEVICE.type
    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
    assert torch.equal(bits(got.cpu()), bits(want))


def on_gpu(argument):
    return argument.to(DEVICE) if isinstance(argument, torch.Tensor) else argument


def assert_same_as_cpu(op, *arguments, view=VIEWS["contiguous"], viewed=1, **options):
    """The first ``viewed`` arguments are seen through ``view`` on either device."""

    def call(move):
        moved = [move(a) for a in arguments]
        moved[:viewed] = [None if a is None else view(a) for a in moved[:viewed]]
        return op(*moved, **{name: move(a) for name, a in options.items()})

    want, got = call(lambda a: a), call(on_gpu)
    if isinstance(want, torch.Tensor):
        want, got = (want,), (got,)
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours, theirs)


def special_rows(x):
    """``x`` [M, K] with a row of zeros, a constant one, a NaN, an Inf and the largest numbers."""
    m, k = x.shape
    if m < 6 or k == 0:
        return x
    x[1], x[2] = 0.0, 1234.5
    x[3, k // 2], x[4, k - 1] = torch.nan, -torch.inf
    x[5] = torch.finfo(x.dtype).max
    return x


def rows_like(randn, shape, dtype):
    return special_rows(randn(*shape).mul(3).to(dtype))


def norm_of(kind):
    """``norm(x, residual, weight, bias, emit_fp, emit_rows)``"""

    def layer(x, residual, weight, bias, emit_fp, emit_rows):
        options = {"residual": residual, "emit_fp": emit_fp, "emit_rows": emit_rows}
        return ops.layer_norm(x, weight, bias, 1e-5, **options)

    def rms(x, residual, weight, _, emit_fp, emit_rows):
        options = {"residual": residual, "emit_fp": emit_fp, "emit_rows": emit_rows}
        return ops.rms_norm(x, weight, 1e-5, **options)

    return layer if kind == "layer" else rms


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm(kind, k, dtype, randn):
    x, residual = rows_like(randn, (7, k), dtype), randn(7, k).to(dtype)
    weight, bias = randn(k).to(dtype), randn(k)
    for emit_fp, emit_rows in EMITS:
        for r, w, b in ((residual, weight, bias), (None, weight.float(), None), (None, None, None)):
            assert_same_as_cpu(norm_of(kind), x, r, w, b, emit_fp, emit_rows, viewed=2)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("k", [64, 1031, 4096])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_of_strided_rows(kind, k, view, randn):
    x, residual = randn(5, 3, k).bfloat16(), randn(5, 3, k).bfloat16()
    arguments = (x, residual, randn(k).bfloat16(), randn(k).half(), True, True)
    assert_same_as_cpu(norm_of(kind), *arguments, view=VIEWS[view], viewed=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_act_mul(activation, k, dtype, randn):
    x, other = rows_like(randn, (7, k), dtype), randn(7, k).to(dtype)
    for emit_fp, emit_rows in EMITS:
        options = {"activation": activation, "emit_fp": emit_fp, "emit_rows": emit_rows}
        assert_same_as_cpu(ops.act_mul, x, other, viewed=2, **options)
        assert_same_as_cpu(ops.act_mul, x, None, **options)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("k", [64, 1031, 4096])
def test_act_mul_of_strided_rows(k, view, randn):
    x, other = randn(5, 3, k).bfloat16(), randn(5, 3, k).bfloat16()
    for emit_fp, emit_rows in EMITS:
        options = {"activation": "silu", "emit_fp": emit_fp, "emit_rows": emit_rows}
        assert_same_as_cpu(ops.act_mul, x, other, view=VIEWS[view], viewed=2, **options)


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize(dtype, k, randn):
    x = rows_like(randn, (7, k), dtype)
    for view in VIEWS.values():
        assert_same_as_cpu(ops.quantize_rowwise, x, view=view)
        assert_same_as_cpu(ops.quantize_rows, x, view=view)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("wide_table", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("d", "r"), [(64, 64), (128, 128), (80, 32), (17, 10), (8, 0), (130, 128)])
def test_rope(d, r, dtype, wide_table, interleaved, randn):
    x = randn(2, 5, 9, d).to(dtype)
    x[0, 0, 0, d - 1], x[1, 1, 1, 0] = torch.nan, torch.inf
    for shape in ((9, r), (1, 9, r), (2, 9, r)):
        cos, sin = (randn(*shape).to(torch.float32 if wide_table else dtype) for _ in range(2))
        for view in (*VIEWS.values(), lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)):
            assert_same_as_cpu(ops.rope, x, cos, sin, view=view, interleaved=interleaved)


def test_empty(randn):
    x = randn(0, 64)
    assert_same_as_cpu(norm_of("layer"), x, x, randn(64), randn(64), True, True, viewed=2)
    assert_same_as_cpu(norm_of("rms"), randn(3, 0, 8), None, randn(8), None, True, True)
    assert_same_as_cpu(ops.act_mul, x, x, activation="silu", emit_rows=True)
    assert_same_as_cpu(ops.quantize_rows, x)
    for shape in ((0, 2, 3, 8), (1, 0, 3, 8), (1, 2, 0, 8)):
        assert_same_as_cpu(ops.rope, randn(*shape), randn(shape[2], 8), randn(shape[2], 8))
    q, k = randn(2, 4, 3, 8).to(DEVICE), randn(2, 2, 0, 8).to(DEVICE)
    assert not ops.attention(q, k, k).any()


def test_more_rows_than_a_grid_has_columns(randn):
    x = randn(70_001, 24)
    assert_same_as_cpu(norm_of("rms"), x, x, randn(24), None, True, True, viewed=2)
    assert_same_as_cpu(ops.act_mul, x, x, activation="gelu", viewed=2)
    assert_same_as_cpu(ops.quantize_rows, x)
    assert_same_as_cpu(ops.rope, x.view(70_001, 1, 1, 24), randn(1, 24), randn(1, 24))


def check_attention(q, k, v, mask=None, **options):
    """Torch's float32 kernel multiplies in three TF32 products: off by 2^-21 of one at most."""
    y = ops.attention(*(on_gpu(t) for t in (q, k, v, mask)), **options)
    assert (y.dtype, y.shape) == (q.dtype, q.shape)
    assert y.device.type == DEVICE.type
    assert y.transpose(1, 2).is_contiguous()
    want, bound = limits(q, k, v, mask, product=8, **options)
    assert ((y.cpu().double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)], ids=str)
def test_attention(heads, kv_heads, causal, dtype, randn):
    for tq, tk, d in ((1, 1, 64), (33, 33, 64), (128, 128, 128), (7, 70, 20), (70, 7, 80)):
        tensors = apart(randn, 2, heads, kv_heads, tq, tk, d, dtype)
        check_attention(*tensors, causal=causal)
        check_attention(*tensors, scale=-0.2)
        check_attention(*tensors, causal=True, window=5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "same", "wider"])
@pytest.mark.parametrize("name", masks(torch.randn, 2, 4, 45, 150))
def test_attention_masks(name, kind, causal, randn):
    q, k, v = apart(randn, 2, 4, 2, 45, 150, 24, torch.bfloat16)
    mask = masks(randn, 2, 4, 45, 150)[name]
    mask = mask & (torch.arange(45)[:, None] != 3)  # a query that sees nothing
    if kind != "bool":
        added = (mask * 3.0).to(torch.float32 if kind == "wider" else q.dtype)
        mask = added.masked_fill(~mask, -torch.inf)
    check_attention(q, k, v, mask, causal=causal)


CALLS = {
    "layer_norm": lambda x: ops.layer_norm(x, x[0], x[1], 1e-5, residual=x, emit_rows=True),
    "rms_norm": lambda x: ops.rms_norm(x, x[0], 1e-5, residual=x, emit_rows=True),
    "act_mul": lambda x: ops.act_mul(x, x, activation="silu", emit_rows=True),
    "quantize_rows": ops.quantize_rows,
    "quantize_rowwise": ops.quantize_rowwise,
    "rope": lambda x: (ops.rope(x.view(1, 4, 8, 64), x[:8, :64], x[8:16, :64]),),
    "attention": lambda x: (ops.attention(*x.view(3, 1, 4, 8, 64)[:3], causal=True),),
}


def example(name, randn):
    return randn(24, 256).bfloat16() if name == "attention" else randn(16, 128).bfloat16()


@needs_cuda
@pytest.mark.parametrize("name", CALLS)
def test_side_stream(name, randn):
    """The input is written on the stream, late: whoever reads it elsewhere reads zeros."""
    x = example(name, randn).to(DEVICE)
    want = CALLS[name](x)
    late, stream = torch.zeros_like(x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        got = CALLS[name](late)
    stream.synchronize()
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(bits(ours), bits(theirs))


@needs_cuda
@pytest.mark.parametrize("name", CALLS)
def test_cuda_graph(name, randn):
    x, other = example(name, randn).to(DEVICE), example(name, randn).to(DEVICE)
    want = CALLS[name](other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        CALLS[name](x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = CALLS[name](x)
    x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in CALLS), ("act_mul", "inductor")]
)
def test_compile(name, backend, randn):
    x = example(name, randn).to(DEVICE)
    compiled = torch.compile(CALLS[name], fullgraph=True, backend=backend)
    for ours, theirs in zip(compiled(x), CALLS[name](x), strict=True):
        assert torch.equal(bits(ours), bits(theirs))


def test_opcheck(randn):
    x, table = randn(6, 64).bfloat16().to(DEVICE), randn(6, 16).to(DEVICE)
    heads = randn(2, 4, 6, 16).bfloat16().to(DEVICE)
    fastinfer = torch.ops.fastinfer
    for op, arguments in (
        (fastinfer.layer_norm, (x, x[0], x[1], 1e-5, x, True, True)),
        (fastinfer.rms_norm, (x, x[0], 1e-5, x, False, True)),
        (fastinfer.act_mul, (x, x, "silu", True, True)),
        (fastinfer.quantize_rows, (x,)),
        (fastinfer.quantize_rowwise, (x,)),
        (fastinfer.rope, (heads, table, table)),
        (fastinfer.attention, (heads, heads[:, :2], heads[:, :2], None, None, True, 4)),
    ):
        results = torch.library.opcheck(op.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CALLS)
def test_a_device_that_is_not_the_current_one(name, randn):
    x = example(name, randn)
    want = CALLS[name](x.to("cuda:0"))
    for ours, theirs in zip(CALLS[name](x.to("cuda:1")), want, strict=True):
        assert ours.device == torch.device("cuda:1")
        assert torch.equal(bits(ours.cpu()), bits(theirs.cpu()))


@needs_cuda
def test_bad_arguments_are_named(randn):
    x, fastinfer = randn(3, 8).to(DEVICE), torch.ops.fastinfer
    for call, match in (
        (lambda: fastinfer.rms_norm(x, randn(8), 1e-5), "weight is not on cuda:0"),
        (lambda: fastinfer.rms_norm(x, x[0, :4], 1e-5), r"weight has shape \[4\], want \[8\]"),
        (lambda: fastinfer.layer_norm(x, None, None, 1e-5, x[:2]), r"residual has shape \[2, 8\]"),
        (lambda: fastinfer.layer_norm(x.int(), None, None, 1e-5), "x has dtype Int"),
        (lambda: fastinfer.act_mul(x, x.half(), "silu"), "other has dtype Half, want that of x"),
        (lambda: fastinfer.act_mul(x, None, "tanh"), 'activation is "tanh"'),
        (lambda: fastinfer.rope(x, x, x), r"x has shape \[3, 8\], want \[B, H, T, D\]"),
        (lambda: fastinfer.rope(x[None, None], x.cpu(), x), "cos is not on cuda:0"),
    ):
        with pytest.raises(RuntimeError, match=match):
            call()
