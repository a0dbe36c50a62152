"""What the object commands share: a connected client for one command, names on the command line, what is printed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import click
import uvloop
from coffre.client.async_client import AsyncClient
from coffre.client.config import connect, find_config
from coffre.cluster.errors import InvalidArgument
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

__all__ = [
    "json_option",
    "print_json",
    "printable",
    "progress_bar",
    "quiet_option",
    "run",
    "split",
    "time_text",
]

_T = TypeVar("_T")


def run(ctx: click.Context, work: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
    """Connect, do the work, close."""
    config_path = find_config(ctx.obj)

    async def connected() -> _T:
        client = await connect(config_path)
        try:
            return await work(client)
        finally:
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(connected())


def split(target: str, *, key_required: bool = True) -> tuple[str, str]:
    """Bucket and key of a `BUCKET/KEY`. Raises `InvalidArgument` when one is missing."""
    bucket, _, key = target.partition("/")
    if not bucket or (key_required and not key):
        raise InvalidArgument(f"{target!r} names no object: write BUCKET/KEY")
    return bucket, key


def print_json(value: object) -> None:
    """Print `value` as JSON for machines, readable for people."""
    """Print one value as JSON, for machines."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def time_text(unixtime_ms: int) -> str:
    """Date and time of day in UTC, to the second."""
    return datetime.fromtimestamp(unixtime_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def progress_bar(total_bytes: int | None, label: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error when that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda size_bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar, no summary.")


def printable(key: str) -> str:
    """A key on one line of a terminal: control characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in key)
