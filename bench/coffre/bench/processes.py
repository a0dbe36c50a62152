"""Programs of this room in processes of their own, and what Linux says of a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from coffre.cluster.errors import InternalError
from coffre.dev.tasks import together

__all__ = [
    "Child",
    "anonymous_bytes",
    "child",
    "cpu_s",
    "heard_lines",
    "is_stopped",
    "parse_rollup",
    "run_probe",
    "tell",
]


LINE_BYTES_MAX = 64 << 20  # the last intervals of a long load with many classes, at once
COMPLAINT_LINES = 20
ENDING_S = 10.0
_MEMORY = ("Anonymous:", "Swap:")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system; 0 for one that has ended (proc_pid_stat(5))."""
    try:
        after_name = _stat(Path(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime and stime are fields 14 and 15; what is left of the line begins with field 3.
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped."""
    return {_stat(task / "stat")[0] for task in Path(f"/proc/{pid}/task").iterdir()} == {"T"}


def _stat(path: Path) -> list[str]:
    """What follows the name, which may have spaces in it."""
    return path.read_text("ascii", "replace").rpartition(")")[2].split()


def anonymous_bytes(pid: int) -> int | None:
    """Memory that a process has to itself now; None when it has ended."""
    try:
        return parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def parse_rollup(text: str) -> int:
    """Bytes of anonymous memory, in RAM or swapped out, in the text of an smaps_rollup (proc_pid_smaps(5)).

    `Anonymous` counts heap, stacks and what a private mapping of a file has changed. Pages of files, such as the map of
    LMDB and the program's own code, belong to the page cache, which the kernel takes back when it needs to, and
    do not count.
    """
    found = {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith(_MEMORY)}
    if "Anonymous:" not in found:
        raise InternalError("the kernel does not say how much memory is anonymous")
    return sum(found.values()) << 10


class Child:
    """A program of this room in a process of its own, which tells, and may be told, one JSON object a line."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.pid, self._process = name, process.pid, process
        self._complaints: deque[str] = deque(maxlen=COMPLAINT_LINES)
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._complaints.append(line.decode("utf-8", "replace").strip())

    async def say(self, message: object) -> None:
        """Tell it something. Raises `InternalError` when it has failed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            await self.hear()

    async def hear(self) -> dict[str, Any] | None:
        """What it tells next; None when it has ended.

        Raises `InternalError`, with its last complaint, when it has failed.
        """
        assert self._process.stdout is not None
        if line := await self._process.stdout.readline():
            found: dict[str, Any] = json.loads(line)
            return found
        status = await self._process.wait()
        await self._listening
        if status:
            said = next((line for line in reversed(self._complaints) if line), "no reason given")
            raise InternalError(f"{self.name} ended with status {status}: {said}")
        return None

    async def end(self, patience_s: float) -> None:
        """Close its input, which ends it; kill it when that does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                self._process.kill()
            await self._process.wait()
        self._listening.cancel()


@asynccontextmanager
async def child(
    name: str, module: str, *arguments: str, patience_s: float = ENDING_S
) -> AsyncIterator[Child]:
    """Run a module, and end it with the block: by the end of its input, or a kill when that takes longer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,  # a Ctrl-C is for the parent, which then ends the others
    )
    found = Child(name, process)
    try:
        yield found
    finally:
        await found.end(patience_s)


async def heard_lines() -> AsyncIterator[dict[str, Any]]:
    """In a child: what it is told, until its input ends, as it does with its parent."""
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield json.loads(line)


def tell(message: object) -> None:
    """In a child: say something to its parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def run_probe(
    name: str,
    *arguments: str,
    told: Callable[[Mapping[str, float]], None],
    watch: Callable[[int], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run the module `coffre.bench.<name>_probe` and hand on all that it tells.

    `watch` gets its process id, runs beside it, and is cancelled at its end. Raises what `watch` raises, and
    `InternalError` with what the probe complained of when it fails.
    """
    module = f"coffre.bench.{name}_probe"
    async with child(f"the {name} probe", module, *arguments, patience_s=0) as probe, together() as group:
        watching = None if watch is None else group.create_task(watch(probe.pid))
        while (message := await probe.hear()) is not None:
            told(message)
        if watching is not None:
            watching.cancel()
