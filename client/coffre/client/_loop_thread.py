"""An event loop in a daemon thread of its own, for code without one; whoever waits for it is never left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["LoopThread"]

_T = TypeVar("_T")
_END_SECONDS = 2.0  # that tasks get which are cancelled at the end
_STOP_SECONDS = 10.0  # after which a loop that a callback holds is left to its thread


class LoopThread:
    """Runs coroutines for other threads until it is stopped."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True)
        self._waited_for: set[Future[Any]] = set()  # by other threads; of results of any type
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this very thread asks."""
        return threading.current_thread() is self._thread

    def submit(self, call: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Begin a coroutine. The future is cancelled when the loop ends before it."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        self._waited_for.add(future)
        future.add_done_callback(self._waited_for.discard)
        return future

    def call_soon(self, call: Coroutine[Any, Any, object]) -> None:
        """Begin a coroutine that nobody waits for; nothing is done once the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._begin, call)
        except RuntimeError:
            call.close()

    def _begin(self, call: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(_quietly(call))
        _behind.add(task)
        task.add_done_callback(_behind.discard)

    def stop(self) -> None:
        """End what is still under way, and the thread. From another thread."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        for future in list(self._waited_for):
            future.cancel()

    def stop_later(self, last: Coroutine[Any, Any, object]) -> None:
        """Do a last thing, and end; nobody waits for it."""

        async def end() -> None:
            try:
                await last
            finally:
                self._loop.stop()

        self.call_soon(end())


_behind: set[asyncio.Task[None]] = set()


async def _quietly(call: Coroutine[Any, Any, object]) -> None:
    with suppress(Exception):
        await call


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_end_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _end_all() -> None:
    """Cancel every task, so that whoever waits for one is told."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_END_SECONDS)
