"""Figures of one node that holds very many small shards: its index on disk, its start, and a lookup."""

from __future__ import annotations

import asyncio
import signal
import statistics
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from coffre.bench.figures._session import Group, Session, at_most, bound
from coffre.bench.local_cluster import ClusterShape, LocalCluster, disk_bytes
from coffre.bench.processes import run_probe
from coffre.bench.result import Figure

__all__ = ["INDEX"]

_NODE = 1
_STARTS = 3
_BYTES = Figure("index_bytes_10m", "bytes", at_most(1.0))
_START = Figure("index_start_10m", "s", at_most(1.0))
_LOOKUP = Figure("index_lookup_p99_10m", "s", at_most(1.0))
_SHARD_DIRECTORIES = ("volumes", "large")


async def _measure(session: Session) -> None:
    """The node makes its own data directory before it is filled, and serves what was filled in afterwards.

    The others run, since a node does not serve before they have testified to it; their repair is paused, since
    what is filled in here is nowhere else.
    """
    scale = session.scale
    async with session.idle_cluster(ClusterShape(repair={"paused": True})) as cluster:
        data, shards = cluster.data(_NODE), str(scale.indexed_shards)
        await cluster.start()
        await asyncio.to_thread(cluster.kill, _NODE, signal.SIGTERM)
        await _fill(session, data)
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


async def _fill(session: Session, data: Path) -> None:
    """Minutes; says how far it has come."""
    session.say(f"filling a node's index with {session.scale.indexed_shards} shards")
    begun = perf_counter()

    def told(found: Mapping[str, float]) -> None:
        shards = int(found["shards"])
        session.say(f"  {shards} shards, {shards / (perf_counter() - begun):.0f}/s")

    await run_probe("index", "fill", str(data), str(session.scale.indexed_shards), told=told)


async def _start_s(cluster: LocalCluster) -> float:
    """Seconds from the start of the node's process until its health service says SERVING; the node is ended again."""
    begun = perf_counter()
    await cluster.start([_NODE])
    elapsed_s = perf_counter() - begun
    await asyncio.to_thread(cluster.kill, _NODE, signal.SIGTERM)
    return elapsed_s


def _index_bytes(data: Path) -> int:
    """What a data directory takes on disk beside the shards themselves."""
    return disk_bytes(data) - sum(disk_bytes(data / name) for name in _SHARD_DIRECTORIES)


INDEX = Group((_BYTES, _START, _LOOKUP), _measure)
