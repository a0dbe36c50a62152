"""Carrying out a change: published once, followed to its end, and taken up again after an interruption."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    Conflict,
    IntegrityError,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.map import ClusterMap, MapNode, Policy, create_map_file, read_map
from coffre.cluster.membership import (
    FileMapPublisher,
    MapSigner,
    Move,
    MoveProgress,
    MoveReport,
    begin_change,
    drain_node,
    follow_move,
    set_capacity,
)
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.testing import Members, MemoryMoveReports, make_members

CLUSTER_ID = "0123456789abcdef"
NODES = [NodeAttributes(f"n{i}", f"s{i}", f"site-{i % 4}", f"operator-{i % 4}", "FR") for i in range(1, 5)]
ENTRIES = tuple(
    MapNode(i, one.node_id, f"h{i}:7000", one.server, one.site, one.operator, "FR", 1 << 30)
    for i, one in enumerate(NODES, 1)
)
FIRST = ClusterMap(CLUSTER_ID, 1, 16, ENTRIES, (Policy("2+1", 2, 1, ("FR",)),), "2+1")
DRAINING = drain_node(FIRST, "n4")
ALL = frozenset(range(16))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(tmp_path_factory.mktemp("changes"), CLUSTER_ID, NODES, ["clinic"], ["alice"])


@dataclasses.dataclass(slots=True)
class World:
    path: Path
    authority: Path
    publisher: FileMapPublisher
    signer: MapSigner
    reports: MemoryMoveReports
    clock: ManualClock
    seen: list[MoveProgress]

    def map(self) -> ClusterMap:
        return read_map(self.path, self.authority)[0]

    async def follow(self) -> ClusterMap:
        return await follow_move(self.publisher, self.signer, self.reports, self.clock, self.seen.append)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Let virtual time pass, in steps of a second, until something is so."""
        for _ in range(1000):
            for _ in range(20):
                await asyncio.sleep(0)
            if reached():
                return
            self.clock.advance(1)
        pytest.fail("it never came to that")


@pytest.fixture
def world(members: Members, tmp_path: Path) -> World:
    clock = ManualClock()
    path, authority = tmp_path / "cluster.map", members.directory / "ca.crt"
    signer = MapSigner.load(members.files("alice"), clock)
    create_map_file(path, signer.sign(FIRST))
    publisher = FileMapPublisher(path, authority, clock)
    return World(path, authority, publisher, signer, MemoryMoveReports(), clock, [])


# ------------------------------------------------------------------ publishing


async def test_a_map_is_published_once(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    assert world.map() == DRAINING
    with pytest.raises(Conflict, match="has epoch 2 by now"):
        await begin_change(world.publisher, world.signer, set_capacity(FIRST, "n1", 1 << 31))
    assert world.map() == DRAINING


async def test_a_map_that_cannot_follow_is_not_published(world: World) -> None:
    with pytest.raises(IntegrityError):
        await world.publisher.publish(world.signer.sign(dataclasses.replace(DRAINING, prior=())), 1)
    assert world.map() == FIRST


async def test_two_commands_at_once(world: World) -> None:
    with world.path.with_name("cluster.map.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="right now"):
            await begin_change(world.publisher, world.signer, DRAINING)
    await begin_change(world.publisher, world.signer, DRAINING)


async def test_only_operators_sign(members: Members, world: World) -> None:
    with pytest.raises(PermissionDenied):
        MapSigner.load(members.files("clinic"), world.clock)
    with pytest.raises(PermissionDenied):
        MapSigner.load(members.files("n1"), world.clock)


async def test_a_former_operator_publishes_nothing(world: World) -> None:
    """Verified on the file's side as well: signing does not look at the date."""
    world.clock.advance(40_000 * 86_400)
    with pytest.raises(Unauthenticated):
        await begin_change(world.publisher, world.signer, DRAINING)


# ------------------------------------------------------------------ following


async def test_nothing_to_follow(world: World) -> None:
    assert await world.follow() == FIRST
    assert world.seen == []


async def test_a_move_is_followed_to_its_end(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    move = Move(DRAINING)
    following = asyncio.create_task(world.follow())
    await world.until(lambda: len(world.seen) > 2)
    assert world.map() == DRAINING
    assert world.seen[-1].seconds_left is None
    for node in move.nodes:  # three of four partitions after some time
        world.reports.reports[node] = MoveReport(2, frozenset(range(12)))
    before = len(world.seen)
    await world.until(lambda: len(world.seen) > before + 2)
    progress = world.seen[-1]
    assert 0 < progress.done < progress.total == move.total
    assert progress.seconds_left is not None
    assert progress.seconds_left > 0
    for node in move.nodes:
        world.reports.reports[node] = MoveReport(2, ALL)
    await world.until(following.done)
    assert following.result() == finish_move(DRAINING) == world.map()
    assert world.seen[-1].is_finished


async def test_a_node_that_is_silent_holds_the_end_up(world: World) -> None:
    """What a node said before is not remembered: the end needs all of them at once, or at least each in one poll."""
    await begin_change(world.publisher, world.signer, DRAINING)
    for node in Move(DRAINING).nodes:
        world.reports.reports[node] = MoveReport(2, ALL)
    world.reports.down = {1}
    following = asyncio.create_task(world.follow())
    await world.until(lambda: len(world.seen) > 100)
    assert world.map() == DRAINING
    assert world.seen[-1].silent == (1,)
    world.reports.down = set()
    await world.until(following.done)
    assert world.map().prior == ()


async def test_reports_of_an_earlier_epoch_end_nothing(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    for node in Move(DRAINING).nodes:
        world.reports.reports[node] = MoveReport(1, ALL)
    following = asyncio.create_task(world.follow())
    await world.until(lambda: len(world.seen) > 20)
    assert world.map() == DRAINING
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_an_interrupted_command_is_taken_up_by_the_next(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    first = asyncio.create_task(world.follow())
    await world.until(lambda: bool(world.seen))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert drain_node(world.map(), "n4") == world.map()  # the same wish again changes nothing
    for node in Move(DRAINING).nodes:
        world.reports.reports[node] = MoveReport(2, ALL)
    assert await world.follow() == finish_move(DRAINING)


async def test_a_move_that_another_command_widens_is_followed_on(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    following = asyncio.create_task(world.follow())
    await world.until(lambda: bool(world.seen))
    wider = set_capacity(DRAINING, "n1", 1 << 34)
    await begin_change(world.publisher, world.signer, wider)
    for node in range(1, 5):
        world.reports.reports[node] = MoveReport(2, ALL)
    await world.until(lambda: len(world.seen) > 20)
    assert world.map() == wider, "reports of epoch 2 must not end epoch 3"
    for node in range(1, 5):
        world.reports.reports[node] = MoveReport(3, ALL)
    await world.until(following.done)
    assert world.map() == finish_move(wider)


async def test_two_commands_follow_one_move(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    following = [asyncio.create_task(world.follow()) for _ in range(2)]
    for node in Move(DRAINING).nodes:
        world.reports.reports[node] = MoveReport(2, ALL)
    await world.until(lambda: all(task.done() for task in following))
    assert {task.result().epoch for task in following} == {3}


class Faltering(FileMapPublisher):
    """A publisher that cannot be reached for a while, or whose answers get lost."""

    unreachable = False
    loses_answers = False

    async def current(self) -> ClusterMap:
        if self.unreachable:
            raise Unavailable("nobody there")
        return await super().current()

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        await super().publish(signed, expected_epoch)
        if self.loses_answers:
            self.unreachable = True
            raise OutcomeUnknown("who knows")


async def test_a_short_outage_of_coordination_is_waited_for(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    faltering = world.publisher = Faltering(world.path, world.authority, world.clock)
    faltering.unreachable = faltering.loses_answers = True
    following = asyncio.create_task(world.follow())
    start = world.clock.monotonic()
    await world.until(lambda: world.clock.monotonic() > start + 50)
    assert not following.done()
    faltering.unreachable = False
    await world.until(lambda: bool(world.seen))
    for node in Move(DRAINING).nodes:
        world.reports.reports[node] = MoveReport(2, ALL)
    await world.until(lambda: faltering.unreachable)  # the end was published, and nobody heard of it
    faltering.unreachable = False
    await world.until(following.done)
    assert following.result() == finish_move(DRAINING) == world.map()


async def test_a_long_outage_of_coordination_ends_the_wait(world: World) -> None:
    await begin_change(world.publisher, world.signer, DRAINING)
    faltering = world.publisher = Faltering(world.path, world.authority, world.clock)
    faltering.unreachable = True
    following = asyncio.create_task(world.follow())
    await world.until(following.done)
    with pytest.raises(Unavailable):
        following.result()
    assert 60 < world.clock.monotonic() < 70
