"""Figures of one node that holds very many small shards: its index on disk, its start, and a lookup."""

from __future__ import annotations

import asyncio
import signal
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from coffre.bench.figures._session import Group, Session
from coffre.bench.index_process import run_probe
from coffre.bench.local_cluster import ClusterShape, LocalCluster, disk_bytes
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Target, row_of

__all__ = ["INDEX"]

_NODE = 1
_STARTS = 3
_BYTES, _START, _LOOKUP = "index_bytes_10m", "index_start_10m", "index_lookup_p99_10m"
_BOUNDS = {_BYTES: (400.0, "bytes"), _START: (2.0, "s"), _LOOKUP: (1e-3, "s")}
_SHARD_DIRECTORIES = ("volumes", "large")


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    """The node makes its own data directory before it is filled, and serves what was filled in afterwards.

    The others run, since a node does not serve before they have testified to it; their repair is paused, since
    what is filled in here is nowhere else.
    """
    scale = session.scale
    async with session.idle_cluster(ClusterShape(repair={"paused": True})) as cluster:
        data, arguments = cluster.data(_NODE), [str(cluster.data(_NODE)), str(scale.indexed_shards)]
        try:
            await cluster.start()
            await asyncio.to_thread(cluster.kill, _NODE, signal.SIGTERM)
            await _fill(session, arguments)
            session.say(f"  {disk_bytes(data) / 1e9:.1f} GB on disk")
            if _BYTES in wanted:
                _add(session, _BYTES, _index_bytes(data) / scale.indexed_shards)
            if _START in wanted:
                session.say(f"measuring {_START}, {_STARTS} starts")
                _add(session, _START, statistics.median([await _start_s(cluster) for _ in range(_STARTS)]))
            if _LOOKUP in wanted:
                session.say(f"measuring {_LOOKUP}, {scale.index_lookups} lookups")
                arguments += [str(scale.index_lookups), str(session.seed)]
                await run_probe(
                    "lookup", *arguments, told=lambda found: _add(session, _LOOKUP, found["p99_s"])
                )
        finally:
            await asyncio.to_thread(cluster.stop)


async def _fill(session: Session, arguments: Sequence[str]) -> None:
    """Minutes; says how far it has come."""
    session.say(f"filling a node's index with {session.scale.indexed_shards} shards")
    begun = perf_counter()

    def told(found: Mapping[str, float]) -> None:
        shards = int(found["shards"])
        session.say(f"  {shards} shards, {shards / (perf_counter() - begun):.0f}/s")

    await run_probe("fill", *arguments, told=told)


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


def _add(session: Session, name: str, value: float) -> None:
    bound, unit = _BOUNDS[name]
    detail = f"{session.scale.indexed_shards} shards on one node"
    session.add(
        row_of(
            Measurement(name, value, unit, detail),
            Measurement("bound", bound, unit, "what it may be at most"),
        )
    )


INDEX = Group({name: Target(Bound.AT_MOST, 1.0) for name in _BOUNDS}, _measure)
