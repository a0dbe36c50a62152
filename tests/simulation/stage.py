"""A cluster of six nodes on which a story is told: who is in it, and what they are told to do, step by step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from coffre.cluster.names import ObjectName
from coffre.node.store import Entry

from tests.simulation.conditional import ConditionalWorker
from tests.simulation.host import Host
from tests.simulation.workload import keys_of
from tests.simulation.world import BUCKET, TENANT, Member, World

__all__ = ["ADMITTED_SECONDS", "HOUR", "MINUTE", "NOT_TOLD", "SOON_SECONDS", "YEAR", "Stage"]

MINUTE, HOUR = 60.0, 3600.0
YEAR = 365 * 24 * HOUR
SOON_SECONDS = 0.05  # a writer hears from nodes before, and asks those that failed once more later
ADMITTED_SECONDS = 10.0  # a node that starts serves by then
NOT_TOLD = "the story is not told"
"""How a failure begins that says nothing of the product: what was to come before the point did not happen."""


class Stage:
    """A world in which everybody waits to be told what to do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng: random.Random = world.chance("story")
        self.key = keys_of(world)[0]
        self.name = ObjectName(TENANT, BUCKET, self.key)

    def worker(self) -> ConditionalWorker:
        """A new client."""
        member = self.world.member()
        return ConditionalWorker(self.world, member, member.name)

    async def begin(self) -> ConditionalWorker:
        """Somebody has put an object, and everybody knows that it stands."""
        worker = self.worker()
        await self.put(worker)
        return worker

    async def put(self, worker: ConditionalWorker) -> None:
        await worker.put(self.key, must=True)
        await worker.member.client.flush()

    def primaries(self, member: Member) -> Sequence[Host]:
        return [self.world.hosts[n] for n in member.client._views.current.electorate(self.name).primaries]

    async def rounds(self, *hosts: Host) -> None:
        """One round of repair of each, of all when none is named."""
        for host in hosts or self.world.hosts.values():
            assert host.repair is not None
            await host.repair.repairer.round()

    async def walks(self, *hosts: Host) -> None:
        for host in hosts or self.world.hosts.values():
            assert host.repair is not None
            await host.repair.repairer.walk()

    def held(self, host: Host) -> list[Entry]:
        """What a node has of the object, the newest first."""
        return list(host.store.versions(self.name)) if self.name in host.store.names() else []

    def expect(self, told: bool, what: str) -> None:
        """Something must have happened, or the rest shows nothing."""
        if not told:
            self.world.fail(f"{NOT_TOLD}: {what}")

    def set_clock(self, host: Host, wrong_by: float) -> None:
        self.world.journal.note("weather:", "the clock of node", host.number, "is wrong by", wrong_by)
        host.clock.set_wrong_by(wrong_by)

    async def restart(self, *hosts: Host) -> None:
        """Nodes come back and serve, and repair when they are told to."""
        for host in hosts:
            host.restart()
        await self.world.sleep(ADMITTED_SECONDS)
        for host in hosts:
            self.expect(host.serving, "a node that starts does not serve")
            assert host.repair is not None
            host.repair.rest()

    def wake(self, member: Member, since: float) -> None:
        """A client goes on whose machine was suspended: it has the right time, and its timers go on where they were."""
        member.clock.stand_still(self.world.loop.time() - since)
        member.clock.set_wrong_by(self.world.loop.time() - member.clock.monotonic())
        member.actor.thaw(late=False)
        self.world.journal.note("weather:", member.name, "goes on")
