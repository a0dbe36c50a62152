"""Figures of repair: how fast a node that missed everything is rebuilt, what gets feel of it, what moves when a node
joins, and what idling costs.

For the rebuilds one node of six is not started until the others hold everything. So the rest of the cluster is as
after the loss of a node, and what that node then rebuilds is all of its part.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from coffre.bench import references
from coffre.bench._workload import Blocks, SmallObjects, latencies, percentile, put_large
from coffre.bench.figures._session import BUCKET, CALLERS, Group, Session, at_least, at_most, bound
from coffre.bench.processes import cpu_s, run_probe
from coffre.bench.result import Figure, Measurement
from coffre.client import connect
from coffre.cluster.errors import InternalError
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.store import WINDOW_MS
from coffre.proto import coffre_pb2 as pb

__all__ = ["GETS", "IDLE", "JOIN", "LARGE", "SMALL"]

_LARGE = Figure("rebuild_large", "bytes/s", at_least(0.4))
_CEILING = Figure("rebuild_large_ceiling", "bytes/s")
_SMALL = Figure("rebuild_small", "objects/s", at_least(1.0))
_GETS = Figure("get_p99_during_repair", "s", at_most(2.5))
_JOIN = Figure("join_moved", "bytes", at_most(1.1))
_IDLE = Figure("idle_anti_entropy_cpu", "s", at_most(1.0))

_LOST = 4
_SMALL_PER_SECOND = 2000.0
_SOURCES = 4  # k of the policy: so many shards are read for one
_READERS = 16
_JOIN_BYTES = 64 << 10
_CAPACITY_BYTES = 1 << 40
_TIMEOUT = 30.0
_POLL_SECONDS = 0.02
_DEFAULT_CAP: Mapping[str, float] = {"settling_seconds": 0.001, "round_seconds": 1.0}
_UNCAPPED: Mapping[str, float] = {"bytes_per_second": 1 << 40, **_DEFAULT_CAP}


@asynccontextmanager
async def _all_but_one(session: Session, repair: Mapping[str, float]) -> AsyncIterator[LocalCluster]:
    """Five of six nodes."""
    async with session.idle_cluster(ClusterShape(repair=repair, partitions=1024)) as cluster:
        await cluster.start([number for number in cluster.numbers if number != _LOST])
        yield cluster


@asynccontextmanager
async def _operator(cluster: LocalCluster) -> AsyncIterator[GrpcTransport]:
    transport = GrpcTransport(cluster.map, cluster.operator_tls())
    try:
        yield transport
    finally:
        await transport.close()


async def _start_lost(session: Session, cluster: LocalCluster) -> None:
    """When everything is old enough to be compared; what is younger would wait for a later round."""
    await session.clock.sleep(WINDOW_MS / 1000)
    await cluster.start([_LOST])


async def _rebuilt_s(session: Session, cluster: LocalCluster, objects: int) -> float:
    """Seconds until the lost node, which has just started, has so many objects again."""
    async with _operator(cluster) as operator:
        start = session.clock.monotonic()
        while (await operator.repair_status(_LOST, _TIMEOUT)).restored_objects < objects:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        return session.clock.monotonic() - start


async def _put_small(session: Session, cluster: LocalCluster) -> SmallObjects:
    objects = SmallObjects(Blocks(session.seed), BUCKET, "small")
    async with await connect(cluster.client_config()) as client:
        await objects.put_all(client, session.scale.rebuilt_small, CALLERS)
    return objects


async def _large(session: Session) -> None:
    """Beside it the ceiling: what could be made of four streams at most, a quarter of what raw gRPC brings."""
    disk = references.disk_write_sync(session.directory)
    if session.wants(_LARGE):
        session.add_once(_LARGE, await _large_rate(session), disk)
    async with AsyncExitStack() as exits:
        servers = [await exits.enter_async_context(references.reference_server()) for _ in range(_SOURCES)]
        gathered = await references.grpc_gather_1m(servers, size_bytes=session.scale.rebuilt_large_bytes * 4)
    session.add_once(_CEILING, gathered.value / _SOURCES, disk)


async def _large_rate(session: Session) -> float:
    """Bytes of shards per second."""
    count, size_bytes = session.scale.rebuilt_large, session.scale.rebuilt_large_bytes
    blocks = Blocks(session.seed)
    async with _all_but_one(session, _UNCAPPED) as cluster:
        async with await connect(cluster.client_config()) as client:
            for number in range(count):
                await put_large(client, blocks, BUCKET, f"large/{number}", size_bytes)
        await _start_lost(session, cluster)
        seconds = await _rebuilt_s(session, cluster, count)
    return count * (size_bytes // cluster.map.policy().k) / seconds


async def _small(session: Session) -> None:
    async with _all_but_one(session, _UNCAPPED) as cluster:
        await _put_small(session, cluster)
        await _start_lost(session, cluster)
        seconds = await _rebuilt_s(session, cluster, session.scale.rebuilt_small)
    wanted = Measurement("what it should reach", _SMALL_PER_SECOND, "objects/s")
    session.add_once(_SMALL, session.scale.rebuilt_small / seconds, wanted)


async def _gets(session: Session) -> None:
    """The slowest gets while the node is rebuilt at the default cap, and before it started."""
    count, duration_s = session.scale.rebuilt_small, session.scale.repair_get_s
    async with _all_but_one(session, _DEFAULT_CAP) as cluster:
        objects = await _put_small(session, cluster)
        async with await connect(cluster.client_config()) as client:

            async def p99_s() -> float:
                gets = objects.gets(client, count)
                return percentile(await latencies(gets, callers=_READERS, duration_s=duration_s), 99)

            before = Measurement("get_p99", await p99_s(), "s")
            await _start_lost(session, cluster)
            await _rebuilt_s(session, cluster, 1)
            rebuilding = asyncio.create_task(_rebuilt_s(session, cluster, count))
            during = await p99_s()
            if rebuilding.done():
                raise InternalError("the rebuild ended before the gets")
            rebuilding.cancel()
    session.add_once(_GETS, during, before)


async def _join(session: Session) -> None:
    """What all nodes receive from each other while a seventh of equal size joins, beside its fair share."""
    shape = ClusterShape(sites=1, partitions=1024, capacity_bytes=_CAPACITY_BYTES, repair=_UNCAPPED)
    blocks = Blocks(session.seed)
    async with session.idle_cluster(shape) as cluster:
        await cluster.start()
        async with await connect(cluster.client_config()) as client:
            for number in range(session.scale.joined_objects):
                await client.put(BUCKET, f"join/{number}", blocks.part(number * 997, _JOIN_BYTES))
        async with _operator(cluster) as operator:
            held = [(await operator.status(node, _TIMEOUT)).live_bytes for node in cluster.numbers]
        added = cluster.join("node-7", "server-7", "site-1", "operator-1")
        await _add_node(cluster, f"{added}={_CAPACITY_BYTES}")
        async with _operator(cluster) as operator:
            statuses = [await operator.repair_status(node, _TIMEOUT) for node in cluster.numbers]
    fair = Measurement("fair_share", sum(held) / len(statuses), "bytes")
    session.add_once(_JOIN, float(sum(status.received_bytes for status in statuses)), fair)


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


async def _idle(session: Session) -> None:
    """CPU seconds of one node for one round in step: rounds every second, and everything else that it does."""
    async with session.idle_cluster(ClusterShape(repair=_DEFAULT_CAP)) as cluster:
        await cluster.start()
        await asyncio.to_thread(cluster.stop)
        for index, node in enumerate(cluster.numbers):
            filling = ("fill", str(cluster.data(node)), str(session.scale.idle_objects), str(index))
            await run_probe("index", *filling, told=lambda found: None)
        await cluster.start()
        async with _operator(cluster) as operator:
            used_s = await _cpu_s_of_round(cluster, operator, session.scale.idle_rounds)
    session.add_once(_IDLE, used_s, bound(1.0, "s"))


async def _cpu_s_of_round(cluster: LocalCluster, operator: GrpcTransport, rounds: int) -> float:
    async def reached(count: int) -> pb.RepairStatusReply:
        while (status := await operator.repair_status(1, _TIMEOUT)).rounds < count:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS * 10)
        return status

    begun = await reached((await operator.repair_status(1, _TIMEOUT)).rounds + 2)
    before = cpu_s(cluster.pid(1))
    ended = await reached(begun.rounds + rounds)
    return (cpu_s(cluster.pid(1)) - before) / (ended.rounds - begun.rounds)


LARGE = Group((_LARGE, _CEILING), _large)
SMALL = Group((_SMALL,), _small)
GETS = Group((_GETS,), _gets)
JOIN = Group((_JOIN,), _join)
IDLE = Group((_IDLE,), _idle)
