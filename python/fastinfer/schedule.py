"""How much of a model to prune at each step of fine-tuning."""

from dataclasses import dataclass

from fastinfer.sparsity import check_fraction


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity that rises fast at first, where much is redundant, and ever more slowly:

        sparsity(step) = end + (start - end) * (1 - step / steps) ** 3

    start, end: shares of weights that are zero, 0 to below 1. steps: when `end` is reached, at
    least 1; it stays from there on. Prune again every so often while training:

        schedule = CubicSchedule(0, 0.9, 1000)
        for step in range(2000):
            if step % 100 == 0 and step <= schedule.steps:
                fastinfer.prune_(model, Unstructured(1 - schedule.sparsity_at(step)))
            ...  # an ordinary step of the optimizer

    Source: Zhu and Gupta, "To prune, or not to prune", 2017 (https://arxiv.org/abs/1710.01878).

    Raises TypeError or ValueError on values out of their range.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            check_fraction(f"CubicSchedule: {name}", value)
            if not 0 <= value < 1:
                raise ValueError(f"CubicSchedule: {name} is {value}, want 0 to below 1")
        if type(self.steps) is not int:
            raise TypeError(f"CubicSchedule: steps is a {type(self.steps).__name__}, want an int")
        if self.steps < 1:
            raise ValueError(f"CubicSchedule: steps is {self.steps}, want at least 1")

    def sparsity_at(self, step: int) -> float:
        """The sparsity at a step, 0 the first. Raises ValueError on a negative one."""
        if step < 0:
            raise ValueError(f"step: got {step}, want at least 0")
        left = 1 - min(step / self.steps, 1)
        return self.end + (self.start - self.end) * left**3
