"""Peak of the memory that processes have to themselves, and the run of `memory_probe` that is measured with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.errors import CoffreError, InternalError, Unavailable

__all__ = ["MemoryPeaks", "anonymous_bytes", "measure_memory", "parse_rollup"]

SAMPLE_SECONDS = 0.02
_FIELDS = ("Anonymous:", "Swap:")


@dataclass(frozen=True, slots=True)
class MemoryPeaks:
    """Highest figures seen, in bytes."""

    client_bytes: int
    node_bytes: Mapping[int, int]  # by node number

    @property
    def highest_node_bytes(self) -> int:
        return max(self.node_bytes.values())


def parse_rollup(text: str) -> int:
    """Bytes of anonymous memory, in RAM or swapped out, in the text of an smaps_rollup (proc_pid_smaps(5)).

    `Anonymous` counts heap, stacks and what a private mapping of a file has changed. Pages of files, such as the map of
    LMDB and the program's own code, belong to the page cache, which the kernel takes back when it needs to, and
    do not count.
    """
    found = {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith(_FIELDS)}
    if "Anonymous:" not in found:
        raise InternalError("the kernel does not say how much memory is anonymous")
    return sum(found.values()) << 10


def anonymous_bytes(pid: int) -> int | None:
    """What a process has to itself now; None when it has ended."""
    try:
        return parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    except (FileNotFoundError, ProcessLookupError):
        return None


async def measure_memory(
    config: Path, node_pids: Mapping[int, int], *, size_bytes: int, seed: int
) -> MemoryPeaks:
    """Run the probe with the client configuration `config`; look at it and at the nodes every 20 ms.

    Raises `Unavailable` when a node ends meanwhile, or `InternalError` with what the probe said when it fails.
    """
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coffre.bench.memory_probe", str(config), str(size_bytes), str(seed)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ending = asyncio.ensure_future(probe.communicate())
    client_bytes, node_bytes = 0, dict.fromkeys(node_pids, 0)
    try:
        while not ending.done():
            client_bytes = max(client_bytes, anonymous_bytes(probe.pid) or 0)
            for number, pid in node_pids.items():
                now_bytes = anonymous_bytes(pid)
                if now_bytes is None:
                    raise Unavailable(f"node {number} ended while its memory was measured")
                node_bytes[number] = max(node_bytes[number], now_bytes)
            await asyncio.wait([ending], timeout=SAMPLE_SECONDS)
    finally:
        if probe.returncode is None:
            probe.kill()
        said, complaint = await ending
    _check(probe.returncode, said, complaint.decode("utf-8", "replace"), size_bytes)
    return MemoryPeaks(client_bytes, node_bytes)


def _check(status: int | None, said: bytes, complaint: str, size_bytes: int) -> None:
    if status != 0:
        last: Iterable[str] = complaint.strip().splitlines()[-1:]
        raise InternalError(
            f"the memory probe ended with status {status}: {''.join(last) or 'no reason given'}"
        )
    try:
        returned = json.loads(said)["bytes"]
    except (ValueError, KeyError, TypeError):
        raise _unexpected() from None
    if returned != size_bytes:
        raise _unexpected()


def _unexpected() -> CoffreError:
    return InternalError("the memory probe did not say that all bytes came back")
