"""Where the outputs of a model's norms go, and who reads which weight: seen while it runs."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fastinfer.norms import Norm

# What these say of a tensor does not depend on its values.
_METADATA = {"__get__", "__len__", "__hash__", "dim", "ndimension", "size", "stride", "numel"}
_METADATA |= {"nelement", "element_size", "storage_offset", "is_contiguous", "is_floating_point"}
_METADATA |= {"is_complex", "is_signed", "get_device", "type"}
# Their results are the same values, in the same memory or copied in the same order.
_COPIES = {"contiguous", "clone", "reshape", "flatten", "to", "type", "float", "half", "bfloat16"}
_COPIES |= {"double", "cpu", "dropout"}  # dropout: in eval mode
# Those of these, if in the same memory, are the same values; strides tell where the channels are.
_VIEWS = _COPIES | {"__get__", "__getitem__", "view", "transpose", "permute", "swapaxes"}
_VIEWS |= {"swapdims", "movedim", "t", "squeeze", "unsqueeze", "unflatten", "expand", "narrow"}
_VIEWS |= {"select", "chunk", "split", "unbind", "detach"}


@dataclass
class NormUse:
    """What became of one norm's outputs."""

    norm: Norm
    linears: dict[int, None] = field(default_factory=dict)  # ids of the weights that multiply them
    channel_max: Tensor | None = None  # max |y| over all outputs, float32 [channels]
    other: str | None = None  # the first reader, of outputs or parameters, that is no such linear


@dataclass
class WeightUse:
    """Who reads the weight of an nn.Linear."""

    name: str  # of the module
    weight: Tensor
    norms: dict[str, None] = field(default_factory=dict)  # whose outputs it multiplies
    other: str | None = None  # the first reader of another kind


@dataclass(frozen=True)
class _Tracked:
    """A tensor that holds outputs of a norm; `whole`: channel by channel along its last dim."""

    use: NormUse
    whole: bool


class Consumers(TorchFunctionMode):
    """Follows the outputs of `norms` through a model, within `watching(model)`.

    Every function of torch that Python calls with such a tensor is seen. Views and copies of it are
    followed; a product by a whole nn.Linear weight is noted with the linear; anything else is its
    `other`. So is an operator that gets the tensor from elsewhere than such a function's arguments
    (torch.jit.script, torch.vmap, an extension in C++), and a tensor that outlives the call
    (`end_call`): the model returned or kept it.
    """

    def __init__(self, norms: list[Norm], linears: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.norms = {id(norm.module): NormUse(norm) for norm in norms}
        self.weights = {id(m.weight): WeightUse(name, m.weight) for name, m in linears.items()}
        self._owners = {id(p): use for use in self.norms.values() for p in use.norm.parameters}
        self._tracked: Any = WeakTensorKeyDictionary()
        self._given: set[int] = set()  # ids of the arguments of the function being called
        self._calls: list[tuple[str, nn.Module]] = []  # the modules being called, innermost last

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hooks on all modules, and this mode, while inside."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.callback(module.register_forward_pre_hook(self._enter(name)).remove)
                use = self.norms.get(id(module))
                if use is not None:
                    stack.callback(module.register_forward_hook(self._produced).remove)
                leave = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(leave.remove)
            with _Operators(self), self:
                yield

    def end_call(self) -> None:
        """After a call of the model, while its output is still held."""
        if self._tracked:
            gc.collect()  # what only cycles hold is not kept
        for tracked in self._tracked.values():
            self._note(tracked.use, "is returned or kept by the model")
        self._tracked.clear()
        self._calls.clear()

    def _enter(self, name: str) -> Any:
        return lambda module, args: self._calls.append((name, module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._calls.pop()

    def _produced(self, module: nn.Module, args: Any, y: Any) -> None:
        use = self.norms[id(module)]
        if not isinstance(y, Tensor) or y.shape[-1:] != module.weight.shape:
            self._note(use, "is not a tensor of its channels")
            return
        if y in self._tracked:
            self._note(self._tracked[y].use, f"passes through {use.norm.name}")
        if y.numel():
            largest = y.abs().amax(dim=tuple(range(y.dim() - 1))).float()
            if not largest.isfinite().all():
                raise ValueError(
                    f"batches: the output of {use.norm.name} holds NaN or Inf, want finite values"
                )
            before = use.channel_max
            use.channel_max = largest if before is None else torch.maximum(before, largest)
        if not _whole(y, y.shape[-1]):
            self._note(use, "is not laid out channel by channel")
        self._tracked[y] = _Tracked(use, True)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        self._given = {id(t) for t in given}
        try:
            result = func(*args, **kwargs)
        finally:
            self._given = set()
        if any(t in self._tracked or id(t) in self.weights or id(t) in self._owners for t in given):
            self._record(func, args, kwargs, given, result)
        return result

    def _record(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, given: list[Tensor], result: Any
    ) -> None:
        made = list(_tensors(result))
        name = getattr(func, "__name__", "")
        if not made and name in _METADATA:
            return
        if func is linear:
            given = self._record_linear(*args, **kwargs)
        elif name in _VIEWS and args and args[0] in self._tracked:
            source = args[0]
            given = given[1:] if self._follow(source, made, name in _COPIES) else given
        self._note_readers(given, func)

    def record_operator(self, func: Any, given: list[Tensor]) -> None:
        """Notes an operator whose arguments are not those of the function being called."""
        self._note_readers([t for t in given if id(t) not in self._given], func)

    def _note_readers(self, given: list[Tensor], func: Any) -> None:
        for t in given:
            if t in self._tracked:
                self._note(self._tracked[t].use, f"goes to {self._where(func)}")
            if id(t) in self.weights:
                weight = self.weights[id(t)]
                weight.other = weight.other or self._where(func)
            if id(t) in self._owners:
                use = self._owners[id(t)]
                if not self._calls or self._calls[-1][1] is not use.norm.module:
                    use.other = use.other or f"its weight is read by {self._where(func)}"

    def _record_linear(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> list[Tensor]:
        """Notes a product by a known weight; returns the arguments that are still to be noted."""
        source, target = self._tracked.get(input), self.weights.get(id(weight))
        rest = [] if bias is None else [bias]
        if source is None or target is None or not source.whole:
            return [input, weight, *rest]
        source.use.linears[id(weight)] = None
        target.norms[source.use.norm.name] = None
        return rest

    def _follow(self, source: Tensor, made: list[Tensor], copies: bool) -> bool:
        """Tracks what was made of a tracked tensor; False if its channels cannot be followed."""
        tracked = self._tracked[source]
        channels = tracked.use.norm.module.weight.shape[0]
        address = source.untyped_storage().data_ptr()
        for t in made:
            same_memory = t.untyped_storage().data_ptr() == address
            if not same_memory and not (copies and tracked.whole and t.shape[-1:] == (channels,)):
                return False
            if t is not source:
                whole = _whole(t, channels)
                self._tracked[t] = _Tracked(tracked.use, whole)
        return True

    def _note(self, use: NormUse, what: str) -> None:
        use.other = use.other or f"its output {what}"

    def _where(self, func: Any) -> str:
        text = resolve_name(func) or str(func)
        if not self._calls or not self._calls[-1][0]:
            return text
        name, module = self._calls[-1]
        return f"{text} in {name} ({type(module).__name__})"


class _Operators(TorchDispatchMode):
    """Shows every operator that runs to `consumers`."""

    def __init__(self, consumers: Consumers) -> None:
        super().__init__()
        self._consumers = consumers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._consumers.record_operator(func, list(_tensors((args, kwargs))))
        return func(*args, **kwargs)


def _whole(t: Tensor, channels: int) -> bool:
    """Whether, in memory that holds rows of `channels`, the last dimension of `t` is such rows."""
    rows = [stride for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True) if size > 1]
    return (
        t.shape[-1:] == (channels,)
        and (channels == 1 or t.stride(-1) == 1)
        and all(stride % channels == 0 for stride in (*rows, t.storage_offset()))
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results of a function."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
