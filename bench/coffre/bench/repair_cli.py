"""The command `coffre bench repair`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from coffre.bench.invocation import run_to_end, workplace
from coffre.bench.repair_figures import FULL, QUICK, TARGETS, measure_repair
from coffre.bench.result import Row, one_line, print_table, write_results
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from rich.console import Console

__all__ = ["repair"]


@click.command()
@click.option("--quick", is_flag=True, help="A few seconds, to see that it works. The values mean nothing.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Of what is stored.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(".coffre-bench"),
    show_default=True,
    help="Where the clusters live meanwhile, on the disk in question; removed afterwards.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Where the figures go as JSON. Default: bench/results/repair.json, but with --quick nowhere.",
)
@one_line_errors
def repair(quick: bool, seed: int, directory: Path, output: Path | None) -> None:
    """Measure repair beside its references. A missed target is no error."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    if output is None and not quick:
        output = Path("bench/results/repair.json")
    clock = SystemClock()
    rows: list[Row] = []
    with workplace(directory.resolve()) as place:

        async def measure() -> None:
            async for row in measure_repair(place, QUICK if quick else FULL, seed, clock):
                rows.append(row)
                console.print(f"  {one_line(row)}", markup=False, soft_wrap=True)

        run_to_end(measure)
        print_table(rows, TARGETS, console)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            now = datetime.fromtimestamp(clock.unixtime_ms() / 1000, UTC)
            digest = write_results(output, rows, seed=seed, directory=place, time=now)
            console.print(f"written to {output}; SHA-256 of the rows {digest}", soft_wrap=True)
