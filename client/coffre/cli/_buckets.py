"""`coffre bucket create | list | delete | recode`."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from coffre.cli._session import json_option, print_json, quiet_option, run
from coffre.client.async_client import AsyncClient
from coffre.client.model import RecodeReport
from coffre.cluster.admin import CommandGroup, one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import Conflict, InvalidArgument, Unavailable
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["bucket"]

FOLLOW_SECONDS = 5.0  # between two looks at the map
AGAIN_SECONDS = 60.0  # before what failed is tried again


@click.group(cls=CommandGroup)
def bucket() -> None:
    """Make, list and forget buckets, and code their objects anew after a change of policy."""


@bucket.command("create")
@click.argument("name")
@click.option("--policy", default="", help="A storage policy of the map; the default one unless given.")
@click.pass_context
@one_line_errors
def create_bucket(ctx: click.Context, name: str, policy: str) -> None:
    """Enter a bucket; objects can be put into any other, too."""
    run(ctx, lambda client: client.create_bucket(name, policy=policy))
    click.echo(f"created {name}")


@bucket.command("list")
@click.pass_context
@one_line_errors
def list_buckets(ctx: click.Context) -> None:
    """The buckets that were created."""
    for name in run(ctx, lambda client: client.list_buckets()):
        click.echo(name)


@bucket.command("delete")
@click.argument("name")
@click.pass_context
@one_line_errors
def delete_bucket(ctx: click.Context, name: str) -> None:
    """Forget that a bucket was created. One that holds objects is refused."""
    run(ctx, lambda client: client.delete_bucket(name))
    click.echo(f"deleted {name}")


# -------------------------------------------------------------------- coding anew


@bucket.command("recode")
@click.argument("names", metavar="[BUCKET]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Say how much would be coded anew, and change nothing.")
@click.option("--follow", is_flag=True, help="Go on for ever: code anew whenever the map says so.")
@click.option("--mb-per-second", type=click.FloatRange(0.001), help="Megabytes of plaintext, at most.")
@json_option
@quiet_option
@click.pass_context
@one_line_errors
def recode(
    ctx: click.Context,
    names: tuple[str, ...],
    dry_run: bool,
    follow: bool,
    mb_per_second: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Code objects anew that have another k and m than their bucket's policy says; content and versions stay.

    Without a BUCKET: all of this tenant's buckets that have, or had, a policy of their own. May be interrupted and
    repeated. One client codes a bucket anew at a time.
    """
    if dry_run and follow:
        raise InvalidArgument("a dry run ends; it does not follow")
    rate = None if mb_per_second is None else mb_per_second * 1e6

    async def one(client: AsyncClient, name: str) -> RecodeReport:
        with _progress(name, quiet=quiet or as_json or dry_run) as progress:
            return await client.recode(name, dry_run=dry_run, bytes_per_second=rate, progress=progress)

    async def work(client: AsyncClient) -> dict[str, RecodeReport]:
        return {name: await one(client, name) for name in names or _listed(client)}

    async def for_ever(client: AsyncClient) -> None:
        while True:
            epoch, failures = client.cluster_map.epoch, 0
            for name in names or _listed(client):
                try:
                    report = await one(client, name)
                except (Conflict, Unavailable) as error:
                    click.echo(f"{name}: {error}", err=True)
                    failures += 1
                else:
                    failures += report.failures
                    if report.objects:
                        _tell(name, report, dry_run=False)
            waited = 0.0
            while client.cluster_map.epoch == epoch and not (failures and waited >= AGAIN_SECONDS):
                await asyncio.sleep(FOLLOW_SECONDS)
                waited += FOLLOW_SECONDS

    if follow:
        run(ctx, for_ever)
        return
    reports = run(ctx, work)
    if as_json:
        print_json({name: dataclasses.asdict(report) for name, report in reports.items()})
    elif not quiet:
        for name, report in reports.items():
            _tell(name, report, dry_run=dry_run)
    failures = sum(report.failures for report in reports.values())
    if failures:
        raise Unavailable(f"{failures} objects could not be coded anew: try again")


def _listed(client: AsyncClient) -> list[str]:
    """The tenant's buckets whose objects may be coded otherwise than their policy says."""
    return [one.bucket for one in client.cluster_map.bucket_policies if one.tenant == client.tenant]


def _tell(name: str, report: RecodeReport, *, dry_run: bool) -> None:
    size = f"{report.size_bytes} bytes"
    if dry_run:
        click.echo(f"{name}: {report.objects} objects, {size}, would be coded {report.policy}")
        return
    click.echo(
        f"{name}: {report.done_objects} of {report.objects} objects ({report.done_bytes} of {size}) are coded "
        f"{report.policy} now; {report.overtaken} were written or deleted meanwhile"
    )
    for key, reason in report.failed.items():
        click.echo(f"{name}/{key!r}: {reason}", err=True)


@contextmanager
def _progress(name: str, *, quiet: bool) -> Iterator[Callable[[RecodeReport], None]]:
    """A bar on a terminal, else a line for each tenth, on standard error; both with the time that is left."""
    if quiet:
        yield lambda report: None
        return
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name)
        yield lambda report: bar.update(task, total=report.size_bytes, completed=report.done_bytes)


def _lines(name: str) -> Callable[[RecodeReport], None]:
    clock = SystemClock()
    begun, said = clock.monotonic(), 0

    def show(report: RecodeReport) -> None:
        nonlocal said
        done = report.done_objects + report.overtaken + report.failures
        tenth = done * 10 // max(report.objects, 1)
        if tenth > said:
            said = tenth
            seconds = (clock.monotonic() - begun) * (report.objects - done) / done
            click.echo(f"{name}: {done} of {report.objects} objects, {seconds:.0f} s left", err=True)

    return show
