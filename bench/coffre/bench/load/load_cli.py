"""`coffre bench load`, `compare` and `failure`."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from coffre.bench.files import check_writable
from coffre.bench.invocation import run_to_end, workplace
from coffre.bench.load.compare import compare_results
from coffre.bench.load.content import Texture
from coffre.bench.load.failure import PHASES, disturbed, failure_plan
from coffre.bench.load.latency import check_installed
from coffre.bench.load.live import LiveProgress, print_result
from coffre.bench.load.plan import LoadPlan
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
DEFAULT_MIX = "put=20,get=70,range=5,head=3,list=1,delete=1"
CLOSED_IN_FLIGHT, OPEN_IN_FLIGHT = 16, 1024
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
    """What `load` and `failure` have in common, as options of click."""
    options = [
        click.option(
            "--workload",
            type=click.Choice(["fixed", "health"]),
            default="health",
            show_default=True,
            help="Objects of one size, or the mixture of a hospital.",
        ),
        click.option("--size", type=_Size(), default="4KiB", show_default=True, help="Of fixed objects."),
        click.option(
            "--content",
            type=click.Choice([each.value for each in Texture]),
            default="random",
            show_default=True,
            help="What fixed objects look like to a compressor.",
        ),
        click.option(
            "--archives/--no-archives",
            default=archives,
            show_default=True,
            help="health: 64 MB to 1 GB, too.",
        ),
        click.option("--mix", default=DEFAULT_MIX, show_default=True, help="Operations by weight."),
        click.option(
            "--range-size", type=_Size(), default="64KiB", show_default=True, help="Of a ranged get."
        ),
        click.option("--objects", default=200, show_default=True, help="Stored first, to be read."),
        click.option(
            "--rate", type=float, help="Open loop: operations per second, whatever the cluster does."
        ),
        click.option(
            "--in-flight",
            type=int,
            help=f"Callers of the closed loop ({CLOSED_IN_FLIGHT}); open loop: at most ({OPEN_IN_FLIGHT}).",
        ),
        click.option(
            "--processes", default=1, show_default=True, help="Client processes that share the load."
        ),
        click.option(
            "--ramp", default=ramp_s, show_default=True, help="Seconds of growing load that are not measured."
        ),
        click.option(
            "--seed", default=1, show_default=True, type=click.IntRange(min=0), help="Of everything drawn."
        ),
        click.option(
            "--dir",
            "directory",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path(".coffre-bench"),
            show_default=True,
            help="Where a cluster of its own lives meanwhile, on the disk in question; removed afterwards.",
        ),
        click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The result as JSON."),
        click.option(
            "--report", type=click.Path(path_type=Path, dir_okay=False), help="The result as one HTML page."
        ),
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
    **options: Any,
) -> None:
    """Put load on a cluster, and check every byte that comes back. Exit status 1: data was wrong or lost."""
    if duration is None:
        duration = 30.0 if count is None else COUNT_DURATION_S
    clock, console = SystemClock(), terminal()
    plan = plan_of(options, clock, bucket=bucket, duration_s=duration, count=count)
    _check_output(options)

    async def run(place: Path) -> LoadResult:
        with LiveProgress(console, plan.interval_s) as progress:
            async with _target(config, operator, place, clock) as target, _said_if_left(plan, config):
                return await run_load(
                    target,
                    plan,
                    machine(place),
                    clock,
                    progress,
                    check=check,
                    clean=config is not None and not keep,
                )

    if config is not None:
        result = run_to_end(lambda: run(config.parent))
    else:
        with workplace(options["directory"].resolve()) as place:
            result = run_to_end(lambda: run(place))
    finish(result, options, console)


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
def failure(phase: float, **options: Any) -> None:
    """Show what load suffers while a node is killed, paused or slowed, on a cluster that this command starts.

    At the end all that was acknowledged is read back. Exit status 1: data was wrong or lost.
    """
    clock, console = SystemClock(), terminal()
    _check_output(options)
    plan = failure_plan(plan_of(options, clock, bucket="bench", duration_s=1.0, count=None), phase)

    async def run(place: Path) -> LoadResult:
        with LiveProgress(console, plan.interval_s) as progress:
            cluster = LocalCluster.create(place / "load", ClusterShape(), clock)
            async with disturbed(cluster, plan, clock) as (target, disturbance):
                return await run_load(
                    target,
                    plan,
                    machine(place),
                    clock,
                    progress,
                    check=True,
                    clean=False,
                    disturb=disturbance,
                )

    with workplace(options["directory"].resolve()) as place:
        result = run_to_end(lambda: run(place))
    finish(result, options, console)


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
    console = terminal()
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
        console.print(
            f"worse by {change.worse_by:.1%}: {change.operation.value} {change.kind} {change.quantity}",
            style="red",
            markup=False,
        )
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


def terminal() -> Console:
    """The console; wide enough for the table when nobody looks."""
    return Console(width=None if sys.stdout.isatty() else 150)


def plan_of(
    options: dict[str, Any], clock: SystemClock, *, bucket: str, duration_s: float, count: int | None
) -> LoadPlan:
    """The plan that the options describe, under a prefix of its own.

    Raises `InvalidArgument` for what cannot be, and `ConfigurationError` when a package is missing.
    """
    check_installed()
    in_flight = options["in_flight"]
    if in_flight is None:
        in_flight = CLOSED_IN_FLIGHT if options["rate"] is None else OPEN_IN_FLIGHT
        in_flight = max(in_flight, options["processes"])
    workload = options["workload"]
    if workload == "health" and not options["archives"]:
        workload = "health-without-archives"
    return LoadPlan(
        bucket=bucket,
        prefix=f"load-{clock.unixtime_ms():x}",
        seed=options["seed"],
        workload=workload,
        size_bytes=options["size"],
        texture=options["content"],
        mix=options["mix"],
        objects=options["objects"],
        range_bytes=options["range_size"],
        processes=options["processes"],
        in_flight=in_flight,
        rate_per_s=options["rate"],
        ramp_s=options["ramp"],
        duration_s=duration_s,
        count=count,
    )


def _check_output(options: dict[str, Any]) -> None:
    for path in (options["output"], options["report"]):
        if path is not None:
            check_writable(path)


def finish(result: LoadResult, options: dict[str, Any], console: Console) -> None:
    """Show it, write it, and end with status 1 when data was wrong or lost."""
    print_result(result, console)
    if options["output"] is not None:
        write_result(options["output"], result)
        console.print(f"result written to {options['output']}", soft_wrap=True, markup=False)
    if options["report"] is not None:
        from coffre.bench.load.report import write_report  # Matplotlib takes a while to load

        write_report(options["report"], result)
        console.print(f"report written to {options['report']}", soft_wrap=True, markup=False)
    sys.exit(1 if result.data_errors else 0)
