"""`prune_layers_`: whole blocks taken out of a stack of like ones."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.candidates import LEFT_OUT, FilterFn, check_filter_fn, takes
from fastinfer.compare import float_tensors
from fastinfer.layer_pruning import BlockRow, LayerPruning
from fastinfer.observe import call, check_batches, observed, run_batches
from fastinfer.sparsity import largest
from fastinfer.units import check_keep

_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_INDICES = ("layer_idx", "layer_id", "layer_index")


def prune_layers_(
    model: nn.Module,
    batches: Iterable[Any],
    keep: float = 0.75,
    *,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> LayerPruning:
    """Takes those blocks out of stacks of like ones that change least what goes through, in place.

    A stack is an nn.ModuleList or nn.Sequential with two or more modules of one class that hold
    modules themselves and give their first argument's shape back, such as transformer blocks or the
    residual blocks of one stage. A block's influence is 1 - the mean of cos(x, y) over all tokens
    (rows along the last dimension; of images, channels) of all batches, x what it gets and y what
    it gives: the blocks of the least influence go. Attributes that count blocks (`num_layers`), the
    indices of those that stay (`layer_idx`) and, in the config that the stack's owner holds,
    `num_hidden_layers` and lists such as `layer_types` follow.

    model: runs in eval mode. batches: an iterable of what the model is called with, a tensor, a
    tuple of positional arguments or a dict of keyword arguments each. keep: the share of a stack's
    blocks that stay, above 0 to below 1, rounded, one at the least. filter_fn(module, name) ->
    bool: False leaves that block where it is. progress: True or False shows or hides a bar; None
    shows it on a terminal.

    Afterwards the model runs the last batch once more: it must return the same shapes. An
    exception leaves the model as it was. Raises TypeError on arguments of other types; ValueError
    if keep is out of its range, there are no batches or no stack, or if the model does not run
    without the blocks; what it raises on batches comes through.

    Source of the influence, and of taking out blocks at once: Men et al., "ShortGPT: layers in
    large language models are more redundant than you expect", 2024
    (https://arxiv.org/abs/2403.03853).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_batches(batches)
    check_keep("keep", keep)
    check_filter_fn(filter_fn)
    stacks = _find(model)
    if not stacks:
        raise ValueError("model: it has no nn.ModuleList or nn.Sequential of like blocks")
    last, want = _measure(model, [b for stack in stacks for b in stack.blocks], batches, progress)
    for stack in stacks:
        stack.choose(keep, filter_fn)
    undo: list[Callable[[], None]] = []
    reason = None
    try:
        for stack in stacks:
            stack.shorten_(model, undo)
        got = _shapes(model, last)
        if got != want:
            reason = f"its outputs have shapes {got}, not {want}"
    except Exception as error:  # whatever a model raises without a block
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        for step in reversed(undo):
            step()
        gone = ", ".join(b.name for stack in stacks for b in stack.blocks if b.removed)
        raise ValueError(f"model: it does not run without {gone}: {reason}")
    return LayerPruning(tuple(block.row() for stack in stacks for block in stack.blocks))


@dataclass
class _Block:
    """A module of a stack, what its outputs are to its inputs, and why it stays or None."""

    name: str
    module: nn.Module
    distance: float = 0.0  # sum of 1 - cos
    tokens: int = 0
    calls: int = 0
    reason: str | None = None
    removed: bool = False

    @property
    def influence(self) -> float:
        return self.distance / max(1, self.tokens)

    def look(self, x: Any, y: Any) -> None:
        y = y[0] if isinstance(y, tuple) and y else y
        self.calls += 1
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            self.reason = "it does not take and give a tensor"
        elif x.shape != y.shape:
            self.reason = f"it makes {list(y.shape)} of {list(x.shape)}"
        else:
            dim = 1 if x.dim() == 4 else -1
            cos = torch.cosine_similarity(x.double(), y.double(), dim)
            if not cos.isfinite().all():
                raise ValueError(f"batches: what {self.name} gets or gives holds NaN or Inf")
            self.distance += float((1 - cos).sum())
            self.tokens += cos.numel()

    def row(self) -> BlockRow:
        influence = self.influence if self.tokens else None
        return BlockRow(self.name, influence, self.removed, self.reason)


@dataclass
class _Stack:
    name: str
    module: nn.Module
    blocks: list[_Block]

    def choose(self, keep: float, filter_fn: FilterFn | None) -> None:
        often = min((block.calls for block in self.blocks if block.calls), default=0)
        for block in self.blocks:
            if filter_fn is not None and not takes(filter_fn, block.module, block.name):
                block.reason = LEFT_OUT
            elif not block.calls:
                block.reason = "not reached by batches"
            elif block.calls > often:
                block.reason = "it is called more often than others"
        open_ = [block for block in self.blocks if block.reason is None]
        spare = len(self.blocks) - max(1, round(keep * len(self.blocks)))
        least = torch.tensor([-block.influence for block in open_])
        for block, gone in zip(open_, largest(least, min(spare, len(open_))), strict=True):
            block.removed = bool(gone)

    def shorten_(self, model: nn.Module, undo: list[Callable[[], None]]) -> None:
        """Takes its removed blocks out; `undo` gets what puts everything back."""
        before = dict(self.module._modules)
        gone = {id(block.module) for block in self.blocks if block.removed}
        kept = [i for i, child in enumerate(before.values()) if id(child) not in gone]
        if len(kept) == len(before):
            return

        def put_back() -> None:
            self.module._modules.clear()
            self.module._modules.update(before)

        def change(target: object, attribute: str, value: object) -> None:
            old = getattr(target, attribute)
            undo.append(lambda: setattr(target, attribute, old))
            setattr(target, attribute, value)

        undo.append(put_back)
        self.module._modules.clear()
        numbered = list(before) == [str(i) for i in range(len(before))]
        children = list(before.items())
        for number, old in enumerate(kept):
            key, block = children[old]
            self.module._modules[str(number) if numbered else key] = block
            for module in [] if block is None else block.modules():
                for attribute in _INDICES:
                    if vars(module).get(attribute) == old:
                        change(module, attribute, number)

        parent = self.name.rpartition(".")[0]
        owner = model.get_submodule(parent)
        for attribute in _COUNTS:
            if vars(owner).get(attribute) == len(before):
                change(owner, attribute, len(kept))
        self._shorten_config(owner, kept, len(before), change)

    def _shorten_config(
        self, owner: nn.Module, kept: list[int], count: int, change: Callable[..., None]
    ) -> None:
        config = vars(owner).get("config")
        if config is None:
            return
        for attribute, value in list(vars(config).items()):
            if "layer" in attribute and isinstance(value, list) and len(value) == count:
                change(config, attribute, [value[i] for i in kept])
        names: tuple[str, ...] = _COUNTS
        if getattr(config, "is_encoder_decoder", False):
            decoder = "decoder" in f"{self.name} {type(owner).__name__}".lower()
            names = ("decoder_layers",) if decoder else ("encoder_layers",)
        for attribute in names:
            if getattr(config, attribute, None) == count:
                change(config, attribute, len(kept))


def _find(model: nn.Module) -> list[_Stack]:
    stacks = []
    for name, module in model.named_modules():
        if not name or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds = [type(child) for child in module]
        blocks = [
            _Block(f"{name}.{key}", child)
            for key, child in module._modules.items()
            if child is not None and child._modules and kinds.count(type(child)) > 1
        ]
        if blocks:
            stacks.append(_Stack(name, module, blocks))
    names = [stack.name for stack in stacks]
    return [  # the innermost, where one stands in a block of another
        stack
        for stack in stacks
        if not any(name.startswith(f"{block.name}.") for block in stack.blocks for name in names)
    ]


def _measure(
    model: nn.Module, blocks: list[_Block], batches: Iterable[Any], progress: bool | None
) -> tuple[Any, list[torch.Size]]:
    """Shows each block what goes through it; returns the last batch and its outputs' shapes."""
    seen: list[Any] = []

    def noted() -> Iterable[Any]:
        for batch in batches:
            seen[:] = [batch]
            yield batch

    with ExitStack() as stack:
        for block in blocks:

            def look(
                module: nn.Module, args: Any, kwargs: Any, y: Any, block: _Block = block
            ) -> None:
                block.look(args[0] if args else next(iter(kwargs.values()), None), y)

            stack.callback(block.module.register_forward_hook(look, with_kwargs=True).remove)
        shapes: list[torch.Size] = []
        for output in run_batches(model, noted(), progress):
            shapes = [y.shape for _, y in float_tensors(output, "output")]
    return seen[0], shapes


def _shapes(model: nn.Module, batch: Any) -> list[torch.Size]:
    with observed(model):
        return [y.shape for _, y in float_tensors(call(model, batch), "output")]
