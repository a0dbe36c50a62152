"""Streams of bytes and of work: cut, regroup, run many calls a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from coffre.cluster.errors import CoffreError

__all__ = ["GETS_IN_FLIGHT", "SEGMENT_BYTES", "ByteBudget", "chain", "cut", "each", "regroup", "segmented"]

SEGMENT_BYTES = 1 << 20
PUTS_IN_FLIGHT = 64  # larger batches would cost less each, and leave more free pages in the nodes' indexes
GETS_IN_FLIGHT = 256
_PENDING = CoffreError("not done")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


async def cut(view: memoryview) -> AsyncIterator[bytes]:
    """Pieces of at most one segment (1 MiB), without a copy."""
    for start in range(0, len(view), SEGMENT_BYTES):
        yield view[start : start + SEGMENT_BYTES]  # type: ignore[misc]  # the coder takes any buffer


async def segmented(
    data: bytes | bytearray | memoryview | AsyncIterable[bytes],
) -> tuple[bytes | memoryview, AsyncIterator[bytes] | None]:
    """The first segment of an object, and all of them when there are several."""
    if isinstance(data, bytes | bytearray | memoryview):
        plain = memoryview(data).cast("B") if isinstance(data, memoryview) else memoryview(data)
        return plain, cut(plain) if len(plain) > SEGMENT_BYTES else None
    source = regroup(data)
    first = await anext(source, b"")
    second = await anext(source, None) if len(first) == SEGMENT_BYTES else None
    return first, None if second is None else chain((bytes(first), second), source)


async def regroup(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream of chunks of any sizes into segments; memory stays at about two of them."""
    buffer = bytearray()
    async for chunk in chunks:
        if not buffer and len(chunk) == SEGMENT_BYTES and isinstance(chunk, bytes):
            yield chunk  # as it is: nobody can change it any more
            continue
        view = memoryview(chunk)
        while len(buffer) + len(view) >= SEGMENT_BYTES:
            take = SEGMENT_BYTES - len(buffer)
            yield bytes(buffer) + bytes(view[:take]) if buffer else bytes(view[:take])
            buffer.clear()
            view = view[take:]
        buffer += view
    if buffer:
        yield bytes(buffer)


async def chain(first: Iterable[bytes], rest: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """What was read already, then the rest of a stream."""
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece


class ByteBudget:
    """Back-pressure: at most so many bytes are worked on at once; callers wait their turn, first come first served."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size_bytes: int) -> None:
        """Take `size_bytes` of the budget, to be given back with `give_back`. What exceeds it whole passes alone."""
        if not self._queue and self._fits(size_bytes):
            self._used_bytes += size_bytes
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((size_bytes, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back(size_bytes)
            raise

    def _fits(self, size_bytes: int) -> bool:
        return not self._used_bytes or self._used_bytes + size_bytes <= self._limit_bytes

    def give_back(self, size_bytes: int) -> None:
        """Give back what `take` gave; those that wait go on."""
        self._used_bytes -= size_bytes
        while self._queue and (self._queue[0][1].done() or self._fits(self._queue[0][0])):
            waiting_bytes, turn = self._queue.popleft()
            if not turn.done():
                self._used_bytes += waiting_bytes
                turn.set_result(None)


async def each(
    items: Iterable[_Item], call: Callable[[_Item], Awaitable[_Result]], in_flight: int = GETS_IN_FLIGHT
) -> list[_Result | CoffreError]:
    """Run `call` on every item, a bounded number at once; items are drawn only as places get free."""
    results: list[_Result | CoffreError] = []
    source = enumerate(items)

    async def work() -> None:
        for place, item in source:
            results.append(_PENDING)
            try:
                results[place] = await call(item)
            except CoffreError as error:
                results[place] = error

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return results
