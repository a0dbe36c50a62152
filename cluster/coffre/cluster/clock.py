"""Time as a seam: the wall clock of this machine, and two twins for tests and simulation: one that is moved by hand,
and one that drifts and jumps over another time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "DriftingClock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """What the protocol code may know of time."""

    def unixtime_ms(self) -> int:
        """Milliseconds since 1970, as this machine believes; may jump."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""


class SystemClock:
    """The clock of the operating system."""

    def unixtime_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to; sleepers wake in the order of their deadlines."""

    def __init__(self, unixtime_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = unixtime_ms
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ticket = 0

    def unixtime_ms(self) -> int:
        return self._start_ms + int(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        self._ticket += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, self._ticket, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move the time forward and wake every sleeper whose deadline has passed."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def set_unixtime_ms(self, unixtime_ms: int) -> None:
        """Let the wall clock jump; the monotonic clock does not."""
        self._start_ms = unixtime_ms - int(self._now * 1000)


class DriftingClock:
    """The clock of one member of a simulated world: wrong by an offset, too fast or too slow, and it may jump.

    `world` gives the seconds that it rests on: those of the event loop that the world runs on.
    """

    def __init__(
        self,
        world: Callable[[], float],
        *,
        unixtime_ms: int = 1_700_000_000_000,
        rate: float = 1.0,
    ) -> None:
        self._world = world
        self._unixtime_ms = unixtime_ms
        self._rate = rate
        self._wrong_by_ms = 0
        self._stood_still = 0.0

    def unixtime_ms(self) -> int:
        return self._unixtime_ms + self._wrong_by_ms + int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return (self._world() - self._stood_still) * self._rate

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)

    def set_wrong_by(self, seconds: float) -> None:
        """Let the wall clock jump to so many seconds ahead of the right time, or behind it; the monotonic clock does
        not jump."""
        self._wrong_by_ms = int(seconds * 1000)

    def stand_still(self, seconds: float) -> None:
        """Both clocks have not moved for so many seconds of the world, as those of a machine that was suspended."""
        self._stood_still += seconds

    def shift_ms(self, milliseconds: int) -> None:
        """Let the wall clock jump from where it is."""
        self._wrong_by_ms += milliseconds
