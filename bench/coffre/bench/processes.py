"""What Linux says of a process in /proc, and programs of this room that run in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from coffre.bench.tasks import together
from coffre.cluster.errors import InternalError

__all__ = ["anonymous_bytes", "cpu_s", "is_stopped", "parse_rollup", "run_probe"]

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


async def run_probe(
    name: str,
    *arguments: str,
    told: Callable[[Mapping[str, float]], None],
    watch: Callable[[int], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run the module `coffre.bench.<name>_probe` and hand on each line that it prints.

    `watch` gets its process id, runs beside it, and is cancelled at its end. Raises what `watch` raises, and
    `InternalError` with what the probe complained of when it fails.
    """
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"coffre.bench.{name}_probe", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert probe.stdout is not None
    assert probe.stderr is not None
    try:
        async with together() as group:
            watching = None if watch is None else group.create_task(watch(probe.pid))
            async for line in probe.stdout:
                told(json.loads(line))
            complaint = (await probe.stderr.read()).decode("utf-8", "replace").strip()
            status = await probe.wait()
            if watching is not None:
                watching.cancel()
    finally:
        if probe.returncode is None:
            probe.kill()
            await probe.wait()
    if status:
        reason = complaint.rpartition("\n")[2] or "no reason given"
        raise InternalError(f"the {name} probe ended with status {status}: {reason}")
