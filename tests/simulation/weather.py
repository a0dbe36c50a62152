"""Faults: when they come, how each is made, and what keeps them within what the product promises to survive.

To add a fault: a member of `plan.Fault`, and a method of `Weather` with its name in `_MAKERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from coffre.node.store import State

from tests.simulation.host import Host
from tests.simulation.plan import Fault
from tests.simulation.world import Member, World

__all__ = ["Weather", "spare_without"]

Replace = Callable[[Member], Awaitable[None]]


class Weather:
    """Makes the faults of a plan until it is cancelled. `replace` starts a new client in place of a dead one."""

    def __init__(self, world: World, replace: Replace) -> None:
        self._world = world
        self._replace = replace
        self._rng = world.chance("weather")
        # All damage is on one disk: with more than one, a version with the fewest shards that a put may leave is lost.
        self._rotten = self._rng.choice(sorted(world.hosts))
        if Fault.ROT in world.plan.faults:
            world.rotten = self._rotten

    async def blow(self, fault: Fault) -> None:
        """Make one kind of fault again and again."""
        every = self._world.plan.faults[fault]
        while True:
            await self._wait(self._rng.expovariate(1 / every))
            self._world.faults[fault.value] += 1
            await _MAKERS[fault](self)

    async def _wait(self, seconds: float) -> None:
        await self._world.sleep(seconds)

    def _host(self) -> Host:
        return self._world.hosts[self._rng.choice(sorted(self._world.hosts))]

    def _members(self) -> list[Member]:
        return [member for member in self._world.members if member.alive]

    def _note(self, *what: object) -> None:
        self._world.journal.note("weather:", *what)

    # ---------------------------------------------------------------- nodes

    async def crash(self) -> None:
        host = self._host()
        if not host.up:
            return
        down = self._rng.choice([0.01, 0.5, 5.0]) * self._rng.random()
        self._note("node", host.number, "crashes for", round(down, 3))
        host.crash()
        self._later(host, down)

    async def blackout(self) -> None:
        """Several nodes at once, or all of them: what a site or a power line takes along."""
        count = self._rng.choice([2, self._world.policy.m, self._world.policy.n, len(self._world.hosts)])
        chosen = self._rng.sample(sorted(self._world.hosts), min(count, len(self._world.hosts)))
        self._note("nodes", chosen, "lose power")
        for number in chosen:
            host = self._world.hosts[number]
            if host.up:
                host.crash()
                self._later(host, self._rng.choice([0.05, 3.0]) * self._rng.random())

    def _later(self, host: Host, seconds: float) -> None:
        def restart() -> None:
            if not host.up:
                self._note("node", host.number, "restarts")
                host.restart()

        self._world.loop.call_later(seconds, restart)

    async def slow(self) -> None:
        host = self._host()
        slowness = self._rng.choice([5.0, 50.0, 500.0])
        self._note("node", host.number, "is slow", slowness)
        host.store.slowness = slowness
        await self._wait(self._rng.uniform(0.2, 4.0))
        host.store.slowness = 1.0

    async def full(self) -> None:
        host = self._host()
        self._note("node", host.number, "is full")
        host.store.set_capacity(0)
        await self._wait(self._rng.uniform(0.1, 4.0))
        host.store.set_capacity(None)

    async def rot(self) -> None:
        """One copy of a version that is acknowledged, or known to be established: others may have no copy to spare."""
        if self._rotten not in self._world.hosts:
            return
        store = self._world.hosts[self._rotten].store
        established, shards = _good_shards(self._world, self._world.hosts)
        spare = {
            holding.stamp
            for holding in store.holdings()
            if holding.stamp in established
            and (holding.tombstone or len(shards[holding.stamp]) > self._world.policy_of(holding).k)
        }
        self._note("node", self._rotten, "rots", store.rot(self._rng, spare))

    # ---------------------------------------------------------------- the network and the clocks

    async def cut(self) -> None:
        """One direction between a client and a node."""
        if not (members := self._members()):
            return
        member, host = self._rng.choice(members).name, f"node {self._host().number}"
        sender, receiver = self._rng.choice([(member, host), (host, member)])
        seconds = self._rng.choice([0.05, 1.0, 8.0]) * self._rng.random()
        self._note(sender, "does not reach", receiver, "for", round(seconds, 3))
        self._world.network.cut(sender, receiver, self._world.loop.time() + seconds)

    async def isolate(self) -> None:
        """Some nodes hear nobody, or are heard by nobody, or both."""
        hosts = self._rng.sample(sorted(self._world.hosts), self._rng.randrange(1, self._world.policy.n))
        inward, outward = self._rng.choice([(True, False), (False, True), (True, True)])
        seconds = self._rng.choice([0.1, 1.0, 6.0]) * self._rng.random()
        self._note("nodes", hosts, "are cut off for", round(seconds, 3), "in" * inward, "out" * outward)
        until = self._world.loop.time() + seconds
        for member in self._members():
            for number in hosts:
                if inward:
                    self._world.network.cut(member.name, f"node {number}", until)
                if outward:
                    self._world.network.cut(f"node {number}", member.name, until)

    async def jump(self) -> None:
        """The wall clock of somebody jumps, sometimes by more than nodes put up with."""
        clocks = {f"node {host.number}": host.clock for host in self._world.hosts.values()}
        clocks |= {member.name: member.clock for member in self._members()}
        who = self._rng.choice(sorted(clocks))
        seconds = self._rng.choice([0.1, 5.0, 50.0, 100.0]) * self._rng.uniform(-1, 1)
        self._note("the clock of", who, "jumps, and is wrong by", round(seconds, 3))
        clocks[who].set_wrong_by(seconds)

    # ---------------------------------------------------------------- clients

    async def death(self) -> None:
        """A client dies with everything that it had under way; another one takes its place."""
        if not (members := self._members()):  # all are dead, and nobody has taken their places yet
            return
        member = self._rng.choice(members)
        self._note(member.name, "dies")
        member.kill()
        await self._replace(member)


def spare_without(world: World, number: int) -> bool:
    """Whether every version that somebody may count on has enough shards elsewhere, with nothing to spare.

    Those are the ones that are known to be established, and those that stand by votes, whether anybody knows or not.
    """
    established, shards = _good_shards(world, [other for other in world.hosts if other != number])
    locked = Counter(
        holding.stamp
        for host in world.hosts.values()
        for holding in host.store.holdings()
        if holding.state is State.LOCKED
    )
    return all(
        len(shards.get(holding.stamp, ())) >= world.policy_of(holding).k
        for holding in world.hosts[number].store.holdings()
        if not holding.tombstone
        and (holding.stamp in established or locked[holding.stamp] > world.policy_of(holding).n // 2)
    )


def _good_shards(world: World, numbers: Iterable[int]) -> tuple[set[bytes], dict[bytes, set[int]]]:
    """The versions that are acknowledged, or known to be established, and the distinct shards of all."""
    established = {bytes.fromhex(version) for version in world.acknowledged}
    shards: dict[bytes, set[int]] = {}
    for number in numbers:
        for holding in world.hosts[number].store.holdings():
            found = shards.setdefault(holding.stamp, set())
            if holding.shard_index is not None:
                found.add(holding.shard_index)
            if holding.state is State.SETTLED:
                established.add(holding.stamp)
    return established, shards


_MAKERS: dict[Fault, Callable[[Weather], Awaitable[None]]] = {
    Fault.CRASH: Weather.crash,
    Fault.BLACKOUT: Weather.blackout,
    Fault.CUT: Weather.cut,
    Fault.ISOLATE: Weather.isolate,
    Fault.SLOW: Weather.slow,
    Fault.JUMP: Weather.jump,
    Fault.FULL: Weather.full,
    Fault.ROT: Weather.rot,
    Fault.DEATH: Weather.death,
}
