"""The door of a client, which every call passes: of this process and event loop, not closed, in time, and errors that
say what they are about."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from coffre.client._checks import seconds_of
from coffre.cluster.errors import (
    Cancelled,
    CoffreError,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    WriteTimedOut,
)
from coffre.cluster.transport import OwnProcess

__all__ = ["CLOSE_SECONDS", "Door"]

CLOSE_SECONDS = 5.0  # that calls under way get when a client is closed
_TIDY_SECONDS = 1.0  # that a call which is ended gets to tidy up
_END_SECONDS = 3.0  # that all of them get to end
_T = TypeVar("_T")


class Door:
    """Knows the calls under way, and ends them when the client is closed."""

    def __init__(self, client: object) -> None:
        self._process = OwnProcess("this client", client)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[Call] = set()
        self._streams: weakref.WeakSet[AsyncGenerator[object]] = weakref.WeakSet()
        self._left: asyncio.Future[None] | None = None
        self.is_closed = False

    @property
    def is_of_this_process(self) -> bool:
        """False after a fork."""
        return self._process.is_this

    def check(self) -> None:
        """Raise `InvalidArgument` where this client cannot be used."""
        self._process.check()
        if self.is_closed:
            raise InvalidArgument("this client is closed")

    def call(
        self,
        timeout: float | None = None,
        *,
        bucket: str | None = None,
        key: str | None = None,
        version: str | None = None,
        writes: bool = False,
    ) -> Call:
        """Around a call: at most `timeout` seconds. `writes`: whether its outcome is unknown when it is ended."""
        self.check()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidArgument(
                "this client belongs to another event loop: connect once for each loop, or use the sync Client"
            )
        return Call(self, seconds_of("timeout", timeout), bucket, key, version, writes=writes)

    def stream(self, source: AsyncGenerator[_T], call: Callable[[], Call]) -> AsyncGenerator[_T]:
        """The same items, each of them a call of its own; between two of them nothing is under way."""
        made = self._steps(source, call)
        self._streams.add(made)
        return made

    async def _steps(self, source: AsyncGenerator[_T], call: Callable[[], Call]) -> AsyncGenerator[_T]:
        try:
            while True:
                with call():
                    try:
                        item = await anext(source)
                    except StopAsyncIteration:
                        return
                yield item
        finally:
            await source.aclose()

    def time_left(self, timeout: float | None) -> Callable[[], float | None]:
        """How much of `timeout` is left for the next of several calls; never nothing, so that it is they who say so."""
        checked = seconds_of("timeout", timeout)
        if checked is None:
            return lambda: None
        loop = asyncio.get_running_loop()
        until = loop.time() + checked
        return lambda: max(until - loop.time(), 0.001)

    # ---------------------------------------------------------------- the end

    async def close(self, grace: float) -> None:
        """Let no call in any more; those under way get `grace` seconds, and are then ended."""
        self.is_closed = True
        await self._until_left(grace)
        for call in self._others():
            call.end_for_close()
        await self._until_left(_END_SECONDS)
        for stream in list(self._streams):
            with suppress(RuntimeError, asyncio.TimeoutError):  # somebody is in it, and will not come out
                async with asyncio.timeout(_END_SECONDS):
                    await stream.aclose()

    def _others(self) -> list[Call]:
        """All calls but the one that closes, where a provider of keys does such a thing."""
        me = asyncio.current_task()
        return [call for call in self._calls if call.task is not me]

    async def _until_left(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._others() and (left := until - loop.time()) > 0:
            self._left = loop.create_future()
            await asyncio.wait([self._left], timeout=left)

    def enter(self, call: Call) -> None:
        """A call begins."""
        self._calls.add(call)

    def leave(self, call: Call) -> None:
        """A call has ended."""
        self._calls.discard(call)
        if self._left is not None and not self._left.done():
            self._left.set_result(None)


class Call:
    """One call, from its arguments to its end."""

    def __init__(
        self,
        door: Door,
        timeout: float | None,
        bucket: str | None,
        key: str | None,
        version: str | None,
        *,
        writes: bool,
    ) -> None:
        self._door = door
        self._timeout = timeout
        self._bucket, self._key, self._version = bucket, key, version
        self._writes = writes
        self._ending: CoffreError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0  # so often the task was cancelled from here
        self._cancelling = 0
        self.task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        task = self.task = asyncio.current_task()
        if task is None:
            raise InvalidArgument("a call is made from a task")
        self._cancelling = task.cancelling()
        if self._timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._end_for_time)
        self._door.enter(self)

    def _end_for_time(self) -> None:
        text = f"it was not done within {self._timeout:g} s"
        if self._writes:
            self._end(WriteTimedOut(f"{text}; the write may stand or not: read the object to find out"))
        else:
            self._end(DeadlineExceeded(text))

    def end_for_close(self) -> None:
        """The client is being closed, and waits no longer."""
        text = "the client was closed during the call"
        if self._writes:
            self._end(OutcomeUnknown(f"{text}; the write may stand or not: read the object to find out"))
        else:
            self._end(Cancelled(text))

    def _end(self, error: CoffreError) -> None:
        if self._ending is None:
            self._ending = error
            if self._timer is not None:
                self._timer.cancel()
            self._cancel()

    def _cancel(self) -> None:
        """Once, and again after a while: tidying up behind a write asks nodes that may not answer, too."""
        if self.task is not None:
            self._asked += 1
            self.task.cancel()
            self._timer = asyncio.get_running_loop().call_later(_TIDY_SECONDS, self._cancel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._door.leave(self)
        ended = self._ending
        if ended is not None and self.task is not None:
            left = min(self.task.uncancel() for _ in range(self._asked))
            if isinstance(error, asyncio.CancelledError) and left <= self._cancelling:
                raise self._named(ended) from None
        self.task = None
        if isinstance(error, CoffreError):
            named = self._named(error)
            if named is not error:
                raise named

    def _named(self, error: CoffreError) -> CoffreError:
        return error.about(bucket=self._bucket, key=self._key, version=self._version)
