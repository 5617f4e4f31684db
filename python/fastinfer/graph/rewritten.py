"""What became of a graph: apart from the passes, which take a second of imports with them."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Rewritten:
    """What became of one graph: fusions by kind, operators that stayed, by name."""

    fused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    why_not: str | None = None
