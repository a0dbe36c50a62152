"""Tables of words and figures, for the terminal and for the pages of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

__all__ = ["Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are read. The first `words` columns are words, the others are figures.

    `styles` has one of Rich's styles for each row, or none at all; pages know "bold" alone.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    styles: Sequence[str] = ()

    def style(self, row: int) -> str:
        """Of the row with this index."""
        return self.styles[row] if self.styles else ""

    def show(self, console: Console, title: str | None = None) -> None:
        """Print it, as wide as its content wants to be."""
        table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
        for number, head in enumerate(self.heads):
            words = number < self.words
            table.add_column(head, justify="left" if words else "right", no_wrap=not number)
        for number, row in enumerate(self.rows):
            table.add_row(*row, style=self.style(number))
        console.print(table)
