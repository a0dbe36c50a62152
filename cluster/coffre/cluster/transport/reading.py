"""Reading from gRPC calls: the one place that ends a read in mid-air, so that nothing of it stays in memory.

When the *task* that awaits a read is cancelled, the message that arrives next belongs to nobody: it is never freed, and
Python does not know of it (grpc.aio 1.85 at least; tests/integration/test_native_memory.py measures it). When the
*call* is cancelled, and the read awaited to its end, nothing is left. So no cancellation of a caller reaches an await
on gRPC: each read is a task of its own, which only the end of its call ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

__all__ = ["Ending", "Messages", "answer_of", "end", "replies_of"]

_Reply = TypeVar("_Reply")
_Reply_co = TypeVar("_Reply_co", covariant=True)
_END = object()
_left: set[object] = set()  # answers that nobody waits for any more


class Ending(Protocol):
    """A call that can be ended from here."""

    def cancel(self) -> object:
        """End it; what is under way of it ends soon after."""


class Messages(Ending, Protocol[_Reply_co]):
    """A call that messages come from, `grpc.aio.UnaryStreamCall` say."""

    def __aiter__(self) -> AsyncIterator[_Reply_co]: ...


async def end(call: Ending, *tasks: asyncio.Future[Any]) -> None:
    """Cancel a call, then await what reads from it, or writes to it, to the end; what they bring, whatever it is, is
    nobody's."""
    call.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def replies_of(call: Messages[_Reply]) -> AsyncGenerator[_Reply]:
    """The messages of a call. However this ends, by an error, a cancellation or `aclose`, the call has ended with it.

    Raises `grpc.aio.AioRpcError`, or `CancelledError` when the call was cancelled by somebody else.
    """
    messages = aiter(call)
    reading: asyncio.Future[object] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(anext(messages, _END))
            reply = await asyncio.shield(reading)
            reading = None
            if reply is _END:
                return
            yield reply  # type: ignore[misc]  # what is not _END is a reply
    finally:
        await end(call, *(() if reading is None else (reading,)))


async def answer_of(call: Awaitable[_Reply]) -> _Reply:
    """The answer of a call that ends soon by itself. A caller that is cancelled leaves it to that: to cancel it would
    cancel gRPC's own task, which awaits the message."""
    waiting = asyncio.ensure_future(_awaited(call))
    try:
        return await asyncio.shield(waiting)
    finally:
        if not waiting.done():
            _left.add(waiting)  # the loop itself keeps no task alive
            waiting.add_done_callback(_left.discard)


async def _awaited(call: Awaitable[_Reply]) -> _Reply:
    return await call
