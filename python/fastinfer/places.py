"""What the guards of torch.compile read, as places in memory that can be looked at again.

Guards say what a compiled graph rests on: thousands of them for a model of some depth, each an
expression that leads from the model, or from a global, to a value, and a question about the value.
To ask them all again before every call takes half a millisecond. But as long as every place on the
way to every value holds the very object that it held when all guards had passed, and so does what a
value itself consists of, they would pass again. That is a comparison of addresses
(csrc/python/places.cpp).

Nothing here asks what a guard's question is: a value is held with all that guards ask about, which
is its type, its identity, its entries and its own attributes, but not those of its entries. Tensors
are another matter: what guards ask of them (dtype, sizes, ...) is not in memory that Python sees,
and their identity does not count, but that no two are one. So `Places` says where they are.
"""

import ast
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor

# Place in csrc/python/places.cpp.
_OBJECT, _DICT, _LIST, _ITEM, _ATTRIBUTE, _LENGTH = range(6)

_MOST_ENTRIES = 1024  # of a dictionary or list: more take longer than guards
# Where nn.Module keeps what a call runs in place of forward. For a fused model that is what keeps
# these places, which would otherwise keep itself; and it computes the same.
_COMPILED = "_compiled_call_impl"
# Their attributes are read as attributes, and are the same object as long as they are the same.
_BUILT_IN = (
    type,
    FunctionType,
    MethodType,
    CodeType,
    CellType,
    property,
    staticmethod,
    classmethod,
    partial,
)


class Unclear(Exception):
    """An expression, or what it leads to, is of a form that is not known here."""


class Held(NamedTuple):
    """places: as `_C.unchanged` takes them. entries: where tensors are, each in one dictionary, as
    `_C.values_at` takes it. tensors: the others: tied ones, and those in lists, closures, ..."""

    places: tuple[Any, ...]
    entries: tuple[Any, ...]
    tensors: tuple[Tensor, ...]


class Places:
    """The places that expressions lead through.

    names: what the expressions start from, by name.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._values: dict[str, Any] = {}  # by expression
        self._text = ""  # of the expression that is being read
        self._places: dict[tuple[int, int, Any], tuple[int, Any, Any]] = {}
        self._entries: dict[tuple[int, Any], tuple[Any, Any, Tensor]] = {}  # of dictionaries
        self._elsewhere: dict[int, Tensor] = {}  # by id

    def hold(self, expressions: Iterable[str]) -> "Held":
        """What `expressions` lead through. Where one leads to the bases of a class, how many
        attributes each has is part of it. Raises Unclear."""
        for expression in expressions:
            self._text = expression
            value = self._read(ast.parse(expression, mode="eval").body)
            if expression.endswith(".__mro__"):
                value = tuple(vars(base) for base in value)
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
            case ast.Name(id=name) if name in self._names:
                return self._names[name]
            case ast.Attribute(value=owner, attr=name):
                return self._attribute(self._read(owner), name)
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                return self._item(self._read(owner), key)
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
                func=ast.Name(id="list"),
                args=[
                    ast.Call(func=ast.Attribute(value=ast.Name(id="dict"), attr="keys"), args=[one])
                ],
            ):
                owner = self._read(one)
                self._hold_entries(owner)
                return tuple(owner)
        raise Unclear(self._text)

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Tensor):
            raise Unclear(name)
        if name == "__class__":
            self._hold_object(owner)
            return owner.__class__
        if isinstance(owner, ModuleType):
            return self._item(vars(owner), name)
        if isinstance(owner, _BUILT_IN):
            value = getattr(owner, name, self)
            if isinstance(value, MappingProxyType):  # another one at each time, of one dictionary
                return value
            if value is self or value is not getattr(owner, name, None):
                raise Unclear(name)
            self._place(_ATTRIBUTE, owner, (name, value), name)
            return value
        self._hold_object(owner)
        own = _instance_dict(owner)
        if name == "__dict__" and own is not None:
            return own
        if own is not None and name in own:
            value = self._entry(own, name)
        else:
            value = self._class_attribute(type(owner), name)
        if getattr(owner, name, self) is not value:
            raise Unclear(name)
        return value

    def _class_attribute(self, owner: type, name: str) -> Any:
        for base in owner.__mro__:
            if name in vars(base):
                return self._item(vars(base), name)
        raise Unclear(name)

    def _item(self, owner: Any, key: Any) -> Any:
        if isinstance(owner, tuple):
            return owner[key]
        if isinstance(owner, list):
            self._hold_entries(owner)
            return owner[key]
        if not isinstance(owner, dict | MappingProxyType) or key not in owner:
            raise Unclear(str(key))
        value = owner[key]
        if isinstance(value, Tensor) and isinstance(owner, dict):
            return self._entry(owner, key)
        self._place(_ITEM, owner, (key, value), key)
        return value

    def _entry(self, owner: dict[Any, Any], key: Any) -> Any:
        """What a dictionary has, of which all but tensors is held."""
        value = owner[key]
        if isinstance(value, Tensor):
            self._entries[id(owner), key] = owner, key, value
        return value

    def _hold_value(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if all(tensor is not value for _, _, tensor in self._entries.values()):
                self._elsewhere[id(value)] = value
            return
        if isinstance(value, dict | list):
            self._hold_entries(value)
        elif isinstance(value, tuple):
            for entry in value:
                self._hold_value(entry)
        elif isinstance(value, MappingProxyType):
            self._place(_LENGTH, value, len(value))
        elif isinstance(value, set | deque | Iterator):
            raise Unclear(type(value).__name__)
        if not isinstance(value, (ModuleType, *_BUILT_IN)):
            self._hold_object(value)

    def _hold_object(self, owner: Any) -> None:
        """An object's type and all of its own attributes. One without a dictionary of them keeps
        its type, and attributes that it has nevertheless are not read."""
        own = _instance_dict(owner)
        if own is not None:
            self._place(_OBJECT, owner, (type(owner), own))
            self._hold_entries(own)

    def _hold_entries(self, owner: Any) -> None:
        if (_DICT, id(owner), None) in self._places or (_LIST, id(owner), None) in self._places:
            return
        if len(owner) > _MOST_ENTRIES:
            raise Unclear(f"{len(owner)} entries")
        if isinstance(owner, dict):
            if any(value is NotImplemented for value in owner.values()):
                raise Unclear("NotImplemented")
            self._place(_DICT, owner, tuple(_pairs(owner)))
        else:
            self._place(_LIST, owner, tuple(owner))
            for entry in owner:
                if isinstance(entry, list | tuple):
                    self._hold_value(entry)


def _pairs(owner: dict[Any, Any]) -> Iterator[Any]:
    for key, value in owner.items():
        yield key
        yield NotImplemented if key == _COMPILED or isinstance(value, Tensor) else value


def _instance_dict(owner: Any) -> dict[str, Any] | None:
    """Where an object keeps its attributes, if it does so in a dictionary."""
    found = getattr(owner, "__dict__", None)
    return found if isinstance(found, dict) else None
