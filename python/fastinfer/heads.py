"""`prune_heads_`: attention with fewer heads, in true shapes."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastinfer.candidates import FilterFn, list_layers
from fastinfer.criteria import AnyScore, Magnitude
from fastinfer.expose import can_split
from fastinfer.narrowing import HeadPruning
from fastinfer.nn import SplitAttention
from fastinfer.observe import call, observed
from fastinfer.prune import Scope
from fastinfer.sparsity import largest
from fastinfer.swap import close_fused_paths
from fastinfer.units import Units, check_keep, check_shared, find_layers, prove_, score

_AGAIN = "its layers are called more than once"
_MIXED = "its heads cannot be told apart on example_inputs"
_MAGNITUDE = Magnitude()
# What attention modules call the numbers that go down with their heads.
_HEADS = {"num_heads", "num_attention_heads", "n_heads", "n_head"}
_HEADS |= {"num_key_value_heads", "num_kv_heads", "n_kv_heads"}
_WIDTHS = {"all_head_size", "split_size", "inner_dim", "embed_dim", "dim"}


def prune_heads_(
    model: nn.Module,
    example_inputs: Any,
    keep: float | Mapping[str, float] = 0.75,
    criterion: AnyScore = _MAGNITUDE,
    *,
    batches: Iterable[Any] | None = None,
    scope: Scope = "uniform",
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> HeadPruning:
    """Takes heads out of attention blocks, in place: rows of q, k and v, columns of the output.

    Heads are found by what they do: on example_inputs, those rows of the linear layers before a
    softmax (or scaled_dot_product_attention) belong together whose gradients reach the same inputs
    of the linear layer after it. So it does not matter how q, k and v are packed, and query heads
    that share a key-value head go with it, all or none. Attributes such as `num_heads` or
    `all_head_size` follow. A unit's score is the sum of those of its weights; the largest stay.
    Before anything changes, a copy of the model shows on example_inputs that a unit reaches nothing
    but the layer after: with that layer's columns for it at zero, noise in it must leave every bit
    of the outputs, and without it the outputs must be the same within sqrt(eps) of their dtype.

    model: a float model; it runs in eval mode. example_inputs: what it is called with, two tokens
    or more: a tensor, a tuple of positional arguments or a dict of keyword arguments. keep: the
    share of the heads that stay, above 0 to below 1, at least one a block; or, by name of a block
    as it stands in the result, its share: then a block that is named must become narrower, and the
    others stay. criterion: Magnitude(), Taylor(loss_fn), Wanda() or Random(seed). batches: what it
    runs, as for `prune_`. scope: "uniform", each block keeps that share; "global", all of them
    together do, by one threshold on the scores. filter_fn(module, name) -> bool: False for one of
    its linear layers leaves a block as it is. progress: True or False shows or hides a bar; None
    shows it on a terminal.

    An nn.MultiheadAttention that loses heads becomes a `fastinfer.nn.SplitAttention`, whose linear
    layers filter_fn sees as q_proj, k_proj, v_proj and out_proj. The narrowed parameters are new
    objects: make the optimizer afterwards. A config of the model is not changed.

    An exception leaves the model as it was. Raises TypeError on arguments of other types;
    ValueError on values out of their range, if `keep` names a block that cannot lose heads, if the
    criterion needs batches and there are none, or does not go with the scope, if the model is
    itself an nn.MultiheadAttention or returns no float tensor, or, naming the layer, if an input or
    a score is NaN or Inf. What the model raises on its inputs comes through.
    """
    _check(model, keep, scope, criterion)
    check_shared(model, example_inputs, criterion, batches, filter_fn)
    with torch.inference_mode(False), torch.no_grad():  # or nothing could be trained later
        trial = copy.deepcopy(model).requires_grad_(False)
        _split_(trial, [name for name, module in model.named_modules() if can_split(module)])
        found = find_attention(trial, example_inputs)
        _give_reasons(found, {layer.name: layer.reason for layer in find_layers(trial, filter_fn)})
        _refuse_unknown(keep, found)
        scores = score(trial, found, criterion, () if batches is None else batches, progress)
        _choose(found, scores, keep, scope)
        prove_(trial, found, example_inputs)
        for block in found:
            if block.reason is not None and isinstance(keep, Mapping) and block.name in keep:
                raise ValueError(f"keep: {block.name} cannot lose heads: {block.reason}")
        cut = [block for block in found if block.reason is None]
        _split_(model, [block.name for block in cut])
        for block in cut:
            block.cut_(model)
    return HeadPruning(tuple(block.row() for block in found), criterion.label)


def _split_(model: nn.Module, names: Iterable[str]) -> None:
    """Puts a SplitAttention where one of `names` is an nn.MultiheadAttention."""
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            made = SplitAttention.from_torch(module)
            for parent in model.modules():
                for attribute, child in parent._modules.items():
                    if child is module:
                        setattr(parent, attribute, made)
    close_fused_paths(model)


class _Finder(TorchFunctionMode):
    """Units of every layer that reads what comes of a softmax, within a call of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._generator = torch.Generator().manual_seed(0)
        self._outputs: list[tuple[str, Tensor]] = []
        self._attended: Tensor | None = None  # what the last softmax gave
        self.times: Counter[str] = Counter()
        self.found: dict[str, Units] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("softmax", "scaled_dot_product_attention"):
            self._attended = result
        return result

    def enter(self, name: str, x: Tensor) -> None:
        self.times[name] += 1
        attended, self._attended = self._attended, None
        if attended is None or not (attended.requires_grad and x.requires_grad):
            return
        if attended.dim() < 3:  # a router's softmax over experts
            return
        (gradient,) = torch.autograd.grad(x.sum(), attended, retain_graph=True, allow_unused=True)
        if gradient is not None and name not in self.found:
            self.found[name] = self._units(name, x)

    def leave(self, name: str, y: Tensor) -> Tensor:
        """Noise in place of `y`, where no head is dead and no softmax saturated: a leaf, so that
        the gradients of what follows end there."""
        leaf = self._noise(y).requires_grad_()
        self._outputs.append((name, leaf))
        return leaf.clone()  # what follows may write into it

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)

    def _units(self, after: str, x: Tensor) -> Units:
        outputs, width = self._outputs, x.shape[-1]
        weights = self._noise(x)

        def reached(first: int, last: int) -> list[Tensor | None]:
            """Which outputs of each layer bear on inputs first to last - 1 of `after`."""
            part = (x * weights)[..., first:last].sum()
            leaves = [leaf for _, leaf in outputs]
            gradients = torch.autograd.grad(part, leaves, retain_graph=True, allow_unused=True)
            return [None if g is None else (g != 0).flatten(0, -2).any(0) for g in gradients]

        everything = reached(0, width)
        outputs = [output for output, g in zip(outputs, everything, strict=True) if g is not None]
        names = [name for name, _ in outputs]
        ends = reached(0, 1)
        size = next(
            size
            for size in range(width, 0, -1)
            if width % size == 0 and (size == 1 or _meet(ends, reached(size - 1, size)))
        )
        count = width // size
        columns = torch.arange(width, device=x.device) // size
        before = {
            name: torch.full(leaf.shape[-1:], -1, device=leaf.device) for name, leaf in outputs
        }
        reason = None if count > 1 and len(before) == len(names) else _MIXED
        for unit in range(count if reason is None else 0):
            for name, rows in zip(names, reached(unit * size, (unit + 1) * size), strict=True):
                if rows is None or (before[name][rows] >= 0).any():
                    reason = _MIXED
                else:
                    before[name][rows] = unit
        if any((unit < 0).any() for unit in before.values()):
            reason = _MIXED
        block = _common_name([after, *names])
        numbers = self._numbers(block, width, count)
        return Units(block or after, before, after, columns, count, numbers, reason)

    def _numbers(self, block: str, width: int, count: int) -> list[tuple[str, str]]:
        """The attributes of modules within a block that count its heads or their channels."""
        prefix = f"{block}." if block else ""
        if any(name.startswith(prefix) for name in self.found):
            return []  # it holds other blocks, whose numbers these may be
        return [
            (prefix + name if name else block, attribute)
            for name, module in self._model.get_submodule(block).named_modules()
            for attribute, value in vars(module).items()
            if type(value) is int
            and (
                (attribute in _HEADS and value % count == 0)
                or (attribute in _WIDTHS and value == width)
            )
        ]


def find_attention(model: nn.Module, inputs: Any) -> list[Units]:
    """The heads of each attention block that runs on `inputs`. The parameters must be frozen."""
    finder = _Finder(model)
    with ExitStack() as stack:
        for layer in list_layers(model, conv1d_too=True):
            name, module = layer.name, layer.module
            before = module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: finder.enter(
                    name, args[0] if args else kwargs["input"]
                ),
                with_kwargs=True,
            )
            stack.callback(before.remove)
            after = module.register_forward_hook(
                lambda _, args, output, name=name: finder.leave(name, output)
            )
            stack.callback(after.remove)
        stack.enter_context(observed(model))
        with torch.enable_grad(), finder:
            call(model, inputs)
    for block in finder.found.values():
        if any(finder.times[name] > 1 for name in block.layers):
            block.reason = _AGAIN
    return list(finder.found.values())


def _give_reasons(found: list[Units], reasons: Mapping[str, str | None]) -> None:
    for block in found:
        for name in block.layers:
            if block.reason is None and reasons[name] is not None:
                block.reason = f"{name}: {reasons[name]}"


def _choose(
    found: list[Units], scores: dict[str, Tensor], keep: float | Mapping[str, float], scope: Scope
) -> None:
    chosen = [block for block in found if block.reason is None]
    if isinstance(keep, Mapping):
        for block in chosen:
            if block.name in keep:
                block.keep(largest(scores[block.name], _count(block, keep[block.name])))
            else:
                block.reason = "keep does not name it"
    elif scope == "uniform":
        for block in chosen:
            block.keep(largest(scores[block.name], _count(block, keep)))
    elif chosen:
        everything = torch.cat([scores[block.name].cpu() for block in chosen])
        kept = largest(everything, round(keep * len(everything)))
        for block, own in zip(chosen, kept.split([b.count for b in chosen]), strict=True):
            best = largest(scores[block.name], 1)
            block.keep(own.to(best.device) | best)


def _count(block: Units, keep: float) -> int:
    return max(1, round(keep * block.count))


def _meet(some: list[Tensor | None], others: list[Tensor | None]) -> bool:
    pairs = zip(some, others, strict=True)
    return any(a is not None and b is not None and bool((a & b).any()) for a, b in pairs)


def _common_name(names: list[str]) -> str:
    """Of the innermost module that holds all of `names`; "" is the model."""
    shared = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _refuse_unknown(keep: float | Mapping[str, float], found: list[Units]) -> None:
    names = [block.name for block in found]
    unknown = [name for name in keep if name not in names] if isinstance(keep, Mapping) else []
    if unknown:
        raise ValueError(
            f"keep: no attention block named {unknown[0]} was seen on example_inputs; "
            f"there are {', '.join(names[:3]) or 'none'}"
        )


def _check(model: object, keep: object, scope: object, criterion: object) -> None:
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(
            "model: got an nn.MultiheadAttention, want a module that holds it, such as an "
            "nn.TransformerEncoderLayer"
        )
    if isinstance(keep, Mapping):
        for name, share in keep.items():
            check_keep(f"keep of {name}", share)
    else:
        check_keep("keep", keep)
    if scope not in get_args(Scope):
        raise ValueError(f"scope: got {scope!r}, want one of {', '.join(get_args(Scope))}")
    if scope == "global" and isinstance(criterion, AnyScore) and not criterion.across_layers:
        raise ValueError(
            f"scope: got 'global' with {criterion.label}, which compares weights within a layer"
        )
    if scope == "global" and isinstance(keep, Mapping):
        raise ValueError("scope: got 'global' with a share for each block")
