"""Figures of nodes: gets while one of them hangs, memory, and one that holds very many small shards."""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from coffre.bench._workload import SmallObjects, latencies, percentile
from coffre.bench.figures._session import BUCKET, CALLERS, Group, Session, at_most, bound
from coffre.bench.processes import anonymous_bytes, is_stopped, run_probe
from coffre.bench.result import Figure, Measurement
from coffre.client import connect
from coffre.cluster.errors import InternalError, Unavailable
from coffre.dev.local_cluster import ClusterShape, LocalCluster, disk_bytes

__all__ = ["FAULTS", "INDEX", "MEMORY", "MemoryPeaks", "measure_memory", "paused"]

# ------------------------------------------------------------------ the slowest gets while one node of six hangs

_PAUSED = Figure("get_p99_paused_node", "s", at_most(3.0))
_READERS = 16
_STOP_SECONDS, _POLL_SECONDS = 10.0, 0.001


@asynccontextmanager
async def paused(cluster: LocalCluster, number: int) -> AsyncIterator[None]:
    """Stop a node with SIGSTOP: its connections stay, and nothing answers on them. Afterwards it serves again."""
    cluster.kill(number, signal.SIGSTOP)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            while not is_stopped(cluster.pid(number)):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        cluster.kill(number, signal.SIGCONT)
        await cluster.wait_ready(number)


async def _faults(session: Session) -> None:
    """Both halves do the same with a new client that has been at work while all was well.

    Every node is paused in its turn, and the moment of the pause is inside the measured time.
    """
    scale = session.scale
    async with session.data_path() as path:
        objects = SmallObjects(path.blocks, BUCKET, "faults")
        await objects.put_all(path.writer, scale.small_objects, CALLERS)
        nodes = itertools.cycle(path.cluster.numbers)

        async def p99_s(number: int | None) -> float:
            async with await connect(path.cluster.client_config()) as client:
                gets = objects.gets(client, scale.small_objects)
                await latencies(gets, callers=_READERS, duration_s=scale.warmup_s)
                async with nullcontext() if number is None else paused(path.cluster, number):
                    found = await latencies(gets, callers=_READERS, duration_s=scale.duration_s)
                    return percentile(found, 99)

        async def with_one_paused() -> float:
            return await p99_s(next(nodes))

        async def with_all_well() -> Measurement:
            return Measurement("get_p99", await p99_s(None), "s")

        await session.turns(_PAUSED, with_one_paused, with_all_well, scale.fault_rounds)


FAULTS = Group((_PAUSED,), _faults)

# ------------------------------------------------------------------ memory, while one large object goes in and out

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


async def _memory(session: Session) -> None:
    """On nodes that served nothing before, so that the figure does not depend on the other rows."""
    session.say(f"measuring {' and '.join(figure.id for figure in session.wants(_CLIENT, _NODE))}")
    async with session.cluster() as cluster:
        pids = {number: cluster.pid(number) for number in cluster.numbers}
        peaks = await measure_memory(
            cluster.client_config(), pids, size_bytes=session.scale.memory_bytes, seed=session.seed
        )
    session.add_once(_CLIENT, peaks.client_bytes / 1e6, bound(_CLIENT_MB, "MB"))
    session.add_once(_NODE, peaks.node_bytes / 1e6, bound(_NODE_MB, "MB"))


MEMORY = Group((_CLIENT, _NODE), _memory)

# ------------------------------------------------------------------ very many small shards on one node

_BYTES = Figure("index_bytes_10m", "bytes", at_most(1.0))
_START = Figure("index_start_10m", "s", at_most(1.0))
_LOOKUP = Figure("index_lookup_p99_10m", "s", at_most(1.0))
_FILLED = 1
_STARTS = 3


async def _index(session: Session) -> None:
    """The node makes its own data directory before it is filled, and serves what was filled in afterwards.

    The others run, since a node does not serve before they have testified to it; their repair is paused, since
    what is filled in here is nowhere else.
    """
    scale = session.scale
    async with session.idle_cluster(ClusterShape(repair={"paused": True})) as cluster:
        data, shards = cluster.data(_FILLED), str(scale.indexed_shards)
        await cluster.start()
        await asyncio.to_thread(cluster.kill, _FILLED, signal.SIGTERM)
        session.say(f"filling a node's index with {shards} shards")
        begun = perf_counter()

        def told(found: Mapping[str, float]) -> None:
            session.say(f"  {found['shards']} shards, {found['shards'] / (perf_counter() - begun):.0f}/s")

        await run_probe("index", "fill", str(data), shards, told=told)
        session.say(f"  {disk_bytes(data) / 1e9:.1f} GB on disk")
        session.add_once(_BYTES, _index_bytes(data) / scale.indexed_shards, bound(400.0, "bytes"))
        if session.wants(_START):
            session.say(f"measuring {_START.id}, {_STARTS} starts")
            starts = [await _start_s(cluster) for _ in range(_STARTS)]
            session.add_once(_START, statistics.median(starts), bound(2.0, "s"))
        if session.wants(_LOOKUP):
            session.say(f"measuring {_LOOKUP.id}, {scale.index_lookups} lookups")
            await run_probe(
                *("index", "lookup", str(data), shards, str(scale.index_lookups), str(session.seed)),
                told=lambda found: session.add_once(_LOOKUP, found["p99_s"], bound(1e-3, "s")),
            )


def _index_bytes(data: Path) -> int:
    """What a data directory takes on disk beside the shards themselves."""
    return disk_bytes(data) - disk_bytes(data / "volumes") - disk_bytes(data / "large")


async def _start_s(cluster: LocalCluster) -> float:
    """Seconds from the start of the node's process until its health service says SERVING; the node is ended again."""
    begun = perf_counter()
    await cluster.start([_FILLED])
    elapsed_s = perf_counter() - begun
    await asyncio.to_thread(cluster.kill, _FILLED, signal.SIGTERM)
    return elapsed_s


INDEX = Group((_BYTES, _START, _LOOKUP), _index)
