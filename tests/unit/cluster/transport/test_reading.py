"""A read is never cancelled itself: its call is, and the read awaited to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import pytest
from coffre.cluster.transport.reading import answer_of, end, replies_of


class Call:
    """A call as gRPC's are: a read that is cancelled itself loses its message; the end of the call ends the read."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._arrives = asyncio.Event()
        self._cancelled = False

    def cancel(self) -> bool:
        self.events.append("call cancelled")
        self._cancelled = True
        self._arrives.set()
        return True

    def send(self) -> None:
        self._arrives.set()

    async def _read(self) -> str:
        try:
            await self._arrives.wait()
        except asyncio.CancelledError:
            self.events.append("message lost")
            raise
        self._arrives.clear()
        self.events.append("read ended")
        if self._cancelled:
            raise asyncio.CancelledError
        return "message"

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            yield await self._read()

    def __await__(self) -> Any:  # a generator of futures, as of any coroutine
        return self._read().__await__()


@pytest.fixture
def call() -> Call:
    return Call()


async def stopped(work: Coroutine[Any, Any, object]) -> None:
    """Cancel something once it waits."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def all_of(call: Call) -> list[str]:
    async with aclosing(replies_of(call)) as replies:
        return [reply async for reply in replies]


async def test_a_stream_that_is_cancelled_in_mid_read(call: Call) -> None:
    await stopped(all_of(call))
    assert call.events == ["call cancelled", "read ended"]


async def test_a_stream_whose_time_is_over_in_mid_read(call: Call) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await all_of(call)
    assert call.events == ["call cancelled", "read ended"]


async def test_a_stream_that_is_left_between_two_reads(call: Call) -> None:
    call.send()
    async with aclosing(replies_of(call)) as replies:
        async for reply in replies:
            assert reply == "message"
            break
    assert call.events == ["read ended", "call cancelled"]


async def test_a_call_that_somebody_else_cancels(call: Call) -> None:
    task = asyncio.ensure_future(all_of(call))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not task.cancelling()
    assert "message lost" not in call.events


async def test_an_answer_that_nobody_waits_for_any_more(call: Call) -> None:
    await stopped(answer_of(call))
    call.send()
    for _ in range(5):
        await asyncio.sleep(0)
    assert call.events == ["read ended"]


@pytest.mark.parametrize("finish", [lambda call: call.send(), lambda call: None])
async def test_the_end_of_a_call_and_of_what_reads_from_it(
    call: Call, finish: Callable[[Call], None]
) -> None:
    reading = asyncio.ensure_future(call._read())
    await asyncio.sleep(0)
    finish(call)
    await end(call, reading)
    assert reading.done()
    assert "message lost" not in call.events
