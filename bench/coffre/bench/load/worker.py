"""A client process of the load generator: told what to do on its standard input, tells what came of it on its output.

    python -m coffre.bench.load.worker CLIENT_TOML NUMBER

Every line is JSON. The first line in is the plan; then come commands, one at a time, each answered by a line "done" or
"failed", and while it runs by lines "progress" and "slices". The process ends when its input does.

There are two ways to ask for work: callers that wait for an answer, and arrivals that wait for nobody. In a closed loop
a slow cluster slows the load down as well, and a stall is one slow operation per caller. In an open loop operations are
due when they are due; their latency counts from then, whether or not they could be begun, so a stall shows in every
operation that was due during it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import random
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import click
import uvloop
from coffre.bench.load.operations import Housekeeping, Ledger, Operations
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Recorder, Slice
from coffre.bench.processes import heard_lines, tell
from coffre.bench.typed_json import decoded, plain
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.errors import CoffreError, InvalidArgument
from coffre.dev.tasks import together

__all__ = ["Worker", "arrivals", "closed_loop", "open_loop"]


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


class Worker:
    """What one process does, command by command. Each command has a client of its own, which knows nothing yet."""

    def __init__(self, config: Path, number: int, plan: LoadPlan, clock: Clock) -> None:
        self._config, self._number, self._plan, self._clock = config, number, plan, clock
        self._ledger = Ledger()

    def _advance(self, size_bytes: int) -> None:
        tell({"event": "progress", "bytes": size_bytes})

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command and return what is to be said of it. Raises `CoffreError`."""
        async with await connect(self._config) as client:
            house = Housekeeping(client, self._plan, self._number, self._ledger, self._clock, self._advance)
            match command:
                case {"do": "fill"}:
                    await house.fill()
                    return {}
                case {"do": "run", "start": float(start)}:
                    return await self._run(client, start)
                case {"do": "check"}:
                    return dict(plain(await house.check()))
                case {"do": "clean"}:
                    await house.clean()
                    return {}
        raise InvalidArgument(f"not a command: {command}")

    async def _run(self, client: AsyncClient, start: float) -> dict[str, Any]:
        recorder = Recorder(start, self._plan.interval_s)
        operations = Operations(client, self._plan, self._number, recorder, self._ledger, self._clock)
        reporting = asyncio.create_task(self._report(recorder))
        before = _cpu_s()
        try:
            not_started = await self._load(operations, start)
        finally:
            reporting.cancel()
        cpu_s = _cpu_s() - before
        self._tell_slices(recorder.take())
        return {
            "cpu_s": cpu_s,
            "not_started": not_started,
            "last": recorder.last,
            "lag": recorder.lag.encode() if recorder.lag.count else None,
            "examples": operations.examples,
        }

    async def _load(self, operations: Operations, start: float) -> int:
        """Put the load on; how many operations were due and never begun."""
        plan, clock, perform = self._plan, self._clock, operations.perform
        ramp_s, end = plan.ramp_intervals * plan.interval_s, start + plan.end_interval * plan.interval_s
        in_flight = self._share(plan.in_flight)
        count = None if plan.count is None else self._share(plan.count)
        if plan.rate_per_s is None:
            await closed_loop(
                perform, clock, callers=in_flight, start=start, ramp_s=ramp_s, end=end, count=count
            )
            return 0
        source = random.Random(f"{plan.seed}/{self._number}/arrivals")
        due_s = arrivals(source, rate_per_s=plan.rate_per_s / plan.processes, ramp_s=ramp_s)
        return await open_loop(perform, due_s, clock, in_flight=in_flight, start=start, end=end, count=count)

    def _share(self, total: int) -> int:
        """The part of this process, such that all parts are the total."""
        return total // self._plan.processes + (self._number < total % self._plan.processes)

    async def _report(self, recorder: Recorder) -> None:
        """Hand over every interval once it is over."""
        while True:
            await self._clock.sleep(self._plan.interval_s)
            self._tell_slices(recorder.take(self._clock.monotonic()))

    def _tell_slices(self, slices: list[Slice]) -> None:
        tell({"event": "slices", "slices": plain(slices)})


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def serve(config: Path, number: int) -> None:
    """Obey until the input ends, which also ends a command under way."""
    lines = heard_lines()
    worker = Worker(config, number, decoded(LoadPlan, await anext(lines)), SystemClock())
    commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=2)

    async def listen() -> None:
        async for command in lines:
            await commands.put(command)

    async def work() -> None:
        while True:
            try:
                tell({"event": "done", **await worker.obey(await commands.get())})
            except CoffreError as error:
                tell({"event": "failed", "error": type(error).__name__, "text": str(error)})

    tasks = asyncio.create_task(work()), asyncio.create_task(listen())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # what nobody foresaw ends the process with a traceback
        task.cancel()


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("number", type=int)
def main(config: Path, number: int) -> None:
    """A client process of the load generator."""
    uvloop.run(serve(config, number))


if __name__ == "__main__":
    main()
