"""Figures of memory: what a client and the nodes have to themselves while one large object goes in and comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coffre.bench.figures._session import Group, Session, at_most, bound
from coffre.bench.processes import anonymous_bytes, run_probe
from coffre.bench.result import Figure
from coffre.cluster.errors import InternalError, Unavailable

__all__ = ["MEMORY", "MemoryPeaks", "measure_memory"]

_CLIENT = Figure("client_memory_1g", "MB", at_most(1.0))
_NODE = Figure("node_memory_1g", "MB", at_most(1.0))
_CLIENT_MB, _NODE_MB = 150.0, 200.0
_SAMPLE_SECONDS = 0.02


@dataclass(slots=True)
class MemoryPeaks:
    """Highest figures seen, in bytes."""

    client_bytes: int = 0
    node_bytes: int = 0  # of the node with the highest


async def measure_memory(
    config: Path, node_pids: Mapping[int, int], *, size_bytes: int, seed: int
) -> MemoryPeaks:
    """Run the probe with the client configuration `config`; look at it and at the nodes every 20 ms.

    Raises `Unavailable` when a node ends meanwhile, or `InternalError` with what the probe said when it fails.
    """
    peaks, returned = MemoryPeaks(), []

    async def watch(client: int) -> None:
        while True:
            peaks.client_bytes = max(peaks.client_bytes, anonymous_bytes(client) or 0)
            for number, pid in node_pids.items():
                now_bytes = anonymous_bytes(pid)
                if now_bytes is None:
                    raise Unavailable(f"node {number} ended while its memory was measured")
                peaks.node_bytes = max(peaks.node_bytes, now_bytes)
            await asyncio.sleep(_SAMPLE_SECONDS)

    await run_probe(
        *("memory", str(config), str(size_bytes), str(seed)),
        told=lambda found: returned.append(found["bytes"]),
        watch=watch,
    )
    if returned != [size_bytes]:
        raise InternalError("the memory probe did not say that all bytes came back")
    return peaks


async def _measure(session: Session) -> None:
    """On nodes that served nothing before, so that the figure does not depend on the other rows."""
    session.say(f"measuring {' and '.join(figure.id for figure in session.wants(_CLIENT, _NODE))}")
    async with session.cluster() as cluster:
        pids = {number: cluster.pid(number) for number in cluster.numbers}
        peaks = await measure_memory(
            cluster.client_config(), pids, size_bytes=session.scale.memory_bytes, seed=session.seed
        )
    session.add_once(_CLIENT, peaks.client_bytes / 1e6, bound(_CLIENT_MB, "MB"))
    session.add_once(_NODE, peaks.node_bytes / 1e6, bound(_NODE_MB, "MB"))


MEMORY = Group((_CLIENT, _NODE), _measure)
