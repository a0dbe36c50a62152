"""Clocks that are wrong by minutes to years, and processes that stand still for seconds to weeks, with everything else
as shipped: what is old is what the product calls old, and nobody's thresholds know of the faults.

At no time are the clocks of more than m nodes wrong, so most nodes agree; any client's may be. While somebody stands
still the world may go on for a moment or leap for weeks, in which nobody else does anything either, and then for
another moment, in which repair finds that everything is old.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coffre.cluster.clock import DriftingClock

from tests.simulation.clocks import ClockPlan, Spell
from tests.simulation.host import Host
from tests.simulation.virtual_time import Actor
from tests.simulation.world import Member, World

__all__ = ["Spells"]

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
YEAR = 365 * DAY
WRONG_BY = (3 * MINUTE, 20 * MINUTE, 45 * MINUTE, 61 * MINUTE, 70 * MINUTE, 26 * HOUR, 3 * YEAR)
STANDS_FOR = (0.0, 0.0, 20 * MINUTE, 40 * MINUTE, 61 * MINUTE, 65 * MINUTE, 26 * HOUR, 21 * DAY)


class Spells:
    """Makes the spells of a plan until it is cancelled."""

    def __init__(self, world: World, plan: ClockPlan, absent: Callable[[Member], Awaitable[None]]) -> None:
        """`absent`: told of a client that will not come back before the end."""
        self._world = world
        self._plan = plan
        self._absent = absent
        self._rng = world.chance("spells")
        self._wrong: dict[int, None] = {}  # nodes
        self._still: dict[str, None] = {}
        self.sleeper: Member | None = None
        for number in sorted(self._rng.sample(sorted(world.hosts), min(plan.wrong, world.policy.m))):
            self._wrong[number] = None
            clock = world.hosts[number].clock
            clock.set_wrong_by(self._right(clock) + self._rng.choice(WRONG_BY) * self._rng.choice([-1, 1, 1]))
            self._note("the clock of node", number, "is wrong")

    async def blow(self, spell: Spell) -> None:
        """Make one kind again and again."""
        while True:
            await self._world.sleep(self._rng.expovariate(1 / self._plan.spells[spell]))
            self._world.faults[spell.value] += 1
            await (self._be_wrong() if spell is Spell.WRONG else self._stand_still())

    def _note(self, *what: object) -> None:
        self._world.journal.note("weather:", *what)

    # ---------------------------------------------------------------- clocks

    async def _be_wrong(self) -> None:
        """A clock is wrong for a while: fixed, jumping about, or running away; or some that follow one time server."""
        clocks = self._some_clocks()
        if not clocks:
            return
        seconds = self._rng.choice(WRONG_BY) * self._rng.uniform(0.9, 1.1) * self._rng.choice([-1, 1, 1])
        manner = self._rng.choice(["is wrong", "jumps about", "runs away"])
        self._note("the clock of", *clocks, manner, "by", round(seconds))
        lasts = self._rng.uniform(0.5, 12.0)
        for step in range(steps := 1 if manner == "is wrong" else 8):
            part = self._rng.choice([-1, 0, 1]) if manner == "jumps about" else (step + 1) / steps
            for clock in clocks.values():
                clock.set_wrong_by(self._right(clock) + seconds * part)
            await self._world.sleep(lasts / steps)
        for who, clock in clocks.items():
            clock.set_wrong_by(self._right(clock))
            if who.startswith("node"):
                self._wrong.pop(int(who[5:]), None)
        self._note("the clock of", *clocks, "is right")

    def _some_clocks(self) -> dict[str, DriftingClock]:
        """By name: that of somebody; or those of a client and of nodes, which are then wrong alike, so that nodes take
        stamps of the future."""
        if self._rng.random() < 0.7:
            found = [self._somebody()]
        else:
            found = [self._some_client(), *(self._some_node() for _ in range(self._rng.randrange(1, 3)))]
        return {who: clock for who, clock in found if clock is not None}

    def _right(self, clock: DriftingClock) -> float:
        return self._world.loop.time() - clock.monotonic()

    def _somebody(self) -> tuple[str, DriftingClock | None]:
        """A node, unless as many are wrong as may be, or a client."""
        if self._rng.random() < 0.6 and len(self._wrong) < self._world.policy.m:
            return self._some_node()
        return self._some_client()

    def _some_node(self) -> tuple[str, DriftingClock | None]:
        """Whose clock is right, unless as many are wrong as may be."""
        hosts = [number for number in sorted(self._world.hosts) if number not in self._wrong]
        if len(self._wrong) >= self._world.policy.m or not hosts:
            return "no node", None
        number = self._rng.choice(hosts)
        self._wrong[number] = None
        return f"node {number}", self._world.hosts[number].clock

    def _some_client(self) -> tuple[str, DriftingClock | None]:
        members = [
            member for member in self._world.members if member.alive and member.name not in self._still
        ]
        if not members:
            return "nobody", None
        member = self._rng.choice(members)
        return member.name, member.clock

    # ---------------------------------------------------------------- standing still

    async def _stand_still(self) -> None:
        """A process stands still with whatever it has in its hands, and goes on."""
        rng, world = self._rng, self._world
        if self._plan.sleeper and self.sleeper is None and rng.random() < 0.3:
            await self._fall_asleep()
            return
        hosts = [host for host in world.hosts.values() if host.up]
        members = [member for member in world.members if member.alive and member.name not in self._still]
        if not hosts:
            return  # all are down
        standing: Host | Member = rng.choice(members) if members and rng.random() < 0.7 else rng.choice(hosts)
        name = standing.name if isinstance(standing, Member) else f"node {standing.number}"
        if name in self._still:
            return
        self._still[name] = None
        incarnation = standing.incarnation if isinstance(standing, Host) else 0
        actors, begun = _actors(standing), world.loop.time()
        for actor in actors:
            actor.freeze()
        self._note(name, "stands still")
        await world.sleep(rng.choice([0.01, 0.5, 3.0]) * rng.random())
        seconds = rng.choice(STANDS_FOR)
        if seconds:
            self._note("everybody sleeps for", round(seconds))
            world.leap(seconds)
            await world.sleep(rng.choice([0.01, 2.0, 6.0]) * rng.random())
        self._still.pop(name)
        lives = standing.alive if isinstance(standing, Member) else standing.up
        if lives and (isinstance(standing, Member) or standing.incarnation == incarnation):
            self._go_on(name, actors, standing.clock, world.loop.time() - begun)

    def _go_on(self, name: str, actors: list[Actor], clock: DriftingClock, seconds: float) -> None:
        """As after SIGSTOP, after suspend to memory, or as a virtual machine that did not notice."""
        manner = self._rng.choice(["stopped", "suspended", "paused"])
        if manner != "stopped":
            wrong_by = clock.unixtime_ms()
            clock.stand_still(seconds)
            if manner == "suspended":
                clock.shift_ms(wrong_by - clock.unixtime_ms())
        for actor in actors:
            actor.thaw(late=manner == "stopped")
        self._note(name, "goes on as if it had been", manner)

    async def _fall_asleep(self) -> None:
        """A client stands still until the end; another one takes its place."""
        members = [member for member in self._world.members if member.alive and member.works]
        if len(members) < 2:
            return
        self.sleeper = member = self._rng.choice(members)
        self._note(member.name, "falls asleep")
        self._slept_at = self._world.loop.time()
        member.actor.freeze()
        member.asleep = True
        await self._absent(member)

    def wake_all(self) -> None:
        """Everybody goes on but the sleeper."""
        for host in self._world.hosts.values():
            for actor in _actors(host):
                actor.thaw(late=True)
        for member in self._world.members:
            if member is not self.sleeper:
                member.actor.thaw(late=True)

    async def wake_sleeper(self) -> None:
        """It goes on, with a clock that is right, or as late as it slept."""
        member = self.sleeper
        if member is None:
            return
        member.asleep = False
        self._go_on(member.name, [member.actor], member.clock, self._world.loop.time() - self._slept_at)
        await self._world.sleep(30.0)
        member.kill()  # what it had in its hands is out; more work of it would be in the way


def _actors(standing: Host | Member) -> list[Actor]:
    return [standing.actor] if isinstance(standing, Member) else standing.actors
