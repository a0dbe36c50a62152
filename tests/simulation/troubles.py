"""Troubles of coordination: outages, restarts, lost memory, and a clock that lets leases end too early or too late.

All of them may cost conditional writes their success, and none their safety: a lock is a hint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coffre.cluster.coordination.sessions import SESSION_SECONDS

from tests.simulation.agreement import Trouble
from tests.simulation.world import World

__all__ = ["Troubles"]


class Troubles:
    """Makes the troubles of a plan until it is cancelled. `World.heal` ends those that last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = world.agreement.store
        self._rng = world.chance("troubles")

    async def blow(self, trouble: Trouble) -> None:
        """Make one kind of trouble again and again."""
        every = self._world.plan.agreement.troubles[trouble]
        while True:
            await self._world.sleep(self._rng.expovariate(1 / every))
            self._world.faults[trouble.value] += 1
            await _MAKERS[trouble](self)

    def _note(self, *what: object) -> None:
        self._world.journal.note("weather:", "coordination", *what)

    def _duration(self) -> float:
        return self._rng.choice([0.5, 5.0, 40.0]) * self._rng.random()

    async def refusal(self) -> None:
        """Every call fails at once."""
        seconds = self._duration()
        self._note("refuses for", round(seconds, 3))
        self._store.refuse(1)
        await self._world.sleep(seconds)
        self._store.refuse(-1)

    async def silence(self) -> None:
        """Calls get no answer, and are done when it ends, whoever still waits."""
        seconds = self._duration()
        self._note("is silent for", round(seconds, 3))
        self._store.silence(1)
        await self._world.sleep(seconds)
        self._store.silence(-1)

    async def restart(self) -> None:
        """What was under way is done or not; leases begin anew."""
        self._note("restarts")
        self._store.restart()

    async def amnesia(self) -> None:
        """The store is lost and set up anew: no claim and no lease is left."""
        self._note("forgets everything")
        self._store.restart(forget=True)

    async def early(self) -> None:
        """The clock of leases jumps ahead: some end while their holders count on them."""
        seconds = self._rng.choice([3.0, 16.0]) * self._rng.random()
        self._note("is ahead by", round(seconds, 3))
        self._world.lease_clock.jump(seconds)

    async def late(self) -> None:
        """The clock of leases is slow: they outlive their holders."""
        seconds = self._duration()
        self._note("has a slow clock for", round(seconds, 3))
        self._world.lease_clock.set_slowness(self._rng.choice([2.0, 10.0]))
        await self._world.sleep(seconds)
        self._world.lease_clock.set_slowness(1.0)

    async def pause(self) -> None:
        """What a client sends is held for a while: of anybody, or of the next who has just made sure that the lock is
        its own, and then its lease ends meanwhile."""
        seconds = self._rng.uniform(0.1, 4.0)
        alive = [member.name for member in self._world.members if member.alive]
        if self._rng.random() < 0.4 and alive:
            self._hold(self._rng.choice(alive), seconds)
            return

        def usurped(who: str) -> None:
            self._hold(who, seconds)
            self._world.lease_clock.jump(SESSION_SECONDS + 1)

        self._world.witness.on_belief = usurped

    def _hold(self, who: str, seconds: float) -> None:
        self._note("does not hear of", who, "nor does anybody for", round(seconds, 3))
        self._world.network.hold(who, self._world.loop.time() + seconds)


_MAKERS: dict[Trouble, Callable[[Troubles], Awaitable[None]]] = {
    Trouble.REFUSAL: Troubles.refusal,
    Trouble.SILENCE: Troubles.silence,
    Trouble.RESTART: Troubles.restart,
    Trouble.AMNESIA: Troubles.amnesia,
    Trouble.EARLY: Troubles.early,
    Trouble.LATE: Troubles.late,
    Trouble.PAUSE: Troubles.pause,
}
