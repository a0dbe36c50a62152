"""What the object commands share: a connected client for one command, names on the command line, what is printed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
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
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

__all__ = [
    "folder_prefix",
    "json_option",
    "print_json",
    "printable",
    "progress_bar",
    "quiet_option",
    "run",
    "size_text",
    "split",
    "time_text",
]

_T = TypeVar("_T")


def run(ctx: click.Context, work: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
    """Connect, do the work, close. SIGTERM and SIGHUP end the work as Ctrl-C does: what it has begun is tidied away."""
    config_path = find_config(ctx.obj)
    ended_by: list[int] = []

    async def connected() -> _T:
        _end_on(ended_by)
        client = await connect(config_path)
        try:
            return await work(client)
        finally:
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(connected())
        except asyncio.CancelledError:
            if not ended_by:
                raise
            raise SystemExit(128 + ended_by[0]) from None


def _end_on(ended_by: list[int]) -> None:
    """Cancel the present task when the process is told to end, and note by what."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end(signum: int) -> None:
        ended_by.append(signum)
        task.cancel()

    if threading.current_thread() is not threading.main_thread():
        return
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(signum, end, signum)


def split(target: str, *, key_required: bool = True) -> tuple[str, str]:
    """Bucket and key of a `BUCKET/KEY`. Raises `InvalidArgument` when one is missing."""
    bucket, _, key = target.partition("/")
    if not bucket or (key_required and not key):
        raise InvalidArgument(f"{target!r} names no object: write BUCKET/KEY")
    return bucket, key


def print_json(value: object) -> None:
    """Print `value` as JSON for machines, readable for people."""
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
    """A key, or a file's name, on one line of a terminal: control characters and what is not UTF-8 are escaped."""
    text = os.fsencode(key).decode("utf-8", "backslashreplace") if _is_raw(key) else key
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _is_raw(name: str) -> bool:
    """Whether a file's name has bytes that are no text."""
    return any("\udc80" <= char <= "\udcff" for char in name)


def folder_prefix(key: str) -> str:
    """What the keys below a folder begin with: of `old`, not those of `older/`."""
    return key if not key or key.endswith("/") else key + "/"


def size_text(size_bytes: int) -> str:
    """Such as 1.5 MB; whole bytes below a thousand."""
    return decimal(size_bytes)
