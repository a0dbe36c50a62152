"""Micro benchmarks: operations whose ratio to a reference is compared with a baseline.

A row is the time of an operation over the time of a reference operation, which takes turns with it. The reference
is none of Coffre's code. Neighbours on a machine only ever add time, so of both the quiet rounds count: the lowest
decile. Absolute times on a shared machine differ by factors from one minute to the next; these ratios differ by what
their tolerance allows.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import click
from coffre.bench.invocation import directory_option, output_console
from coffre.bench.micro import _codec, _data_path, _index
from coffre.bench.result import Bound, Row, Target, machine, print_table, read_results, write_results
from coffre.bench.timing import Operation, Work, timed
from coffre.cluster.admin import one_line_errors
from rich.console import Console

__all__ = ["Comparison", "measured", "micro", "operations", "row_from_rounds"]

SECOND_LOOKS = 2  # what seems slower is measured again: noise passes, a change stays


def operations(wanted: Callable[[str], bool], place: Path, large: bool) -> Generator[Operation]:
    """Those whose ids are wanted. What one needs is there until the next one is asked for."""
    yield from (each for each in chain(_codec.operations(), _data_path.operations()) if wanted(each.id))
    with closing(_index.operations(wanted, place, large)) as of_index:
        yield from of_index


def measured(operation: Operation) -> Row:
    """Time the operation right after its reference, round by round."""
    works = (operation.reference.work, Work(operation.run, operation.calls))
    return row_from_rounds(operation.id, operation.reference.id, timed(works, operation.rounds))


def row_from_rounds(row_id: str, reference_id: str, rounds: Sequence[tuple[float, ...]]) -> Row:
    """The row of rounds (reference, operation), seconds each: at least two.

    Four significant digits are more than the measurement has.
    """
    quiet = (statistics.quantiles(each, n=10, method="inclusive")[0] for each in zip(*rounds, strict=True))
    reference, operation = quiet
    found = (float(f"{value:.4g}") for value in (operation, reference, operation / reference))
    value, beside, ratio = found
    return Row(row_id, value, "s", beside, reference_id, ratio)


@dataclass(slots=True)
class Comparison:
    """Rows as they are measured, beside those of a baseline. A row with another reference than there is new."""

    baseline: Sequence[Row]
    rows: dict[str, Row] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)

    def add(self, row: Row, tolerance: float) -> None:
        """Take a row in. Of one that was measured before, the quieter measurement counts."""
        self.rows[row.id] = min(row, self.rows.get(row.id, row), key=lambda one: one.ratio)
        for before in self.baseline:
            if (before.id, before.reference_id) == (row.id, row.reference_id):
                self.targets[row.id] = Target(Bound.AT_MOST, before.ratio * (1 + tolerance))

    def slower(self) -> dict[str, float]:
        """What got slower by more than its tolerance, and by how much of its ratio in the baseline."""
        before = {row.id: row.ratio for row in self.baseline}
        late = [
            self.rows[name] for name, target in self.targets.items() if not target.reached(self.rows[name])
        ]
        return {row.id: row.ratio / before[row.id] - 1 for row in late}


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
