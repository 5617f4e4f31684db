"""What the guards of torch.compile read, as places in memory that can be looked at again.

Guards say what a compiled graph rests on: thousands of them for a model of some depth, each an
expression that leads from the model, or from a global, to a value, and a question about the value.
To ask them all again before every call takes half a millisecond. But as long as every place on the
way to every value holds the very object that it held when all guards had passed, and so does what a
value itself consists of, they would pass again. That is a comparison of addresses
(csrc/python/places.cpp).

A value is held with what guards ask about: its type and identity; the code of a function; the
entries of a dictionary, list or tuple, nested lists and tuples included; the attributes that an
object has itself. Whether something has an attribute or a key is a question of its own. Tensors
are another matter: what guards ask of them (dtype, sizes, ...) is not in memory that Python sees,
and their identity does not count, but that no two are one. So `Held` says where they are.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    EllipsisType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    NoneType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Place in csrc/python/places.cpp.
_OBJECT, _DICT, _LIST, _ITEM, _ATTRIBUTE, _ABSENT = range(6)

_MOST_ENTRIES = 1024  # of a dictionary or list: more take longer than guards
_NOTHING = object()
# Where nn.Module keeps what a call runs in place of forward. For a fused model that is what keeps
# these places, which would otherwise keep itself; and it computes the same.
_COMPILED = "_compiled_call_impl"
# What never changes, but for attributes that other expressions lead to.
_FIXED = (
    NoneType,
    EllipsisType,
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    frozenset,
    type,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    ModuleType,
    CodeType,
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
    property,
    staticmethod,
    classmethod,
    partial,
)
# Their attributes are not in a dictionary of their own, or not all of them.
_BUILT_IN = (*_FIXED, FunctionType, MethodType, CellType)


class Unclear(Exception):
    """An expression, or what it leads to, is of a form that is not known here."""


class Question(NamedTuple):
    """Of a guard: what it looks at; for those that ask whether it has something, the name of an
    attribute or the key of an entry."""

    expression: str
    attribute: str | None = None
    key: Any = _NOTHING


class Held(NamedTuple):
    """places: as `_C.unchanged` takes them. entries: where tensors are, each in one dictionary, as
    `_C.values_at` takes it. tensors: the others, which live as long as this does: tied ones, and
    those in lists, closures, ..."""

    places: tuple[Any, ...]
    entries: tuple[Any, ...]
    tensors: tuple[Tensor, ...]


class Places:
    """The places that questions lead through.

    local, names: what L and G stand for in expressions, in which `Tensor` is torch's.
    """

    def __init__(self, local: dict[str, Any], names: dict[str, Any]) -> None:
        self._local, self._names = local, names
        self._values: dict[str, Any] = {}  # by expression
        self._text = ""  # of the expression that is being read
        self._places: dict[tuple[int, int, Any], tuple[int, Any, Any]] = {}
        self._entries: dict[tuple[int, Any], tuple[Any, Any, Tensor]] = {}  # of dictionaries
        self._elsewhere: dict[int, Tensor] = {}  # by id

    def hold(self, questions: Iterable[Question]) -> Held:
        """What they lead through. Raises Unclear, and what attributes that are computed raise."""
        for question in questions:
            self._text = question.expression
            if not self._text.isascii():  # ast counts bytes
                raise Unclear(self._text)
            value = self._read(ast.parse(self._text, mode="eval").body)
            if question.attribute is not None:
                self._hold_presence(value, question.attribute)
            elif question.key is not _NOTHING:
                self._hold_key(value, question.key)
            elif not isinstance(value, Tensor):  # those are where they were found
                self._hold_value(value)
        counts = Counter(id(tensor) for _, _, tensor in self._entries.values())
        entries = []
        for owner, key, tensor in self._entries.values():
            if counts[id(tensor)] == 1 and id(tensor) not in self._elsewhere:
                entries += [owner, key]
            else:
                self._place(_ITEM, owner, (key, tensor), key)
                self._elsewhere[id(tensor)] = tensor
        places = (part for place in self._places.values() for part in place)
        return Held(tuple(places), tuple(entries), tuple(self._elsewhere.values()))

    def _place(self, kind: int, owner: Any, content: Any, key: Any = None) -> None:
        self._places.setdefault((kind, id(owner), key), (kind, owner, content))

    def _read(self, node: ast.expr) -> Any:
        text = self._text[node.col_offset : node.end_col_offset]
        if text not in self._values:
            self._values[text] = self._step(node)
        return self._values[text]

    def _step(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id="G"):
                return self._names
            case ast.Name(id="Tensor"):
                return Tensor
            case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(name))) if (
                name in self._local
            ):
                return self._local[name]
            case ast.Attribute(value=owner, attr=name):
                return self._attribute(self._read(owner), name)
            case ast.Subscript(value=owner, slice=key):
                return self._item(self._read(owner), self._read(key))
            case ast.Call(func=ast.Name(id="type"), args=[one]):
                owner = self._read(one)
                self._hold_object(owner)
                return type(owner)
            case ast.Call(func=ast.Name(id="dict"), args=[one]):
                return self._read(one)  # a copy with the same entries
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="dict"), attr="__getitem__"), args=[one, key]
            ):
                return self._item(self._read(one), self._read(key))
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="object"), attr="__getattribute__"),
                args=[one, ast.Constant(value=str(name))],
            ):
                return self._attribute(self._read(one), name)
            case ast.Call(
                func=ast.Name(id="list"),
                args=[
                    ast.Call(func=ast.Attribute(value=ast.Name(id="dict"), attr="keys"), args=[one])
                ],
            ):
                owner = self._read(one)
                self._hold_entries(owner)
                return tuple(dict.keys(owner))
        raise Unclear(self._text)

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Tensor):
            raise Unclear(self._text)
        if name == "__func__" and isinstance(owner, FunctionType):  # of a method, see below
            return owner
        if name == "__class__":
            self._hold_object(owner)
            return owner.__class__
        own = _instance_dict(owner)
        if name == "__dict__" and own is not None:
            self._hold_object(owner)
            return own
        if isinstance(owner, ModuleType):
            return self._item(vars(owner), name)
        if isinstance(owner, CodeType) and hasattr(owner, name):  # nothing of it ever changes
            return getattr(owner, name)
        if not isinstance(owner, _BUILT_IN):
            self._hold_object(owner)
            if own is not None and name in own:
                value = self._entry(own, name)
            else:
                value = self._in_classes(type(owner).__mro__, name)
            found = getattr(owner, name, None)
            if value is not _NOTHING and (
                found is value or getattr(found, "__func__", None) is value
            ):
                return value
        return self._computed_attribute(owner, name)

    def _computed_attribute(self, owner: Any, name: str) -> Any:
        """One that is asked for every time, as guards do: of built-in types, slots, properties."""
        value = getattr(owner, name, _NOTHING)
        if isinstance(value, MappingProxyType):  # another one at each time, of one dictionary
            return value
        if value is _NOTHING or value is not getattr(owner, name, None):
            raise Unclear(self._text)
        self._place(_ATTRIBUTE, owner, (name, value), name)
        return self._seen_elsewhere(value)

    def _item(self, owner: Any, key: Any) -> Any:
        if isinstance(owner, tuple):
            return self._seen_elsewhere(owner[key])
        if isinstance(owner, list):
            self._hold_entries(owner)
            return self._seen_elsewhere(list.__getitem__(owner, key))
        self._hold_key(owner, key)
        if key not in owner:
            raise Unclear(self._text)
        if isinstance(owner, dict):
            return self._entry(owner, key)
        return self._seen_elsewhere(owner[key])

    def _entry(self, owner: dict[Any, Any], key: Any) -> Any:
        """What a dictionary has, of which all but tensors is held."""
        value = dict.__getitem__(owner, key)
        if isinstance(value, Tensor):
            self._entries[id(owner), key] = owner, key, value
        return value

    def _seen_elsewhere(self, value: Any) -> Any:
        """What is in another place than an entry of a dictionary."""
        if isinstance(value, Tensor):
            self._elsewhere[id(value)] = value
        return value

    def _hold_key(self, owner: Any, key: Any) -> None:
        """Whether a dictionary has a key, and what there."""
        if not isinstance(owner, dict | MappingProxyType):
            raise Unclear(self._text)
        if (_DICT, id(owner), None) in self._places:  # all of it is held
            return
        if not isinstance(key, str | int | type):  # nothing of the user's is to compare keys
            raise Unclear(self._text)
        if key not in owner:
            self._place(_ABSENT, owner, (key,), key)
        elif isinstance(owner[key], Tensor) and isinstance(owner, dict):
            self._entry(owner, key)
        else:
            self._place(_ITEM, owner, (key, owner[key]), key)

    def _hold_presence(self, owner: Any, name: str) -> None:
        """Whether an object has an attribute."""
        if isinstance(owner, Tensor):
            raise Unclear(self._text)
        own = _instance_dict(owner)
        if own is not None and isinstance(owner, _BUILT_IN):
            self._hold_key(own, name)
        elif own is not None:
            self._hold_object(owner)
        if own is not None and name in own:
            return
        kind = type(owner)
        classes = (*owner.__mro__, *kind.__mro__) if isinstance(owner, type) else kind.__mro__
        value = self._in_classes(classes, name)
        if value is not _NOTHING:
            if hasattr(type(value), "__set__"):  # a slot may be empty, a property fail
                self._computed_attribute(owner, name)
        elif isinstance(owner, nn.Module) and kind.__getattr__ is nn.Module.__getattr__:
            for entries in (owner._parameters, owner._buffers, owner._modules):
                self._hold_key(entries, name)
        elif hasattr(kind, "__getattr__") or "__getattr__" in (own or ()):
            raise Unclear(self._text)

    def _in_classes(self, classes: Iterable[type], name: str) -> Any:
        """What the first of `classes` that has an attribute has there; _NOTHING if none has it."""
        for base in classes:
            self._hold_key(vars(base), name)
            if name in vars(base):
                return vars(base)[name]
        return _NOTHING

    def _hold_value(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._seen_elsewhere(value)
        elif isinstance(value, FunctionType):
            self._place(_ATTRIBUTE, value, ("__code__", value.__code__), "__code__")
        elif isinstance(value, MethodType):
            self._hold_value(value.__func__)
        elif isinstance(value, tuple):
            for entry in tuple.__iter__(value):
                self._hold_value(entry)
        elif isinstance(value, dict | list):
            self._hold_entries(value)
            if type(value) not in (dict, list):  # those have nothing else
                self._hold_object(value)
        elif not isinstance(value, _FIXED) and type(value) is not object:
            if _instance_dict(value) is None and not hasattr(type(value), "__slots__"):
                raise Unclear(self._text)
            if isinstance(value, set | Iterator):
                raise Unclear(self._text)
            self._hold_object(value)

    def _hold_object(self, owner: Any) -> None:
        """An object's type and the attributes that it has itself in a dictionary."""
        if isinstance(owner, Tensor):
            raise Unclear(self._text)
        own = None if isinstance(owner, _BUILT_IN) else _instance_dict(owner)
        self._place(_OBJECT, owner, (type(owner), own))
        if own is not None:
            self._hold_entries(own)

    def _hold_entries(self, owner: Any) -> None:
        if (_DICT, id(owner), None) in self._places or (_LIST, id(owner), None) in self._places:
            return
        if isinstance(owner, dict):
            pairs = list(dict.items(owner))  # at once, whatever other threads do
            if any(value is NotImplemented for _, value in pairs) or len(pairs) > _MOST_ENTRIES:
                raise Unclear(self._text)
            self._place(_DICT, owner, tuple(_comparable(pairs)))
        elif isinstance(owner, list):
            entries = tuple(list.__iter__(owner))
            if len(entries) > _MOST_ENTRIES:
                raise Unclear(self._text)
            self._place(_LIST, owner, entries)
            for entry in entries:
                if isinstance(entry, list | tuple):
                    self._hold_value(entry)
        else:
            raise Unclear(self._text)


def _comparable(pairs: list[tuple[Any, Any]]) -> Iterator[Any]:
    for key, value in pairs:
        yield key
        yield NotImplemented if key == _COMPILED or isinstance(value, Tensor) else value


def _instance_dict(owner: Any) -> dict[str, Any] | None:
    """Where an object keeps its attributes, if it does so in a dictionary."""
    found = getattr(owner, "__dict__", None)
    return found if isinstance(found, dict) else None
