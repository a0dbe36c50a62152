"""A client process of the load generator: told what to do on its standard input, tells what came of it on its output.

    python -m coffre.bench.load.worker CLIENT_TOML NUMBER

Every line is JSON. The first line in is the plan; then come commands, one at a time, each answered by a line "done" or
"failed", and while it runs by lines "progress" and "slices". The process ends when its input does.
"""

from __future__ import annotations

import asyncio
import random
import resource
from pathlib import Path
from typing import Any

import click
import uvloop
from coffre.bench.load.loops import arrivals, closed_loop, open_loop
from coffre.bench.load.operations import Housekeeping, Ledger, Operations
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Recorder, Slice
from coffre.bench.processes import heard_lines, tell
from coffre.bench.typed_json import decoded, plain
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.errors import CoffreError, InvalidArgument

__all__ = ["Worker"]


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
