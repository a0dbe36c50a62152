"""`coffre bench load`, `compare` and `failure`."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from coffre.bench.invocation import directory_option, output_console, run_to_end, workplace
from coffre.bench.load.compare import compare_results
from coffre.bench.load.failure import PHASES, disturbed
from coffre.bench.load.plan import CLOSED_IN_FLIGHT, OPEN_IN_FLIGHT, LoadPlan, parse_size
from coffre.bench.load.result import LoadResult, read_result, write_result
from coffre.bench.load.session import Target, connected, run_load, started
from coffre.bench.load.tables import LiveProgress, comparison_table, print_result
from coffre.bench.result import machine
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import CoffreError, InvalidArgument
from coffre.dev.files import check_writable, write_whole
from coffre.dev.local_cluster import ClusterShape, LocalCluster

__all__ = ["compare", "failure", "load"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
COUNT_DURATION_S = 24 * 3600.0


def _load_options(*, ramp_s: float, archives: bool) -> Callable[[_Command], _Command]:
    """What `load` and `failure` have in common: the fields of a plan that can be asked for, and where results go."""
    types = {"rate_per_s": float, "in_flight": int, "size_bytes": str, "range_bytes": str}
    options = [
        click.option(
            each.metadata["flag"],
            each.name,
            default=ramp_s if each.name == "ramp_s" else each.default,
            show_default=each.default is not None,
            type=click.Choice(choices) if (choices := each.metadata.get("choices")) else types.get(each.name),
            help=each.metadata["help"],
        )
        for each in fields(LoadPlan)
        if "flag" in each.metadata
    ]
    about = "health: 64 MB to 1 GB, too."
    options += [
        click.option("--archives/--no-archives", default=archives, show_default=True, help=about),
        directory_option("Where a cluster of its own lives meanwhile"),
        click.option("--output", type=click.Path(path_type=Path), help="The result as JSON."),
        click.option("--report", type=click.Path(path_type=Path), help="The result as one HTML page."),
    ]

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@click.option(
    "--config", type=_FILE, help="client.toml of a running cluster; without it, one is started and removed."
)
@click.option(
    "--operator",
    type=_FILE,
    nargs=2,
    metavar="CERTIFICATE KEY",
    help="Of a running cluster: with them the nodes are asked for their counters.",
)
@click.option("--bucket", default="bench", show_default=True, help="A bucket of the tenant.")
@click.option(
    "--duration", type=float, help="Seconds of load beyond the ramp (30; with --count: until then)."
)
@click.option("--count", type=int, help="End after so many operations. The ramp is measured, too, then.")
@click.option("--check", is_flag=True, help="Read everything back at the end that was written.")
@click.option("--keep", is_flag=True, help="Leave in a running cluster what was written there.")
@_load_options(ramp_s=0.0, archives=True)
@one_line_errors
def load(
    config: Path | None,
    operator: tuple[Path, Path] | None,
    bucket: str,
    duration: float | None,
    count: int | None,
    check: bool,
    keep: bool,
    **asked: Any,
) -> None:
    """Put load on a cluster, and check every byte that comes back. Exit status 1: data was wrong or lost."""
    if duration is None:
        duration = 30.0 if count is None else COUNT_DURATION_S

    @asynccontextmanager
    async def target(place: Path, plan: LoadPlan) -> AsyncIterator[Target]:
        if config is None:
            async with started(_cluster(place)) as own:
                yield own
            return
        async with connected(config, operator) as running:
            try:
                yield running
            except (CoffreError, asyncio.CancelledError):
                click.echo(f"objects of this run may be left below {plan.bucket}/{plan.prefix}/", err=True)
                raise

    if config is not None:
        asked["directory"] = Path.cwd()
    asked |= {"bucket": bucket, "duration_s": duration, "count": count}
    _put_on(target, asked, check=check, clean=config is not None and not keep)


@click.command()
@click.option(
    "--phase",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0.5),
    help=f"Seconds of each of the phases: {', '.join(PHASES)}.",
)
@_load_options(ramp_s=5.0, archives=False)
@one_line_errors
def failure(phase: float, **asked: Any) -> None:
    """Show what load suffers while a node is killed, paused or slowed, on a cluster that this command starts.

    At the end all that was acknowledged is read back. Exit status 1: data was wrong or lost.
    """
    asked |= {"bucket": "bench", "duration_s": phase * len(PHASES), "count": None}
    _put_on(lambda place, plan: disturbed(_cluster(place), plan, SystemClock()), asked, check=True)


def _cluster(place: Path) -> LocalCluster:
    return LocalCluster.create(place / "load", ClusterShape(), SystemClock())


def _put_on(
    target: Callable[[Path, LoadPlan], AbstractAsyncContextManager[Target]],
    asked: dict[str, Any],
    *,
    check: bool,
    clean: bool = False,
) -> NoReturn:
    """Put the load on the target, show and write the result, and end: with 1 when data was wrong or lost."""
    clock, console = SystemClock(), output_console()
    directory, output, report = (asked.pop(name) for name in ("directory", "output", "report"))
    plan = _plan(asked, clock)
    for path in (output, report):
        if path is not None:
            check_writable(path)

    async def run(place: Path) -> LoadResult:
        with LiveProgress(console, plan.interval_s) as progress:
            async with target(place, plan) as found:
                return await run_load(found, plan, machine(place), clock, progress, check=check, clean=clean)

    with workplace(directory.resolve()) as place:
        result = run_to_end(lambda: run(place))
    print_result(result, console)
    if output is not None:
        write_result(output, result)
        console.print(f"result written to {output}", soft_wrap=True, markup=False)
    if report is not None:
        from coffre.bench.load.report import render_report  # Matplotlib takes a while to load

        write_whole(report, render_report(result))
        console.print(f"report written to {report}", soft_wrap=True, markup=False)
    sys.exit(1 if result.data_errors else 0)


def _plan(asked: dict[str, Any], clock: SystemClock) -> LoadPlan:
    """The plan that was asked for, under a prefix of its own. Raises `InvalidArgument` for what cannot be."""
    asked |= {name: parse_size(str(asked[name])) for name in ("size_bytes", "range_bytes")}
    if not asked.pop("archives") and asked["workload"] == "health":
        asked["workload"] = "health-without-archives"
    if asked["in_flight"] is None:
        usual = CLOSED_IN_FLIGHT if asked["rate_per_s"] is None else OPEN_IN_FLIGHT
        asked["in_flight"] = max(usual, asked["processes"])
    return LoadPlan(prefix=f"load-{clock.unixtime_ms():x}", **asked)


@click.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "--fail-over",
    metavar="SHARE",
    help="Exit status 1 when something is worse by more than this (10%) and beyond noise, or data was lost.",
)
@one_line_errors
def compare(before: Path, after: Path, fail_over: str | None) -> None:
    """Show what became faster or slower between two results of `load` or `failure`."""
    limit = None if fail_over is None else _share(fail_over)
    first, second = read_result(before), read_result(after)
    found = compare_results(first, second)
    console = output_console()
    comparison_table(found).show(console)
    for note in found.notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(
        "noise: 95 % interval from the batches of each run; two starts of the same build may differ by more",
        soft_wrap=True,
    )
    if limit is None:
        return
    regressions = found.regressions(limit)
    for change in regressions:
        told = f"worse by {change.worse_by:.1%}: {change.operation.value} {change.kind} {change.quantity}"
        console.print(told, style="red", markup=False)
    if second.data_errors:
        console.print(f"{second.data_errors:,} times data was wrong or lost", style="bold red")
    sys.exit(1 if regressions or second.data_errors else 0)


def _share(text: str) -> float:
    try:
        found = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise InvalidArgument(f"{text!r} is not a share such as 10% or 0.1")
    return found
