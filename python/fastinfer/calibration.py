"""The ranges of the layers' inputs that `calibrate` found: data for `Int8Static`, and a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.text import Text

from fastinfer.render import Printable, group_like, titled_table, without_numbers


@dataclass(frozen=True)
class InputRange:
    """The range that int8 will hold of what arrives at one layer, under the layer's first name."""

    name: str
    method: str
    low: float
    high: float
    elements: int  # seen
    batches: int  # that reached the layer


@dataclass(frozen=True)
class Calibration(Printable):
    """The result of `calibrate`: a range for each layer that was reached, in the model's order."""

    layers: tuple[InputRange, ...]

    @cached_property
    def by_name(self) -> Mapping[str, InputRange]:
        return {layer.name: layer for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`: to quantise alike elsewhere, without the batches."""
        return cls(tuple(InputRange(**layer) for layer in data["layers"]))

    def __repr__(self) -> str:
        return f"<Calibration: the ranges of {len(self.layers)} layers' inputs>"

    def __rich__(self) -> RenderableType:
        table = titled_table("Inputs of the linear layers")
        table.add_column("layer", overflow="fold")
        table.add_column("method", no_wrap=True)
        for column in ("low", "high", "elements", "batches"):
            table.add_column(column, justify="right", no_wrap=True)
        lines = group_like(
            self.layers, lambda layer: (without_numbers(layer.name), layer.method, layer.batches)
        )
        for name, layers in lines:
            table.add_row(
                name,
                layers[0].method,
                f"{min(layer.low for layer in layers):.4g}",
                f"{max(layer.high for layer in layers):.4g}",
                f"{sum(layer.elements for layer in layers):,}",
                str(layers[0].batches),
            )
        if len(lines) == len(self.layers):
            return table
        return Group(table, Text("Like layers share a line: the least low, the greatest high."))
