"""Stories of votes and shards: who gives up what others have read, slips in between, or counts what is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from coffre.node.repair.asking import Asking
from coffre.node.store import State

from tests.simulation.host import Host
from tests.simulation.stage import HOUR, MINUTE, SOON_SECONDS, Stage
from tests.simulation.world import Member, World

__all__ = ["NODES", "STORIES"]

PATIENCE_SECONDS = 2.0  # of a client, until it gives up


async def _and_die(member: Member, work: Any) -> None:
    """A client does something, and is gone in the moment in which it has done it."""

    async def last() -> None:
        await work
        member.kill()

    await asyncio.wait([member.actor.spawn(last())])


async def _stop(world: World, member: Member, seconds: float) -> None:
    """A client stands still for so long, and its timers with it."""
    member.actor.freeze()
    await world.sleep(seconds)
    member.clock.stand_still(seconds)
    member.actor.thaw(late=False)


def _in_any_order(stage: Stage, member: Member) -> Sequence[Host]:
    hosts = list(stage.primaries(member))
    stage.rng.shuffle(hosts)
    return hosts


async def _a_writer_gave_up_late(world: World) -> None:
    """Five nodes took a version, its writer hears of four, and gives up when another client has read it from these."""
    stage = Stage(world)
    writer, reader = await stage.begin(), stage.worker()
    *_, late, down = _in_any_order(stage, writer.member)
    down.crash()
    until = world.loop.time() + MINUTE
    world.network.cut(f"node {late.number}", writer.member.name, until)
    world.network.cut(reader.member.name, f"node {late.number}", until)
    writing = writer.member.actor.spawn(writer.put(stage.key))
    await world.sleep(SOON_SECONDS)
    stopping = world.loop.create_task(
        _stop(world, writer.member, 1.0)
    )  # so the reader is the first to be tired of it
    await _and_die(reader.member, reader.get(stage.key, must=True))
    await asyncio.wait([stopping, writing])
    held = stage.held(late)
    stage.expect(bool(held) and held[0].state is State.ABORTED, "nobody has voted against it")
    await stage.worker().get(stage.key, must=True)


async def _a_plain_put_came_between(world: World) -> None:
    """A conditional writer has decided, and what it sends is late; a plain put stands by then, and nobody says so."""
    stage = Stage(world)
    writer, rival = await stage.begin(), stage.worker()
    rival.member.clock.set_wrong_by(20.0)  # so its stamp is above that of the put
    version = await rival.newest(stage.key)
    assert version is not None

    def late(who: str) -> None:
        world.network.hold(who, world.loop.time() + 1.0)

    world.witness.on_belief = late
    swapping = rival.member.actor.spawn(rival.replace(stage.key, version))
    while world.witness.on_belief is not None:
        await world.sleep(0.01)
    await _and_die(writer.member, writer.put(stage.key, must=True))
    await asyncio.wait([swapping])
    await stage.worker().get(stage.key, must=True)


@contextmanager
def _standing_still_with_answers(seconds: float, world: World) -> Iterator[None]:
    """A node that repairs stands still when it has heard what the others hold."""
    ask = Asking.versions

    async def late(self: Asking, *args: Any, **kwargs: Any) -> Any:
        found, again = await ask(self, *args, **kwargs)
        if any(found.values()):
            await world.sleep(seconds)
        return found, again

    with patch.object(Asking, "versions", late):
        yield


async def _a_writer_gave_up_during_a_walk(world: World) -> None:
    """A node finds in its walk an old version that a majority has taken; before it acts on that, the writer, whose
    machine was suspended, gives it up."""
    stage = Stage(world)
    writer = await stage.begin()
    slow, *others, down, away = _in_any_order(stage, writer.member)
    for host in (down, away):
        host.crash()
    writing = writer.member.actor.spawn(writer.put(stage.key))
    await world.sleep(SOON_SECONDS)
    writer.member.actor.freeze()
    begun = world.loop.time()
    world.leap(stage.rng.uniform(61, 85) * MINUTE)
    await world.sleep(1.0)
    with _standing_still_with_answers(2 * PATIENCE_SECONDS, world):
        walking = world.loop.create_task(stage.walks(slow))
        await world.sleep(1.0)
        world.network.cut(writer.member.name, f"node {slow.number}", world.loop.time() + MINUTE)
        stage.wake(writer.member, begun)
        await world.sleep(1.0)
        given_up = [entry for host in others for entry in stage.held(host) if entry.state is State.ABORTED]
        stage.expect(len(given_up) == len(others), "the writer has not given it up")
        stage.expect(not walking.done(), "the walk is over already")
        await asyncio.wait([walking, writing])
    await stage.restart(down, away)
    await stage.worker().get(stage.key, must=True)


async def _one_of_those_who_took_it_was_lost(world: World) -> None:
    """Two nodes are down during a put; when they are back, one of the others is."""
    stage = Stage(world)
    writer = await stage.begin()
    early, *_, down, away = _in_any_order(stage, writer.member)
    for host in (down, away):
        host.crash()
    await writer.put(stage.key)
    await stage.restart(down, away)
    early.crash()
    await stage.worker().get(stage.key, must=True)
    await stage.restart(early)


async def _substitutes_looked_too_early(world: World) -> None:
    """Two nodes are down during a put, and others keep their shards. When they are back, and lack them still, the
    others go over what they hold for them; and then one more node is down."""
    stage = Stage(world)
    writer = await stage.begin()
    early, *_, down, away = _in_any_order(stage, writer.member)
    for host in (down, away):
        host.crash()
    await stage.put(writer)
    primaries = stage.primaries(writer.member)
    substitutes = [host for host in world.hosts.values() if host not in primaries]
    stage.expect(all(map(stage.held, substitutes)), "nobody has a shard for another node")
    await stage.restart(down, away)
    await stage.walks(*substitutes)
    early.crash()
    await stage.worker().get(stage.key, must=True)
    await stage.restart(early)


async def _a_primary_was_down_while_a_deletion_grew_old(world: World) -> None:
    """It holds what was deleted, and the others go over the deletion, which is older than they keep any."""
    stage = Stage(world)
    worker = await stage.begin()
    down, *others = _in_any_order(stage, worker.member)
    down.crash()
    await worker.delete(stage.key, must=True)
    await worker.member.client.flush()
    await world.sleep(10.0)
    await stage.rounds(*others)
    for _ in range(2):
        world.leap(26 * HOUR)
        world.set_clocks()
        await world.sleep(1.0)
        await stage.walks(*others)
    await stage.restart(down)
    await stage.worker().get(stage.key, must=True)


async def _a_record_rotted_at_once(world: World) -> None:
    """A put stands with the fewest shards that it may, its client is gone before it tells anybody, and on one of the
    nodes that took it not even which shard that is can be read any more."""
    stage = Stage(world)
    writer = await stage.begin()
    rotten, *_, cut_off = _in_any_order(stage, writer.member)
    world.network.cut(writer.member.name, f"node {cut_off.number}", world.loop.time() + HOUR)
    await _and_die(writer.member, writer.put(stage.key, must=True))
    newest = stage.held(rotten)[0]
    stage.expect(newest.state is State.ACCEPTED, "it is known that it stands")
    rotten.store.rot_manifest(stage.name, newest.stamp)
    await stage.worker().get(stage.key, must=True)


STORIES = {
    "a writer gave up late": _a_writer_gave_up_late,
    "a plain put came between": _a_plain_put_came_between,
    "a writer gave up during a walk": _a_writer_gave_up_during_a_walk,
    "one of those who took it was lost": _one_of_those_who_took_it_was_lost,
    "a primary was down while a deletion grew old": _a_primary_was_down_while_a_deletion_grew_old,
    "a record rotted at once": _a_record_rotted_at_once,
    "substitutes looked too early": _substitutes_looked_too_early,
}
NODES = {"substitutes looked too early": 8}
"""How many nodes a story takes, where it takes more than six."""
