"""The two ways to ask for work: callers that wait for an answer, and arrivals that wait for nobody.

In a closed loop a slow cluster slows the load down as well, and a stall is one slow operation per caller. In an open
loop operations are due when they are due; their latency counts from then, whether or not they could be begun, so a
stall shows in every operation that was due during it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator

from coffre.bench.processes import together
from coffre.cluster.clock import Clock

__all__ = ["arrivals", "closed_loop", "open_loop"]


async def closed_loop(
    perform: Callable[[], Awaitable[None]],
    clock: Clock,
    *,
    callers: int,
    start: float,
    ramp_s: float,
    end: float,
    count: int | None = None,
) -> None:
    """Keep `callers` operations in flight until `end`, or until `count` were begun; return when all have ended.

    The first caller begins at `start`, the last one `ramp_s` later.
    """
    left = count

    async def caller(number: int) -> None:
        nonlocal left
        await clock.sleep(max(0.0, start + ramp_s * number / callers - clock.monotonic()))
        while clock.monotonic() < end and left != 0:
            left = None if left is None else left - 1
            await perform()

    async with together() as group:
        for number in range(callers):
            group.create_task(caller(number))


def arrivals(source: random.Random, *, rate_per_s: float, ramp_s: float) -> Iterator[float]:
    """Seconds from the start at which operations are due: a Poisson process whose rate grows evenly during the ramp."""
    before_full_rate = rate_per_s * ramp_s / 2
    expected = 0.0
    while True:
        expected += source.expovariate(1.0)
        if expected < before_full_rate:
            yield math.sqrt(2 * expected * ramp_s / rate_per_s)
        else:
            yield ramp_s / 2 + expected / rate_per_s


async def open_loop(
    perform: Callable[[float], Awaitable[None]],
    due_s: Iterator[float],
    clock: Clock,
    *,
    in_flight: int,
    start: float,
    end: float,
    count: int | None = None,
) -> int:
    """Begin every operation when it is due, but at most `in_flight` at once; `perform` gets the time that it was due.

    Returns how many were due before `end` and could not be begun by then, once all others have ended.
    """
    places = asyncio.Semaphore(in_flight)
    begun = 0

    async def one(due: float) -> None:
        try:
            await perform(due)
        finally:
            places.release()

    async with together() as group:
        for offset_s in due_s:
            due = start + offset_s
            if due >= end or begun == count:
                return 0
            if (early_s := due - clock.monotonic()) > 0:
                await clock.sleep(early_s)
            if not await _place(places, clock, end):
                left = None if count is None else count - begun
                return _missed(due_s, end - start, left)
            begun += 1
            group.create_task(one(due))
    return 0


async def _place(places: asyncio.Semaphore, clock: Clock, end: float) -> bool:
    """Wait for a place in flight; False when there was none before `end`."""
    if not places.locked():
        await places.acquire()
        return True
    waiting = asyncio.ensure_future(places.acquire())
    over = asyncio.ensure_future(clock.sleep(max(0.0, end - clock.monotonic())))
    try:
        await asyncio.wait([waiting, over], return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        over.cancel()
        waiting.cancel()  # of no effect when it is done


def _missed(due_s: Iterator[float], until_s: float, left: int | None) -> int:
    """This one, and those that would have been due after it."""
    missed = 1
    for offset_s in due_s:
        if offset_s >= until_s or missed == left:
            break
        missed += 1
    return missed
