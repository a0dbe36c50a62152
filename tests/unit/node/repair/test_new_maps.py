"""A map that comes while repair looks: what was proved by the one before is not done any more."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from coffre.cluster.errors import Unavailable
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.store import State
from coffre.proto import coffre_pb2 as pb

from tests.unit.node.repair.test_repairer import AT_ONCE, OLD, primaries
from tests.unit.node.repair.test_sweep import condemned, deleted, holders, name, repairers

MIB = 1 << 20
MakeCluster = Callable[..., InProcessCluster]


@pytest.fixture
async def make_cluster() -> AsyncIterator[MakeCluster]:
    made: list[InProcessCluster] = []

    def make(k: int = 4, m: int = 2, **options: int) -> InProcessCluster:
        made.append(in_process_cluster(k, m, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        await cluster.aclose()


def a_map_comes(cluster: InProcessCluster, number: int) -> None:
    """To one node, as soon as it has heard of versions from another."""

    async def after(node: int, reply: object) -> None:
        maps = cluster.handlers[number].maps
        if isinstance(reply, pb.BatchReply) and maps.map.epoch == cluster.cluster_map.epoch:
            maps.adopt(replace(maps.map, epoch=maps.map.epoch + 1), b"")

    cluster.network.after = after


async def test_a_substitute_keeps_what_it_holds_by_a_new_map(make_cluster: MakeCluster) -> None:
    """By that one it may be a primary, and have said that it holds it."""
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    cluster.network.down.add(members[2])
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    cluster.network.down.clear()
    each = repairers(cluster)
    await each[members[2]].round()
    a_map_comes(cluster, outsider)
    await each[outsider].walk()
    assert outsider in await holders(cluster, "k")
    assert each[outsider].status().held_for_others == 1
    cluster.network.heal()
    for handler in cluster.handlers.values():
        handler.maps.adopt(replace(cluster.cluster_map, epoch=cluster.cluster_map.epoch + 1), b"")
    await each[outsider].walk()  # seen anew by the new map, it goes
    assert await holders(cluster, "k") == set(members)


async def test_a_tombstone_is_not_condemned_by_the_map_before(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await deleted(cluster, "k")
    each = repairers(cluster)
    a_map_comes(cluster, 1)
    await each[1].walk()
    assert await condemned(cluster, "k") == set()


async def test_no_vote_is_given_by_the_map_before(make_cluster: MakeCluster) -> None:
    """A version that its writer left behind on one node, an hour ago: the others refuse it, by the map they have."""
    cluster = make_cluster(4, 2)
    members = primaries(cluster, "k")

    async def die_in_mid_put(node: int, request: object) -> None:
        assert isinstance(request, pb.BatchRequest)
        if node != members[0] or any(o.WhichOneof("operation") == "abort" for o in request.operations):
            raise Unavailable("it does not come there")

    cluster.network.before = die_in_mid_put
    with pytest.raises(Unavailable):
        await cluster.client().put("b", "k", b"value")
    cluster.network.heal()
    voter = members[1]
    repairer = cluster.repairer(voter, OLD)
    a_map_comes(cluster, voter)
    await repairer.round()
    assert await cluster.stores[voter].read(name("k"), every=True) == ()
    assert [parked.reason for parked in repairer.status().parked] == ["another map came meanwhile"]


async def test_what_is_established_is_brought_whatever_the_map(make_cluster: MakeCluster) -> None:
    """It is so for ever, and a large shard that was rebuilt for hours is not thrown away."""
    cluster = make_cluster(4, 2)
    away = primaries(cluster, "k")[2]
    cluster.network.down.add(away)
    client = cluster.client()
    await client.put("b", "k", os.urandom(2 * MIB + 3))
    await client.flush()
    cluster.network.heal()
    repairer = cluster.repairer(away, AT_ONCE)
    a_map_comes(cluster, away)
    await repairer.round()
    (version,) = await cluster.stores[away].read(name("k"))
    assert (version.state, version.shard_index is not None) == (State.SETTLED, True)
