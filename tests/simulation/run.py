"""One run: a seed, a cluster with its weather, then calm, and everything that must hold."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.simulation.administration import Administration
from tests.simulation.conditional import ConditionalWorker, examine_conditions
from tests.simulation.linearizability import Undecided, is_linearizable, shortest_violation
from tests.simulation.maps import same_signatures
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.repairers import message_age
from tests.simulation.restoration import make_known, make_whole
from tests.simulation.segments import tiny_segments
from tests.simulation.spells import Spells
from tests.simulation.troubles import Troubles
from tests.simulation.virtual_time import Stalled, VirtualLoop, run_virtually
from tests.simulation.weather import Weather
from tests.simulation.workload import Worker, keys_of
from tests.simulation.world import Failure, Member, World

__all__ = ["Result", "Story", "run_plan", "run_seed"]

SECONDS_MAX = 3600.0  # of the world: no client waits that long for anything
STORM_SECONDS = 40.0  # of faults: what they bring about more of costs more than another seed
CALM_SECONDS = 15.0  # after which no node is under suspicion any more
TRACE_LINES = 120
Story = Callable[[World], Awaitable[None]]
"""What happens in a world, step by step; afterwards everything heals and is checked as in any run."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed. `failures` is empty when every promise was kept."""

    seed: int
    digest: str
    summary: str
    operations: int
    events: int
    seconds: float  # of the world
    faults: Counter[str]
    failures: tuple[str, ...]
    trace: tuple[str, ...] = ()  # what happened to the object that the first failure is about

    def __str__(self) -> str:
        faults = " ".join(f"{name}:{count}" for name, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed:6} {self.digest} {self.operations:4} operations {self.events:6} events "
            f"{self.seconds:7.1f} s [{self.summary}] {faults}"
        )


def run_seed(seed: int) -> Result:
    """Draw the plan of a seed and run it."""
    return run_plan(draw_plan(seed))


def run_plan(plan: Plan, story: Story | None = None) -> Result:
    """Run a plan. `story`: what happens instead of work and faults that are drawn."""
    worlds: list[World] = []

    async def main(loop: VirtualLoop) -> None:
        world = World(plan, loop)
        worlds.append(world)
        try:
            await _Run(world, story).whole()
        except TimeoutError:
            world.fail(f"somebody still waits after {SECONDS_MAX:.0f} s")
        except Exception:  # noqa: BLE001 - one seed that breaks must not end a run of thousands
            world.fail(f"the run broke: {traceback.format_exc()}")
        for error in (*loop.errors, *world.network.bugs):
            world.fail(f"nobody caught {error!r}")

    with tiny_segments(), message_age(plan.repair), same_signatures():
        try:
            run_virtually(main)
        except Stalled as error:
            worlds[0].fail(str(error))
    return _result(worlds[0])


def _result(world: World) -> Result:
    _check_histories(world)
    return Result(
        world.plan.seed,
        world.journal.digest,
        world.plan.summary(),
        len(world.history.operations),
        len(world.journal.entries),
        world.loop.time(),
        world.faults,
        tuple(failure.what for failure in world.failures),
        tuple(_trace(world)) if world.failures else (),
    )


class _Run:
    """The course of a run."""

    def __init__(self, world: World, story: Story | None = None) -> None:
        self._world = world
        self._story = story
        self._left: dict[str, int] = {}  # operations that a client's workers have not begun yet
        self._working: dict[asyncio.Task[None], Member] = {}
        self._changes: Administration | None = None
        self._spells: Spells | None = None
        self._absent: list[asyncio.Task[None]] = []  # of a client that stands still: nobody waits for them

    async def whole(self) -> None:
        """Raises `TimeoutError` when somebody waits for too long."""
        async with asyncio.timeout(SECONDS_MAX) as limit:
            self._world.limits.append(limit)
            await (self._storm() if self._story is None else self._tell(self._story))
            await self._world.sleep(CALM_SECONDS)
            if self._changes is not None:
                await make_known(self._world, self._changes)
            worker = await self._read_all("after")
        if self._world.plan.repair is not None:
            await make_whole(self._world, self._changes)
        async with asyncio.timeout(SECONDS_MAX):
            if self._spells is not None:
                await self._spells.wake_sleeper()
            if self._world.plan.repair is not None:
                worker = await self._read_all("when all is repaired")
            await self._write_all(worker)

    async def _storm(self) -> None:
        """Work and faults, until there is no more work; the faults, not for longer than `STORM_SECONDS`."""
        world = self._world
        plan = world.plan
        for _ in range(plan.clients):
            self._start(world.member(), plan.operations)
        weather = Weather(world, self._replace)
        storms = [world.loop.create_task(weather.blow(fault)) for fault in plan.faults]
        troubles = Troubles(world)
        storms += [world.loop.create_task(troubles.blow(trouble)) for trouble in plan.agreement.troubles]
        if plan.changes is not None:
            self._changes = Administration(world, plan.changes)
            self._changes.begin(plan.changes.storm)
        if plan.clocks is not None:
            self._spells = Spells(world, plan.clocks, self._replace_absent)
            storms += [world.loop.create_task(self._spells.blow(spell)) for spell in plan.clocks.spells]
        with suppress(TimeoutError):
            async with asyncio.timeout(STORM_SECONDS) as limit:
                world.limits.append(limit)
                await self._work()
        for storm in storms:
            storm.cancel()
        for end in await asyncio.gather(*storms, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                world.fail(f"the weather broke: {end!r}")
        if self._spells is not None:
            self._spells.wake_all()
        world.heal()
        if self._changes is not None:
            self._changes.be_calm()
        await self._work()

    async def _tell(self, story: Story) -> None:
        await story(self._world)
        self._world.heal()

    async def _work(self) -> None:
        """Wait until all workers have done what they were to do."""
        while self._working:
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._working if task.done()]:
                member = self._working.pop(task)
                if member.alive:
                    task.result()

    def _start(self, member: Member, operations: int) -> None:
        for number in range(self._world.plan.workers):
            name = f"{member.name}.{number + 1}"
            worker = ConditionalWorker(self._world, member, name)
            self._working[member.actor.spawn(worker.run(operations))] = member

    async def _replace_absent(self, member: Member) -> None:
        """A client will not come back before the end: nobody waits for it, and another one goes on."""
        for task in [task for task, working in self._working.items() if working is member]:
            del self._working[task]
            self._absent.append(task)
        await self._replace(member)

    async def _replace(self, member: Member) -> None:
        """A client died: if it had work to do, another one does half as much as it was to do."""
        if not member.works:
            return
        plan, successor = self._world.plan, self._world.member()
        if len(self._world.members) < 3 * plan.clients:
            self._start(successor, plan.operations // 2)

    async def _read_all(self, when: str) -> Worker:
        """Everything answers: whatever was acknowledged is there, for a client that has seen nothing of it."""
        world = self._world
        member = world.member()
        world.set_clocks()
        worker = Worker(
            world,
            member,
            f"{member.name} ({when})",
            world.chance("examination" if when == "after" else f"examination {when}"),
        )
        await worker.list("", 1000, must=True)
        for key in keys_of(world):
            await worker.get(key, must=True)
            await worker.head(key, must=True)
        return worker

    async def _write_all(self, worker: Worker) -> None:
        """Everything can be written."""
        world = self._world
        for key in keys_of(world):
            await worker.put(key)
            await worker.get(key, must=True)
        await examine_conditions(world)
        if world.plan.clocks is not None:
            await self._write_as_ever()
        for other in world.members:
            if other.alive:
                await other.client.aclose()

    async def _write_as_ever(self) -> None:
        """Whoever was there all the time, and met whatever clocks there were, can write, too."""
        world = self._world
        for member in [member for member in world.members if member.alive][:3]:
            worker = Worker(world, member, f"{member.name} (as ever)", world.chance(f"{member.name} as ever"))
            for key in keys_of(world):
                await worker.put(key, must=True)
                await worker.get(key, must=True)


def _check_histories(world: World) -> None:
    """Add a failure for each key whose history is not linearizable."""
    for key, operations in world.history.by_key():
        try:
            if not is_linearizable(operations):
                shortest = shortest_violation(operations)
                lines = "\n".join(f"    {operation}" for operation in shortest)
                seconds = max(operation.seconds for operation in shortest if operation.known)
                text = f"the history of {key} is not linearizable:\n{lines}"
                world.failures.append(Failure(text, seconds, key))
        except Undecided as error:
            world.failures.append(
                Failure(f"the history of {key} is not decided: {error}", world.loop.time(), key)
            )


def _trace(world: World) -> list[str]:
    """What the nodes did to the key of the first failure before it showed, and the faults; no messages."""
    failure = world.failures[0]
    lines = world.journal.lines(lambda what: _is_telling(what, failure.key), failure.seconds)
    return lines[-TRACE_LINES:]


def _is_telling(what: tuple[object, ...], key: str) -> bool:
    if what[0] == "weather:" or (key and key in what):
        return True
    return not key and "->" not in what and "~>" not in what
