"""Publishing through coordination: one map after the other, and none beside one that somebody else has seen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import MemoryCoordination, newest_map, publish_map
from coffre.cluster.errors import (
    AlreadyExists,
    Conflict,
    IntegrityError,
    StaleMap,
    Unauthenticated,
    Unavailable,
)
from coffre.cluster.identity import NodeAttributes, read_certificate
from coffre.cluster.map import (
    ClusterMap,
    MapNode,
    Policy,
    create_map_file,
    read_map,
    verify_map,
    write_map,
)
from coffre.cluster.membership import (
    ClusterMaps,
    CoordinatedMapPublisher,
    KeptMaps,
    MapSigner,
    Restored,
    VerifiedMap,
    begin_change,
    drain_node,
    restore_newest_map,
    set_capacity,
)
from coffre.cluster.testing import CERTIFICATE_DAYS, Members, make_members
from coffre.cluster.transport import LoopbackTransport
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler

CLUSTER_ID = "0123456789abcdef"
NODES = [NodeAttributes(f"n{i}", f"s{i}", f"site-{i}", f"operator-{i}", "FR") for i in range(1, 5)]
ENTRIES = tuple(
    MapNode(i, one.node_id, f"h{i}:7000", one.server, one.site, one.operator, "FR", 1 << 30)
    for i, one in enumerate(NODES, 1)
)
FIRST = ClusterMap(CLUSTER_ID, 1, 16, ENTRIES, (Policy("2+1", 2, 1, ("FR",)),), "2+1", (1,))
SECOND = drain_node(FIRST, "n4")
THIRD = set_capacity(SECOND, "n1", 1 << 31)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(tmp_path_factory.mktemp("publishing"), CLUSTER_ID, NODES, (), ["alice"])


@dataclass(slots=True)
class World:
    """Nodes and an operator's file, all with the first map."""

    members: Members
    path: Path
    clock: ManualClock
    signer: MapSigner
    coordination: MemoryCoordination
    holders: dict[int, MapHolder]
    transport: LoopbackTransport

    def publisher(self) -> CoordinatedMapPublisher:
        known, _ = read_map(self.path, self.members.directory / "ca.crt")
        authority, keep = read_certificate(self.members.directory / "ca.crt"), partial(write_map, self.path)
        return CoordinatedMapPublisher(self.coordination, self.transport, known, authority, keep, self.clock)

    def adopted(self, changed: ClusterMap, numbers: Sequence[int]) -> None:
        """These nodes have taken a map."""
        for number in numbers:
            self.holders[number].adopt(changed, self.signer.sign(changed))

    async def restored(self, kept: ClusterMap) -> Restored:
        """What `restore-coordination` does with this map in the operator's file."""
        authority = read_certificate(self.members.directory / "ca.crt")
        file = VerifiedMap(kept, self.signer.sign(kept))
        return await restore_newest_map(self.coordination, self.transport, file, authority, self.clock)

    async def current(self) -> ClusterMap:
        """What the store says, and another command would find."""
        newest = await newest_map(self.coordination)
        assert newest is not None
        return verify_map(newest.signed, read_certificate(self.members.directory / "ca.crt"))


@pytest.fixture
def world(members: Members, tmp_path: Path) -> World:
    clock = ManualClock()
    signer = MapSigner.load(members.files("alice"), clock)
    signed = signer.sign(FIRST)
    create_map_file(tmp_path / "cluster.map", signed)
    holders = {i: MapHolder(FIRST, signed) for i in range(1, 5)}
    handlers = {i: Handler(i, f"n{i}", MemoryStore(clock), holders[i], clock) for i in holders}
    coordination = MemoryCoordination(clock, os.urandom)
    transport = LoopbackTransport(members.identity("alice"), handlers)
    return World(members, tmp_path / "cluster.map", clock, signer, coordination, holders, transport)


async def test_the_first_change_and_the_next(world: World) -> None:
    publisher = world.publisher()
    assert await publisher.current() == FIRST
    await begin_change(publisher, world.signer, SECOND)
    assert await publisher.current() == SECOND
    assert read_map(world.path, world.members.directory / "ca.crt")[0] == SECOND
    third = set_capacity(SECOND, "n1", 1 << 31)
    await begin_change(world.publisher(), world.signer, third)
    assert await publisher.current() == third


async def test_of_two_operators_one_is_first(world: World) -> None:
    one, other = world.publisher(), world.publisher()
    assert await one.current() == await other.current()
    await begin_change(one, world.signer, SECOND)
    with pytest.raises(Conflict):
        await begin_change(other, world.signer, set_capacity(FIRST, "n1", 1 << 31))
    assert await other.current() == SECOND


async def test_a_plan_on_another_map_is_refused(world: World) -> None:
    with pytest.raises(Conflict):
        await world.publisher().publish(world.signer.sign(SECOND), 5)


async def test_while_nothing_was_published_every_node_must_say_which_map_it_has(world: World) -> None:
    """One that is down may have a map of the next epoch already, if coordination was lost."""
    world.transport.down = {3}
    with pytest.raises(Unavailable, match="restore-coordination"):
        await world.publisher().current()
    world.transport.down = set()
    world.holders[3].adopt(SECOND, world.signer.sign(SECOND))
    assert await world.publisher().current() == SECOND
    authority = read_certificate(world.members.directory / "ca.crt")
    await publish_map(world.coordination, world.signer.sign(SECOND), authority, None)
    world.transport.down = {3}
    assert await world.publisher().current() == SECOND


async def test_coordination_that_went_back_in_time_is_noticed(world: World) -> None:
    authority = read_certificate(world.members.directory / "ca.crt")
    await publish_map(world.coordination, world.signer.sign(FIRST), authority, None)
    world.path.write_bytes(world.signer.sign(SECOND))
    with pytest.raises(StaleMap):
        await world.publisher().current()


# ------------------------------------------------------------------ a store that was lost


async def test_the_map_that_only_the_operators_file_has_is_restored(world: World) -> None:
    """Coordination was lost before any node was told of what it had just published."""
    assert await world.restored(SECOND) == Restored(SECOND, answered=4, newest_of_nodes=1)
    assert await world.current() == SECOND


async def test_the_newest_map_of_nodes_is_restored_with_a_file_of_before(world: World) -> None:
    world.adopted(SECOND, [3])
    for kept in (FIRST, SECOND):  # the same map, signed again, is the same map
        world.coordination = MemoryCoordination(world.clock, os.urandom)
        assert await world.restored(kept) == Restored(SECOND, answered=4, newest_of_nodes=2)
        assert await world.current() == SECOND


async def test_of_two_maps_of_one_epoch_none_is_restored(world: World) -> None:
    world.adopted(set_capacity(FIRST, "n1", 1 << 31), [3])
    with pytest.raises(IntegrityError, match="two different cluster maps of epoch 2"):
        await world.restored(SECOND)
    assert await newest_map(world.coordination) is None


async def test_a_file_that_cannot_follow_what_a_node_has_is_not_restored(world: World) -> None:
    world.adopted(set_capacity(FIRST, "n1", 1 << 31), [3])
    with pytest.raises(IntegrityError):
        await world.restored(THIRD)
    assert await newest_map(world.coordination) is None


async def test_a_file_whose_signer_has_expired_is_not_restored(world: World) -> None:
    """Nodes would refuse it, so the store would have a map that nobody follows. One that a node has taken is well."""
    signed = world.signer.sign(SECOND)
    later = ManualClock()
    later.advance((CERTIFICATE_DAYS + 1) * 86_400.0)
    authority = read_certificate(world.members.directory / "ca.crt")
    file = VerifiedMap(SECOND, signed)
    with pytest.raises(Unauthenticated):
        await restore_newest_map(world.coordination, world.transport, file, authority, later)
    assert await newest_map(world.coordination) is None
    world.adopted(SECOND, [3])
    await restore_newest_map(world.coordination, world.transport, file, authority, later)
    assert await world.current() == SECOND


async def test_nothing_is_restored_without_a_node_or_over_a_map(world: World) -> None:
    world.transport.down = {1, 2, 3, 4}
    with pytest.raises(Unavailable):
        await world.restored(SECOND)
    world.transport.down = set()
    assert (await world.restored(FIRST)).map == FIRST
    with pytest.raises(AlreadyExists, match="nothing to restore"):
        await world.restored(FIRST)
    with pytest.raises(
        AlreadyExists, match=r"of epoch 1; your file has the one of epoch 2.*coffre cluster publish"
    ):
        await world.restored(SECOND)


async def test_a_command_with_the_only_copy_of_a_map_says_how_to_make_it_known(world: World) -> None:
    world.path.write_bytes(world.signer.sign(SECOND))
    with pytest.raises(Unavailable, match=r"only your file has the one of epoch 2.*restore-coordination"):
        await world.publisher().current()
    await world.restored(SECOND)
    assert await world.publisher().current() == SECOND


async def test_a_command_publishes_again_what_was_lost_before_any_node_took_it(world: World) -> None:
    """Only when every node says so: one that is silent may have another map of that epoch."""
    publisher = world.publisher()
    assert await publisher.current() == FIRST
    await begin_change(publisher, world.signer, SECOND)
    await world.coordination.commit([], [], ["maps/current", "maps/epoch/0000000000000000002"])
    world.transport.down = {3}
    with pytest.raises(Unavailable):
        await publisher.current()
    assert await newest_map(world.coordination) is None
    world.transport.down = set()
    assert await publisher.current() == SECOND
    assert await world.current() == SECOND


# ------------------------------------------------------------------ files that are old


def kept_maps(world: World, path: Path, known: ClusterMap = FIRST) -> KeptMaps:
    authority = read_certificate(world.members.directory / "ca.crt")
    source = ClusterMaps(world.transport, world.coordination, authority, world.clock)
    return KeptMaps(source, path, known)


async def test_a_member_keeps_a_newer_map_in_place_of_the_old(world: World, tmp_path: Path) -> None:
    authority = world.members.directory / "ca.crt"
    link = tmp_path / "link.map"
    link.symlink_to(world.path)
    maps = kept_maps(world, link)
    assert await maps.newer(FIRST) is None
    world.adopted(THIRD, (2, 3))
    assert (await maps.newer(FIRST)) is not None
    assert read_map(link, authority)[0] == THIRD
    assert link.is_symlink()
    older = kept_maps(world, world.path)  # of a process that began before, and hears of less
    world.adopted(SECOND, (1, 2, 3, 4))
    assert (await older.newer(FIRST)) is not None
    assert read_map(world.path, authority)[0] == THIRD


async def test_a_member_keeps_what_is_published(world: World) -> None:
    await begin_change(world.publisher(), world.signer, SECOND)
    write_map(world.path, world.signer.sign(FIRST))
    async with aclosing(kept_maps(world, world.path).watch()) as watching:
        assert (await anext(watching)).map == SECOND
    assert read_map(world.path, world.members.directory / "ca.crt")[0] == SECOND


async def test_who_may_not_write_the_file_uses_the_newer_map_all_the_same(
    world: World, tmp_path: Path
) -> None:
    world.adopted(SECOND, (1, 2, 3, 4))
    found = await kept_maps(world, tmp_path / "gone" / "cluster.map").newer(FIRST)
    assert found is not None
    assert found.map == SECOND


async def test_a_command_keeps_the_newest_map_that_it_finds(world: World) -> None:
    await begin_change(world.publisher(), world.signer, SECOND)
    write_map(world.path, world.signer.sign(FIRST))
    assert await world.publisher().current() == SECOND
    assert read_map(world.path, world.members.directory / "ca.crt")[0] == SECOND
