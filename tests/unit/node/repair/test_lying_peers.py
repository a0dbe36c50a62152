"""Peers whose digests and rows are not true: they cost nobody else's repair."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from itertools import islice

import pytest
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, Traffic, in_process_cluster
from coffre.node.repair import RepairOptions, asking, pack_digests
from coffre.node.repair.messages import unpack_digests
from coffre.node.store import PartitionDigest
from coffre.proto import coffre_pb2 as pb

AT_ONCE = RepairOptions(settling_seconds=-5.0, bytes_per_second=1 << 40)
NAME = ObjectName("clinic", "b", "k")


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    """Six nodes, of which node 1 lacks an object."""
    made = in_process_cluster(4, 2)
    client = made.client()
    made.network.down = {1}
    await client.put("b", "k", b"value")
    made.network.down = set()
    await client.flush()
    assert not await made.stores[1].read(NAME)
    yield made
    await made.aclose()


def claim(cluster: InProcessCluster, node: int, versions: int) -> None:
    """Let a node say that it holds so many versions in every partition."""
    digests = {
        number: PartitionDigest(b"d" * 16, versions) for number in range(cluster.cluster_map.partitions)
    }

    async def after(sender: int, reply: Traffic) -> None:
        if sender == node and isinstance(reply, pb.DigestsReply):
            reply.digests = pack_digests(digests)

    cluster.network.after = after


@pytest.mark.parametrize("versions", [1 << 63, (1 << 28) + 1, 1 << 28, 1 << 20])
async def test_a_claim_of_more_than_there_is_stops_no_repair(
    cluster: InProcessCluster, versions: int
) -> None:
    claim(cluster, 6, versions)
    async with asyncio.timeout(20):
        await cluster.repairer(1, AT_ONCE).round()
    assert await cluster.stores[1].read(NAME)


async def test_a_claim_that_is_alone_is_not_believed(cluster: InProcessCluster) -> None:
    claim(cluster, 6, 1 << 28)
    cluster.network.down = {2, 3, 4, 5}
    async with asyncio.timeout(20):
        await cluster.repairer(1, AT_ONCE).round()
    assert not await cluster.stores[1].read(NAME)


async def test_a_claim_has_to_be_shown_slot_by_slot(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_SLOT_VERSIONS", 4)
    claim(cluster, 6, 1 << 28)
    lie, asked = cluster.network.after, 0

    async def after(sender: int, reply: Traffic) -> None:
        nonlocal asked
        await lie(sender, reply)
        if sender == 6 and isinstance(reply, pb.PartitionRowsReply):
            asked += 1
            if asked <= 3:  # of the first partitions that are compared, a slot or a few
                row = reply.rows.add(tenant="clinic", bucket="b", key=f"none-{asked}")
                row.versions.add(stamp=bytes(16), state=pb.STATE_ABORTED)

    cluster.network.after = after
    async with asyncio.timeout(20):
        await cluster.repairer(1, AT_ONCE).round()
    assert await cluster.stores[1].read(NAME)


async def test_who_holds_much_is_believed_when_it_shows_it(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_SLOT_VERSIONS", 16)
    partitions = cluster.cluster_map.partitions
    names = (ObjectName("clinic", "b", f"many-{number}") for number in itertools.count())
    together = list(islice((name for name in names if partition_of(name, partitions) == 7), 100))
    client = cluster.client()
    cluster.network.down = {1}
    for name in together:
        await client.put("b", name.key, b"value")
    cluster.network.down = set()
    await client.flush()
    await cluster.repairer(1, AT_ONCE).round()
    assert all([await cluster.stores[1].read(name) for name in together])


def test_digests_that_no_node_can_have_are_refused() -> None:
    lawful = {3: PartitionDigest(b"d" * 16, 1 << 28)}
    assert unpack_digests(pack_digests(lawful)) == lawful
    with pytest.raises(IntegrityError, match="more than a node can"):
        unpack_digests(pack_digests({3: PartitionDigest(b"d" * 16, (1 << 28) + 1)}))


async def test_rows_without_end_are_refused(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_ROWS_MAX", 100)

    async def after(sender: int, reply: Traffic) -> None:
        if sender == 6 and isinstance(reply, pb.PartitionRowsReply):
            while len(reply.rows) < 101:
                reply.rows.add(tenant="clinic", bucket="b", key=f"k{len(reply.rows)}")

    cluster.network.after = after
    scene = await cluster.repairer(1, AT_ONCE)._scene()
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    with pytest.raises(IntegrityError, match="more rows than there can be"):
        async for _ in scene.asking.rows(6, partition, 0, 1):
            pass
    assert [row async for row in scene.asking.rows(5, partition, 0, 1)]
