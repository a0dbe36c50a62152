"""Stories of wrong clocks, of machines that were suspended, and of disks that hung for an hour."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from coffre.node.repair.asking import Asking
from coffre.node.store import State

from tests.simulation.conditional import ConditionalWorker
from tests.simulation.host import Host
from tests.simulation.stage import HOUR, MINUTE, SOON_SECONDS, YEAR, Stage
from tests.simulation.world import Member, World

__all__ = ["STORIES"]

APART_SECONDS = 5.0  # longer than a node that starts waits for an answer


# ------------------------------------------------------------------ clocks of nodes


async def _a_young_deletion(world: World) -> None:
    """A node whose clock is days ahead walks over a deletion that is seconds old, and that everybody knows of."""
    stage = Stage(world)
    worker = await stage.begin()
    await worker.delete(stage.key, must=True)
    await worker.member.client.flush()
    await world.sleep(10.0)
    await stage.rounds()
    wrong = stage.rng.choice(stage.primaries(worker.member))
    entries = stage.held(wrong)
    stage.expect(len(entries) == 1 and entries[0].tombstone, "the deletion is not all that is left")
    stage.set_clock(wrong, stage.rng.choice([26 * HOUR, 3 * YEAR]))
    await stage.walks(wrong)
    await stage.rounds(wrong)
    await stage.walks(wrong)


async def _a_node_was_paused_in_its_round(world: World) -> None:
    """It has heard what time it is elsewhere when its machine stands still for days, and both its clocks with it, so it
    does not notice. Then it finds a put that is under way (seed 207)."""
    stage = Stage(world)
    writer = await stage.begin()
    paused, *late = stage.rng.sample(stage.primaries(writer.member), 3)
    hour_s = world.loop.time() + HOUR
    world.network.cut(writer.member.name, f"node {paused.number}", hour_s)
    await stage.put(writer)
    await world.sleep(10.0)
    ask = Asking.digests

    async def hearing(self: Asking, *args: Any, **kwargs: Any) -> Any:
        found = await ask(self, *args, **kwargs)
        days = stage.rng.uniform(1, 21) * 24 * HOUR
        world.leap(days)
        paused.clock.stand_still(days)
        rival = stage.worker()
        for host in (paused, *late):
            world.network.cut(rival.member.name, f"node {host.number}", world.loop.time() + MINUTE)
        rival.member.actor.spawn(rival.put(stage.key))
        await world.sleep(SOON_SECONDS)
        return found

    with patch.object(Asking, "digests", hearing):
        await stage.rounds(paused)
    stage.expect(paused.handler.clocks.now_ms() is not None, "it has noticed")
    await world.sleep(30.0)
    await stage.rounds(*world.hosts.values())


# ------------------------------------------------------------------ a writer that stands still between two rounds


class _MidPut:
    """Three of six nodes have taken a version, and its writer stands still. Meanwhile an hour has passed, and those
    three have given the version up, since nobody can complete it. Then the other three get it."""

    def __init__(self, stage: Stage, worker: ConditionalWorker) -> None:
        self.stage = stage
        self.worker = worker
        primaries = list(stage.primaries(worker.member))
        stage.rng.shuffle(primaries)
        self.early, self.late = primaries[:3], primaries[3:]

    async def begin(self) -> None:
        """The late ones lack it: something is wrong with them already."""
        world, member = self.stage.world, self.worker.member
        member.actor.spawn(self.worker.put(self.stage.key))
        await world.sleep(SOON_SECONDS)
        member.actor.freeze()
        world.journal.note("weather:", member.name, "stands still")
        self._begun = world.loop.time()
        for host in self.early:
            held = self.stage.held(host)
            self.stage.expect(bool(held) and held[0].state is State.ACCEPTED, "who is early has no version")

    def pass_an_hour(self) -> None:
        """And some minutes: the version is old then, and by a clock that was set back by an hour it is new."""
        self.stage.world.leap(self.stage.rng.uniform(61, 85) * MINUTE)

    async def end(self) -> None:
        """The writer goes on."""
        world = self.stage.world
        self.stage.wake(self.worker.member, self._begun)
        await world.sleep(30.0)
        reader = self.stage.worker()
        await reader.get(self.stage.key)
        await self.stage.rounds()
        await reader.get(self.stage.key)

    async def restart(self, wrong_by: float, *, apart: bool) -> None:
        """The late ones come back and serve, two of them with a wrong clock. `apart`: at first each of them reaches one
        node alone, so that it is one clock against another's."""
        world = self.stage.world
        for host in self.late[: world.policy.m]:
            self.stage.set_clock(host, wrong_by)
        for host in self.late:
            for other in world.hosts if apart else ():
                if other != self.early[0].number:
                    world.network.cut(
                        f"node {host.number}", f"node {other}", world.loop.time() + APART_SECONDS
                    )
        await self.stage.restart(*self.late)


async def _a_writer_was_suspended(
    world: World, wrong_by: float = 0.0, jumps_by: float = 0.0, *, apart: bool = False
) -> None:
    """Power fails at three nodes in mid-put, and the writer stands still while it waits to ask them once more.

    `wrong_by`: the clocks of two of them are so much ahead when they start. `jumps_by`: and they jump later on.
    """
    stage = Stage(world)
    story = _MidPut(stage, await stage.begin())
    for host in story.late:
        host.crash()
    await story.begin()
    story.pass_an_hour()
    await story.restart(wrong_by, apart=apart)
    await stage.rounds(*story.early)
    for host in story.late[: world.policy.m] if jumps_by else ():
        stage.set_clock(host, jumps_by)
    await story.end()


async def _clocks_were_wrong(world: World) -> None:
    await _a_writer_was_suspended(world, -HOUR)


async def _clocks_were_not_compared(world: World) -> None:
    await _a_writer_was_suspended(world, -HOUR, apart=True)


async def _clocks_jumped(world: World) -> None:
    await _a_writer_was_suspended(world, jumps_by=-HOUR)


async def _disks_hung(world: World) -> None:
    """Three nodes have begun to take a version when their disks hang, as when the path to them is lost."""
    stage = Stage(world)
    story = _MidPut(stage, await stage.begin())
    for host in story.late:
        host.store.hang()
    await story.begin()
    story.pass_an_hour()
    await world.sleep(1.0)
    await stage.rounds(*story.early)
    for host in story.late:
        host.store.go_on()
    await story.end()


# ------------------------------------------------------------------ a reader that stands still


@contextmanager
def _stopping_when_completing(member: Member, node: Host) -> Iterator[list[float]]:
    """Let a client stand still once it has decided to complete something; yields when that was."""
    lane = member.client._views.current.peers[node.number].writes
    submit = type(lane).submit
    stopped: list[float] = []

    def stopping(self: Any, operation: Any) -> Any:
        if operation.HasField("accept") and not stopped:
            loop = asyncio.get_running_loop()
            stopped.append(loop.time())
            loop.call_soon(member.actor.freeze)
        return submit(self, operation)

    with patch.object(type(lane), "submit", stopping):
        yield stopped


async def _a_reader_was_suspended(world: World) -> None:
    """A reader is about to complete what a client wrote that is dead since. Meanwhile it is deleted, and forgotten."""
    stage = Stage(world)
    writer, sleeper = stage.worker(), stage.worker()

    async def write() -> None:
        await writer.put(stage.key)
        writer.member.kill()

    await asyncio.wait([writer.member.actor.spawn(write())])
    with _stopping_when_completing(sleeper.member, stage.primaries(sleeper.member)[0]) as stopped:
        reading = sleeper.member.actor.spawn(sleeper.get(stage.key))
        await world.sleep(1.0)
    stage.expect(bool(stopped), "nothing was to be completed")
    other = stage.worker()
    await other.delete(stage.key, must=True)
    await other.member.client.flush()
    for _ in range(3):
        world.leap(26 * HOUR)
        world.set_clocks()
        await stage.rounds()
        await stage.walks()
    stage.expect(not any(map(stage.held, world.hosts.values())), "the deletion is not forgotten")
    sleeper.member.actor.thaw(late=False)
    await world.sleep(30.0)
    reading.cancel()
    await stage.worker().get(stage.key)


# ------------------------------------------------------------------ stamps of the future


async def _leave_future(stage: Stage, seconds: float, *hosts: Host) -> None:
    """A client and some nodes have the same wrong time, until the client dies in mid-put."""
    world, fast = stage.world, stage.worker()
    fast.member.clock.set_wrong_by(seconds)
    for host in hosts:
        stage.set_clock(host, seconds)
    fast.member.actor.spawn(fast.put(stage.key))
    await world.sleep(SOON_SECONDS)
    fast.member.kill()
    for host in hosts:
        stage.set_clock(host, 0.0)
    await world.sleep(2 * MINUTE)
    for host in hosts:
        held = stage.held(host)
        stage.expect(bool(held) and held[0].state is State.ACCEPTED, "nothing is left of the client")


async def _a_leftover_of_the_future(world: World) -> None:
    """Nobody touches the object before it is repaired."""
    stage = Stage(world)
    good = await stage.begin()
    seconds = stage.rng.choice([26 * HOUR, 3 * YEAR])
    await _leave_future(stage, seconds, stage.rng.choice(stage.primaries(good.member)))


async def _a_leftover_in_the_way(world: World) -> None:
    """Whoever reads and writes does without the node that has it."""
    stage = Stage(world)
    good = await stage.begin()
    seconds = stage.rng.choice([26 * HOUR, 3 * YEAR])
    await _leave_future(stage, seconds, stage.rng.choice(stage.primaries(good.member)))
    for worker in (good, stage.worker()):
        await worker.get(stage.key, must=True)
        await worker.put(stage.key, must=True)
        await worker.get(stage.key, must=True)


async def _leftovers_on_most(world: World) -> None:
    """So many nodes have one that nobody can write now, and once they are repaired everybody can."""
    stage = Stage(world)
    good = await stage.begin()
    hosts = stage.rng.sample(stage.primaries(good.member), 3)
    await _leave_future(stage, 3 * YEAR, *hosts[:2])
    await _leave_future(stage, 3 * YEAR, hosts[2])
    await good.put(stage.key)
    await good.get(stage.key, must=True)


async def _a_writer_was_ahead(world: World) -> None:
    """A client's clock was a year ahead, and is set."""
    stage = Stage(world)
    worker = await stage.begin()
    worker.member.clock.set_wrong_by(stage.rng.choice([HOUR, YEAR]))
    await worker.put(stage.key)
    worker.member.clock.set_wrong_by(0.0)
    await worker.put(stage.key, must=True)
    await worker.get(stage.key, must=True)


STORIES = {
    "a young deletion": _a_young_deletion,
    "a node was paused in its round": _a_node_was_paused_in_its_round,
    "a writer was suspended": _a_writer_was_suspended,
    "clocks were wrong": _clocks_were_wrong,
    "clocks were not compared": _clocks_were_not_compared,
    "clocks jumped": _clocks_jumped,
    "disks hung": _disks_hung,
    "a reader was suspended": _a_reader_was_suspended,
    "a leftover of the future": _a_leftover_of_the_future,
    "a leftover in the way": _a_leftover_in_the_way,
    "leftovers on most nodes": _leftovers_on_most,
    "a writer was ahead": _a_writer_was_ahead,
}
