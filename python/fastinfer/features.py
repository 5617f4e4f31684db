"""The features of two models, side by side: taken from chosen modules, projected, compared."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer.losses import FeatureMatch


class Matcher(nn.Module):
    """One `FeatureMatch` at work on two models; its parameters are the projections."""

    def __init__(self, match: FeatureMatch, student: nn.Module, teacher: nn.Module) -> None:
        """Raises ValueError if a module of the pairs does not exist."""
        super().__init__()
        self._match = match
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self.projections = nn.ModuleList(nn.Identity() for _ in match.pairs)
        ours, theirs = match.pairs.keys(), match.pairs.values()
        modules = [
            *((self._ours, name, _module("student", student, name)) for name in ours),
            *((self._theirs, name, _module("teacher", teacher, name)) for name in set(theirs)),
        ]
        for seen, name, module in modules:
            self._hooks.append(module.register_forward_hook(self._look(seen, name)))

    def fit(self) -> None:
        """Makes the projections for the features just seen; raises ValueError if shapes differ."""
        for i, (ours, theirs) in enumerate(self._taken()):
            width, wanted = ours.shape[-1], theirs.shape[-1]
            if self._match.kind == "hidden" and width != wanted:
                projection = nn.Linear(width, wanted, bias=False, device=ours.device)
                self.projections[i] = projection

    def forward(self) -> Tensor:
        """The loss of the features that both models just had, float32; forgets them."""
        losses = [
            F.mse_loss(project(ours.float()), theirs.float())
            for project, (ours, theirs) in zip(self.projections, self._taken(), strict=True)
        ]
        return self._match.weight * sum(losses, losses[0].new_zeros(())) / len(losses)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, seen: dict[str, Tensor], name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = _feature(self._match.kind, name, output)

        return hook

    def _taken(self) -> list[tuple[Tensor, Tensor]]:
        taken = []
        for name, other in self._match.pairs.items():
            for who, seen, missing in (
                ("student", self._ours, name),
                ("teacher", self._theirs, other),
            ):
                if missing not in seen:
                    raise ValueError(f"FeatureMatch: the {who} did not call its module {missing}")
            ours, theirs = self._ours[name], self._theirs[other]
            if self._match.kind == "attention":
                ours, theirs = _alike_heads(ours, theirs)
            compared = slice(None, -1 if self._match.kind == "hidden" else None)
            if ours.shape[compared] != theirs.shape[compared]:
                raise ValueError(
                    f"FeatureMatch: {self._match.kind} of the student's {name} has shape "
                    f"{list(ours.shape)}, that of the teacher's {other} {list(theirs.shape)}; "
                    "want the same" + (", the width apart" if self._match.kind == "hidden" else "")
                )
            taken.append((ours, theirs))
        self._ours.clear()
        self._theirs.clear()
        return taken


def _module(who: str, model: nn.Module, name: str) -> nn.Module:
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise ValueError(f"FeatureMatch: pairs names {name!r}, which is no module of the {who}")
    return found


def _feature(kind: str, name: str, output: Any) -> Tensor:
    """What of a module's output is compared."""
    place = 0 if kind == "hidden" else 1
    found = output
    if isinstance(output, tuple | list):
        found = output[place] if len(output) > place else None
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 1:
        hint = "" if kind == "hidden" else " (transformers: attn_implementation='eager')"
        what = "a tensor of floats" if kind == "hidden" else "an attention map"
        raise ValueError(
            f"FeatureMatch: module {name} returned no {kind} feature, want {what}, alone or as "
            f"element {place} of a tuple{hint}"
        )
    return found


def _alike_heads(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Means over heads where one side has none, or another number of them."""
    if ours.shape[1:2] == theirs.shape[1:2] and ours.dim() == theirs.dim():
        return ours, theirs
    mean = [maps.mean(1) if maps.dim() == 4 else maps for maps in (ours, theirs)]
    return mean[0], mean[1]
