"""`smooth_`: moves the outlier channels of activations into weights, where int8 bears them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.candidates import Owners, owners
from fastinfer.consumers import Consumers, NormUse, WeightUse
from fastinfer.norms import find_norms
from fastinfer.observe import check_batches, run_batches
from fastinfer.smoothing import NormRow, Smoothing

_FLOOR = 1e-5  # of a channel's largest value, relative to that of all channels


def smooth_(
    model: nn.Module, batches: Iterable[Any], alpha: float = 0.5, *, progress: bool | None = None
) -> Smoothing:
    """SmoothQuant: evens out the channels of activations that norms feed to linear layers.

    For the outputs X of a norm and the weights W of the linear layers that read them, per channel j

        s[j] = max |X[j]| ** alpha / max |W[j]| ** (1 - alpha),    X / s,    W * s

    the norm's weight and bias take 1 / s, the linear layers' weights take s, in place: the model
    computes the same up to rounding, and int8 around one scale for a whole tensor or row loses
    less to channels that are larger than the others. Use it before `calibrate` and `quantize_`.
    Source: Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large
    language models", 2023 (https://arxiv.org/abs/2211.10438). Channels below 1e-5 of the largest
    count as that, in X and in W, so that every s is finite and positive.

    model: a float model; it runs once a batch, in eval mode and without gradients. batches: an
    iterable of what it is called with: a tensor, a tuple of positional arguments or a dict of
    keyword arguments each. They show the sizes of the channels, and where the norms' outputs go, so
    every path of a model that has several must be taken. alpha: 0 to 1, how much of the difficulty
    moves from the activations into the weights. progress: True or False shows or hides a bar; None
    shows it on a terminal.

    Norms: nn.LayerNorm, nn.RMSNorm and modules that behave alike, a weight of 1 + w included. One
    is left, with its reason in the result, if anything but whole nn.Linear weights reads its output
    (a residual sum behind it, a Conv1D, nn.MultiheadAttention, the caller), if such a weight is
    tied or is used with other inputs, or if it was not reached. (`expose_linears_` makes the two
    linear layers.)

    An exception leaves the model as it was. Raises TypeError on arguments of other types;
    ValueError on alpha out of its range, no batches, a torch.jit.ScriptModule in the model, whose
    inside cannot be seen, or if a norm's output holds NaN or Inf. What the model raises on a batch
    comes through.
    """
    _check(model, batches, alpha)
    norms = find_norms(model)
    held = owners(model)
    for norm in norms:
        if norm.reason is None:
            norm.reason = _why_shared("its", norm.parameters, held)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    consumers = Consumers([norm for norm in norms if norm.reason is None], linears)
    with consumers.watching(model):
        for _ in run_batches(model, batches, progress):
            consumers.end_call()

    folds: list[_Fold] = []
    rows: list[NormRow] = []
    for norm in norms:
        use = consumers.norms.get(id(norm.module))
        fold = None if use is None else _fold(use, consumers.weights, held, alpha)
        rows.append(NormRow(norm.name, reason=norm.reason) if fold is None else fold.row)
        if fold is not None:
            folds.append(fold)
    for fold in folds:
        fold.apply()
    return Smoothing(tuple(rows))


@dataclass(frozen=True)
class _Fold:
    """A norm, the linear layers that read it, and the scale that goes from one to the others."""

    use: NormUse
    weights: list[WeightUse]
    scale: Tensor  # float32 [channels]

    @property
    def row(self) -> NormRow:
        assert self.use.channel_max is not None
        return NormRow(
            name=self.use.norm.name,
            linears=tuple(weight.name for weight in self.weights),
            scale_low=float(self.scale.min()),
            scale_high=float(self.scale.max()),
            peak_before=_peak(self.use.channel_max),
            peak_after=_peak(self.use.channel_max / self.scale),
        )

    def fits(self) -> bool:
        """Whether all that `apply` writes is finite in its dtype."""
        divided = self.use.norm.divided(self.scale)
        largest = [(_channel_max([w]) * self.scale).to(w.weight.dtype) for w in self.weights]
        return all(bool(t.isfinite().all()) for t in (*divided, *largest))

    @torch.no_grad()
    def apply(self) -> None:
        self.use.norm.assign(self.use.norm.divided(self.scale))
        for use in self.weights:
            use.weight.copy_(use.weight.float() * self.scale.to(use.weight.device))


def _check(model: object, batches: object, alpha: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    check_batches(batches)
    if not isinstance(alpha, int | float):
        raise TypeError(f"alpha: got {type(alpha).__name__}, want a number")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, want 0 to 1")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"model: {name or 'it'} is a torch.jit.ScriptModule, inside which nothing can be "
                "seen; want the model before scripting"
            )


def _fold(use: NormUse, weights: dict[int, WeightUse], held: Owners, alpha: float) -> _Fold | None:
    """What to fold of a norm, or None, with `use.norm.reason` set."""
    readers = [weights[key] for key in use.linears]
    use.norm.reason = _why_left(use, readers, held)
    if use.norm.reason is not None:
        return None
    assert use.channel_max is not None
    fold = _Fold(use, readers, _scale(use.channel_max, _channel_max(readers), alpha))
    if not fold.fits():
        use.norm.reason = f"the scaled numbers do not fit {readers[0].weight.dtype}"
        return None
    return fold


def _why_left(use: NormUse, readers: list[WeightUse], held: Owners) -> str | None:
    if use.other is not None:
        return use.other
    if use.channel_max is None:
        return "not reached by batches"
    if not readers:
        return "no linear layer reads its output"
    for reader in readers:
        shared = _why_shared(f"{reader.name} reads it, whose", [reader.weight], held)
        if shared is not None:
            return shared
        if reader.other is not None:
            return f"{reader.name} reads it, whose weight is also read by {reader.other}"
        if len(reader.norms) > 1:
            return f"{reader.name} reads it, and also {', '.join(reader.norms)}"
    if not (use.channel_max.any() and _channel_max(readers).any()):
        return "its output or the weights that read it are all zero"
    if not _channel_max(readers).isfinite().all():
        return "the weights that read it hold NaN or Inf"
    return None


def _why_shared(whose: str, parameters: Iterable[Tensor], held: Owners) -> str | None:
    for parameter in parameters:
        names = [name for name, _ in held[parameter.data_ptr()]]
        if parameter.numel() and len(names) > 1:
            return f"{whose} parameter is shared: {', '.join(names)}"
    return None


def _scale(x_max: Tensor, w_max: Tensor, alpha: float) -> Tensor:
    x = x_max.clamp(min=_FLOOR * float(x_max.max()))
    w = w_max.to(x.device).clamp(min=_FLOOR * float(w_max.max()))
    return x**alpha / w ** (1 - alpha)


def _channel_max(uses: list[WeightUse]) -> Tensor:
    """max |W[:, j]| over all rows of all `uses`, float32."""
    largest = [use.weight.detach().abs().amax(0).float() for use in uses]
    return torch.stack(largest).amax(0)


def _peak(channel_max: Tensor) -> float:
    """The largest channel over the median one."""
    return float(channel_max.max() / channel_max.median())
