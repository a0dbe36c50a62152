"""`coffre bench repair`: how fast a node that missed everything is rebuilt, what gets feel of it, what moves when
a node joins, and what idling costs.

For the rebuilds one node of six is not started until the others hold everything. So the rest of the cluster is as
after the loss of a node, and what that node then rebuilds is all of its part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from coffre.bench import references
from coffre.bench._workload import Blocks, SmallObjects, latencies, percentile, put_large
from coffre.bench.index_process import run_probe
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Row, Target, row_of
from coffre.client import connect
from coffre.cluster.clock import Clock
from coffre.cluster.errors import InternalError
from coffre.cluster.transport import GrpcTransport
from coffre.node.store import WINDOW_MS
from coffre.proto import coffre_pb2 as pb

__all__ = ["FULL", "QUICK", "TARGETS", "RepairScale", "measure_repair"]

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "rebuild_large": Target(Bound.AT_LEAST, 0.4),
        "rebuild_small": Target(Bound.AT_LEAST, 1.0),
        "get_p99_during_repair": Target(Bound.AT_MOST, 2.5),
        "join_moved": Target(Bound.AT_MOST, 1.1),
        "idle_anti_entropy_cpu": Target(Bound.AT_MOST, 1.0),
    }
)
_MIB = 1 << 20
_LOST = 4
_SMALL_PER_SECOND = 2000.0
_CALLERS = 64
_SOURCES = 4  # k of the policy: so many shards are read for one
_READERS = 16
_BUCKET = "bench"
_JOIN_BYTES = 64 << 10
_CAPACITY_BYTES = 1 << 40
_TIMEOUT = 30.0
_POLL_SECONDS = 0.02
_UNCAPPED: Mapping[str, float] = {
    "bytes_per_second": 1 << 40,
    "settling_seconds": 0.001,
    "round_seconds": 1.0,
}
_DEFAULT_CAP: Mapping[str, float] = {"settling_seconds": 0.001, "round_seconds": 1.0}


@dataclass(frozen=True, slots=True)
class RepairScale:
    """How much of everything."""

    large_objects: int
    large_bytes: int
    small_objects: int
    get_seconds: float
    join_objects: int
    idle_objects: int
    idle_rounds: int


FULL = RepairScale(80, 64 * _MIB, 100_000, 10.0, 4_000, 1_000_000, 60)
# The default cap lets about a thousand small objects through in a second: they must last for longer than the gets.
QUICK = RepairScale(2, 4 * _MIB, 4_000, 0.5, 40, 100, 3)


async def measure_repair(directory: Path, scale: RepairScale, seed: int, clock: Clock) -> AsyncIterator[Row]:
    """Row after row; each on a cluster of its own, of which nothing is left."""
    bench = _Bench(directory, scale, Blocks(seed), clock)
    disk = references.disk_write_sync(directory)
    yield row_of(await bench.large(), disk)
    yield row_of(await bench.ceiling(), disk)
    reference = Measurement("what it should reach", _SMALL_PER_SECOND, "objects/s", "on two cores")
    yield row_of(await bench.small(), reference)
    during, before = await bench.gets()
    yield row_of(during, before)
    yield row_of(*await bench.join())
    yield row_of(await bench.idle(), Measurement("bound", 1.0, "s", "what it may be at most"))


class _Bench:
    def __init__(self, directory: Path, scale: RepairScale, blocks: Blocks, clock: Clock) -> None:
        self._directory = directory
        self._scale = scale
        self._blocks = blocks
        self._clock = clock

    @asynccontextmanager
    async def _cluster(self, shape: ClusterShape) -> AsyncIterator[LocalCluster]:
        """A cluster of which no node runs yet."""
        home = self._directory / "cluster"
        cluster = LocalCluster.create(home, shape, self._clock)
        try:
            yield cluster
        finally:
            await asyncio.to_thread(cluster.stop)
            shutil.rmtree(home)

    @asynccontextmanager
    async def _all_but_one(self, repair: Mapping[str, float]) -> AsyncIterator[LocalCluster]:
        """Five of six nodes."""
        async with self._cluster(ClusterShape(repair=repair, partitions=1024)) as cluster:
            await cluster.start([number for number in cluster.numbers if number != _LOST])
            yield cluster

    async def _start_lost(self, cluster: LocalCluster) -> None:
        """When everything is old enough to be compared; what is younger would wait for a later round."""
        await self._clock.sleep(WINDOW_MS / 1000)
        await cluster.start([_LOST])

    async def _rebuilt(self, cluster: LocalCluster, objects: int) -> float:
        """Seconds until the lost node, which has just started, has so many objects again."""
        operator = GrpcTransport(cluster.map, cluster.operator_tls())
        try:
            start = self._clock.monotonic()
            while (await operator.repair_status(_LOST, _TIMEOUT)).restored_objects < objects:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
            return self._clock.monotonic() - start
        finally:
            await operator.close()

    async def large(self) -> Measurement:
        count, size_bytes = self._scale.large_objects, self._scale.large_bytes
        async with self._all_but_one(_UNCAPPED) as cluster:
            async with await connect(cluster.client_config()) as client:
                for number in range(count):
                    await put_large(client, self._blocks, _BUCKET, f"large/{number}", size_bytes)
            await self._start_lost(cluster)
            seconds = await self._rebuilt(cluster, count)
        shard_bytes = size_bytes // cluster.map.policy().k
        detail = f"one node's part of {count} objects of {size_bytes // _MIB} MiB, 4+2, from 4 others each"
        return Measurement("rebuild_large", count * shard_bytes / seconds, "bytes/s", detail)

    async def ceiling(self) -> Measurement:
        """How fast anything could be made of four streams: a quarter of what raw gRPC brings, without disks."""
        async with AsyncExitStack() as exits:
            servers = [await exits.enter_async_context(references.ReferenceServer()) for _ in range(_SOURCES)]
            gathered = await references.grpc_gather_1m(servers, size_bytes=self._scale.large_bytes * 4)
        value = gathered.value / _SOURCES
        return Measurement("rebuild_large_ceiling", value, "bytes/s", f"1/{_SOURCES} of {gathered.detail}")

    async def small(self) -> Measurement:
        count = self._scale.small_objects
        async with self._all_but_one(_UNCAPPED) as cluster:
            await self._put_small(cluster, count)
            await self._start_lost(cluster)
            seconds = await self._rebuilt(cluster, count)
        detail = f"one node's part of {count} objects of 4 KiB, 4+2"
        return Measurement("rebuild_small", count / seconds, "objects/s", detail)

    async def _put_small(self, cluster: LocalCluster, count: int) -> SmallObjects:
        objects = SmallObjects(self._blocks, _BUCKET, "small")
        async with await connect(cluster.client_config()) as client:
            await objects.put_all(client, count, _CALLERS)
        return objects

    async def gets(self) -> tuple[Measurement, Measurement]:
        """The slowest gets while the node is rebuilt at the default cap, and before it started."""
        scale = self._scale
        async with self._all_but_one(_DEFAULT_CAP) as cluster:
            objects = await self._put_small(cluster, scale.small_objects)
            async with await connect(cluster.client_config()) as client:

                async def get(number: int) -> None:
                    await objects.get(client, number % scale.small_objects)

                before = await latencies(get, callers=_READERS, duration_s=scale.get_seconds)
                await self._start_lost(cluster)
                await self._rebuilt(cluster, 1)
                rebuilding = asyncio.create_task(self._rebuilt(cluster, scale.small_objects))
                during = await latencies(get, callers=_READERS, duration_s=scale.get_seconds)
                if rebuilding.done():
                    raise InternalError("the rebuild ended before the gets")
                rebuilding.cancel()
        what = f"p99 of gets of 4 KiB, {_READERS} at a time"
        return (
            Measurement("get_p99_during_repair", percentile(during, 99), "s", f"{what}, during repair"),
            Measurement("get_p99", percentile(before, 99), "s", f"{what}, without"),
        )

    async def join(self) -> tuple[Measurement, Measurement]:
        """What all nodes receive from each other while a seventh of equal size joins, and its fair share."""
        count = self._scale.join_objects
        shape = ClusterShape(sites=1, partitions=1024, capacity_bytes=_CAPACITY_BYTES, repair=_UNCAPPED)
        async with self._cluster(shape) as cluster:
            await cluster.start()
            async with await connect(cluster.client_config()) as client:
                for number in range(count):
                    await client.put(_BUCKET, f"join/{number}", self._blocks.part(number * 997, _JOIN_BYTES))
            operator = GrpcTransport(cluster.map, cluster.operator_tls())
            held = [(await operator.status(node, _TIMEOUT)).live_bytes for node in cluster.numbers]
            await operator.close()
            added = cluster.join("node-7", "server-7", "site-1", "operator-1")
            await _add_node(cluster, f"{added}={_CAPACITY_BYTES}")
            operator = GrpcTransport(cluster.map, cluster.operator_tls())
            statuses = [await operator.repair_status(node, _TIMEOUT) for node in cluster.numbers]
            await operator.close()
        what = f"{count} objects of {_JOIN_BYTES >> 10} KiB, 4+2"
        received = float(sum(status.received_bytes for status in statuses))
        return (
            Measurement("join_moved", received, "bytes", f"{what}: what all nodes received from others"),
            Measurement("fair_share", sum(held) / len(statuses), "bytes", "a seventh of what six nodes held"),
        )

    async def idle(self) -> Measurement:
        """CPU seconds of one node for one round in step: rounds every second, and everything else that it does."""
        scale = self._scale
        async with self._cluster(ClusterShape(repair={"round_seconds": 1.0, **_DEFAULT_CAP})) as cluster:
            await cluster.start()
            await asyncio.to_thread(cluster.stop)
            for index, node in enumerate(cluster.numbers):
                filling = ("fill", str(cluster.data(node)), str(scale.idle_objects), str(index))
                await run_probe(*filling, told=lambda found: None)
            await cluster.start()
            operator = GrpcTransport(cluster.map, cluster.operator_tls())
            try:
                busy = await self._cpu_of_rounds(cluster, operator, scale.idle_rounds)
            finally:
                await operator.close()
        detail = (
            f"of a node, {scale.idle_objects} objects in step, 256 partitions; all else that it does included"
        )
        return Measurement("idle_anti_entropy_cpu", busy, "s", detail)

    async def _cpu_of_rounds(self, cluster: LocalCluster, operator: GrpcTransport, rounds: int) -> float:
        async def reached(count: int) -> pb.RepairStatusReply:
            while (status := await operator.repair_status(1, _TIMEOUT)).rounds < count:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS * 10)
            return status

        begun = await reached((await operator.repair_status(1, _TIMEOUT)).rounds + 2)
        before = _cpu_seconds(cluster.pid(1))
        ended = await reached(begun.rounds + rounds)
        return (_cpu_seconds(cluster.pid(1)) - before) / (ended.rounds - begun.rounds)


async def _add_node(cluster: LocalCluster, node: str) -> None:
    """Let a node join, as an operator does, and wait until everything has moved. Raises `InternalError`."""
    command = Path(sys.executable).with_name("coffre")
    adding = await asyncio.create_subprocess_exec(
        *(command, "cluster", "add-node", node, "--yes", "--operator", cluster.operator_config()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await adding.communicate()
    if adding.returncode:
        raise InternalError(f"a node could not join: {complaint.decode('utf-8', 'replace').strip()}")


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
