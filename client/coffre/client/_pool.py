"""Threads that code and compress.

`ThreadPoolExecutor` takes no more work as soon as the main thread has ended; other threads may go on with a client.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

__all__ = ["DaemonPool"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonPool(Executor):
    """A few daemon threads, begun with the first work."""

    def __init__(self, threads: int, name: str) -> None:
        self._count = threads
        self._name = name
        self._begun = False
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As `Executor` has it. After `shutdown` nothing comes of it, and the future is cancelled."""
        future: Future[_T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - for whoever waits
                future.set_exception(error)

        with self._lock:
            if self._count:
                self._begin()
                self._work.put(work)
                return future
        future.cancel()
        future.set_running_or_notify_cancel()
        return future

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        for number in range(self._count):
            threading.Thread(
                target=_serve, args=(self._work,), name=f"{self._name}_{number}", daemon=True
            ).start()

    def __del__(self) -> None:
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; the threads end behind what they have. Nobody needs to wait for them."""
        with self._lock:
            count, self._count = self._count, 0
        for _ in range(count if self._begun else 0):
            self._work.put(None)


def _serve(work: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := work.get()) is not None:
        call()
        del call  # what it holds is large
