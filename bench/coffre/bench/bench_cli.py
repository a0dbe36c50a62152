"""`coffre bench`: measurements of a cluster and of this machine. Each command lives in a module of its own."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from coffre.bench.figures import FULL, QUICK, TARGETS, FigureOptions, Figures, measure_figures
from coffre.bench.invocation import run_to_end, workplace
from coffre.bench.load.load_cli import compare, failure, load
from coffre.bench.repair_cli import repair
from coffre.bench.result import machine, print_table, write_results
from coffre.bench.scale_cli import scale
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.version import __version__
from rich.console import Console

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure: the published figures, load on a cluster, and what becomes of it when nodes fail."""


bench.add_command(scale)
bench.add_command(load)
bench.add_command(failure)
bench.add_command(compare)
bench.add_command(repair)


@bench.command()
@click.option(
    "--only", multiple=True, type=click.Choice(list(TARGETS)), help="This figure alone; may be repeated."
)
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
    help="Where the figures go as JSON. Default: bench/results/latest.json, but with --quick nowhere.",
)
@one_line_errors
def figures(only: tuple[str, ...], quick: bool, seed: int, directory: Path, output: Path | None) -> None:
    """Measure the published figures beside their references. A missed target is no error."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    if output is None and not quick:
        output = Path("bench/results/latest.json")
    clock = SystemClock()
    with workplace(directory.resolve()) as place:
        scale = QUICK if quick else FULL
        start = clock.monotonic()
        options = FigureOptions(place, frozenset(only), scale, seed)
        found = run_to_end(lambda: measure_figures(options, clock, console))
        minutes, seconds = divmod(round(clock.monotonic() - start), 60)
        console.print(
            f"coffre {__version__}, seed {seed}; {machine(place)}; client and nodes share the cores; "
            f"measured in {minutes} min {seconds} s",
            soft_wrap=True,
        )
        print_table(
            found.rows, {name: TARGETS[name] for name in TARGETS if not only or name in only}, console
        )
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            now = datetime.fromtimestamp(clock.unixtime_ms() / 1000, UTC)
            digest = write_results(output, found.rows, seed=seed, directory=place, time=now)
            console.print(f"written to {output}; SHA-256 of the rows {digest}", soft_wrap=True)
    _conclude(found, quick, console)
    sys.exit(1 if found.failures else 0)


def _conclude(found: Figures, quick: bool, console: Console) -> None:
    if quick:
        console.print("a quick run: the values are no figures")
    if missed := found.missed(TARGETS):
        console.print(f"[yellow]targets not reached: {', '.join(missed)}", soft_wrap=True)
    elif not found.failures:
        console.print("all targets reached")
    for name, why in found.failures.items():
        console.print(f"[red]not measured: {name}:[/] ", end="")
        console.print(why, markup=False, soft_wrap=True)
