"""The open loop counts from when operations were due, the closed one does not; neither does more than it is told."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from coffre.bench.load.recorder import Latencies
from coffre.bench.load.worker import arrivals, closed_loop, open_loop

_Result = TypeVar("_Result")


class JumpingClock:
    """A clock that stands still while anybody works, and jumps to the next sleeper's time when all wait."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()

    def unixtime_ms(self) -> int:
        return int(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._tickets), future))
        await future

    async def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(20):  # let everybody get as far as they can
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                when, _, future = heapq.heappop(self._sleepers)
                self._now = max(self._now, when)
                if not future.done():
                    future.set_result(None)
        return task.result()


class StalledTarget:
    """Answers in 1 ms, but not from second 5 to second 7: what comes then is answered at 7."""

    def __init__(self, clock: JumpingClock) -> None:
        self._clock = clock
        self.latencies = Latencies()
        self.in_flight = self.most_in_flight = self.calls = 0

    async def call(self) -> None:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._clock.sleep(0.001)
        if 5.0 <= self._clock.monotonic() < 7.0:
            await self._clock.sleep(7.0 - self._clock.monotonic())
        self.in_flight -= 1

    def from_due(self) -> Callable[[float], Awaitable[None]]:
        async def perform(due: float) -> None:
            await self.call()
            self.latencies.record(self._clock.monotonic() - due)

        return perform

    async def from_call(self) -> None:
        begun = self._clock.monotonic()
        await self.call()
        self.latencies.record(self._clock.monotonic() - begun)


def every_10_ms() -> Iterator[float]:
    return (number / 100 for number in itertools.count())


async def test_a_stall_shows_in_every_operation_that_was_due_during_it() -> None:
    """2 of 10 s stalled: a fifth of the operations was due then, whatever could be begun."""
    clock = JumpingClock()
    target = StalledTarget(clock)
    missed = await clock.run(
        open_loop(target.from_due(), every_10_ms(), clock, in_flight=4, start=0.0, end=10.0)
    )
    assert missed == 0
    assert target.latencies.count == 1000
    assert target.most_in_flight == 4
    assert target.latencies.percentile(50) < 0.005
    assert target.latencies.percentile(90) == pytest.approx(1.0, rel=0.06)
    assert target.latencies.percentile(99) == pytest.approx(1.9, rel=0.06)


async def test_a_closed_loop_hides_the_same_stall() -> None:
    """What the open loop is for: four slow calls among thousands leave p99 as it was."""
    clock = JumpingClock()
    target = StalledTarget(clock)
    await clock.run(closed_loop(target.from_call, clock, callers=4, start=0.0, ramp_s=0.0, end=10.0))
    assert target.latencies.percentile(99) < 0.005
    assert target.latencies.percentile(100) > 1.9
    assert target.most_in_flight == 4


async def test_what_was_due_and_never_begun_is_counted() -> None:
    """The target stalls until beyond the end: operations due from 5 s on find no place."""
    clock = JumpingClock()
    target = StalledTarget(clock)
    missed = await clock.run(
        open_loop(target.from_due(), every_10_ms(), clock, in_flight=4, start=0.0, end=6.0)
    )
    assert target.calls + missed == 600
    assert missed == pytest.approx(96, abs=2)
    assert target.latencies.count == target.calls  # what was begun has ended


async def test_counts_end_both_loops() -> None:
    clock = JumpingClock()
    target = StalledTarget(clock)
    await clock.run(
        closed_loop(target.from_call, clock, callers=3, start=0.0, ramp_s=0.0, end=99.0, count=10)
    )
    assert target.calls == 10
    assert (
        await clock.run(
            open_loop(
                target.from_due(),
                every_10_ms(),
                clock,
                in_flight=4,
                start=clock.monotonic(),
                end=99.0,
                count=10,
            )
        )
        == 0
    )
    assert target.calls == 20


async def test_callers_come_one_by_one_during_the_ramp() -> None:
    clock = JumpingClock()
    starts: list[float] = []

    async def perform() -> None:
        starts.append(clock.monotonic())
        await clock.sleep(100.0)

    await clock.run(closed_loop(perform, clock, callers=4, start=1.0, ramp_s=2.0, end=50.0))
    assert starts == pytest.approx([1.0, 1.5, 2.0, 2.5])


def test_arrivals_keep_their_rate_and_grow_evenly_during_the_ramp() -> None:
    due = list(itertools.takewhile(lambda at: at < 60, arrivals(random.Random(7), rate_per_s=200, ramp_s=20)))
    assert due == sorted(due)
    steady = [at for at in due if at >= 20]
    assert len(steady) == pytest.approx(200 * 40, rel=0.03)
    assert len(due) - len(steady) == pytest.approx(200 * 20 / 2, rel=0.05)
    assert len([at for at in due if at < 10]) == pytest.approx(200 * 20 / 8, rel=0.1)
    gaps = [after - before for before, after in itertools.pairwise(steady)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance / mean**2 == pytest.approx(1.0, rel=0.1)  # of a Poisson process


async def test_an_error_of_the_generator_itself_ends_the_loop() -> None:
    clock = JumpingClock()

    async def perform() -> None:
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        await clock.run(closed_loop(perform, clock, callers=2, start=0.0, ramp_s=0.0, end=1.0))
