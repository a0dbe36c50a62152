"""What a dead writer left while the map changes: it is decided, the move ends, and nothing acknowledged is given up."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Collection

import pytest
from coffre.client import AsyncClient
from coffre.client.writing import Issuer, Writer
from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.map import ClusterMap, Electorates
from coffre.cluster.membership import Move, MoveReport, drain_node, remove_node
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.repair.electorate import Electorates as NodeElectorates
from coffre.node.store import Lock, Refuse, State
from coffre.proto import coffre_pb2 as pb

AT_ONCE = RepairOptions(settling_seconds=-5.0, bytes_per_second=1 << 40, unfinished_seconds=-5.0)
NAME = ObjectName("clinic", "b", "k")


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    """So many nodes that most are neither primaries nor understudies of an object."""
    made = in_process_cluster(4, 2, nodes=16)
    yield made
    await made.aclose()


def adopt(cluster: InProcessCluster, cluster_map: ClusterMap) -> AsyncClient:
    """Let all nodes work on a map, as if it had been published; return a client of it."""
    cluster.adopt(cluster_map)
    return cluster.client(cluster_map=cluster_map)


def members(cluster_map: ClusterMap) -> list[tuple[int, ...]]:
    """The primaries of the object in each set, the newest first."""
    partition = partition_of(NAME, cluster_map.partitions)
    return [voters.nodes for voters in Electorates(cluster_map).of("clinic", "b", partition).sets]


def without(cluster_map: ClusterMap, *leaving: int) -> ClusterMap:
    for number in leaving:
        cluster_map = drain_node(cluster_map, cluster_map.node(number).node_id)
    return cluster_map


def lost(cluster_map: ClusterMap, number: int) -> ClusterMap:
    return remove_node(cluster_map, cluster_map.node(number).node_id, shards_held=None, lost=True)


async def die_in_a_put(cluster: InProcessCluster, client: AsyncClient, holders: Collection[int]) -> None:
    """A writer that dies when these nodes have its version."""

    async def reach(node: int, request: object) -> None:
        if isinstance(request, pb.BatchRequest) and request.operations:
            kind = request.operations[0].WhichOneof("operation")
            if kind == "abort" or (kind == "accept" and node not in holders):
                raise Unavailable("the writer is dead")

    before, cluster.network.before = cluster.network.before, reach
    with pytest.raises(CoffreError):
        await client.put("b", "k", b"undecided")
    cluster.network.before = before
    assert await holders_of(cluster, State.ACCEPTED) == set(holders)


async def holders_of(cluster: InProcessCluster, state: State) -> set[int]:
    """Who holds the newest version of the object in this state."""
    found = {number: await store.read(NAME, every=True) for number, store in cluster.stores.items()}
    return {number for number, versions in found.items() if versions and versions[0].state is state}


async def repair(cluster: InProcessCluster, cluster_map: ClusterMap) -> bool:
    """Some rounds and walks of every node that is up; whether the move is finished."""
    up = [node.number for node in cluster_map.nodes if node.number not in cluster.network.down]
    repairers: dict[int, Repairer] = {number: cluster.repairer(number, AT_ONCE) for number in up}
    for _ in range(3):
        for repairer in repairers.values():
            await repairer.round()
            await repairer.walk()
    reports = {n: MoveReport(cluster_map.epoch, one.moved(cluster_map.epoch)) for n, one in repairers.items()}
    return Move(cluster_map).is_finished(reports)


async def begin(cluster: InProcessCluster) -> None:
    """There is an object that everybody knows as settled."""
    client = cluster.client()
    await client.put("b", "k", b"before")
    await client.flush()


async def test_a_move_ends_though_a_dead_writer_left_a_version_on_w_of_before(
    cluster: InProcessCluster,
) -> None:
    await begin(cluster)
    (primaries,) = members(cluster.cluster_map)
    leaving = primaries[2]
    moving = without(cluster.cluster_map, leaving)
    client = adopt(cluster, moving)
    staying = [number for number in primaries if number != leaving]
    await die_in_a_put(cluster, client, [*staying[:3], leaving])
    assert await repair(cluster, moving)
    assert not await holders_of(cluster, State.ACCEPTED)
    assert await client.get("b", "k") == b"before"
    after = adopt(cluster, finish_move(moving))
    cluster.network.down.add(leaving)
    assert await after.get("b", "k") == b"before"
    await after.put("b", "k", b"after")
    assert await after.get("b", "k") == b"after"


async def test_a_primary_of_before_gives_the_vote_that_is_missing(cluster: InProcessCluster) -> None:
    """Three have promised to keep it, and can never be one more; of those who may refuse it one is leaving."""
    await begin(cluster)
    (primaries,) = members(cluster.cluster_map)
    *staying, leaving = primaries
    await die_in_a_put(cluster, cluster.client(), staying[:3])
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    for number in staying[:3]:
        newest, *_ = await cluster.stores[number].read(NAME)
        await cluster.stores[number].apply([Lock(NAME, partition, newest.stamp)])
    moving = without(cluster.cluster_map, leaving)
    client = adopt(cluster, moving)
    assert await repair(cluster, moving)
    assert not await holders_of(cluster, State.LOCKED)
    assert await client.get("b", "k") == b"before"


async def test_it_waits_for_a_node_that_may_hold_the_shard_that_is_missing(
    cluster: InProcessCluster,
) -> None:
    """Two nodes that are neither primaries nor understudies are silent: they may have stood in at some epoch."""
    await begin(cluster)
    (primaries,) = members(cluster.cluster_map)
    moving = without(cluster.cluster_map, primaries[0])
    client = adopt(cluster, moving)
    await die_in_a_put(cluster, client, primaries[:4])
    electorates = Electorates(moving)
    partition = partition_of(NAME, moving.partitions)
    everyone = electorates.of("clinic", "b", partition).everyone
    order = [n for n in electorates.placement("clinic", "b").order(partition) if n not in everyone]
    far = order[6:8]
    assert len(far) == 2
    cluster.network.down |= set(far)
    assert not await repair(cluster, moving)
    assert await holders_of(cluster, State.ACCEPTED) == set(primaries[:4])
    cluster.network.heal()
    assert await repair(cluster, moving)
    assert not await holders_of(cluster, State.ACCEPTED)


async def test_a_move_that_replaces_a_lost_node_ends(cluster: InProcessCluster) -> None:
    """With the lost node W may hold the version. It may have had the shard that is missing: fewer than D even so."""
    await begin(cluster)
    (primaries,) = members(cluster.cluster_map)
    moving = lost(cluster.cluster_map, primaries[2])
    cluster.network.down.add(primaries[2])
    client = adopt(cluster, moving)
    await die_in_a_put(cluster, client, primaries[3:])
    assert await repair(cluster, moving)
    assert await client.get("b", "k") == b"before"


async def test_where_a_node_departed_before_it_stays_undecided_until_the_object_is_written_again(
    cluster: InProcessCluster,
) -> None:
    """It might have been lost, too, with a shard of a version that was acknowledged."""
    (primaries,) = members(cluster.cluster_map)
    other = next(n for n in cluster.stores if n not in primaries)
    settled = finish_move(lost(cluster.cluster_map, other))
    cluster.network.down.add(other)
    adopt(cluster, settled)
    assert members(settled) == [primaries]
    moving = lost(settled, primaries[2])
    cluster.network.down.add(primaries[2])
    client = adopt(cluster, moving)
    await die_in_a_put(cluster, client, primaries[3:])
    assert not await repair(cluster, moving)
    assert await holders_of(cluster, State.ACCEPTED) == set(primaries[3:])
    await client.put("b", "k", b"written again")
    await client.flush()
    assert await repair(cluster, moving)
    assert await client.get("b", "k") == b"written again"


async def test_what_was_acknowledged_before_most_of_its_nodes_left_is_settled(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer died before it could say so. W of the set of before must promise it, and four of the six are primaries
    no more."""
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        client = cluster.client()
        await client.put("b", "k", b"acknowledged")
        await client.flush()
    (primaries,) = members(cluster.cluster_map)
    moving = without(cluster.cluster_map, *primaries[:4])
    client = adopt(cluster, moving)
    assert len(set(members(moving)[0]) & set(primaries)) == 2
    assert await repair(cluster, moving)
    after = adopt(cluster, finish_move(moving))
    cluster.network.down |= set(primaries[:4])
    assert await after.get("b", "k") == b"acknowledged"


async def acknowledged_with(
    cluster: InProcessCluster, cluster_map: ClusterMap, substitute: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, ...]:
    """A put that two primaries missed and this node took a shard of, by a writer that died then. The primaries."""
    (primaries,) = members(cluster_map)

    async def reach(node: int, request: object) -> None:
        is_accept = isinstance(request, pb.BatchRequest) and request.operations[0].HasField("accept")
        if is_accept and node not in primaries[:4] and node != substitute:
            raise Unavailable("down")

    cluster.network.before = reach
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        client = cluster.client(cluster_map=cluster_map)
        await client.put("b", "k", b"acknowledged")
        await client.flush()
    cluster.network.heal()
    assert await holders_of(cluster, State.ACCEPTED) == {*primaries[:4], substitute}
    return primaries


def understudies(cluster_map: ClusterMap) -> tuple[int, ...]:
    return NodeElectorates(cluster_map).understudies(
        "clinic", "b", partition_of(NAME, cluster_map.partitions)
    )


async def test_a_substitute_that_answers_digests_and_no_reads_may_hold_a_shard(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its shard, and with a primary that is down, an acknowledged version looks like one with too few."""
    substitute = understudies(cluster.cluster_map)[0]
    primaries = await acknowledged_with(cluster, cluster.cluster_map, substitute, monkeypatch)

    async def mute(node: int, request: object) -> None:
        if node == substitute and isinstance(request, pb.BatchRequest):
            raise Unavailable("it has just stopped")

    cluster.network.before = mute
    cluster.network.down.add(primaries[3])
    await repair(cluster, cluster.cluster_map)
    assert not await holders_of(cluster, State.ABORTED)
    cluster.network.heal()
    assert await cluster.client().get("b", "k") == b"acknowledged"


async def test_a_silent_node_that_was_an_understudy_before_may_hold_a_shard(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node joined since, in another place of the order; the primaries are the same, and nothing moves."""
    joined = understudies(cluster.cluster_map)[2]
    others = tuple(node for node in cluster.cluster_map.nodes if node.number != joined)
    small = dataclasses.replace(cluster.cluster_map, nodes=others)
    substitute = understudies(small)[5]
    adopt(cluster, small)
    primaries = await acknowledged_with(cluster, small, substitute, monkeypatch)
    grown = dataclasses.replace(cluster.cluster_map, epoch=small.epoch + 1)
    assert members(grown) == [primaries]
    assert substitute not in understudies(grown)
    adopt(cluster, grown)
    cluster.network.down |= {primaries[3], substitute}
    await repair(cluster, grown)
    assert not await holders_of(cluster, State.ABORTED)
    cluster.network.heal()
    await repair(cluster, grown)
    assert await cluster.client(cluster_map=grown).get("b", "k") == b"acknowledged"


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_node_of_a_newer_set_changes_its_vote_at_that_map_alone(
    cluster: InProcessCluster, overtaken: bool
) -> None:
    """W of the oldest set locked it, R of the newest refused it; the move ends while others are asked, or not."""
    await begin(cluster)
    (primaries,) = members(cluster.cluster_map)
    moving = without(cluster.cluster_map, *primaries[:3])
    joined = [node for node in members(moving)[0] if node not in primaries]
    await die_in_a_put(cluster, adopt(cluster, cluster.cluster_map), primaries[:4])
    stamp = max(version.stamp for version in await cluster.stores[primaries[0]].read(NAME))
    partition = partition_of(NAME, moving.partitions)
    for node in primaries[:4]:
        await cluster.stores[node].apply([Lock(NAME, partition, stamp)])
    for node in joined:
        await cluster.stores[node].apply([Refuse(NAME, partition, stamp)])
    adopt(cluster, moving)
    repairer = cluster.repairer(joined[0], AT_ONCE)

    async def end(node: int, request: object) -> None:
        if isinstance(request, pb.BatchRequest) and overtaken:
            repairer._maps.adopt(finish_move(moving), b"")

    cluster.network.before = end
    await repairer.round()
    assert await holders_of(cluster, State.ABORTED) == set(joined if overtaken else joined[1:])
    assert await holders_of(cluster, State.LOCKED) == {*primaries[:4], *([] if overtaken else joined[:1])}
