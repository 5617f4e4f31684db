"""How far a quantised model is from the float one: its outputs, and layer by layer."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fastinfer.expose import exposed
from fastinfer.nn import SplitAttention
from fastinfer.observe import call, check_inputs, observed
from fastinfer.render import Printable

_CHUNK = 1 << 20  # values converted to float64 at a time
_LONGEST_TABLE = 15  # layers


class Error:
    """The error of `got` against `ref`, summed over any number of pairs of tensors in float64.

    Values that are NaN or Inf in either tensor are counted in `nonfinite` and left out of the
    other figures; a layer that turns values into NaN thus shows a count, not a NaN. Those that are
    finite in one alone are counted in `mismatched` as well.
    """

    def __init__(self) -> None:
        self.count = self.nonfinite = self.mismatched = 0
        self.max_abs = 0.0
        self._ref2 = self._got2 = self._error2 = self._dot = 0.0

    def add(self, ref: Tensor, got: Tensor) -> None:
        if ref.shape != got.shape:
            raise ValueError(
                f"quantized: an output has shape {tuple(got.shape)}, want {tuple(ref.shape)}, "
                "as that of model"
            )
        self.count += ref.numel()
        chunks = zip(ref.flatten().split(_CHUNK), got.flatten().split(_CHUNK), strict=True)
        for ref_chunk, got_chunk in chunks:
            a, b = ref_chunk.double(), got_chunk.double()
            finite = a.isfinite() & b.isfinite()
            if not finite.all():
                self.nonfinite += int((~finite).sum())
                self.mismatched += int((a.isfinite() ^ b.isfinite()).sum())
                a, b = a[finite], b[finite]
            if not a.numel():
                continue
            error = a - b
            self.max_abs = max(self.max_abs, float(error.abs().max()))
            self._error2 += float(error.dot(error))
            self._ref2 += float(a.dot(a))
            self._got2 += float(b.dot(b))
            self._dot += float(a.dot(b))

    @property
    def relative(self) -> float:
        """||ref - got|| / ||ref||: inf if a value is finite in one alone."""
        if self.mismatched:
            return math.inf
        if self._error2 == 0:
            return 0.0
        return math.sqrt(self._error2 / self._ref2) if self._ref2 else math.inf

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum ref^2 / sum (ref - got)^2): inf where equal, NaN without finite values."""
        if self.count == self.nonfinite:
            return math.nan
        if self._error2 == 0:
            return math.inf
        return 10 * math.log10(self._ref2 / self._error2) if self._ref2 else -math.inf

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two, flattened; NaN where one is all zero."""
        norms = math.sqrt(self._ref2) * math.sqrt(self._got2)
        if self._error2 == 0 and norms:
            return 1.0
        return self._dot / norms if norms else math.nan

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data. None stands for what is not a number: an SQNR of equal tensors (max_abs_error
        is then 0) or of no finite values at all."""
        return {
            "sqnr_db": _finite(self.sqnr_db),
            "cosine": _finite(self.cosine),
            "max_abs_error": self.max_abs,
            "nonfinite": self.nonfinite,
        }


@dataclass(frozen=True)
class LayerError:
    """A replaced layer's error.

    `own`: the quantised layer and the float one on the same input, that of the float model: the
    error which this layer makes. `accumulated`: the outputs of the two layers in their own models:
    that and whatever the layers before it did.
    """

    name: str
    own: Error
    accumulated: Error


@dataclass(frozen=True)
class Comparison(Printable):
    """The result of `compare`: errors by output (in the model's order) and by layer (in call
    order). Prints the layers worst first."""

    outputs: dict[str, Error]
    layers: tuple[LayerError, ...]

    @property
    def worst_layers(self) -> tuple[LayerError, ...]:
        """The layers by their own SQNR, lowest first; any with NaN or Inf before the rest."""
        return tuple(
            sorted(self.layers, key=lambda layer: (-layer.own.nonfinite, layer.own.sqnr_db))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return {
            "outputs": {name: error.to_dict() for name, error in self.outputs.items()},
            "layers": [
                {
                    "name": layer.name,
                    "own": layer.own.to_dict(),
                    "accumulated": layer.accumulated.to_dict(),
                }
                for layer in self.layers
            ],
        }

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws SQNR by layer to a picture file (PNG, SVG, PDF: by the name's ending).

        Raises ImportError without matplotlib (`pip install "fastinfer[plot]"`), ValueError if no
        layer was replaced.
        """
        from fastinfer.plot import plot_comparison  # matplotlib only when a picture is wanted

        plot_comparison(self, path)

    def __repr__(self) -> str:
        figures = ", ".join(f"{n} {_db(e.sqnr_db)}" for n, e in self.outputs.items())
        return f"<Comparison: {figures}; {len(self.layers)} replaced layers>"

    def __rich__(self) -> RenderableType:
        outputs = Table(title="Model outputs, quantised against float", title_justify="left")
        outputs.add_column("output")
        for column in ("SQNR", "cosine", "max abs error", "NaN or Inf"):
            outputs.add_column(column, justify="right")
        for name, error in self.outputs.items():
            outputs.add_row(
                name,
                _db(error.sqnr_db),
                f"{error.cosine:.6f}",
                f"{error.max_abs:.3g}",
                str(error.nonfinite or ""),
            )
        layers = Table(title="Replaced layers, worst first", title_justify="left")
        layers.add_column("layer", overflow="fold")
        for column in ("own SQNR", "own max error", "accumulated SQNR", "NaN or Inf"):
            layers.add_column(column, justify="right")
        for layer in self.worst_layers[:_LONGEST_TABLE]:
            layers.add_row(
                layer.name,
                _db(layer.own.sqnr_db),
                f"{layer.own.max_abs:.3g}",
                _db(layer.accumulated.sqnr_db),
                str(layer.own.nonfinite or ""),
            )
        note = "own: on the float model's input; accumulated: with the error of the layers before"
        hidden = len(self.layers) - _LONGEST_TABLE
        if hidden > 0:
            note += f"\n{hidden} better layers not shown; to_dict() has all"
        return Group(outputs, layers, Text(note))


def compare(model: nn.Module, quantized: nn.Module, inputs: Any) -> Comparison:
    """Runs both models on `inputs` and measures how far `quantized` is from `model`.

    model: the float model; copy it (copy.deepcopy) before `quantize_`, which works in place.
    quantized: the quantised one. inputs: a tensor, a tuple of positional arguments or a dict of
    keyword arguments, as `example_inputs` of `quantize_`.

    Outputs may be nested tuples, lists, dicts and dataclasses; every floating-point tensor in them
    is compared. Layers are those whose type differs under the same name. Each model runs once, in
    eval mode and without gradients; a layer's own error is taken as the float model runs, and the
    float outputs of the replaced layers are held until the quantised model has passed them: that
    is the memory needed on top of both models.

    Raises TypeError on arguments of other types, ValueError if both models are the same object, if
    no floating-point tensor comes out, or if the outputs' structure or shapes differ.
    """
    for name, value in (("model", model), ("quantized", quantized)):
        if not isinstance(value, nn.Module):
            raise TypeError(f"{name}: got {type(value).__name__}, want an nn.Module")
    if model is quantized:
        raise ValueError(
            "quantized: got the same object as model; quantize_ works in place, so keep a "
            "copy.deepcopy(model) from before it"
        )
    check_inputs("inputs", inputs)

    with exposed(model, inputs), exposed(quantized, inputs):
        want, got, layers = _run_both(model, quantized, inputs)
    if not want:
        raise ValueError("model: its output holds no floating-point tensor to compare")
    if want.keys() != got.keys():
        raise ValueError(f"quantized: its outputs are {list(got)}, want {list(want)}, as of model")
    outputs = {name: Error() for name in want}
    for name, error in outputs.items():
        error.add(want[name], got[name])
    return Comparison(outputs, tuple(layers.values()))


def _run_both(
    model: nn.Module, quantized: nn.Module, inputs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, LayerError]]:
    """What both models return, and the errors of the layers that differ."""
    originals = dict(model.named_modules())
    pairs = {
        name: (originals[name], layer)
        for name, layer in quantized.named_modules()
        if name and name in originals and _differ(originals[name], layer)
    }
    layers: dict[str, LayerError] = {}
    held: dict[str, list[Tensor]] = {name: [] for name in pairs}

    def on_original(name: str, args: Any, kwargs: Any, output: Tensor) -> None:
        layer = layers.setdefault(name, LayerError(name, Error(), Error()))
        layer.own.add(output, pairs[name][1].forward(*args, **kwargs))
        held[name].append(output.clone())  # what follows may work on it in place

    def on_quantized(name: str, args: Any, kwargs: Any, output: Tensor) -> None:
        if held[name]:
            layers[name].accumulated.add(held[name].pop(0), output)

    with observed(model, quantized):
        want = _run(model, inputs, {name: pair[0] for name, pair in pairs.items()}, on_original)
        got = _run(quantized, inputs, {name: pair[1] for name, pair in pairs.items()}, on_quantized)
    return want, got, layers


def _differ(original: nn.Module, layer: nn.Module) -> bool:
    """Attention is compared by its linear layers."""
    attention = nn.MultiheadAttention | SplitAttention
    return type(original) is not type(layer) and not isinstance(original, attention)


def _run(
    model: nn.Module,
    inputs: Any,
    layers: Mapping[str, nn.Module],
    hook: Callable[[str, Any, Any, Tensor], None],
) -> dict[str, Tensor]:
    """The model's float outputs; `hook(name, args, kwargs, output)` sees the calls of `layers`."""

    def bind(name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
        return lambda module, args, kwargs, output: hook(name, args, kwargs, output)

    handles = [
        layer.register_forward_hook(bind(name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        return dict(float_tensors(call(model, inputs), ""))
    finally:
        for handle in handles:
            handle.remove()


def float_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors within a model's output, named by their place: "logits", "0.1"."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name or "output", value
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        items = list(enumerate(value))
    elif is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in fields(value)]
    for key, item in items:
        yield from float_tensors(item, f"{name}.{key}" if name else str(key))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _db(value: float) -> str:
    if value == math.inf:
        return "exact"
    return f"{value:.1f} dB"
