"""Corners of Python in which a change could hide from the memory of guards."""

import gc
import threading
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastinfer import fuse_

pytestmark = pytest.mark.usefixtures("fresh_inference")


def helper(x):
    return x * 2


class Base:
    step = 2.0
    spare = 0


class Node(Base):
    def __init__(self):
        self.v = 3.0


class Bare:
    __slots__ = ()
    k = 1.0


class Other:
    __slots__ = ()
    k = 5.0


class Slot:
    __slots__ = ("x",)


class Pair(NamedTuple):
    a: float
    b: list


class Model(nn.Module):
    """forward by `read(self, y)`, which a test gives."""

    def __init__(self, read, **state):
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.read = read
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x, *rest, **named):
        return self.read(self, self.lin(x), x, *rest, **named)


def check(model, change, asked, recalled=True):
    """What the model gives after `change` is what it gives unfused."""
    model, x = model.eval(), torch.randn(3, 8)
    for p in model.parameters():
        p.requires_grad_(False)
    fuse_(model)
    for _ in range(3):
        model(x)
    asked.clear()
    before = model(x)
    assert bool(asked) != recalled, "whether the guards were asked"
    change(model)
    want = model._call_impl(x)
    assert not torch.allclose(want, before)
    torch.testing.assert_close(model(x), want)
    torch.testing.assert_close(model(x), want)


def put(path, value):
    """Sets an attribute or an entry: m.path = value."""

    def change(m):
        exec(f"{path} = value", {"m": m, "value": value})

    return change


def test_the_code_of_a_function(asked, monkeypatch):
    code = helper.__code__
    monkeypatch.setattr(helper, "__code__", code)
    check(
        Model(lambda m, y, x: helper(y)),
        lambda m: setattr(helper, "__code__", (lambda x: x * 9).__code__),
        asked,
    )


def test_tensors_in_two_places(asked):
    t = torch.ones(8)
    two = Model(lambda m, y, x: y * m.plain + m.several[0] * 3, plain=t, several=[t])
    check(two, put("m.plain", torch.zeros(8)), asked)
    weight = nn.Parameter(torch.randn(8, 8))
    closed = Model(lambda m, y, x: y + functional.linear(x, weight))
    closed.lin.weight = weight
    check(closed, put("m.lin.weight", nn.Parameter(torch.randn(8, 8))), asked)


def test_presence_of_attributes(asked):
    def read(m, y, x):
        return -y if hasattr(m.thing, "flag") else y

    for thing in (type("A", (Base,), {}), Node()):
        check(Model(read, thing=thing), put("m.thing.flag", 1), asked)
    node = Model(read, thing=Node())

    def swap(m):
        del Base.spare
        Base.flag = 1

    try:
        check(node, swap, asked)
    finally:
        del Base.flag
        Base.spare = 0
    slot = Model(lambda m, y, x: -y if hasattr(m.thing, "x") else y, thing=Slot())
    check(slot, put("m.thing.x", 1), asked, recalled=False)


def test_a_class_between_gets_an_attribute_and_loses_another(asked):
    class Middle(Node):
        other = 1

    class Last(Middle):
        pass

    def swap(m):
        del Middle.other
        Middle.step = 9.0

    check(Model(lambda m, y, x: y * m.o.step, o=Last()), swap, asked)


def test_another_class_of_an_object_without_a_dictionary(asked):
    def read(m, y, x):
        return y * 2 if isinstance(m.o, Bare) else y

    check(Model(read, o=Bare()), put("m.o.__class__", Other), asked)
    check(Model(lambda m, y, x: y * m.o.k, o=Bare()), put("m.o.__class__", Other), asked)


def test_names_that_look_like_those_of_torch(asked):
    model = Model(lambda m, y, x: y * m.L["a"].v, L={"a": Node()}, a=Node())
    check(model, put("m.L['a'].v", 5.0), asked)


def test_keys_that_are_not_ascii(asked):
    deep = {"日本語": {"ab": [1.0, 2.0]}}
    read = Model(lambda m, y, x: y * m.d["日本語"]["ab"][0] + m.d["日本語"]["ab"][1], d=deep)
    check(read, put("m.d['日本語']['ab'][1]", 7.0), asked, recalled=False)


def test_containers(asked):
    raw = {1: 1, 2: 2}
    view = Model(lambda m, y, x: -y if 3 in m.view else y, view=raw.keys())
    check(view, lambda m: raw.update({3: 3}), asked, recalled=False)
    named = Model(lambda m, y, x: y * m.pair.a + m.pair.b[0], pair=Pair(2.0, [3.0]))
    check(named, put("m.pair.b[0]", 8.0), asked)
    nested = Model(lambda m, y, x: y * m.l[0][1]["k"], l=[(1, {"k": 2.0})])
    check(nested, put("m.l[0][1]['k']", 8.0), asked)
    members = Model(lambda m, y, x: -y if "b" in m.d else y, d={"a": 1})
    check(members, put("m.d['b']", 8.0), asked)
    tensors = Model(lambda m, y, x: -y if "a" in m.d else y, d={"a": torch.ones(1)})
    check(tensors, lambda m: m.d.clear(), asked)
    sizes = Model(lambda m, y, x: y * len(m.l), l=[1, 2])
    check(sizes, lambda m: m.l.append(3), asked)
    modules = Model(lambda m, y, x: m.ms["a"](y), ms=nn.ModuleDict({"a": nn.Tanh()}))
    check(modules, put("m.ms['a']", nn.ReLU()), asked)


def test_hooked_models_are_remembered(asked):
    model = Model(lambda m, y, x: y * m.gain, gain=2.0)
    model.lin.register_forward_hook(lambda module, args, y: y * module.weight.shape[0])
    check(model, put("m.gain", 5.0), asked)


def test_inputs_are_told_apart():
    """What guards may ask of an input beside its sizes."""

    def read(m, y, x, other=None):
        y = -y if hasattr(x, "mask") else y
        y = y * 2 if x.storage_offset() > 4 else y
        if isinstance(other, dict):
            return y + other["a"] * other["k"]
        if isinstance(other, list | tuple):
            return y + sum(other)
        return y if other is None else y * other

    model = Model(read).eval()
    fuse_(model)
    base = torch.randn(64)
    marked = torch.randn(3, 8)
    marked.mask = 1
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    calls = [
        (base[:24].view(3, 8),),
        (base[8:32].view(3, 8),),
        (marked,),
        (a, 0.5),
        (a, 0.25),
        (a, {"a": b, "k": 2.0}),
        (a, {"a": b, "k": 3.0}),
        (a, {"k": 3.0, "a": a}),
        (a, {"a": a, "k": True}),
        (a, [a, b]),
        (a, (a, b)),
        (a, [b, b]),
        (a, [b]),
    ]
    for _ in range(4):
        for call in calls:
            torch.testing.assert_close(model(*call), model._call_impl(*call))


class Name(str):
    """Equal to a str, and another thing."""

    __slots__ = ()


def test_equal_keys_and_empty_lists_are_told_apart():
    def read(m, y, x, first, second=None):
        if isinstance(first, list):
            return -y if first is second else y
        factors = {bool: 5.0, int: 2.0, str: 3.0, Name: 7.0}
        return sum(y * value * factors[type(key)] for key, value in first.items())

    x, empty = torch.randn(3, 8), []
    for calls in (
        [({1: 2.0},), ({True: 2.0},)],
        [({"a": 2.0},), ({Name("a"): 2.0},)],
        [(empty, empty), ([], [])],
    ):
        model = Model(read).eval()
        fuse_(model)
        for call in calls:  # not the first again: torch's guards take [], [] for one list twice
            for _ in range(4):
                torch.testing.assert_close(model(x, *call), model._call_impl(x, *call))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*nested tensors")
def test_inputs_that_are_not_remembered():
    model = Model(lambda m, y, x, unused=None: y * 2).eval()
    fuse_(model)
    x = torch.randn(3, 8)
    others = [
        torch.eye(3).to_sparse_csr(),
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        {1, 2},
        object(),
    ]
    for _ in range(4):
        model(x)
        for other in others:
            torch.testing.assert_close(model(x, other), model._call_impl(x, other))


def test_dictionaries_as_inputs_are_remembered(asked):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, features):
            return {"y": self.lin(features["x"]) * features["gain"]}

    model = Wrapped().eval()
    fuse_(model)
    for gain in (2.0, 3.0):
        given = {"x": torch.randn(3, 8), "gain": gain}
        for _ in range(3):
            model(given)
        asked.clear()
        torch.testing.assert_close(model(given), model._call_impl(given))
        assert not asked


def test_a_first_call_that_fails_is_remembered_all_the_same(asked):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 8)
            self.lin = nn.Linear(8, 8)

        def forward(self, ids):
            return self.lin(self.table(ids))

    model = Lookup().eval()
    fuse_(model)
    with pytest.raises(IndexError):
        model(torch.tensor([[1, 9]]))
    for _ in range(2):
        model(torch.tensor([[1, 2]]))
    asked.clear()
    model(torch.tensor([[1, 2]]))
    assert not asked


def test_a_state_that_changes_while_it_is_read(monkeypatch):
    """Between the guards' answer and the look at what they asked."""
    from fastinfer import memory

    model, x = Model(lambda m, y, x: y * m.gain, gain=3.0).eval(), torch.randn(3, 8)
    fuse_(model)
    learn = memory.Memory.learn

    def late(self, *given):
        model.gain = 2.0
        learn(self, *given)

    model(x)
    monkeypatch.setattr(memory.Memory, "learn", late)
    model(x)
    monkeypatch.undo()
    for _ in range(3):
        torch.testing.assert_close(model(x), model._call_impl(x))


def test_modules_that_were_replaced_go_though_the_form_of_calls_changes():
    model = Model(lambda m, y, x: m.other(y), other=nn.Linear(8, 8)).eval()
    fuse_(model)
    for _ in range(3):
        model(torch.randn(3, 8))
    gone = weakref.ref(model.other)
    model.other = nn.Tanh()
    for rows in (4, 5):
        model(torch.randn(rows, 8))
    gc.collect()
    assert gone() is None


def test_threads_and_changes_at_once():
    """Each thread's model is right while others are called, traced and changed."""
    failures = []

    def work(seed):
        torch.manual_seed(seed)
        with torch.inference_mode():
            model = Model(lambda m, y, x: y * m.gain, gain=1.0).eval()
            fuse_(model)
            for i in range(30):
                model.gain = float(1 + i // 10)
                setattr(model, f"unread_{i}", i)
                x = torch.randn(2 + i % 3, 8)
                if not torch.allclose(model(x), model._call_impl(x)):
                    failures.append((seed, i))

    shared = Model(lambda m, y, x: y * 2).eval()
    fuse_(shared)

    def call_shared(seed):
        with torch.inference_mode():
            for i in range(300):
                x = torch.randn(2 + (seed + i) % 90, 8)
                if not torch.allclose(shared(x), shared._call_impl(x)):
                    failures.append((seed, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    threads += [threading.Thread(target=call_shared, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
