"""Running coffre.bench.index_probe, which works on the store of a node that is not running."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping

from coffre.cluster.errors import InternalError

__all__ = ["run_probe"]


async def run_probe(*arguments: str, told: Callable[[Mapping[str, float]], None]) -> None:
    """Run coffre.bench.index_probe and hand on each line that it prints.

    Raises `InternalError` with what it complained of when it fails.
    """
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coffre.bench.index_probe", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert probe.stdout is not None
    assert probe.stderr is not None
    try:
        async for line in probe.stdout:
            told(json.loads(line))
        complaint = (await probe.stderr.read()).decode("utf-8", "replace").strip()
        if status := await probe.wait():
            reason = complaint.rpartition("\n")[2] or "no reason given"
            raise InternalError(f"the index probe ended with status {status}: {reason}")
    finally:
        if probe.returncode is None:
            probe.kill()
            await probe.wait()
