"""Results that print themselves: a rich table on a terminal, plain text in a string."""

import io
import re
import shutil
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

_LONGEST_TABLE = 20  # rows; beyond it, the like layers of repeated blocks share a row


class Printable:
    """Base of every result: the subclass gives `__rich__`, this gives `str`, `print` and `show`."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        """The table as plain text, as wide as the terminal (120 columns where there is none)."""
        text = io.StringIO()
        width = shutil.get_terminal_size((120, 24)).columns
        Console(file=text, width=width, color_system=None).print(self)
        return text.getvalue().rstrip()

    def show(self) -> None:
        """Prints the table, in colour where the terminal has any."""
        Console().print(self)


def titled_table(title: str) -> Table:
    """A table in the style of every result, without columns yet."""
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def format_bytes(count: float) -> str:
    """1234567 -> "1.23 MB": decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)


def without_numbers(name: str) -> str:
    """ "layers.11.fc1" -> "layers.*.fc1"."""
    return re.sub(r"\d+", "*", name)


def group_like(
    rows: Sequence[_Row], key: Callable[[_Row], Hashable]
) -> list[tuple[str, tuple[_Row, ...]]]:
    """The lines of a table: one a row, or, in a long table, one for all rows of a like key."""
    if len(rows) <= _LONGEST_TABLE:
        return [(row.name, (row,)) for row in rows]
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [(_line_name(group), tuple(group)) for group in groups.values()]


def _line_name(group: Sequence[_Named]) -> str:
    first = group[0].name
    return first if len(group) == 1 else f"{without_numbers(first)} ({len(group)})"
