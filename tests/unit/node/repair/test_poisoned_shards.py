"""A node that sends other bytes under their checksum: CRC32C is linear, so it fits whatever is made of them, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from coffre.cluster.clock import ManualClock, SystemClock
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import InProcessCluster, Traffic, in_process_cluster
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.memory.rows import record_of
from coffre.node.repair import RepairOptions
from coffre.node.repair.scrub import Scrub
from coffre.node.serving import Handler
from coffre.node.store import StoredVersion, StoreOptions
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

from tests.forging import same_crc, same_crc_and_rebuilt
from tests.unit.node.repair.test_repairer import primaries

K, M = 4, 2
AT_ONCE = RepairOptions(settling_seconds=-5.0, bytes_per_second=1 << 40)
SMALL = bytes(range(200)) * 10
LARGE = bytes(range(250)) * 10_000  # three segments


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(K, M)
    yield made
    await made.aclose()


async def held(cluster: InProcessCluster, node: int, key: str) -> StoredVersion:
    (version,) = await cluster.stores[node].read(ObjectName("clinic", "b", key), want_cell=True)
    return version


async def shard(cluster: InProcessCluster, node: int, key: str) -> list[bytes]:
    version = await held(cluster, node, key)
    assert version.shard_index is not None
    chunks = cluster.stores[node].read_cells(
        ObjectName("clinic", "b", key), version.stamp, version.shard_index, 0, 0
    )
    return [bytes(cell.data) async for chunk in chunks for cell in chunk]


def lose_disk(cluster: InProcessCluster, node: int) -> None:
    store = cluster.stores[node] = MemoryStore(SystemClock(), StoreOptions())
    maps = MapHolder(cluster.cluster_map, b"")
    cluster.handlers[node] = Handler(node, f"n{node}", store, maps, SystemClock())


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
async def test_one_poisoned_shard_poisons_no_other(cluster: InProcessCluster, content: bytes) -> None:
    """What a node that lost its disk makes of the others' shards is what the writer sent it, or nothing."""
    order = primaries(cluster, "k")
    client = cluster.client()
    await client.put("b", "k", content)
    await client.flush()
    before = {node: await shard(cluster, node, "k") for node in order}
    lost, liar = order[0], order[2]
    sources = (1, 2, 3, 4)  # whom a rebuild of shard 0 would ask first

    async def lie(node: int, reply: Traffic) -> None:
        if node != liar:
            return
        if isinstance(reply, pb.BatchReply):
            for version in (version for outcome in reply.outcomes for version in outcome.versions):
                if version.cell:
                    version.cell = same_crc_and_rebuilt(version.cell, 2, K, M, sources, 0)
        if isinstance(reply, ShardChunk):
            for cell in reply.cells:
                cell.data = same_crc_and_rebuilt(bytes(cell.data), 2, K, M, sources, 0)

    cluster.network.after = lie
    lose_disk(cluster, lost)
    repairer = cluster.repairer(lost, AT_ONCE)
    for _ in range(2):
        await repairer.round()
    assert await shard(cluster, lost, "k") == before[lost]
    cluster.network.heal()
    assert await cluster.client().get("b", "k") == content


async def test_scrub_finds_what_lies_there_under_its_checksum(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", SMALL)
    await client.flush()
    name, node = ObjectName("clinic", "b", "k"), primaries(cluster, "k")[0]
    before = await shard(cluster, node, "k")
    stamp = (await held(cluster, node, "k")).stamp
    stored = record_of(cluster.stores[node]._entry(name, stamp)).shard
    assert stored is not None
    crc, _ = stored.cells[0]
    stored.cells[0] = crc, bytearray(same_crc(before[0]))
    clock = ManualClock()
    passing = asyncio.create_task(Scrub(cluster.stores[node], AT_ONCE, clock).one_pass())
    while not passing.done():
        clock.advance(3600)
        await asyncio.sleep(0)
    await passing
    assert [repair.name async for repair in cluster.stores[node].repair_queue()] == [name]
    assert (await held(cluster, node, "k")).damaged
    await cluster.repairer(node, AT_ONCE).round()
    assert await shard(cluster, node, "k") == before
