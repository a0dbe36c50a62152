"""A client process of the load generator: told what to do on its standard input, tells what came of it on its output.

    python -m coffre.bench.load.worker CLIENT_TOML NUMBER

Every line is JSON. The first line in is the plan; then come commands, one at a time, each answered by a line "done" or
"failed", and while it runs by lines "progress" and "slices". The process ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from coffre.bench.load.housekeeping import Housekeeping
from coffre.bench.load.ledger import Ledger
from coffre.bench.load.loops import arrivals, closed_loop, open_loop
from coffre.bench.load.operations import Operations
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Recorder
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.errors import CoffreError, InvalidArgument

__all__ = ["Worker"]

LINE_BYTES_MAX = 1 << 20
_Tell = Callable[[dict[str, object]], None]


class Worker:
    """What one process does, command by command. Each command has a client of its own, which knows nothing yet."""

    def __init__(self, config: Path, number: int, plan: LoadPlan, clock: Clock, tell: _Tell) -> None:
        self._config, self._number, self._plan = config, number, plan
        self._clock, self._tell = clock, tell
        self._ledger = Ledger()

    def _advance(self, size_bytes: int) -> None:
        self._tell({"event": "progress", "bytes": size_bytes})

    async def obey(self, command: dict[str, Any]) -> dict[str, object]:
        """Carry out one command and return what is to be said of it. Raises `CoffreError`."""
        async with await connect(self._config) as client:
            housekeeping = Housekeeping(
                client, self._plan, self._number, self._ledger, self._clock, self._advance
            )
            match command:
                case {"do": "fill"}:
                    await housekeeping.fill()
                    return {}
                case {"do": "run", "start": float(start)}:
                    return await self._run(client, start)
                case {"do": "check"}:
                    return asdict(await housekeeping.check())
                case {"do": "clean"}:
                    await housekeeping.clean()
                    return {}
        raise InvalidArgument(f"not a command: {command}")

    # ---------------------------------------------------------------- the run

    async def _run(self, client: AsyncClient, start: float) -> dict[str, object]:
        plan = self._plan
        recorder = Recorder(start, plan.interval_s)
        operations = Operations(client, plan, self._number, recorder, self._ledger, self._clock)
        reporting = asyncio.create_task(self._report(recorder))
        before = _cpu_s()
        try:
            not_started = await self._load(operations, start)
        finally:
            reporting.cancel()
        cpu_s = _cpu_s() - before
        self._tell({"event": "slices", "slices": [each.to_json() for each in recorder.take()]})
        return {
            "cpu_s": cpu_s,
            "not_started": not_started,
            "last": recorder.last,
            "lag": recorder.lag.encode() if recorder.lag.count else None,
            "examples": operations.examples,
        }

    async def _load(self, operations: Operations, start: float) -> int:
        """Put the load on; how many operations were due and never begun."""
        plan = self._plan
        ramp_s = plan.ramp_intervals * plan.interval_s
        end = start + plan.end_interval * plan.interval_s
        in_flight = _share(plan.in_flight, self._number, plan.processes)
        count = None if plan.count is None else _share(plan.count, self._number, plan.processes)
        if plan.rate_per_s is None:
            await closed_loop(
                operations.perform,
                self._clock,
                callers=in_flight,
                start=start,
                ramp_s=ramp_s,
                end=end,
                count=count,
            )
            return 0
        due_s = arrivals(
            random.Random(f"{plan.seed}/{self._number}/arrivals"),
            rate_per_s=plan.rate_per_s / plan.processes,
            ramp_s=ramp_s,
        )
        return await open_loop(
            operations.perform, due_s, self._clock, in_flight=in_flight, start=start, end=end, count=count
        )

    async def _report(self, recorder: Recorder) -> None:
        """Hand over every interval once it is over."""
        while True:
            await self._clock.sleep(self._plan.interval_s)
            slices = recorder.take(self._clock.monotonic())
            self._tell({"event": "slices", "slices": [each.to_json() for each in slices]})


def _share(total: int, number: int, processes: int) -> int:
    """The part of one process, such that all parts are the total."""
    return total // processes + (number < total % processes)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---------------------------------------------------------------- main


async def _lines() -> AsyncIterator[dict[str, Any]]:
    """Lines of the standard input until it ends."""
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def _tell(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def serve(config: Path, number: int) -> None:
    """Obey until the input ends, which also ends a command under way."""
    lines = _lines()
    plan = LoadPlan.from_json(await anext(lines))
    worker = Worker(config, number, plan, SystemClock(), _tell)
    commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=2)

    async def listen() -> None:
        async for command in lines:
            await commands.put(command)
        working.cancel()

    async def work() -> None:
        while True:
            try:
                _tell({"event": "done", **await worker.obey(await commands.get())})
            except CoffreError as error:
                _tell({"event": "failed", "error": type(error).__name__, "text": str(error)})

    working = asyncio.create_task(work())
    listening = asyncio.create_task(listen())
    try:
        await working
    except asyncio.CancelledError:
        pass
    finally:
        listening.cancel()


def main(arguments: list[str]) -> int:
    match arguments:
        case [config, number] if number.isdigit():
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve(Path(config), int(number)))
            return 0
        case _:
            sys.stderr.write("usage: python -m coffre.bench.load.worker CLIENT_TOML NUMBER\n")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
