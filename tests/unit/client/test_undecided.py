"""Reads, while the map changes, of what a dead writer left with too few shards: never stale, and not stuck."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace

import pytest
from coffre.client import AsyncClient
from coffre.client.writing import Issuer, Writer
from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.map import ClusterMap, Electorate, Electorates, Policy
from coffre.cluster.membership import drain_node, remove_node, set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.store import Lock, Refuse, State
from coffre.proto import coffre_pb2 as pb

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


def electorate(cluster_map: ClusterMap) -> Electorate:
    return Electorates(cluster_map).of("clinic", "b", partition_of(NAME, cluster_map.partitions))


def order(cluster_map: ClusterMap) -> list[int]:
    """The nodes that decide nothing about the object, the understudies first."""
    everyone = electorate(cluster_map).everyone
    placement = Electorates(cluster_map).placement("clinic", "b")
    return [n for n in placement.order(partition_of(NAME, cluster_map.partitions)) if n not in everyone]


def drained(cluster_map: ClusterMap, number: int) -> ClusterMap:
    return drain_node(cluster_map, cluster_map.node(number).node_id)


def lost(cluster_map: ClusterMap, number: int) -> ClusterMap:
    return remove_node(cluster_map, cluster_map.node(number).node_id, shards_held=None, lost=True)


async def put_on(
    cluster: InProcessCluster,
    cluster_map: ClusterMap,
    holders: Collection[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A put that reaches these nodes alone, by a writer that dies before it says or takes back anything."""

    async def reach(node: int, request: object) -> None:
        if isinstance(request, pb.BatchRequest) and request.operations:
            kind = request.operations[0].WhichOneof("operation")
            if kind == "abort" or (kind == "accept" and node not in holders):
                raise Unavailable("the writer is dead")

    before, cluster.network.before = cluster.network.before, reach
    try:
        with monkeypatch.context() as dying:
            dying.setattr(Issuer, "marks", lambda self: ())
            dying.setattr(Writer, "settle", lambda *args, **options: None)
            client = cluster.client(cluster_map=cluster_map)
            await client.put("b", "k", b"newer")
            await client.flush()
    finally:
        cluster.network.before = before
    states = {n: [v.state for v in await store.read(NAME)] for n, store in cluster.stores.items()}
    assert {number for number, found in states.items() if State.ACCEPTED in found} == set(holders)


async def begin(cluster: InProcessCluster) -> tuple[int, ...]:
    client = cluster.client()
    await client.put("b", "k", b"before")
    await client.flush()
    return electorate(cluster.cluster_map).primaries


async def test_what_nobody_was_told_of_is_skipped_while_the_map_changes(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    primaries = await begin(cluster)
    moving = drained(cluster.cluster_map, primaries[0])
    reader = adopt(cluster, moving)
    with pytest.raises(CoffreError):
        await put_on(cluster, moving, primaries[:4], monkeypatch)
    assert await reader.get("b", "k") == b"before"
    assert [entry.key async for entry in reader.list("b") if not isinstance(entry, str)] == ["k"]
    far = order(moving)[6:]
    cluster.network.down.add(far[0])
    assert await reader.get("b", "k") == b"before"  # fewer than D even so
    cluster.network.down.add(far[1])
    with pytest.raises(Unavailable):
        await reader.get("b", "k")
    cluster.network.down.clear()
    await reader.put("b", "k", b"after")
    assert await reader.get("b", "k") == b"after"


async def test_a_lost_node_may_have_had_the_shard_that_is_missing(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts; and where another node departed before, it proves nothing that fewer than D are possible."""
    primaries = await begin(cluster)
    departed = order(cluster.cluster_map)[0]
    for earlier in (cluster.cluster_map, finish_move(lost(cluster.cluster_map, departed))):
        assert electorate(earlier).primaries == primaries
        moving = lost(earlier, primaries[0])
        cluster.network.down |= {primaries[0]}
        reader = adopt(cluster, moving)
        with pytest.raises(CoffreError):
            await put_on(cluster, moving, primaries[3:], monkeypatch)
        if earlier is cluster.cluster_map:
            assert await reader.get("b", "k") == b"before"
            await reader.put("b", "k", b"before")
            await reader.flush()
        else:
            with pytest.raises(Unavailable):
                await reader.get("b", "k")
            await reader.put("b", "l", b"another")
            listed = {
                one.key: bool(one.unreadable) async for one in reader.list("b") if not isinstance(one, str)
            }
            assert listed == {"k": True, "l": False}  # it does not take the list of the others with it
            await reader.put("b", "k", b"again")
            assert await reader.get("b", "k") == b"again"


async def test_a_substitute_of_an_earlier_map_may_hold_a_shard_of_what_was_acknowledged(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes joined since, and it is no understudy any more. While it is silent nothing can be shown."""
    joining = order(cluster.cluster_map)[2:4]
    others = tuple(node for node in cluster.cluster_map.nodes if node.number not in joining)
    small = replace(cluster.cluster_map, nodes=others)
    client = adopt(cluster, small)
    primaries, substitute = electorate(small).primaries, order(small)[5]
    await client.put("b", "k", b"before")
    await client.flush()
    await put_on(cluster, small, [*primaries[:4], substitute], monkeypatch)
    grown = replace(cluster.cluster_map, epoch=small.epoch + 1)
    assert electorate(grown).primaries == primaries
    moving = drained(grown, primaries[5])
    assert substitute in order(moving)[6:]
    reader = adopt(cluster, moving)
    cluster.network.down |= {primaries[3], substitute}
    with pytest.raises(Unavailable):
        await reader.get("b", "k")
    cluster.network.down.discard(substitute)
    assert await reader.get("b", "k") == b"newer"


async def test_what_may_stand_by_the_vote_of_a_lost_node_is_kept(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCKED on three primaries and refused by two; the sixth vote is lost with its node, so W may have locked it."""
    primaries = await begin(cluster)
    substitute = order(cluster.cluster_map)[0]
    holders = (*primaries[1:4], substitute)
    with pytest.raises(CoffreError):
        await put_on(cluster, cluster.cluster_map, holders, monkeypatch)
    stamp = max(version.stamp for version in await cluster.stores[substitute].read(NAME))
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    for node in holders:
        await cluster.stores[node].apply([Lock(NAME, partition, stamp)])
    for node in primaries[4:]:
        await cluster.stores[node].apply([Refuse(NAME, partition, stamp)])
    cluster.network.down.add(primaries[0])
    with pytest.raises(Unavailable):
        await cluster.client().get("b", "k")  # the sixth may come back
    reader = adopt(cluster, lost(cluster.cluster_map, primaries[0]))
    cluster.network.down.add(primaries[5])
    with pytest.raises(Unavailable):
        await reader.get("b", "k")
    cluster.network.down.discard(primaries[5])
    assert await reader.get("b", "k") == b"newer"
    cluster.network.down.add(substitute)
    with pytest.raises(Unavailable):  # three shards are left
        await adopt(cluster, lost(cluster.cluster_map, primaries[0])).get("b", "k")


async def test_what_the_oldest_set_keeps_is_completed_against_the_votes_of_newer_ones(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader locked it on W primaries of before, another one gave it up: R of the newest set have refused it."""
    primaries = await begin(cluster)
    moving = cluster.cluster_map
    for number in primaries[:3]:
        moving = drained(moving, number)
    newest = electorate(moving).primaries
    joined = [node for node in newest if node not in primaries]
    with pytest.raises(CoffreError):
        await put_on(cluster, cluster.cluster_map, primaries[:4], monkeypatch)
    stamp = max(version.stamp for version in await cluster.stores[primaries[0]].read(NAME))
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    for node in primaries[:3]:
        await cluster.stores[node].apply([Lock(NAME, partition, stamp)])
    for node in joined:
        await cluster.stores[node].apply([Refuse(NAME, partition, stamp)])
    reader = adopt(cluster, moving)
    cluster.network.down.add(primaries[3])
    with pytest.raises(Unavailable):
        await reader.get("b", "k")  # it may have refused it
    cluster.network.down.clear()
    await cluster.stores[primaries[3]].apply([Lock(NAME, partition, stamp)])
    assert await reader.get("b", "k") == b"newer"
    for voters in electorate(moving).sets:
        states = [(await cluster.stores[node].read(NAME))[0].state for node in voters.nodes]
        assert sum(state in (State.LOCKED, State.SETTLED) for state in states) >= voters.write
    await reader.flush()
    after = finish_move(moving)
    assert await adopt(cluster, after).get("b", "k") == b"newer"


async def test_what_a_large_set_keeps_is_completed_though_most_of_a_small_one_refused_it(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket gets a policy with fewer shards: of its three primaries two are of those who had refused the version."""
    primaries = await begin(cluster)
    moving = set_policy(cluster.cluster_map, "clinic", "b", "2+1", Policy("2+1", 2, 1, ("FR",)))
    refusing = electorate(moving).primaries[:2]
    keeping = [node for node in primaries if node not in refusing]
    assert len(keeping) == 4
    with pytest.raises(CoffreError):
        await put_on(cluster, cluster.cluster_map, keeping, monkeypatch)
    stamp = max(version.stamp for version in await cluster.stores[keeping[0]].read(NAME))
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    for node in refusing:
        await cluster.stores[node].apply([Refuse(NAME, partition, stamp)])
    for node in keeping[1:]:
        await cluster.stores[node].apply([Lock(NAME, partition, stamp)])
    reader = adopt(cluster, moving)
    cluster.network.down.add(keeping[0])
    with pytest.raises(Unavailable):
        await reader.get("b", "k")  # it may have refused it, too
    cluster.network.down.clear()
    await cluster.stores[keeping[0]].apply([Lock(NAME, partition, stamp)])
    assert await reader.get("b", "k") == b"newer"
    for voters in electorate(moving).sets:
        states = [(await cluster.stores[node].read(NAME))[0].state for node in voters.nodes]
        assert sum(state in (State.LOCKED, State.SETTLED) for state in states) >= voters.write


@pytest.mark.parametrize("ended", [drained, lost])
async def test_a_substitute_that_left_before_may_have_had_a_shard(
    cluster: InProcessCluster,
    monkeypatch: pytest.MonkeyPatch,
    ended: Callable[[ClusterMap, int], ClusterMap],
) -> None:
    """The move is over, and this partition had no part in it: no set of primaries says where the fifth shard went."""
    primaries, substitute = await begin(cluster), order(cluster.cluster_map)[0]
    await put_on(cluster, cluster.cluster_map, [*primaries[:4], substitute], monkeypatch)  # acknowledged
    after = finish_move(ended(cluster.cluster_map, substitute))
    assert not electorate(after).is_moving
    reader = adopt(cluster, after)
    cluster.network.down |= {primaries[3], substitute}
    with pytest.raises(Unavailable):
        await reader.get("b", "k")
    cluster.network.down = {substitute} if ended is lost else set()
    assert await reader.get("b", "k") == b"newer"
