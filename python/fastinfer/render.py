"""Results that print themselves: a rich table on a terminal, plain text in a string."""

import io
import shutil

from rich.console import Console, RenderableType


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


def format_bytes(count: float) -> str:
    """1234567 -> "1.23 MB": decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
