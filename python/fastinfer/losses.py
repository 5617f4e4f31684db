"""What a student is trained to: a teacher's outputs (`KD`), its inner features (`FeatureMatch`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True)
class KD:
    """Knowledge distillation: the teacher's softened outputs, and the labels where there are some.

        alpha * T**2 * KL(softmax(teacher / T) || softmax(student / T))
        + (1 - alpha) * cross_entropy(student, labels)

    in float32, the mean over all positions; without labels the first term alone, without alpha.
    T**2 keeps the gradient's size as T changes. Positions with the label -100 count in neither
    term. Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015
    (https://arxiv.org/abs/1503.02531).

    temperature: T, above 0. alpha: 0 to 1.

    Outputs: logits `[..., classes]`, the same shape from both: a tensor, the first element of a
    tuple, or "logits" of a mapping. Labels: integers `[...]`, one a position. Those of a causal
    language model must be shifted beforehand: the label of a position is the token after it.

    A model that gives embeddings has no logits, but what it is used for has: its similarities to
    some thousands of other embeddings of the teacher's, over a temperature such as 0.05, from a
    module around it. What is near the same things ranks them alike, which closeness alone does not
    promise (Fang et al., "SEED: self-supervised distillation for visual representation", 2021,
    https://arxiv.org/abs/2101.04731).

    Raises TypeError or ValueError on a temperature or an alpha that is no number or out of range.
    """

    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        _check_number("KD: temperature", self.temperature)
        _check_number("KD: alpha", self.alpha)
        if self.temperature <= 0:
            raise ValueError(f"KD: temperature is {self.temperature}, want above 0")
        if self.alpha > 1:
            raise ValueError(f"KD: alpha is {self.alpha}, want 0 to 1")

    @property
    def label(self) -> str:
        return "kd"

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss, a float32 scalar; raises ValueError on shapes that do not match."""
        if student.shape != teacher.shape or not student.dim():
            raise ValueError(
                f"KD: the student's logits have shape {list(student.shape)}, the teacher's "
                f"{list(teacher.shape)}, want the same, [..., classes]"
            )
        classes = student.shape[-1]
        ours, theirs = student.float().reshape(-1, classes), teacher.float().reshape(-1, classes)
        if labels is None:
            return self._soft(ours, theirs)
        if labels.shape != student.shape[:-1] or labels.is_floating_point():
            raise ValueError(
                f"KD: the labels have shape {list(labels.shape)} and dtype {labels.dtype}, want "
                f"integers of shape {list(student.shape[:-1])}"
            )
        counted = labels.reshape(-1) != _IGNORED
        ours, theirs, hard = ours[counted], theirs[counted], labels.reshape(-1)[counted]
        if not len(hard):
            return ours.sum()  # 0, with a gradient of zeros
        soft = self._soft(ours, theirs)
        return self.alpha * soft + (1 - self.alpha) * F.cross_entropy(ours, hard.long())

    def _soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours = F.log_softmax(student / self.temperature, -1)
        theirs = F.log_softmax(teacher / self.temperature, -1)
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence


@dataclass(frozen=True)
class FeatureMatch:
    """Inner features of the student drawn to the teacher's: mean squared error, times `weight`.

    pairs: names of the student's modules (as in `named_modules`), each with that of the teacher's
    module that it follows. The loss is the mean over pairs; of a module that is called several
    times in a forward the last call counts.

    kind:
      "hidden": what the modules return, or the first tensor of a tuple, `[..., width]`. Where
        widths differ, a linear map without bias from the student's to the teacher's is learnt
        along, and thrown away afterwards.
      "attention": attention maps `[batch, queries, keys]` or `[batch, heads, queries, keys]`,
        what the modules return, or the second element of a tuple, as attention modules have it.
        Where the numbers of heads differ, the means over heads are compared.

    Sources: Romero et al., "FitNets: hints for thin deep nets", 2015
    (https://arxiv.org/abs/1412.6550); Jiao et al., "TinyBERT: distilling BERT for natural language
    understanding", 2020 (https://arxiv.org/abs/1909.10351), which takes attention before the
    softmax where this takes what the module returns.

    Raises TypeError or ValueError on arguments of other types or values.
    """

    pairs: Mapping[str, str]
    kind: Literal["hidden", "attention"] = "hidden"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, Mapping):
            raise TypeError(
                f"FeatureMatch: pairs is a {type(self.pairs).__name__}, want a dict "
                "{student module name: teacher module name}"
            )
        if not self.pairs:
            raise ValueError("FeatureMatch: pairs is empty, want at least one pair")
        if self.kind not in ("hidden", "attention"):
            raise ValueError(f"FeatureMatch: kind is {self.kind!r}, want 'hidden' or 'attention'")
        _check_number("FeatureMatch: weight", self.weight)

    @property
    def label(self) -> str:
        return self.kind


def logits_of(who: str, output: Any) -> Tensor:
    """The logits in what a model returned; raises TypeError if there are none."""
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"KD: the {who} returned a {type(output).__name__}, want logits: a tensor, the first "
            'element of a tuple, or "logits" of a mapping'
        )
    return found


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is a {type(value).__name__}, want a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}, want a finite number, at least 0")
