"""Run the micro benchmarks and compare them with the committed baseline, or make a new one."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from coffre.bench.micro import (
    Baseline,
    Change,
    MicroRow,
    Verdict,
    compare,
    print_changes,
    quieter,
    rows_from_json,
)
from coffre.bench.result import machine
from coffre.cluster.admin import one_line_errors
from coffre.cluster.version import __version__
from rich.console import Console

HERE = Path(__file__).parent
SECOND_LOOKS = 2  # what seems slower is measured again: noise passes, a change stays
BASELINE = HERE.parent / "results" / "micro.json"


@click.command()
@click.option("--save", is_flag=True, help="Make what is measured the baseline, instead of comparing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when an operation got slower.")
@click.option(
    "--large", is_flag=True, help="The index with ten million keys, too: minutes, and gigabytes of disk."
)
@click.option("--only", metavar="EXPRESSION", help="Benchmarks whose names match, as pytest's -k has it.")
@click.option(
    "--dir", "place", type=click.Path(path_type=Path, file_okay=False), default=Path(".coffre-bench"),
    show_default=True, help="Where the index lives meanwhile, on the disk in question.",
)  # fmt: skip
@click.option("--baseline", "path", type=click.Path(path_type=Path, dir_okay=False), default=BASELINE)
@one_line_errors
def main(save: bool, strict: bool, large: bool, only: str | None, place: Path, path: Path) -> None:
    """Time operations beside references; say which got slower than the baseline by more than their tolerance."""
    if save and only:
        raise click.UsageError("a baseline is of all benchmarks: --save goes without --only")
    before = Baseline("", "", ()) if save else Baseline.read(path)
    console = Console(width=None if sys.stdout.isatty() else 140)
    arguments = [f"--place={place.resolve()}"] + ["--large"] * large + (["-k", only] if only else [])
    rows = measure(arguments)
    cpu = machine(HERE).cpu
    if save:
        Baseline(cpu, __version__, tuple(rows)).write(path)
        console.print(f"{len(rows)} ratios written to {path.name}")
        return
    if before.cpu != cpu:
        console.print(
            f"[yellow]the baseline is of another processor: {before.cpu}; this is {cpu}", soft_wrap=True
        )
    known = before.rows
    if only:
        measured = {row.id for row in rows}
        known = tuple(row for row in known if row.id in measured)
    suspects = slower(compare(known, rows))
    for _ in range(SECOND_LOOKS):
        if suspects:
            rows = quieter(
                rows, measure([*arguments, f"--names={json.dumps(suspects)}", "--benchmark-columns=min"])
            )
            suspects = slower(compare(known, rows))
    changes = compare(known, rows)
    print_changes(changes, console)
    sys.exit(1 if strict and suspects else 0)


def measure(arguments: Sequence[str]) -> list[MicroRow]:
    """Run the benchmarks in this process. Ends it when one fails."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.json"
        status = pytest.main([str(HERE), f"--rootdir={HERE}", f"--rows={path}", *arguments])
        if status != pytest.ExitCode.OK:
            sys.exit(int(status))
        return rows_from_json(json.loads(path.read_text("utf-8")))


def slower(changes: Sequence[Change]) -> list[str]:
    return [change.id for change in changes if change.verdict is Verdict.SLOWER]


if __name__ == "__main__":
    main()
