"""The end of a move: what nodes report, whatever the nodes of before have kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from coffre.cluster.map import ClusterMap, Placement
from coffre.cluster.membership import Move, MoveReport, drain_node
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.memory import MemoryStore
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.repair import repairer as repairing
from coffre.node.store import Abort, State
from coffre.proto import coffre_pb2 as pb

AT_ONCE = RepairOptions(settling_seconds=-5.0, bytes_per_second=1 << 40)
NAME = ObjectName("clinic", "b", "k")


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(4, 2, nodes=9)
    yield made
    await made.aclose()


def adopt(cluster: InProcessCluster, cluster_map: ClusterMap) -> dict[int, Repairer]:
    cluster.adopt(cluster_map)
    return {node.number: cluster.repairer(node.number, AT_ONCE) for node in cluster_map.nodes}


async def leaves(cluster: InProcessCluster, leaving: int) -> None:
    """The node has the version as accepted alone, and is drained: the move ends."""
    store = cluster.stores[leaving]
    assert isinstance(store, MemoryStore)
    store.crash()  # before it had synced that the version is settled
    assert [version.state for version in await store.read(NAME)] == [State.ACCEPTED]
    moving = drain_node(cluster.cluster_map, cluster.cluster_map.node(leaving).node_id)
    repairers = adopt(cluster, moving)
    for _ in range(3):
        for repairer in repairers.values():
            await repairer.round()
    reports = {n: MoveReport(moving.epoch, one.moved(moving.epoch)) for n, one in repairers.items()}
    assert Move(moving).is_finished(reports)


async def put(cluster: InProcessCluster) -> tuple[int, tuple[int, ...]]:
    """Write the object. Its partition, and its primaries."""
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    return partition, Placement(cluster.cluster_map, cluster.cluster_map.policy()).primaries(partition)


async def test_a_leaving_node_that_missed_a_settle_does_not_hold_the_move_up(
    cluster: InProcessCluster,
) -> None:
    """It is no primary any more, so nobody settles there what is settled everywhere else."""
    _, primaries = await put(cluster)
    await leaves(cluster, primaries[0])


async def test_a_leaving_node_that_keeps_what_is_dead_does_not_hold_the_move_up(
    cluster: InProcessCluster,
) -> None:
    """Its writer gave the version up, and did not reach that node; nobody else gives it up there any more."""
    partition, primaries = await put(cluster)
    (version,) = await cluster.stores[primaries[0]].read(NAME)
    for number in primaries[1:]:
        store = cluster.stores[number]
        assert isinstance(store, MemoryStore)
        store.crash()  # so that nobody knows that it was established, and it can be given up
        await store.apply([Abort(NAME, partition, version.stamp)])
    await leaves(cluster, primaries[0])


def count_rows(cluster: InProcessCluster) -> list[int]:
    """The partitions of which rows are asked for from now on."""
    asked: list[int] = []

    async def note(node: int, request: object) -> None:
        if isinstance(request, pb.PartitionRowsRequest):
            asked.append(request.partition)

    cluster.network.before = note
    return asked


async def test_what_nobody_holds_anything_of_moves_without_rows(cluster: InProcessCluster) -> None:
    partition, primaries = await put(cluster)
    moving = drain_node(cluster.cluster_map, cluster.cluster_map.node(primaries[0]).node_id)
    repairers = adopt(cluster, moving)
    asked = count_rows(cluster)
    for _ in range(2):
        for repairer in repairers.values():
            await repairer.round()
    assert set(asked) == {partition}
    reports = {n: MoveReport(moving.epoch, one.moved(moving.epoch)) for n, one in repairers.items()}
    assert Move(moving).is_finished(reports)


async def test_what_has_moved_is_looked_at_seldom_and_when_a_node_comes_back(
    cluster: InProcessCluster,
) -> None:
    """Digests leave votes out, so a move is by rows: once, not in each round until the slowest node is done."""
    partition, primaries = await put(cluster)
    moving = drain_node(cluster.cluster_map, cluster.cluster_map.node(primaries[0]).node_id)
    repairer = adopt(cluster, moving)[primaries[1]]
    while partition not in repairer.moved(moving.epoch):
        await repairer.round()
    asked = count_rows(cluster)
    for _ in range(repairing._BUSY_ROUNDS - 1):
        await repairer.round()
    assert not asked
    await repairer.round()
    assert set(asked) == {partition}
    cluster.network.down.add(primaries[2])
    await repairer.round()
    cluster.network.down.clear()
    asked.clear()
    await repairer.round()
    assert set(asked) == {partition}


async def test_rows_are_asked_of_all_at_once(cluster: InProcessCluster) -> None:
    """A move asks every primary of every set: one after the other, distances between sites would add up."""
    partition, primaries = await put(cluster)
    moving = drain_node(cluster.cluster_map, cluster.cluster_map.node(primaries[0]).node_id)
    repairer = adopt(cluster, moving)[primaries[1]]
    everyone = asyncio.Barrier(
        len(primaries)
    )  # the other five, and the one that takes the place of the first

    async def together(node: int, request: object) -> None:
        if isinstance(request, pb.PartitionRowsRequest):
            await everyone.wait()

    cluster.network.before = together
    async with asyncio.timeout(10):
        await repairer.round()
    assert partition in repairer.moved(moving.epoch)
