"""Tables that lose nothing: whole values in a pipe, and a record on several lines where a terminal is too narrow."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

__all__ = ["print_table"]

WIDE = 100_000  # columns; more than any row has


def print_table(table: Table) -> None:
    """Print a table of plain texts: `[` means nothing else than itself, and no cell moves the cursor."""
    headings = [str(column.header) for column in table.columns]
    columns = [[_plain(str(cell)) for cell in column.cells] for column in table.columns]
    rows = list(zip(*columns, strict=True))
    text = _drawn(headings, rows)
    if sys.stdout.isatty() and max(map(len, text.splitlines()), default=0) > Console().width:
        text = _records(headings, rows)
    click.echo(text, nl=False)


def _plain(text: str) -> str:
    """What a node says reaches a terminal as text, whatever it is."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _drawn(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text, each row on one line."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
    console = Console(file=target, width=WIDE, markup=False, emoji=False, highlight=False, no_color=True)
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    target.flush()
    return target.buffer.getvalue().decode(encoding)


def _records(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Each row on lines of its own: its first cell, and below it the heading and value of each other."""
    width = max(map(len, headings), default=0)
    lines = []
    for row in rows:
        lines.append(f"{headings[0]} {row[0]}".strip())
        lines += [
            f"  {name:<{width}}  {cell}" for name, cell in zip(headings[1:], row[1:], strict=True) if cell
        ]
    return "".join(f"{line}\n" for line in lines)
