"""Tombstones when the map changes at any stage of their end: everybody agrees on them, and they go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coffre.cluster.map import ClusterMap, Placement
from coffre.cluster.membership import Move, MoveReport, drain_node
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import blake3_128
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import Repairer
from coffre.node.store import Accept, Collect, Condemn, Forget, Restore

from tests.unit.node.repair.test_sweep import AT_ONCE

NAME = ObjectName("clinic", "b", "k")
ROUNDS = 4


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(4, 2, nodes=8)
    yield made
    await made.aclose()


def adopt(cluster: InProcessCluster, cluster_map: ClusterMap) -> dict[int, Repairer]:
    cluster.adopt(cluster_map)
    return {node.number: cluster.repairer(node.number, AT_ONCE) for node in cluster_map.nodes}


async def move_away(cluster: InProcessCluster, leaving: int) -> tuple[ClusterMap, dict[int, Repairer]]:
    """Drain a node, to the end of the move. The map then, and the repair of each node."""
    moving = drain_node(cluster.cluster_map, cluster.cluster_map.node(leaving).node_id)
    repairers = adopt(cluster, moving)
    for _ in range(ROUNDS):
        for repairer in repairers.values():
            await repairer.round()
    reports = {n: MoveReport(moving.epoch, one.moved(moving.epoch)) for n, one in repairers.items()}
    assert Move(moving).is_finished(reports)
    moved = finish_move(moving)
    return moved, adopt(cluster, moved)


async def holders(cluster: InProcessCluster) -> set[int]:
    return {number for number, store in cluster.stores.items() if await store.read(NAME, every=True)}


def primaries(cluster_map: ClusterMap) -> tuple[int, ...]:
    return Placement(cluster_map, cluster_map.policy()).primaries(partition_of(NAME, cluster_map.partitions))


async def deleted(cluster: InProcessCluster, condemned: int, collected: int) -> tuple[int, ...]:
    """Delete the object; the first primaries have condemned the tombstone, and the first of those collected it."""
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.delete("b", "k")
    await client.flush()
    members = primaries(cluster.cluster_map)
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    (version,) = await cluster.stores[members[0]].read(NAME)
    for number in members[:condemned]:
        await cluster.stores[number].apply([Condemn(NAME, partition, version.stamp)])
    for number in members[:collected]:
        await cluster.stores[number].apply([Collect(NAME, partition, version.stamp)])
    return members


# The last: it was collected by some, and somebody holds it who took it while others were silent.
STAGES = [
    *((condemned, 0) for condemned in range(7)),
    *((6, collected) for collected in range(1, 6)),
    (5, 3),
    (5, 4),
]


@pytest.mark.parametrize(("condemned", "collected"), STAGES)
@pytest.mark.parametrize("place", [0, 5])
async def test_a_tombstone_goes_though_the_map_changed_meanwhile(
    cluster: InProcessCluster, condemned: int, collected: int, place: int
) -> None:
    members = await deleted(cluster, condemned, collected)
    _, repairers = await move_away(cluster, members[place])
    for _ in range(ROUNDS):
        for repairer in repairers.values():
            await repairer.round()
            await repairer.walk()
    assert await holders(cluster) == set()


async def copy_of(cluster: InProcessCluster, holder: int) -> Accept:
    """What brings the newest version of a node to another one."""
    (there,) = await cluster.stores[holder].read(NAME, want_cell=True)
    accept = Accept(
        NAME,
        partition_of(NAME, cluster.cluster_map.partitions),
        there.stamp,
        there.tombstone,
        bytes(16),
        there.manifest,
        there.mac,
        there.placement,
        there.shard_index,
    )
    if there.cell is not None:
        accept.cell, accept.cell_crc = bytes(there.cell.data), there.cell.crc
        accept.shard_hash = blake3_128(there.cell.data)
    return accept


async def written(cluster: InProcessCluster) -> Accept:
    """Write the object. What brings a copy of it to a node."""
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    return await copy_of(cluster, primaries(cluster.cluster_map)[0])


async def test_the_last_tombstone_stays_while_any_node_may_bring_the_object_back(
    cluster: InProcessCluster,
) -> None:
    leaving = primaries(cluster.cluster_map)[5]
    after = drain_node(cluster.cluster_map, cluster.cluster_map.node(leaving).node_id)
    spare = next(n for n in cluster.stores if n != leaving and n not in primaries(after))
    old = await written(cluster)
    await cluster.stores[spare].apply([old])
    await deleted(cluster, condemned=6, collected=5)
    _, repairers = await move_away(cluster, leaving)
    for _ in range(ROUNDS):
        for repairer in repairers.values():
            await repairer.round()
            await repairer.walk()
    assert await holders(cluster) == {leaving, spare}
    await cluster.stores[spare].apply([Forget(NAME, old.partition, (old.stamp,))])
    cluster.network.down.add(spare)
    await repairers[leaving].walk()
    assert await holders(cluster) == {leaving}, "who is silent may hold it"
    cluster.network.down.clear()
    await repairers[leaving].walk()
    assert await holders(cluster) == set()


async def test_the_last_tombstone_stays_while_a_primary_may_bring_the_object_back(
    cluster: InProcessCluster,
) -> None:
    leaving = primaries(cluster.cluster_map)[5]
    old = await written(cluster)
    await deleted(cluster, condemned=6, collected=5)
    moved, repairers = await move_away(cluster, leaving)
    await cluster.stores[primaries(moved)[2]].apply([old])
    await repairers[leaving].walk()
    assert await holders(cluster) == {leaving, primaries(moved)[2]}


async def test_a_mark_of_a_node_that_is_no_primary_any_more_counts(cluster: InProcessCluster) -> None:
    """A primary took it while others were silent that did not have it any more: it alone waited for them for ever."""
    leaving = primaries(cluster.cluster_map)[5]
    await deleted(cluster, condemned=6, collected=5)
    tombstone = await copy_of(cluster, leaving)
    moved, repairers = await move_away(cluster, leaving)
    await cluster.stores[primaries(moved)[2]].apply([Restore(tombstone)])
    for _ in range(ROUNDS):
        for repairer in repairers.values():
            await repairer.round()
            await repairer.walk()
    assert await holders(cluster) == set()


async def test_nobody_condemns_what_a_primary_lacks_unless_somebody_has(cluster: InProcessCluster) -> None:
    members = await deleted(cluster, condemned=0, collected=0)
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    (version,) = await cluster.stores[members[0]].read(NAME)
    await cluster.stores[members[3]].apply([Forget(NAME, partition, (version.stamp,))])
    repairers = adopt(cluster, cluster.cluster_map)
    for _ in range(2):
        for repairer in repairers.values():
            await repairer.walk()
    for number in {*members} - {members[3]}:
        assert [version.condemned for version in await cluster.stores[number].read(NAME)] == [False]
    await repairers[members[3]].round()
    for _ in range(2):
        for repairer in repairers.values():
            await repairer.walk()
    assert await holders(cluster) == set()
