"""Tables that lose nothing: whole values in a pipe, and a record on several lines where a terminal is too narrow."""

from __future__ import annotations

import io
import sys

import click
from rich.console import Console
from rich.table import Table

__all__ = ["print_table"]

WIDE = 100_000  # columns; more than any row has


def print_table(table: Table) -> None:
    """Print a table of plain texts: `[` means nothing else than itself."""
    on_terminal = sys.stdout.isatty()
    natural = _drawn(table, WIDE)
    if on_terminal and max(map(len, natural.splitlines()), default=0) > Console().width:
        natural = _records(table)
    # What nodes say reaches a terminal as text, whatever it is.
    click.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in natural), nl=False)


def _drawn(table: Table, width: int) -> str:
    """The table as text, each row on one line if `width` allows."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
    console = Console(file=target, width=width, markup=False, emoji=False, highlight=False, no_color=True)
    console.print(table, soft_wrap=False)
    target.flush()
    return target.buffer.getvalue().decode(encoding)


def _records(table: Table) -> str:
    """Each row on lines of its own: its first cell, and below it the heading and value of each other."""
    headings = [str(column.header) for column in table.columns]
    width = max(map(len, headings), default=0)
    lines = []
    for row in zip(*(list(column.cells) for column in table.columns), strict=True):
        lines.append(f"{headings[0]} {row[0]}" if headings[0] else str(row[0]))
        lines += [
            f"  {name:<{width}}  {cell}" for name, cell in zip(headings[1:], row[1:], strict=True) if cell
        ]
    return "".join(f"{line}\n" for line in lines)
