"""`coffre bench micro`: what got slower than the committed baseline, or a new one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import click
from coffre.bench.invocation import directory_option, output_console
from coffre.bench.micro import Comparison, measured, operations
from coffre.bench.result import Row, machine, print_table, read_results, write_results
from coffre.cluster.admin import one_line_errors
from rich.console import Console

__all__ = ["micro"]

SECOND_LOOKS = 2  # what seems slower is measured again: noise passes, a change stays


@click.command()
@click.option("--save", is_flag=True, help="Make what is measured the baseline, instead of comparing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when an operation got slower.")
@click.option(
    "--large", is_flag=True, help="The index with ten million keys, too: minutes, and gigabytes of disk."
)
@click.option("--only", metavar="WORDS", help='With one of these in their names: "crc32c or batch".')
@directory_option("Where the index lives meanwhile")
@click.option(
    "--baseline",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("bench/results/micro.json"),
    show_default=True,
)
@one_line_errors
def micro(save: bool, strict: bool, large: bool, only: str | None, directory: Path, path: Path) -> None:
    """Time operations beside references; say which got slower than the baseline by more than their tolerance."""
    if save and only:
        raise click.UsageError("a baseline is of all benchmarks: --save goes without --only")
    known, before = (None, ()) if save else read_results(path)
    console, place = output_console(), directory.resolve()
    words = [word.strip() for word in only.split(" or ")] if only else [""]
    found = Comparison(before)
    _measure(found, lambda name: any(word in name for word in words), place, large, console)
    if save:
        write_results(path, list(found.rows.values()), seed=1, directory=Path.cwd())
        console.print(f"{len(found.rows)} ratios written to {path.name}")
        return
    here = machine(Path.cwd())
    if known is not None and known.cpu != here.cpu:
        console.print(
            f"[yellow]the baseline is of another processor: {known.cpu}; this is {here.cpu}", soft_wrap=True
        )
    for _ in range(SECOND_LOOKS):
        if suspects := found.slower():
            _measure(found, suspects.__contains__, place, large, console)
    _show(found, before if not only else (), console)
    sys.exit(1 if strict and found.slower() else 0)


def _measure(
    found: Comparison, wanted: Callable[[str], bool], place: Path, large: bool, console: Console
) -> None:
    """One operation after the other."""
    with console.status("") as status, closing(operations(wanted, place, large)) as chosen:
        for each in chosen:
            status.update(each.id)
            found.add(measured(each), each.tolerance)


def _show(found: Comparison, expected: Sequence[Row], console: Console) -> None:
    """One line per operation, then what was not run, and what got slower."""
    print_table(found.rows.values(), found.targets, console)
    if missing := [row.id for row in expected if row.id not in found.rows]:
        console.print(f"not run: {', '.join(missing)}", markup=False)
    slower = found.slower()
    for name, growth in slower.items():
        console.print(f"slower: {name} by {growth:.0%}", style="red", highlight=False, markup=False)
    if found.targets and not slower:
        console.print(f"none of {len(found.targets)} operations got slower by more than its tolerance")
