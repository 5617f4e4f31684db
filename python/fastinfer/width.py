"""`prune_width_`: fewer channels wherever torch-pruning can follow them, in true shapes."""

import copy
import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastinfer.candidates import FilterFn, takes
from fastinfer.compare import float_tensors
from fastinfer.criteria import AnyScore, Magnitude, Wanda
from fastinfer.heads import find_attention
from fastinfer.narrowing import NarrowedRow, WidthPruning
from fastinfer.norms import find_norms
from fastinfer.observe import call, observed
from fastinfer.prune import check_finite
from fastinfer.sparsity import largest
from fastinfer.units import (
    Units,
    check_keep,
    check_multiple,
    check_shared,
    close_outputs,
    float_outputs,
)

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_MAGNITUDE = Magnitude()
_Item = tuple[Any, bool, list[int], list[int]]  # module or parameter, of outputs?, channels, units


def prune_width_(
    model: nn.Module,
    example_inputs: Any,
    keep: float = 0.75,
    criterion: AnyScore = _MAGNITUDE,
    *,
    batches: Iterable[Any] | None = None,
    multiple: int = 16,
    filter_fn: FilterFn | None = None,
    progress: bool | None = None,
) -> WidthPruning:
    """Takes channels out of convolutions and linear layers, and what depends on them, in place.

    What depends on a channel (batch and layer norms, the layers of a residual stream, embeddings,
    the layers that read it) is found by the dependency graph of torch-pruning
    (`fastinfer[prune]`), which traces the model on example_inputs. The channels that several layers
    must have in common are one width. A channel's score is the sum of those of the weights of the
    convolutions and linear layers that give it or read it; the largest stay. Each width is tried on
    a copy of the model first: the outputs must keep their shapes and be finite, and, unless a norm
    over the channels changes with their number, be the same within sqrt(eps) of their dtype as with
    zeros where the channels are read. A width that fails stays, with the reason; so does what
    gives the model's outputs their shape, what feeds heads of attention (`prune_heads_`), and what
    transformers' Conv1D gives or reads, which the graph does not follow.

    model: a float model; it runs in eval mode. example_inputs: what it is called with: a tensor, a
    tuple of positional arguments or a dict of keyword arguments. keep: the share of the channels
    that stay, above 0 to below 1, rounded to a `multiple` of channels, one multiple at the least.
    criterion: Magnitude(), Taylor(loss_fn) or Random(seed). batches: what it runs, as for `prune_`.
    filter_fn(module, name) -> bool: False for a convolution or linear layer leaves the widths that
    it gives or reads. progress: True or False shows or hides a bar; None shows it on a terminal.

    The narrowed parameters are new objects: make the optimizer afterwards. Tied ones stay tied. A
    config of the model is not changed.

    An exception leaves the model as it was. Raises ImportError without torch-pruning; TypeError on
    arguments of other types; ValueError on values out of their range, if the criterion needs
    batches and there are none, if the model returns no float tensor, or, naming the layer, if a
    score is NaN or Inf. What the model raises on its inputs comes through.

    Source of the graph: Fang et al., "DepGraph: towards any structural pruning", 2023
    (https://arxiv.org/abs/2301.12900).
    """
    check_keep("keep", keep)
    check_multiple(multiple)
    if isinstance(criterion, Wanda):
        raise TypeError("criterion: got Wanda, want Magnitude(), Taylor(loss_fn) or Random(seed)")
    check_shared(model, example_inputs, criterion, batches, filter_fn)
    pruning = _torch_pruning()
    with torch.inference_mode(False), torch.no_grad():  # or nothing could be trained later
        trial = copy.deepcopy(model).requires_grad_(False)
        attention = find_attention(trial, example_inputs)
        reasons = _reasons(trial, attention, filter_fn)
        trial.requires_grad_(True)  # the graph is traced by its gradients
        names = {module: name for name, module in trial.named_modules()}
        graph = _Graph(pruning, trial, example_inputs, attention)
        roots = [(names[module], count) for module, count in graph.roots()]
        layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, _LAYERS)}
        given = () if batches is None else batches
        scores = criterion.scores(model, layers, given, progress) if layers else {}
        check_finite("scores", scores)

        rows = []
        for root, width in roots:
            graph = _Graph(pruning, trial, example_inputs, attention)
            items = graph.items(root, range(width))
            before = [names[m] for m, out, _, _ in items if out and isinstance(m, _LAYERS)]
            count = max(1, round(keep * width / multiple)) * multiple
            found = [reasons[m, out] for m, out, *_ in items if (m, out) in reasons]
            reason = found[0] if found else None
            if reason is None and count >= width:
                reason = f"all {width} would stay"
            if reason is None and not any(names.get(m) in scores for m, *_ in items):
                reason = "not reached by batches"
            if reason is None:
                kept = largest(_scores(items, names, scores, width), count)
                reason = _try(graph, root, (~kept).nonzero().flatten().tolist(), example_inputs)
            rows.append(NarrowedRow(root, tuple(before), width, width if reason else count, reason))
        _transfer(trial, model)
    return WidthPruning(tuple(rows), criterion.label)


def _reasons(
    model: nn.Module, attention: list[Units], filter_fn: FilterFn | None
) -> dict[tuple[nn.Module, bool], str]:
    """Why the outputs (True) or inputs (False) of a module must stay."""
    reasons: dict[tuple[nn.Module, bool], str] = {}
    for name, module in model.named_modules():
        why = None
        if isinstance(module, nn.MultiheadAttention):
            why = f"it is that of the heads of {name}"
        elif isinstance(module, _LAYERS) and parametrize.is_parametrized(module):
            why = f"{name} is parametrised"
        elif isinstance(module, _LAYERS) and filter_fn is not None:
            why = None if takes(filter_fn, module, name) else f"filter_fn left {name} out"
        if why is not None:
            reasons |= {(module, True): why, (module, False): why}
    for block in attention:
        for name in block.before:
            reasons[model.get_submodule(name), True] = f"it feeds the heads of {block.name}"
    return reasons


class _Graph:
    """torch-pruning's dependency graph of a model as it is now.

    Attention is cut out of it: what q, k and v give counts as an output, what comes after begins
    anew. The heads must stay anyhow, and where they share keys and values the search would not end.
    """

    def __init__(self, pruning: Any, model: nn.Module, inputs: Any, attention: list[Units]) -> None:
        def run(model: nn.Module, inputs: Any) -> list[Tensor]:
            ends: list[Tensor] = []
            with ExitStack() as stack:
                for block in attention:
                    after = model.get_submodule(block.after)
                    begin = after.register_forward_pre_hook(
                        lambda _, args: tuple(x.detach() for x in args)
                    )
                    stack.callback(begin.remove)
                    for name in block.before:
                        end = model.get_submodule(name).register_forward_hook(
                            lambda _, args, y: ends.append(y)
                        )
                        stack.callback(end.remove)
                return [y for _, y in float_tensors(call(model, inputs), "output")] + ends

        self.model = model
        with observed(model), torch.enable_grad(), _quiet():
            self._graph = pruning.DependencyGraph().build_dependency(
                model, inputs, forward_fn=run, verbose=False
            )

    def roots(self) -> list[tuple[nn.Module, int]]:
        """A layer for each width, the first of those that give it, and how many channels it has."""
        with _quiet():
            groups = list(self._graph.get_all_groups(root_module_types=_LAYERS))
        return [(group[0].dep.target.module, len(group[0].idxs)) for group in groups]

    def group(self, root: str, channels: Iterable[int]) -> Any:
        layer = self.model.get_submodule(root)
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        with _quiet():
            return self._graph.get_pruning_group(layer, prune, list(channels))

    def items(self, root: str, channels: Iterable[int]) -> list[_Item]:
        """What goes with channels of `root`."""
        is_output = self._graph.is_out_channel_pruning_fn
        return [
            (item.dep.target.module, is_output(item.dep.handler), list(item.idxs), item.root_idxs)
            for item in self.group(root, channels)
        ]


def _scores(
    items: list[_Item], names: dict[nn.Module, str], scores: dict[str, Tensor], width: int
) -> Tensor:
    """[width]: of each channel, the sum of the scores of the weights that give it or read it."""
    total = torch.zeros(width, dtype=torch.float64)
    for module, is_output, channels, units in items:
        score = scores.get(names.get(module, ""))
        if score is None or (not is_output and getattr(module, "groups", 1) > 1):
            continue
        each = score.transpose(0, _dim(module, is_output)).flatten(1).sum(1).double().cpu()
        total.index_add_(0, torch.tensor(units), each[channels])
    return total


def _dim(module: nn.Module, is_output: bool) -> int:
    """The dimension of the weight that counts outputs, or inputs."""
    return 0 if is_output != getattr(module, "transposed", False) else 1


def _try(graph: _Graph, root: str, channels: list[int], inputs: Any) -> str | None:
    """Takes `channels` out of a model; if that changes too much, says so and undoes it."""
    model = graph.model
    items = graph.items(root, channels)
    readers = [(m, c) for m, is_output, c, _ in items if isinstance(m, _LAYERS) and not is_output]
    weights = [m.weight.clone() for m, _ in readers]
    for module, read in readers:
        module.weight.transpose(0, _dim(module, False))[read] = 0
    want = float_outputs(model, inputs)
    for (module, _), weight in zip(readers, weights, strict=True):
        module.weight.copy_(weight)

    norms = {id(norm.module) for norm in find_norms(model) if norm.reason is None}
    norms |= {id(m.weight) for m in model.modules() if id(m) in norms}
    norms |= {id(m) for m in model.modules() if isinstance(m, nn.GroupNorm)}
    has_norm = any(id(module) in norms for module, *_ in items)
    ties = _ties(model)
    saved = [
        (m, m.__dict__ | {"_parameters": dict(m._parameters), "_buffers": dict(m._buffers)})
        for m in model.modules()
    ]
    reason: str | None = None
    try:
        graph.group(root, channels).prune()
        if not _tie_again(model, ties):
            reason = "it would part tied weights"
        else:
            reason = _compare(want, float_outputs(model, inputs), exact=not has_norm)
    except Exception as error:  # whatever a model raises on a width that it does not expect
        reason = f"the model counts on it ({type(error).__name__})"
    if reason is not None:
        for owner, attributes in saved:
            owner.__dict__.update(attributes)
    return reason


def _compare(want: list[Tensor], got: list[Tensor], exact: bool) -> str | None:
    if [y.shape for y in want] != [y.shape for y in got]:
        return "the model's outputs have it"
    if not all(y.isfinite().all() for y in got):
        return "without it the outputs hold NaN or Inf"
    if exact and not all(map(close_outputs, want, got)):
        return "it reaches more than the layers that read it"
    return None


def _ties(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of each parameter that has several."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    return [place for place in places.values() if len(place) > 1]


def _tie_again(model: nn.Module, ties: list[list[tuple[nn.Module, str]]]) -> bool:
    for places in ties:
        first, *others = (module._parameters[name] for module, name in places)
        assert first is not None
        if not all(other is not None and torch.equal(first, other) for other in others):
            return False
        for module, name in places:
            module._parameters[name] = first
    return True


def _transfer(trial: nn.Module, model: nn.Module) -> None:
    """Gives `model` the shapes that its copy `trial` has now."""
    made: dict[int, nn.Parameter] = {}
    for source, target in zip(trial.modules(), model.modules(), strict=True):
        for name, value in source._parameters.items():
            old = target._parameters[name]
            if value is not None and old is not None and value.shape != old.shape:
                new = made.setdefault(
                    id(value), nn.Parameter(value.detach().contiguous(), old.requires_grad)
                )
                target._parameters[name] = new
        for name, buffer in source._buffers.items():
            old_buffer = target._buffers[name]
            if buffer is not None and old_buffer is not None and buffer.shape != old_buffer.shape:
                target._buffers[name] = buffer
        for name, value in vars(source).items():
            if type(value) in (int, tuple) and vars(target).get(name) != value:
                setattr(target, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each parameter that it has to guess about
        yield


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ImportError('widths need torch-pruning: pip install "fastinfer[prune]"') from error
