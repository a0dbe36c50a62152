"""The client processes of a run, seen from the one that started them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from coffre.bench.load.plan import LoadPlan
from coffre.bench.tasks import together
from coffre.bench.typed_json import plain
from coffre.cluster import errors
from coffre.cluster.errors import InternalError

__all__ = ["ENDING_S", "Fleet", "fleet"]

LINE_BYTES_MAX = 64 << 20  # the last intervals of a run with many classes, at once
COMPLAINT_LINES = 20
ENDING_S = 10.0
_ERRORS = {kind.__name__: kind for kind in map(errors.__dict__.get, errors.__all__) if isinstance(kind, type)}
_Hear = Callable[[dict[str, Any]], None]


class Fleet:
    """Workers that do the same at the same time."""

    def __init__(self, members: list[_Member]) -> None:
        self._members = members

    async def command(self, command: dict[str, object], hear: _Hear) -> list[dict[str, Any]]:
        """Have all do it at once; what each said at the end. `hear` gets what they say meanwhile.

        Raises the error of the first that failed, and `InternalError` when one ended.
        """
        async with together() as group:
            tasks = [group.create_task(member.command(command, hear)) for member in self._members]
        return [task.result() for task in tasks]


@asynccontextmanager
async def fleet(config: Path, plan: LoadPlan) -> AsyncIterator[Fleet]:
    """`plan.processes` workers, which end with the block, or with this process."""
    async with AsyncExitStack() as exits:
        members = [
            await exits.enter_async_context(_member(config, number, plan)) for number in range(plan.processes)
        ]
        yield Fleet(members)


@asynccontextmanager
async def _member(config: Path, number: int, plan: LoadPlan) -> AsyncIterator[_Member]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coffre.bench.load.worker", str(config), str(number)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,  # a Ctrl-C is for the parent, which then ends the others
    )
    member = _Member(process, number)
    try:
        await member.say(plain(plan))
        yield member
    finally:
        await member.end()


class _Member:
    """One worker."""

    def __init__(self, process: asyncio.subprocess.Process, number: int) -> None:
        self._process, self._number = process, number
        self._complaints: deque[str] = deque(maxlen=COMPLAINT_LINES)
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._complaints.append(line.decode("utf-8", "replace").strip())

    async def say(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            await self._ended()

    async def command(self, command: dict[str, object], hear: _Hear) -> dict[str, Any]:
        assert self._process.stdout is not None
        await self.say(command)
        while line := await self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            match message["event"]:
                case "done":
                    return message
                case "failed":
                    # By its class, so that the command ends with the same status as in one process.
                    kind = _ERRORS.get(message["error"], InternalError)
                    raise kind(f"client process {self._number}: {message['text'] or message['error']}")
                case _:
                    hear(message)
        await self._ended()

    async def _ended(self) -> NoReturn:
        status = await self._process.wait()
        await self._listening
        said = next((line for line in reversed(self._complaints) if line), "no reason given")
        raise InternalError(f"client process {self._number} ended with status {status}: {said}")

    async def end(self) -> None:
        """Close its input, which ends it; kill it when that does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), ENDING_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._listening.cancel()
