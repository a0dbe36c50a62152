"""`coffre bench`: measurements of a cluster and of this machine. Load and scale have modules of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from coffre.bench.figures import (
    FIGURES,
    FULL,
    QUICK,
    REPAIR,
    FigureOptions,
    Figures,
    Group,
    measure_figures,
    targets_of,
)
from coffre.bench.invocation import directory_option, output_console, run_to_end, workplace
from coffre.bench.load.load_cli import compare, failure, load
from coffre.bench.micro import micro
from coffre.bench.result import machine, print_table, write_results
from coffre.bench.scale_report import scale
from coffre.cluster.admin import CommandGroup, one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.version import __version__

__all__ = ["bench"]


@click.group(cls=CommandGroup)
def bench() -> None:
    """Measure: the published figures, load on a cluster, and what becomes of it when nodes fail."""


def _measuring(name: str, groups: Sequence[Group], results: Path, about: str) -> click.Command:
    """A command that measures groups of figures, by default into the file `results`."""
    targets = targets_of(groups)

    @click.command(name, help=about)
    @click.option(
        "--only", multiple=True, type=click.Choice(list(targets)), help="This figure alone; may be repeated."
    )
    @click.option(
        "--quick", is_flag=True, help="A few seconds, to see that it works. The values mean nothing."
    )
    @click.option(
        "--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Of what is stored."
    )
    @directory_option("Where the clusters live meanwhile")
    @click.option(
        "--output",
        type=click.Path(path_type=Path),
        help=f"Where the figures go as JSON. Default: {results}, but with --quick nowhere.",
    )
    @one_line_errors
    def command(only: tuple[str, ...], quick: bool, seed: int, directory: Path, output: Path | None) -> None:
        if output is None and not quick:
            output = results
        with workplace(directory.resolve()) as place:
            options = FigureOptions(place, frozenset(only), QUICK if quick else FULL, seed)
            found = _measure(options, groups, output)
        sys.exit(1 if found.failures else 0)

    return command


def _measure(options: FigureOptions, groups: Sequence[Group], output: Path | None) -> Figures:
    """Measure, show and write."""
    console = output_console()
    clock, place, seed = SystemClock(), options.directory, options.seed
    start = clock.monotonic()
    found = run_to_end(lambda: measure_figures(options, clock, console, groups))
    minutes, seconds = divmod(round(clock.monotonic() - start), 60)
    console.print(
        f"coffre {__version__}, seed {seed}; {machine(place)}; client and nodes share the cores; "
        f"measured in {minutes} min {seconds} s",
        soft_wrap=True,
    )
    targets = {
        name: target
        for name, target in targets_of(groups).items()
        if target is not None and (not options.only or name in options.only)
    }
    print_table(found.rows, targets, console)
    if output is not None:
        digest = write_results(output, found.rows, seed=seed, directory=place)
        console.print(f"written to {output}; SHA-256 of the rows {digest}", soft_wrap=True)
    if options.scale is QUICK:
        console.print("a quick run: the values are no figures")
    if missed := found.missed(targets):
        console.print(f"[yellow]targets not reached: {', '.join(missed)}", soft_wrap=True)
    elif not found.failures:
        console.print("all targets reached")
    for name, why in found.failures.items():
        console.print(f"[red]not measured: {name}:[/] ", end="")
        console.print(why, markup=False, soft_wrap=True)
    return found


_RESULTS = Path("bench/results")
_BESIDE = "beside references. A missed target is no error."
for _command in (
    _measuring("figures", FIGURES, _RESULTS / "latest.json", f"Measure the published figures {_BESIDE}"),
    _measuring("repair", REPAIR, _RESULTS / "repair.json", f"Measure repair {_BESIDE}"),
    *(load, failure, compare, scale, micro),
):
    bench.add_command(_command)
