"""The client processes of a run, seen from the one that started them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from coffre.bench.load.plan import LoadPlan
from coffre.bench.tasks import together
from coffre.cluster import errors
from coffre.cluster.errors import InternalError

__all__ = ["Fleet"]

LINE_BYTES_MAX = 64 << 20  # the last intervals of a run with many classes, at once
COMPLAINT_LINES = 20
ENDING_S = 10.0
_ERRORS = {kind.__name__: kind for kind in map(errors.__dict__.get, errors.__all__) if isinstance(kind, type)}
_Hear = Callable[[dict[str, Any]], None]


class Fleet:
    """`plan.processes` workers, which end with this object, or with this process."""

    def __init__(self, config: Path, plan: LoadPlan) -> None:
        self._config, self._plan = config, plan
        self._members: list[_Member] = []

    async def __aenter__(self) -> Self:
        try:
            for number in range(self._plan.processes):
                self._members.append(await _Member.start(self._config, number, self._plan))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def command(self, command: dict[str, object], hear: _Hear) -> list[dict[str, Any]]:
        """Have all do it at once; what each said at the end. `hear` gets what they say meanwhile.

        Raises the error of the first that failed, and `InternalError` when one ended.
        """
        async with together() as group:
            tasks = [group.create_task(member.command(command, hear)) for member in self._members]
        return [task.result() for task in tasks]

    async def _end(self) -> None:
        await asyncio.gather(*(member.end() for member in self._members))


class _Member:
    """One worker."""

    def __init__(self, process: asyncio.subprocess.Process, number: int) -> None:
        self._process, self._number = process, number
        self._complaints: deque[str] = deque(maxlen=COMPLAINT_LINES)
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, config: Path, number: int, plan: LoadPlan) -> _Member:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "coffre.bench.load.worker", str(config), str(number)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            start_new_session=True,  # a Ctrl-C is for the parent, which then ends the others
        )
        member = cls(process, number)
        await member._say(plan.to_json())
        return member

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._complaints.append(line.decode("utf-8", "replace").strip())

    async def _say(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            await self._ended()

    async def command(self, command: dict[str, object], hear: _Hear) -> dict[str, Any]:
        assert self._process.stdout is not None
        await self._say(command)
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
