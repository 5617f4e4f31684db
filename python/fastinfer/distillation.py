"""What `distill` did: the losses of every step, as data and as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from fastinfer.render import Printable, titled_table


@dataclass(frozen=True)
class Distillation(Printable):
    """The result of `distill`, a number a step each, those before a resumption included.

    `losses`: the loss, all terms together, before the step. `terms`: those of each loss by name
    ("kd", "hidden", "attention"; a second of a kind is "hidden 2"), weights included. `epochs`: the
    pass through the batches that the step was in, from 0.
    """

    losses: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]]
    epochs: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return {
            "losses": list(self.losses),
            "terms": {name: list(values) for name, values in self.terms.items()},
            "epochs": list(self.epochs),
        }

    def __repr__(self) -> str:
        if not self.losses:
            return "<Distillation: no steps>"
        first, last = self.losses[0], self.losses[-1]
        return f"<Distillation: {len(self.losses)} steps, loss {first:.4g} -> {last:.4g}>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Distillation, mean losses")
        for column in ("epoch", "steps", "loss", *(self.terms if len(self.terms) > 1 else ())):
            table.add_column(column, justify="right", no_wrap=True)
        for epoch in sorted(set(self.epochs)):
            steps = [i for i, of in enumerate(self.epochs) if of == epoch]
            values = [self.losses, *(self.terms.values() if len(self.terms) > 1 else ())]
            means = (sum(column[i] for i in steps) / len(steps) for column in values)
            table.add_row(str(epoch), str(len(steps)), *(f"{mean:.4g}" for mean in means))
        return table
