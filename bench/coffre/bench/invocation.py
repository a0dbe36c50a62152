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

import uvloop

__all__ = ["run_to_end", "workplace"]

_Result = TypeVar("_Result")


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
