"""How the commands of this room run: in a directory that they leave as it was, until their end or a signal."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop
from rich.console import Console

__all__ = ["directory_option", "output_console", "run_to_end", "workplace"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_PIPE_COLUMNS = 150


def directory_option(what: str) -> Callable[[_Command], _Command]:
    """The option that says where clusters live meanwhile."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(".coffre-bench"),
        show_default=True,
        help=f"{what}, on the disk in question; removed afterwards.",
    )


def output_console() -> Console:
    """The console; wide enough for every table when nobody looks."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def run_to_end(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run to the end, or until SIGINT or SIGTERM, and let it end every process of its own on the way out."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def measure() -> _Result:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            return await work()

        try:
            return runner.run(measure())
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)


@contextmanager
def workplace(directory: Path) -> Iterator[Path]:
    """The directory, made when it is not there, and then removed, too."""
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield directory
    finally:
        if made:
            shutil.rmtree(directory, ignore_errors=True)
