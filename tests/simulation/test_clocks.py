"""Clocks that are very wrong and processes that stand still, one story at a time, by the thresholds as shipped; seeds
draw them at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from coffre.cluster.errors import ClockSkew, CoffreError
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.names import ObjectName, partition_of
from coffre.node.repair import RepairOptions
from coffre.node.store import Refuse, State

from tests.simulation.network import Quality
from tests.simulation.plan import draw_plan
from tests.simulation.repairers import RepairPlan
from tests.simulation.segments import tiny_segments
from tests.simulation.virtual_time import VirtualLoop, run_virtually
from tests.simulation.world import Member, World

SHIPPED = RepairOptions()
REPAIR = RepairPlan(
    1e6, 0.2, 1e6, SHIPPED.scrub_seconds, SHIPPED.unfinished_seconds, SHIPPED.retention_seconds, 900.0
)
NAME = ObjectName("clinic", "records", "x")
MINUTE = 60.0
HOUR = 3600.0


def in_calm(work: Callable[[World], Awaitable[None]]) -> None:
    """Run something on a cluster of 4+2 that repairs, by rounds that are made step by step."""
    plan = dataclasses.replace(
        draw_plan(1),
        quality=Quality(0.001, stay_behind=0.0),
        faults={},
        drift=0.0,
        offset=0.0,
        repair=REPAIR,
        changes=None,
        clocks=None,
    )

    async def main(loop: VirtualLoop) -> None:
        await work(World(plan, loop))

    with tiny_segments():
        run_virtually(main)


def primaries(world: World, member: Member) -> tuple[int, ...]:
    return member.client._views.current.electorate(NAME).primaries


async def rounds(world: World, *numbers: int) -> None:
    for number in numbers or sorted(world.hosts):
        repair = world.hosts[number].repair
        assert repair is not None
        await repair.repairer.round()


def states(world: World, number: int) -> list[State]:
    store = world.hosts[number].store
    return [entry.state for entry in store.versions(NAME)] if NAME in store.names() else []


async def put(member: Member, data: bytes, key: str = "x") -> None:
    await member.client.put("records", key, data)


# ------------------------------------------------------------------ a node's clock


@pytest.mark.parametrize("hours", [61 / 60, -61 / 60, 30.0, 3 * 365 * 24.0])
def test_one_wrong_clock_takes_no_put_for_abandoned(hours: float) -> None:
    async def work(world: World) -> None:
        member = world.member()
        await put(member, b"old")
        await member.client.flush()
        nodes = primaries(world, member)
        wrong = nodes[5]
        world.hosts[wrong].clock.set_wrong_by(hours * HOUR)
        for node in nodes[3:5]:  # they answer the writer later than the others
            world.network.cut(member.name, f"node {node}", world.loop.time() + 0.05)

        async def write() -> None:
            await put(member, b"new")
            member.kill()

        writing = member.actor.spawn(write())
        await world.sleep(0.02)
        await rounds(world, wrong)
        assert State.ABORTED not in states(world, wrong)
        assert world.hosts[wrong].handler.clocks.is_barred
        with pytest.raises(BaseException):  # noqa: B017, PT011 - the client ends with its process
            await writing
        assert await world.member().client.get("records", "x") == b"new"
        world.set_clocks()
        await rounds(world)
        assert not world.hosts[wrong].handler.clocks.is_barred
        assert await world.member().client.get("records", "x") == b"new"

    in_calm(work)


def test_a_reader_completes_what_a_node_refused_that_never_had_it() -> None:
    """Whatever made it refuse: its writer was told that the put stands."""

    async def work(world: World) -> None:
        member = world.member()
        await put(member, b"old")
        await member.client.flush()
        refusing = primaries(world, member)[5]
        world.network.cut(member.name, f"node {refusing}", world.loop.time() + 60)

        async def write() -> None:
            await put(member, b"new")
            member.kill()

        with pytest.raises(BaseException):  # noqa: B017, PT011
            await member.actor.spawn(write())
        wrong = world.hosts[refusing]
        reader = world.member()
        stamp = max(
            entry.stamp
            for host in world.hosts.values()
            for entry in host.store.holdings()
            if entry.state is not State.SETTLED
        )
        await wrong.store.apply([Refuse(NAME, partition_of(NAME, world.cluster_map.partitions), stamp)])
        assert states(world, refusing)[0] is State.ABORTED
        assert await reader.client.get("records", "x") == b"new"
        assert await world.member().client.get("records", "x") == b"new"
        await rounds(world)
        assert await world.member().client.get("records", "x") == b"new"

    in_calm(work)


# ------------------------------------------------------------------ standing still


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("hours", [61 / 60, 26.0, 21 * 24.0])
def test_a_writer_that_stood_still_in_mid_put_writes_anew_or_fails(hours: float, late: bool) -> None:
    async def work(world: World) -> None:
        member = world.member()
        await put(member, b"old")
        await member.client.flush()
        nodes = primaries(world, member)
        for node in nodes[3:]:  # what goes there is in its hands when it stands still
            world.network.cut(member.name, f"node {node}", world.loop.time() + 0.5)
        returned: list[bool] = []

        async def write() -> None:
            try:
                await put(member, b"new")
                returned.append(True)
            except CoffreError:
                returned.append(False)

        member.actor.spawn(write())
        await world.sleep(0.3)
        begun = world.loop.time()
        member.actor.freeze()
        world.leap(hours * HOUR)
        await rounds(world, nodes[5])  # one node refuses what is old
        member.clock.stand_still(world.loop.time() - begun)
        member.clock.set_wrong_by(world.loop.time() - member.clock.monotonic())
        member.actor.thaw(late=late)
        await world.sleep(30)
        assert len(returned) == 1
        await world.sleep(1)
        first = await world.member().client.get("records", "x")
        assert first == b"new" or not returned[0]
        await rounds(world)
        world.leap(2 * HOUR)
        await rounds(world)
        assert await world.member().client.get("records", "x") == first

    in_calm(work)


def test_a_reader_that_stood_still_brings_nothing_back() -> None:
    """It read what was unsettled, slept while that was deleted, and the deletion forgotten, and then locks it."""

    async def work(world: World) -> None:
        writer, reader = world.member(), world.member()
        await put(writer, b"old")
        await writer.client.flush()
        nodes = primaries(world, writer)
        settle = writer.client._parts.writer.settle
        writer.client._parts.writer.settle = lambda *_: None  # type: ignore[method-assign]
        writer.client._parts.writer._issuer.marks = tuple  # type: ignore[method-assign]
        await put(writer, b"undecided")
        writer.client._parts.writer.settle = settle  # type: ignore[method-assign]

        lane = reader.client._views.current.peers[nodes[0]].writes
        submit = type(lane).submit
        frozen: list[float] = []

        def freezing(self: Any, operation: Any) -> Any:
            if operation.HasField("accept") and not frozen:
                frozen.append(world.loop.time())
                world.loop.call_soon(reader.actor.freeze)
            return submit(self, operation)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(lane), "submit", freezing)
            reading = reader.actor.spawn(reader.client.get("records", "x"))
            await world.sleep(1)
        assert frozen, "nothing was to be completed"
        other = world.member()
        await other.client.delete("records", "x")
        await other.client.flush()
        for _ in range(3):
            world.leap(26 * HOUR)
            world.set_clocks()
            await rounds(world)
            for host in world.hosts.values():
                assert host.repair is not None
                await host.repair.repairer.walk()
        assert not any(states(world, node) for node in world.hosts), "the deletion is not forgotten"
        reader.actor.thaw(late=False)
        await world.sleep(30)
        reading.cancel()
        with pytest.raises(CoffreError):
            await world.member().client.get("records", "x")

    in_calm(work)


# ------------------------------------------------------------------ stamps of the future


async def _leave_future(world: World, seconds: float) -> int:
    """A client and a node are as far ahead; the client dies in mid-put. Returns the node, whose clock is right then."""
    good, fast = world.member(), world.member()
    await put(good, b"1")
    await good.client.flush()
    node = primaries(world, good)[0]
    fast.clock.set_wrong_by(seconds)
    world.hosts[node].clock.set_wrong_by(seconds)
    fast.actor.spawn(put(fast, b"2"))
    await world.sleep(0.03)
    fast.kill()
    world.hosts[node].clock.set_wrong_by(0)
    await world.sleep(120)
    assert State.ACCEPTED in states(world, node)
    return node


@pytest.mark.parametrize("seconds", [600.0, 26 * HOUR, 3 * 365 * 24 * HOUR])
def test_a_leftover_from_the_future_is_in_nobodys_way_and_goes(seconds: float) -> None:
    async def work(world: World) -> None:
        node = await _leave_future(world, seconds)
        member = world.member()
        for key in ("x", "y"):
            await put(member, b"9", key)
        assert await world.member().client.get("records", "x") == b"9"
        await member.client.delete("records", "x")
        for _ in range(
            8
        ):  # it is met, refused by those that lack it, dropped; what changes is compared a round later
            await rounds(world)
        assert State.ACCEPTED not in states(world, node)
        await put(member, b"10")
        assert await world.member().client.get("records", "x") == b"10"

    in_calm(work)


def test_a_fast_client_hears_of_its_clock_and_poisons_nobody() -> None:
    async def work(world: World) -> None:
        good, fast = world.member(), world.member()
        await put(good, b"1")
        node = primaries(world, good)[0]
        for clock in (fast.clock, world.hosts[node].clock):
            clock.set_wrong_by(600)
        trying = fast.actor.spawn(put(fast, b"2"))
        await world.sleep(0.5)
        await put(good, b"3")
        with pytest.raises(ClockSkew):
            await trying
        for clock in (fast.clock, world.hosts[node].clock):
            clock.set_wrong_by(0)
        for key in ("x", "other"):
            for member in (good, fast, world.member()):
                await put(member, b"4", key)

    in_calm(work)


def test_whoever_was_a_year_ahead_writes_on_when_its_clock_is_right() -> None:
    async def work(world: World) -> None:
        member = world.member()
        await put(member, b"1")
        member.clock.set_wrong_by(365 * 24 * HOUR)
        with pytest.raises(ClockSkew):
            await put(member, b"2")
        member.clock.set_wrong_by(0)
        await put(member, b"3")
        await put(member, b"4", "other")
        await member.client.flush()
        assert await world.member().client.get("records", "x") == b"3"

    in_calm(work)


# ------------------------------------------------------------------ of the simulator itself


def test_who_stands_still_does_nothing_and_then_everything() -> None:
    async def work(world: World) -> None:
        member = world.member()
        member.actor.freeze()
        putting = member.actor.spawn(put(member, b"1"))
        await world.sleep(100)
        assert not putting.done()
        assert not any(states(world, node) for node in world.hosts)
        member.actor.thaw(late=False)
        await putting

    in_calm(work)


def test_the_clock_of_a_newcomer_is_set_too() -> None:
    """It may join when the clocks have been set (seed 700118)."""

    async def work(world: World) -> None:
        attributes = NodeAttributes("n99", "server99", "site99", "operator99", "FR")
        world.newcomer(attributes, world.maps.newest)
        (clock,) = world._clocks
        clock.set_wrong_by(3600)
        world.set_clocks()
        assert abs(clock.unixtime_ms() - world.hosts[1].clock.unixtime_ms()) < 1000

    in_calm(work)
