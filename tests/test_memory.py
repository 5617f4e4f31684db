"""Calls whose guards are not asked again: all that may change in between is noticed."""

import ast
import copy
import gc
import re
import weakref
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from fastinfer import _C, fuse_, places

pytestmark = pytest.mark.usefixtures("fresh_inference")

FACTOR = 1.25


def double(x, times=2.0):
    return x * times


def make_offset():
    offset = 0.75

    def add(x):
        return x + offset

    return add


add_offset = make_offset()


class Slotted:
    __slots__ = ("x",)

    def __init__(self):
        self.x = 1.75


class Computed:
    def __init__(self):
        self.y = [1.5]

    @property
    def x(self):
        return self.y


class Child(nn.Module):
    bias = 0.125

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.gain = 1.5
        self.config = SimpleNamespace(shift=0.25)
        self.slotted, self.computed = Slotted(), Computed()

    def forward(self, x):
        x = self.norm(x) * self.gain + self.config.shift + self.bias
        x = x * self.slotted.x * self.computed.x[0]
        return -x if hasattr(self, "negative") else x


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.children_ = nn.ModuleList([Child(), Child()])
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.levels = [1.0, 2.0]
        self.table = {"a": 3.0, "b": (4.0, 5.0)}
        self.plain, self.several = torch.ones(8), [torch.ones(8), torch.ones(8)]

    def forward(self, x, other=None, flag=False):
        for child in self.children_:
            x = child(x)
        x = self.second(self.first(x)) * self.levels[1] + self.table["b"][0] * FACTOR
        x = add_offset(double(self.drop(x))) * self.plain + self.several[0]
        if other is not None:
            x = x + 2 * other
        return -x if flag else x


def settle(model, *args, **kwargs):
    """Calls the model until its guards are not asked any more."""
    for _ in range(3):
        model(*args, **kwargs)


def in_place(model):
    model.children_[0].norm.weight.data = model.children_[0].norm.weight.data.double()


def set_cell(model, monkeypatch):
    monkeypatch.setattr(add_offset.__closure__[0], "cell_contents", 7.0)


def patch_here(name, value):
    return lambda model, monkeypatch: monkeypatch.setitem(globals(), name, value)


CHANGES = {
    "attribute": lambda m, _: setattr(m.children_[1], "gain", 0.5),
    "attribute of an attribute": lambda m, _: setattr(m.children_[1].config, "shift", 0.5),
    "attribute in a slot": lambda m, _: setattr(m.children_[1].slotted, "x", 0.5),
    "attribute that is computed": lambda m, _: setattr(m.children_[1].computed, "y", [0.5]),
    "entry of what is computed": lambda m, _: m.children_[1].computed.y.__setitem__(0, 0.5),
    "other object": lambda m, _: setattr(m.children_[1], "config", SimpleNamespace(shift=9.0)),
    "new attribute": lambda m, _: setattr(m.children_[1], "negative", True),
    "new attribute of the class": lambda m, p: p.setattr(Child, "negative", True, raising=False),
    "attribute of the class": lambda m, p: p.setattr(Child, "bias", 0.5),
    "attribute that hides the class's": lambda m, _: setattr(m.children_[1], "bias", 0.5),
    "method of the object": lambda m, _: setattr(m.children_[1], "forward", lambda x: x * 3),
    "class": lambda m, _: setattr(m.children_[1], "__class__", nn.Tanh),
    "dictionary of an object": lambda m, _: setattr(
        m.children_[1], "__dict__", m.children_[1].__dict__ | {"gain": 9.0}
    ),
    "entry of a list": lambda m, _: m.levels.__setitem__(1, 5.0),
    "entry of a dictionary": lambda m, _: m.table.__setitem__("b", (6.0,)),
    "module": lambda m, _: setattr(m, "first", nn.Linear(8, 8)),
    "module in a list": lambda m, _: m.children_.__setitem__(1, nn.Tanh()),
    "more modules": lambda m, _: m.children_.append(nn.Tanh()),
    "weight": lambda m, _: setattr(m.first, "weight", nn.Parameter(torch.randn(8, 8))),
    "tied weights": lambda m, _: setattr(m.first, "weight", m.second.weight),
    "tensor": lambda m, _: setattr(m, "plain", torch.zeros(8)),
    "tensor of another dtype": lambda m, _: setattr(m, "plain", torch.zeros(8).double()),
    "tensor of another shape": lambda m, _: setattr(m, "plain", torch.zeros(1)),
    "number for a tensor": lambda m, _: setattr(m, "plain", 4.0),
    "tensor in a list": lambda m, _: m.several.__setitem__(0, torch.zeros(8)),
    "tied tensors in a list": lambda m, _: m.several.__setitem__(0, m.plain.zero_()),
    "no bias": lambda m, _: setattr(m.second, "bias", None),
    "weight in place": lambda m, _: m.first.weight.mul_(2),
    "dtype of a weight": lambda m, _: in_place(m),
    "what is not read": lambda m, _: m.children_[1].norm.register_buffer("extra", torch.ones(1)),
    "hook": lambda m, _: m.first.register_forward_hook(lambda module, args, y: y * 0),
    "global": patch_here("FACTOR", 3.0),
    "function": patch_here("double", lambda x: x * 5),
    "default of a function": lambda m, p: p.setattr(double, "__defaults__", (6.0,)),
    "closure": set_cell,
    "library": lambda m, p: p.setattr(nn.functional, "layer_norm", lambda x, *a: x * 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_noticed(change, asked, monkeypatch):
    torch.manual_seed(1)
    model, x = Parent().eval(), torch.randn(3, 8)
    for p in model.parameters():
        p.requires_grad_(False)
    fuse_(model)
    settle(model, x)
    before = model(x)
    asked.clear()
    model(x)
    assert not asked
    CHANGES[change](model, monkeypatch)

    def run(f):
        try:
            return f()
        except Exception as error:
            return type(error)

    want, got = run(lambda: model._call_impl(x)), run(lambda: model(x))
    if isinstance(want, type):
        assert isinstance(got, type), "the original fails here"
        return
    torch.testing.assert_close(got, want)
    assert (
        want.shape != before.shape
        or not torch.allclose(want.to(before.dtype), before)
        or (change == "what is not read")
    )
    settle(model, x)
    torch.testing.assert_close(model(x), want)


def test_training_mode_and_back(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    want = model(x)
    model.train()
    torch.manual_seed(3)
    assert not torch.equal(model(x), want)
    model.eval()
    for _ in range(5):
        assert torch.equal(model(x), want)
    asked.clear()
    model(x)
    assert not asked


def test_every_form_of_input_is_another_call(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    weight = model.first.weight.data
    y = torch.randn(3, 8)
    calls = [
        ((x,), {}),
        ((x, y), {}),
        ((x, x), {}),
        ((y, x), {"flag": True}),
        ((x, y), {"flag": False}),
        ((x, None, True), {}),
        ((x,), {"other": y}),
        ((x,), {"other": None, "flag": 1}),
        ((x,), {"flag": []}),
        ((torch.randn(8, 3).t(),), {}),
        ((torch.randn(5, 8),), {}),
        ((torch.randn(2, 5, 8),), {}),
        ((torch.randn(1, 8), y), {}),
        ((weight, weight), {}),
        ((torch.randn(8, 8), torch.randn(8, 8)), {}),
        ((nn.Parameter(x, requires_grad=False),), {}),
    ]
    for _ in range(4):
        for args, kwargs in calls:
            torch.testing.assert_close(model(*args, **kwargs), model._call_impl(*args, **kwargs))


def test_the_same_tensor_twice_does_not_stand_for_two(asked):
    """Of two inputs that are one, torch.compile makes one."""
    model, x, y = Parent().eval(), torch.randn(3, 8), torch.randn(3, 8)
    fuse_(model)
    settle(model, x, x)
    torch.testing.assert_close(model(x, y), model._call_impl(x, y))
    settle(model, x, y)
    torch.testing.assert_close(model(x, x), model._call_impl(x, x))


@pytest.mark.parametrize(
    "other",
    [
        lambda: torch.set_num_threads(torch.get_num_threads() % 2 + 1),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.use_deterministic_algorithms(True),
    ],
)
def test_a_change_of_torchs_settings_is_noticed(other, asked):
    threads = torch.get_num_threads()
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    asked.clear()
    try:
        other()
        torch.testing.assert_close(model(x), model._call_impl(x))
        assert asked
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_modes_and_stances_are_noticed(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    asked.clear()
    with torch.device("cpu"):
        model(x)
    assert len(asked) == 1
    with torch.compiler.set_stance("force_eager"):
        model(x)
    assert len(asked) == 2
    with torch.inference_mode(False), torch.no_grad():
        torch.testing.assert_close(model(x), model._call_impl(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == model._call_impl(x).dtype


def test_what_was_replaced_does_not_live_on(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    weight, module = weakref.ref(model.second.weight), weakref.ref(model.first)
    model.second.weight = nn.Parameter(torch.randn(8, 8))
    assert weight() is None, "not even until the next call"
    model.first = nn.Linear(8, 8)
    model(x)
    torch._dynamo.reset()
    gc.collect()
    assert module() is None


def test_a_replaced_weight_of_the_same_form_is_no_change(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    asked.clear()
    model.second.weight = nn.Parameter(torch.randn(8, 8))
    torch.testing.assert_close(model(x), model._call_impl(x))
    assert not asked


def test_weights_that_are_not_tied_any_more(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    model.first.weight = model.second.weight
    fuse_(model)
    settle(model, x)
    asked.clear()
    model(x)
    assert not asked
    model.first.weight = nn.Parameter(torch.randn(8, 8))
    torch.testing.assert_close(model(x), model._call_impl(x))
    assert asked


def test_a_model_can_go(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    gone = weakref.ref(model.first.weight)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_a_state_that_always_changes(asked):
    """It is looked at less and less, and right."""
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    for i in range(40):
        model.unread = i
        torch.testing.assert_close(model(x), model._call_impl(x))
    settle(model, x)
    for _ in range(70):
        model(x)
    asked.clear()
    model(x)
    assert not asked


def test_copies_have_memories_of_their_own(asked):
    model, x = Parent().eval(), torch.randn(3, 8)
    fuse_(model)
    settle(model, x)
    other = copy.deepcopy(model)
    fuse_(other)
    other.levels[1] = 7.0
    settle(other, x)
    torch.testing.assert_close(other(x), other._call_impl(x))
    torch.testing.assert_close(model(x), model._call_impl(x))


UNCLEAR = [
    "fresh.x",
    "fresh.y",
    "here.missing",
    "here['missing']",
    "here[0:1]",
    "here['d\u00fcnn']",
    "unknown.x",
    "len(here)",
    "here['a'] + 1",
    "values",
    "keys",
    "array",
    "dict_of_many",
]


@pytest.mark.parametrize("expression", UNCLEAR)
def test_what_is_not_understood_is_refused(expression):
    names = {
        "fresh": type("Fresh", (), {"x": property(lambda self: [1])})(),
        "here": {"a": 1},
        "values": {1, 2},
        "keys": {}.keys(),
        "array": numpy.zeros(3),
        "dict_of_many": dict.fromkeys(range(5000)),
    }
    known = rf"\b({'|'.join(names)})\b"
    rooted = re.sub(known, r"L['\1']", expression)
    assert (rooted == expression) == (expression == "unknown.x")
    with pytest.raises(places.Unclear):
        places.Places(names, {}).hold([places.Question(rooted)])


def test_expressions_lead_to_what_python_says():
    local = {"model": Parent()}
    for expression in (
        "M._modules['children_']._modules['0']._modules['norm']._parameters['weight']",
        "M.levels[1]",
        "M.table['b'][0]",
        "type(M).__mro__[1].forward",
        "dict(type(M).__dict__)['forward'].__code__",
        "M._modules['children_']._modules['0'].bias",
        "M._modules['children_']._modules['0'].slotted.x",
        "M._modules['children_']._modules['0'].computed.x[0]",
        "M.__class__.__name__",
        "object.__getattribute__(M, 'levels')",
        "G['add_offset'].__closure__[0].cell_contents",
        "G['double'].__defaults__[0]",
        "G['torch'].nn.functional.layer_norm",
        "dict.__getitem__(M.table, list(dict.keys(M.table))[1])",
        "M.table[list(dict.keys(M.table))[1]]",
    ):
        text = expression.replace("M.", "L['model'].").replace("(M", "(L['model']")
        read = places.Places(local, globals())
        read._text = text
        value = read._read(ast.parse(text, mode="eval").body)
        assert value is eval(text, {"L": local, "G": globals()}), expression


def test_unchanged_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="versions: want eight bytes a place"):
        _C.unchanged((1, {}, ()), bytearray(3))
    for kind, owner, content in (
        (0, 1, None),
        (0, 1, (int,)),
        (1, [], ()),
        (1, {}, None),
        (2, {}, ()),
        (2, [1], None),
        (3, {}, ()),
        (3, {1: 2}, (1,)),
        (3, 1, (1, 2)),
        (4, 1, ()),
        (4, 1, (2, 3)),
        (5, 1, (1,)),
        (5, {}, None),
        (5, {1: 2}, (1,)),
        (5, {}, ([],)),
        (6, [], ()),
        ("x", [], ()),
    ):
        assert not _C.unchanged((kind, owner, content), bytearray(8))
    assert _C.unchanged((), bytearray())
