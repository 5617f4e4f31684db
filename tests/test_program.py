"""Programs: what they compute is what their operators give one by one; damaged ones are refused."""

from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fastinfer
from families import FAMILIES
from fastinfer import ops
from fastinfer.graph import callable as graph_callable
from fastinfer.graph import program
from fastinfer.graph.program import with_programs

pytestmark = pytest.mark.usefixtures("fresh_inference")

run_program = torch.ops.fastinfer.run_program.default


@pytest.fixture
def any_run(monkeypatch):
    """Programs for views alone, too."""
    monkeypatch.setattr(program, "_LEAST_KERNELS", 0)
    monkeypatch.setattr(program, "_KERNELS", (*program._KERNELS, *program._VIEWS))


def traced(function, *inputs, mode="fake"):
    module = make_fx(function, tracing_mode=mode, pre_dispatch=True)(*inputs)
    return with_programs(module)


def calls(module):
    return [n for n in module.graph.nodes if n.target is run_program]


def given_to(module):
    """The one program of a module, and how many tensors and sizes it is given."""
    (call,) = calls(module)
    return getattr(module, call.args[0].target), len(call.args[1]), len(call.args[2])


# --- views ---------------------------------------------------------------------------------------

aten = torch.ops.aten
VIEWS = {
    "transpose": lambda x: aten.transpose.int(x, 0, -1),
    "permute": lambda x: aten.permute.default(x, [2, -3, 1]),
    "unsqueeze first": lambda x: aten.unsqueeze.default(x, 0),
    "unsqueeze last": lambda x: aten.unsqueeze.default(x, -1),
    "squeeze": lambda x: aten.squeeze.dim(aten.unsqueeze.default(x, 1), 1),
    "squeeze nothing": lambda x: aten.squeeze.dim(x, -1),
    "select": lambda x: aten.select.int(x, 1, -1),
    "slice": lambda x: aten.slice.Tensor(x, 1, 1, 100, 2),
    "slice from the end": lambda x: aten.slice.Tensor(x, -1, -3, -1),
    "slice to nothing": lambda x: aten.slice.Tensor(x, 0, 3, 1),
    "expand": lambda x: aten.expand.default(aten.slice.Tensor(x, 1, 0, 1), [5, -1, 4, 6]),
    "unflatten": lambda x: aten.unflatten.int(x, -1, [2, -1]),
    "flatten": lambda x: aten.flatten.using_ints(x),
    "flatten the last": lambda x: aten.flatten.using_ints(x, -2),
    "flatten the first": lambda x: aten.flatten.using_ints(x, 0, 1),
    "flatten one": lambda x: aten.flatten.using_ints(x, 1, 1),
    "split": lambda x: aten.split_with_sizes.default(x, [1, 3, 2], 2)[1],
    "split to nothing": lambda x: aten.split_with_sizes.default(x, [6, 0], -1)[1],
    "contiguous": lambda x: aten.contiguous.default(x),
    "reshape to join": lambda x: aten.reshape.default(x, [-1, 6]),
    "reshape to split": lambda x: aten.reshape.default(x, [3, 2, 2, 1, 2, 3]),
    "reshape all": lambda x: aten.reshape.default(x, [-1]),
    "reshape with ones": lambda x: aten.reshape.default(x, [1, 12, 1, 6, 1]),
}


def same_place(a, b):
    """Whether two tensors are the same elements of the same memory."""
    steps = [(n, s) for n, s in zip(a.shape, a.stride(), strict=True) if n > 1]
    other = [(n, s) for n, s in zip(b.shape, b.stride(), strict=True) if n > 1]
    return a.data_ptr() == b.data_ptr() and steps == other


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("form", ["plain", "transposed", "gaps", "offset"])
def test_views(any_run, randn, name, form):
    x = {
        "plain": lambda: randn(3, 4, 6),
        "transposed": lambda: randn(6, 4, 3).transpose(0, 2),
        "gaps": lambda: randn(3, 8, 6)[:, ::2],
        "offset": lambda: randn(5, 4, 6)[2:],
    }[form]()
    if name == "split to nothing":
        x = x[..., :6]
    module = traced(VIEWS[name], x)
    assert len(calls(module)) == 1
    got, want = module(x), VIEWS[name](x)
    assert got.shape == want.shape
    assert torch.equal(got, want)
    if want.numel() and want.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        assert same_place(got, want)


def test_reshape_of_random_strides(any_run, rng, randn):
    """Wherever torch finds a view, it is that view; elsewhere a copy."""
    copied = 0
    for _ in range(200):
        dims = [int(n) for n in rng.choice([1, 2, 3, 4], size=rng.integers(1, 5))]
        x = randn(*dims).permute([int(d) for d in rng.permutation(len(dims))])
        x = x[tuple(slice(None, None, int(step)) for step in rng.choice([1, 1, 2], len(dims)))]
        factors = [n for n in x.shape if n > 1] + [1] * int(rng.integers(0, 2))
        split = [f for n in factors for f in ((2, 2) if n == 4 else (n,))]
        shape, joined = [], 1
        for factor in split:
            joined *= factor
            if rng.random() < 0.5:
                shape.append(joined)
                joined = 1
        shape.append(joined)
        want = x.reshape(shape)
        got = traced(partial(aten.reshape.default, shape=shape), x)(x)
        assert got.shape == want.shape
        assert torch.equal(got, want)
        is_view = want.data_ptr() == x.data_ptr()
        assert same_place(got, want) if is_view else got.is_contiguous()
        copied += not is_view
    assert 20 < copied < 180


def test_views_of_numbers(any_run, randn):
    def views(x):
        x = aten.select.int(x, 0, 0)
        x = aten.transpose.int(aten.squeeze.dim(aten.squeeze.dim(x, 0), -1), -1, 0)
        return aten.reshape.default(aten.unsqueeze.default(x, -1), [1, 1])

    x = randn(3)
    assert torch.equal(traced(views, x)(x), views(x))


def test_sizes_are_given(any_run, randn):
    def heads(x):
        return aten.transpose.int(aten.reshape.default(x, [x.shape[0], x.shape[1], -1, 4]), 1, 2)

    module = traced(heads, randn(3, 5, 8), mode="symbolic")
    assert given_to(module)[1:] == (1, 2)
    x = randn(2, 7, 8)
    assert torch.equal(module(x), heads(x))


# --- graphs --------------------------------------------------------------------------------------


def weights(rng, n, k):
    w = torch.from_numpy(rng.integers(-128, 128, (n, k), dtype="int8"))
    return ops.pack_w8(w), torch.from_numpy(rng.uniform(0.5, 2, n).astype("float32") / 127)


def test_what_has_no_instruction_stands_between_two_programs(rng, randn):
    packed, scale = weights(rng, 64, 64)
    linear = torch.ops.fastinfer.linear_w8a8.default

    def layers(x, packed, scale):
        for _ in range(3):
            x = linear(x, packed, scale)
        x = torch.cos(x)
        for _ in range(3):
            x = linear(x, packed, scale, None, "relu", x)
        return x

    x = randn(5, 64)
    module = traced(layers, x, packed, scale)
    assert len(calls(module)) == 2
    assert torch.equal(module(x, packed, scale), layers(x, packed, scale))


def test_random_operators_keep_their_order(rng, randn):
    """Seeded alike, they draw what they drew one by one."""
    packed, scale = weights(rng, 64, 64)
    linear = torch.ops.fastinfer.linear_w8a8.default

    def layers(x, packed, scale):
        y = x
        for _ in range(3):
            y = linear(y, packed, scale)
        y = y + aten.rand_like.default(y)  # after the layers, whose inputs are there at once
        return y + aten.rand_like.default(x)

    inputs = randn(5, 64), packed, scale
    module = traced(layers, *inputs)
    assert len(calls(module)) == 1
    torch.manual_seed(3)
    want = layers(*inputs)
    torch.manual_seed(3)
    assert torch.equal(module(*inputs), want)


def test_few_kernels_are_called_one_by_one(rng, randn):
    linear = torch.ops.fastinfer.linear_w8a8.default
    assert traced(linear, randn(5, 64), *weights(rng, 64, 64)) is None


def test_values_are_dropped_after_their_last_read(any_run, randn):
    module = traced(lambda x: aten.unsqueeze.default(aten.transpose.int(x, 0, 1), 0), randn(2, 3))
    words, _, _ = given_to(module)
    tensor, integer = program._TENSOR, program._INTEGER
    assert words.tolist() == [
        *(1, 3, 2),  # tensors, values, instructions
        *(1, 2),  # the results: value 2
        *(*program._text("transpose"), 1, 1, 0),  # makes value 1, drops nothing
        *(tensor, 0, integer, 0, integer, 1),
        *(*program._text("unsqueeze"), 1, 2, 1, 1),  # makes value 2, drops value 1
        *(tensor, 1, integer, 0),
    ]


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.seen.append(op.name())
        return op(*args, **(kwargs or {}))


NO_RUN = ("gpt2", "multi-head attention", "mlp", "image mlp")  # fewer than three kernels in a row


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NO_RUN])
def test_families(name, monkeypatch):
    """Whole models: one program, whose bits are those of the operators one by one, which a dispatch
    mode gets to see."""
    made = []
    monkeypatch.setattr(
        graph_callable,
        "with_programs",
        lambda module: made.append(with_programs(module)) or made[-1],
    )
    model = FAMILIES[name].make().eval()
    fastinfer.quantize_(model, fuse=True, progress=False)
    for size in ((2, 7), (3, 5), (1, 1)):
        inputs = FAMILIES[name].inputs(*size)
        answers = [model(**inputs) for _ in range(2)]
        counts = {len(calls(module)) for module in made if module is not None}
        assert counts == {1}
        fused = model._compiled_call_impl
        run = fused._with(fused._hooks.ids()).code.find((), inputs)
        with Names() as names:
            one_by_one = run(**inputs)
        assert "fastinfer::run_program" not in names.seen
        assert sum(n.startswith("fastinfer::linear_w8a8") for n in names.seen) >= 2
        leaves = torch.utils._pytree.tree_leaves
        for answer in answers:
            for a, b in zip(leaves(answer), leaves(one_by_one), strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


# --- damaged programs ----------------------------------------------------------------------------


@pytest.fixture
def whole(rng, randn, monkeypatch):
    """The program of a layer with arguments of every kind, with what it is given."""
    fast = torch.ops.fastinfer

    def layer(x, packed, scale, bias):
        qkv = fast.linear_w8a8_cat.default(x, [packed] * 3, [scale] * 3, [bias, None, bias])
        parts = aten.split_with_sizes.default(qkv, [64, 64, 64], -1)
        heads = [aten.reshape.default(t, [x.shape[0], x.shape[1], -1, 32]) for t in parts]
        y = fast.attention.default(*(aten.transpose.int(t, 1, 2) for t in heads), None, 0.125)
        y = aten.reshape.default(aten.transpose.int(y, 1, 2), [x.shape[0], x.shape[1], 64])
        y = fast.linear_w8a8.default(y, packed, scale, bias, "gelu", x, torch.float32)
        return fast.layer_norm.default(y, bias, None, 1e-5)[1]

    inputs = randn(2, 3, 64), *weights(rng, 64, 64), randn(64)
    module = traced(layer, *inputs, mode="symbolic")
    assert given_to(module)[1:] == (4, 2)
    words, (x, *others), sizes = given_to(module)[0], inputs, [2, 3]
    (call,) = calls(module)
    order = [n.name for n in call.args[1]]
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    tensors = [dict(zip(names, (x, *others), strict=True))[name] for name in order]
    assert torch.equal(run_program(words, tensors, sizes)[0], layer(*inputs))
    return words, tensors, sizes


def test_damaged_programs_are_refused(whole):
    """Every word changed in turn, and every early end: an error or another program, no crash."""
    words, tensors, sizes = whole
    refused = 0
    values = (-1, -(2**63), 2**62, 0, 1, 2, 3, 5, 6, 7, 8)
    for i in range(len(words)):
        for value in values:
            damaged = words.clone()
            damaged[i] = value
            try:
                run_program(damaged, tensors, sizes)
            except RuntimeError:
                refused += 1
    for end in range(len(words)):
        with pytest.raises(RuntimeError, match="run_program: program"):
            run_program(words[:end].clone(), tensors, sizes)
    assert refused > 6 * len(words)  # of 11 each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, t, s: (w.int(), t, s), "program has dtype Int, want Long"),
        (lambda w, t, s: (w[::2], t, s), "program has stride 2, want a contiguous vector"),
        (lambda w, t, s: (w, t[1:], s), "tensors has length .*, want .* as the program says"),
        (lambda w, t, s: (w, [t[0].double(), *t[1:]], s), "x has dtype Double"),
    ],
)
def test_bad_arguments(whole, change, message):
    with pytest.raises(RuntimeError, match=message):
        run_program(*change(*whole))
