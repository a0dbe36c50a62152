"""`coffre bench load`, `compare` and `failure`."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from coffre.bench.files import check_writable
from coffre.bench.invocation import directory_option, output_console, run_to_end, workplace
from coffre.bench.load.compare import compare_results
from coffre.bench.load.failure import PHASES, disturbed
from coffre.bench.load.live import LiveProgress, print_result
from coffre.bench.load.plan import CLOSED_IN_FLIGHT, OPEN_IN_FLIGHT, LoadPlan
from coffre.bench.load.result import LoadResult, read_result, write_result
from coffre.bench.load.session import Target, connected, run_load, started
from coffre.bench.load.tables import comparison_table
from coffre.bench.load.workload import parse_size
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.bench.result import machine
from coffre.client import load_client_config
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import CoffreError, InvalidArgument
from coffre.cluster.identity import TlsFiles
from rich.console import Console

__all__ = ["compare", "failure", "load"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
COUNT_DURATION_S = 24 * 3600.0


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


class _Share(click.ParamType[float]):
    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            found = math.nan
        if not 0 <= found < math.inf:
            self.fail(f"{text!r} is not a share such as 10% or 0.1", param, ctx)
        return found


def _load_options(*, ramp_s: float, archives: bool) -> Callable[[_Command], _Command]:
    """What `load` and `failure` have in common: the fields of a plan that can be asked for, and where results go."""
    own = {"rate_per_s": float, "in_flight": int}
    options = [
        click.option(
            each.metadata["flag"],
            each.name,
            default=ramp_s if each.name == "ramp_s" else each.default,
            show_default=each.default is not None,
            type=_Size()
            if each.name.endswith("_bytes")
            else click.Choice(each.metadata["choices"])
            if "choices" in each.metadata
            else own.get(each.name),
            help=each.metadata["help"],
        )
        for each in fields(LoadPlan)
        if "flag" in each.metadata
    ]
    options += [
        click.option(
            "--archives/--no-archives",
            default=archives,
            show_default=True,
            help="health: 64 MB to 1 GB, too.",
        ),
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
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="client.toml of a running cluster; without it, one is started and removed.",
)
@click.option(
    "--operator",
    type=click.Path(path_type=Path, dir_okay=False),
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
    directory: Path,
    output: Path | None,
    report: Path | None,
    **asked: Any,
) -> None:
    """Put load on a cluster, and check every byte that comes back. Exit status 1: data was wrong or lost."""
    if duration is None:
        duration = 30.0 if count is None else COUNT_DURATION_S
    clock, console = SystemClock(), output_console()
    plan = _plan(asked, clock, bucket=bucket, duration_s=duration, count=count)
    _check_writable(output, report)

    async def run(place: Path) -> LoadResult:
        with LiveProgress(console, plan.interval_s) as progress:
            async with _target(config, operator, place, clock) as target, _said_if_left(plan, config):
                clean = config is not None and not keep
                return await run_load(target, plan, machine(place), clock, progress, check=check, clean=clean)

    if config is not None:
        result = run_to_end(lambda: run(config.parent))
    else:
        with workplace(directory.resolve()) as place:
            result = run_to_end(lambda: run(place))
    _finish(result, output, report, console)


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
def failure(phase: float, directory: Path, output: Path | None, report: Path | None, **asked: Any) -> None:
    """Show what load suffers while a node is killed, paused or slowed, on a cluster that this command starts.

    At the end all that was acknowledged is read back. Exit status 1: data was wrong or lost.
    """
    clock, console = SystemClock(), output_console()
    plan = _plan(asked, clock, bucket="bench", duration_s=phase * len(PHASES), count=None)
    _check_writable(output, report)

    async def run(place: Path) -> LoadResult:
        with LiveProgress(console, plan.interval_s) as progress:
            cluster = LocalCluster.create(place / "load", ClusterShape(), clock)
            async with disturbed(cluster, plan, clock) as (target, disturb):
                return await run_load(
                    target, plan, machine(place), clock, progress, check=True, clean=False, disturb=disturb
                )

    with workplace(directory.resolve()) as place:
        result = run_to_end(lambda: run(place))
    _finish(result, output, report, console)


@click.command()
@click.argument("before", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--fail-over",
    type=_Share(),
    metavar="SHARE",
    help="Exit status 1 when something is worse by more than this (10%) and beyond noise, or data was lost.",
)
@one_line_errors
def compare(before: Path, after: Path, fail_over: float | None) -> None:
    """Show what became faster or slower between two results of `load` or `failure`."""
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
    if fail_over is None:
        return
    regressions = found.regressions(fail_over)
    for change in regressions:
        told = f"worse by {change.worse_by:.1%}: {change.operation.value} {change.kind} {change.quantity}"
        console.print(told, style="red", markup=False)
    if second.data_errors:
        console.print(f"{second.data_errors:,} times data was wrong or lost", style="bold red")
    sys.exit(1 if regressions or second.data_errors else 0)


def _target(
    config: Path | None, operator: tuple[Path, Path] | None, place: Path, clock: SystemClock
) -> AbstractAsyncContextManager[Target]:
    if config is None:
        return started(LocalCluster.create(place / "load", ClusterShape(), clock))
    if operator is None:
        return connected(config, None)
    return connected(config, TlsFiles(load_client_config(config).tls.authority, *operator))


@asynccontextmanager
async def _said_if_left(plan: LoadPlan, config: Path | None) -> AsyncIterator[None]:
    """Say what an unfinished run may have left in a cluster that stays."""
    try:
        yield
    except (CoffreError, asyncio.CancelledError):
        if config is not None:
            click.echo(f"objects of this run may be left below {plan.bucket}/{plan.prefix}/", err=True)
        raise


def _plan(
    asked: dict[str, Any], clock: SystemClock, *, bucket: str, duration_s: float, count: int | None
) -> LoadPlan:
    """The plan that was asked for, under a prefix of its own. Raises `InvalidArgument` for what cannot be."""
    if not asked.pop("archives") and asked["workload"] == "health":
        asked["workload"] = "health-without-archives"
    if asked["in_flight"] is None:
        usual = CLOSED_IN_FLIGHT if asked["rate_per_s"] is None else OPEN_IN_FLIGHT
        asked["in_flight"] = max(usual, asked["processes"])
    prefix = f"load-{clock.unixtime_ms():x}"
    return LoadPlan(bucket=bucket, prefix=prefix, duration_s=duration_s, count=count, **asked)


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            check_writable(path)


def _finish(result: LoadResult, output: Path | None, report: Path | None, console: Console) -> None:
    """Show it, write it, and end with status 1 when data was wrong or lost."""
    print_result(result, console)
    if output is not None:
        write_result(output, result)
        console.print(f"result written to {output}", soft_wrap=True, markup=False)
    if report is not None:
        from coffre.bench.load.report import write_report  # Matplotlib takes a while to load

        write_report(report, result)
        console.print(f"report written to {report}", soft_wrap=True, markup=False)
    sys.exit(1 if result.data_errors else 0)
