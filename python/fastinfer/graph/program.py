"""Runs of this package's operators and of views, each run as one call.

An operator costs some 4 us between Python and its kernel, a view 1: in a small model as long as the
kernels themselves. A program (csrc/ops/program.h) is such a run as numbers, which one operator goes
through in C++.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node

from fastinfer.graph.emit import fastinfer
from fastinfer.graph.match import Expr, arguments, aten, value
from fastinfer.ops._common import FLOATS

_LEAST_KERNELS = 3  # in a program: fewer cost less one by one

_KERNELS = (
    fastinfer.act_mul.default,
    fastinfer.attention.default,
    fastinfer.layer_norm.default,
    fastinfer.linear_w8a16.default,
    fastinfer.linear_w8a8.default,
    fastinfer.linear_w8a8_cat.default,
    fastinfer.linear_w8a8_gated.default,
    fastinfer.quantize_rows.default,
    fastinfer.quantize_rowwise.default,
    fastinfer.rms_norm.default,
    fastinfer.rope.default,
)

# With the arguments that a program's instruction has; the others must have their defaults.
_VIEWS = {
    aten.contiguous.default: ("self",),
    aten.expand.default: ("self", "size"),
    aten.flatten.using_ints: ("self", "start_dim", "end_dim"),
    aten.permute.default: ("self", "dims"),
    aten.reshape.default: ("self", "shape"),
    aten.select.int: ("self", "dim", "index"),
    aten.slice.Tensor: ("self", "dim", "start", "end", "step"),
    aten.split_with_sizes.default: ("self", "split_sizes", "dim"),
    aten.squeeze.dim: ("self", "dim"),
    aten.transpose.int: ("self", "dim0", "dim1"),
    aten.unflatten.int: ("self", "dim", "sizes"),
    aten.unsqueeze.default: ("self", "dim"),
}

# fastinfer::ops::Kind; its kDTypes are FLOATS.
_NONE, _TENSOR, _INTEGER, _SIZE, _REAL, _DTYPE, _TEXT, _LIST = range(8)


def with_programs(module: GraphModule) -> GraphModule | None:
    """`module` with its runs of operators as programs, or None if it has no run on the CPU that is
    worth it. Operators that are in no program come as early as what they read allows."""
    graph = module.graph
    tensors = [value(n) for n in graph.nodes if n.op == "placeholder"]
    if any(t.device.type != "cpu" for t in tensors if isinstance(t, Tensor)):
        return None
    levels = _levels(graph)
    if not any(level.run for level in levels):
        return None
    new = Graph()
    copies: dict[Node, Node] = {}
    for i, level in enumerate(levels):
        for node in level.others:
            if node.op != "output":
                copies[node] = new.node_copy(node, copies.__getitem__)
        if level.run:
            _emit(module, new, copies, level.run, f"_program_{i}")
    new.node_copy(graph.output_node(), copies.__getitem__)
    return GraphModule(module, new)


@dataclass
class _Level:
    """What can be computed once the levels before are: other operators, then a run."""

    others: list[Node] = field(default_factory=list)
    run: list[Node] = field(default_factory=list)


def _levels(graph: Graph) -> list[_Level]:
    coded = _candidates(graph)
    while True:
        levels: list[_Level] = []
        of: dict[Node, int] = {}
        ordered = 0  # the level of the last one that has a place among others
        for node in graph.nodes:
            here = node in coded
            least = (of[n] + (n in coded and not here) for n in node.all_input_nodes)
            of[node] = max(least, default=0)
            if _has_place(node):
                of[node] = ordered = max(of[node], ordered)
            levels += [_Level() for _ in range(of[node] + 1 - len(levels))]
            (levels[of[node]].run if here else levels[of[node]].others).append(node)
        few = [x.run for x in levels if sum(n.target in _KERNELS for n in x.run) < _LEAST_KERNELS]
        if not any(few):
            return levels
        coded.difference_update(*few)


def _has_place(node: Expr) -> bool:
    """Whether a node may not pass others like it: it draws random numbers, or what it does besides
    its result is not known."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    namespace = getattr(node.target, "namespace", None)
    if namespace in ("aten", "fastinfer"):
        return torch.Tag.nondeterministic_seeded in node.target.tags
    return getattr(node.target, "__module__", "") not in ("_operator", "math")


def _candidates(graph: Graph) -> set[Node]:
    """What a program can hold, without views of what no program computes that others read: they
    would have to wait for the program."""
    found, behind_kernels = set[Node](), set[Node]()
    for node in graph.nodes:
        if _has_code(node) or (node.target is getitem and node.args[0] in found):
            found.add(node)
            if node.target in _KERNELS or behind_kernels.intersection(node.all_input_nodes):
                behind_kernels.add(node)
    for node in reversed(graph.nodes):
        if node not in behind_kernels and any(user not in found for user in node.users):
            found.discard(node)
    return {n for n in found if n.target is not getitem or n.args[0] in found}


def _has_code(node: Expr) -> bool:
    if node.op != "call_function":
        return False
    if node.target not in _KERNELS and node.target not in _VIEWS:
        return False
    if any(name not in _names(node) for name in node.kwargs):
        return False
    return all(_has_kind(arguments(node)[name]) for name in _names(node))


def _names(node: Expr) -> tuple[str, ...]:
    """The arguments of an instruction, in order."""
    schema = node.target._schema.arguments
    return _VIEWS.get(node.target) or tuple(a.name for a in schema)


def _has_kind(v: Any) -> bool:
    if isinstance(v, list | tuple):
        return all(_has_kind(entry) for entry in v)
    if isinstance(v, torch.dtype):
        return v in FLOATS
    if isinstance(v, Node):
        # None: a kernel's output, which no pass gave a value.
        return value(v) is None or isinstance(value(v), Tensor | SymInt | int | list | tuple)
    return v is None or isinstance(v, int | float | str)


def _emit(
    module: GraphModule, new: Graph, copies: dict[Node, Node], run: list[Node], name: str
) -> None:
    """The call of a program for `run`, and nodes for those of its results that others read."""
    members = set(run)
    results = [
        n for n in run if not _has_outputs(n) and any(user not in members for user in n.users)
    ]
    code = _Code(run, results)
    module.register_buffer(name, torch.tensor(code.words, dtype=torch.int64), persistent=False)
    call = new.call_function(
        fastinfer.run_program.default,
        (
            new.get_attr(name),
            [copies[n] for n in code.tensors],
            [copies[n] for n in code.sizes],
        ),
    )
    for i, node in enumerate(results):
        copies[node] = new.call_function(getitem, (call, i))


def _has_outputs(node: Node) -> bool:
    """Whether the node stands for several tensors, which getitem tells apart."""
    return any(user.target is getitem for user in node.users)


class _Code:
    """The words of a program; `tensors` and `sizes`: the nodes that it is given, in order."""

    def __init__(self, run: list[Node], results: list[Node]) -> None:
        members = set(run)
        self.tensors: list[Node] = []
        self.sizes: list[Node] = []
        for node in run:
            for given in node.all_input_nodes:
                kind = self.sizes if isinstance(value(given), SymInt | int) else self.tensors
                if given not in members and given not in kind:
                    kind.append(given)
        made = [n for n in run if not _has_outputs(n)]
        self._numbers = {node: i for i, node in enumerate([*self.tensors, *made])}
        instructions = [n for n in run if n.target is not getitem]
        dropped = _last_reads(instructions, set(made) - set(results))
        self.words = [len(self.tensors), len(self._numbers), len(instructions)]
        self.words += self._list(self._numbers[n] for n in results)
        for node in instructions:
            self.words += [
                *_text(_name(node)),
                *self._list(self._outputs(node)),
                *self._list(self._numbers[n] for n in dropped[node]),
                *self._arguments(node),
            ]

    @staticmethod
    def _list(numbers: Iterator[int]) -> list[int]:
        entries = list(numbers)
        return [len(entries), *entries]

    def _outputs(self, node: Expr) -> Iterator[int]:
        if not _has_outputs(node):
            yield self._numbers[node]
            return
        made = {user.args[1]: self._numbers[user] for user in node.users}
        sizes = arguments(node).get("split_sizes")
        count = len(node.target._schema.returns) if sizes is None else len(sizes)
        yield from (made.get(i, -1) for i in range(count))

    def _arguments(self, node: Expr) -> Iterator[int]:
        given = arguments(node)
        for name in _names(node):
            yield from self._argument(given[name])

    def _argument(self, v: Any) -> Iterator[int]:
        if v is None:
            yield _NONE
        elif isinstance(v, Node):
            is_size = v in self.sizes
            yield from (_SIZE, self.sizes.index(v)) if is_size else (_TENSOR, self._numbers[v])
        elif isinstance(v, int):
            yield from (_INTEGER, int(v))
        elif isinstance(v, float):
            yield from (_REAL, *struct.unpack("=q", struct.pack("=d", v)))
        elif isinstance(v, torch.dtype):
            yield from (_DTYPE, FLOATS.index(v))
        elif isinstance(v, str):
            yield from (_TEXT, *_text(v))
        else:
            yield from (_LIST, len(v))
            for entry in v:
                yield from self._argument(entry)


def _name(node: Expr) -> str:
    """An operator's name without namespace and overload."""
    name: str = node.target._schema.name
    return name.partition("::")[2]


def _text(text: str) -> tuple[int, ...]:
    """The length and the characters, eight a word."""
    data = text.encode()
    words = (len(data) + 7) // 8
    return len(data), *struct.unpack(f"={words}q", data.ljust(8 * words, b"\0"))


def _last_reads(instructions: list[Node], made: set[Node]) -> dict[Node, list[Node]]:
    """By instruction, those of `made` that no later one reads."""
    kept = set(made)
    dropped: dict[Node, list[Node]] = {}
    for node in reversed(instructions):
        dropped[node] = [n for n in node.all_input_nodes if n in kept]
        kept.difference_update(dropped[node])
    return dropped
