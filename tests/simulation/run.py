"""One run: a seed, a cluster with its weather, then calm, and everything that must hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from tests.simulation.history import History
from tests.simulation.linearizability import Undecided, is_linearizable, shortest_violation
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.segments import tiny_segments
from tests.simulation.virtual_time import Stalled, VirtualLoop, run_virtually
from tests.simulation.weather import Weather
from tests.simulation.workload import Worker, keys_of
from tests.simulation.world import Member, World

__all__ = ["Result", "run_plan", "run_seed"]

SECONDS_MAX = 3600.0  # of the world: no client waits that long for anything
CALM_SECONDS = 15.0  # after which no node is under suspicion any more
TRACE_LINES = 60


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


def run_plan(plan: Plan) -> Result:
    worlds: list[World] = []

    async def main(loop: VirtualLoop) -> None:
        world = World(plan, loop)
        worlds.append(world)
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await _Run(world).whole()
        except TimeoutError:
            world.fail(f"somebody still waits after {SECONDS_MAX:.0f} s")
        for error in (*loop.errors, *world.network.bugs):
            world.fail(f"nobody caught {error!r}")

    with tiny_segments():
        try:
            run_virtually(main)
        except Stalled as error:
            worlds[0].fail(str(error))
    return _result(worlds[0])


def _result(world: World) -> Result:
    check_histories(world.history, world.failures)
    return Result(
        world.plan.seed,
        world.journal.digest,
        world.plan.summary(),
        len(world.history.operations),
        len(world.journal.entries),
        world.loop.time(),
        world.faults,
        tuple(world.failures),
        tuple(_trace(world)) if world.failures else (),
    )


class _Run:
    """The course of a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._left: dict[str, int] = {}  # operations that a client's workers have not begun yet
        self._working: dict[asyncio.Task[None], Member] = {}

    async def whole(self) -> None:
        world = self._world
        plan = world.plan
        for _ in range(plan.clients):
            self._start(world.member(), plan.operations)
        weather = Weather(world, self._replace)
        storms = [world.loop.create_task(weather.blow(fault)) for fault in plan.faults]
        while self._working:
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._working if task.done()]:
                member = self._working.pop(task)
                if member.alive:
                    task.result()
        for storm in storms:
            storm.cancel()
        await asyncio.wait(storms) if storms else None
        world.heal()
        await world.sleep(CALM_SECONDS)
        await self._examine()

    def _start(self, member: Member, operations: int) -> None:
        for number in range(self._world.plan.workers):
            name = f"{member.name}.{number + 1}"
            worker = Worker(self._world, member, name, self._world.chance(f"work of {name}"))
            self._working[member.actor.spawn(worker.run(operations))] = member

    async def _replace(self, member: Member) -> None:
        """A client died: another one does half as much as it was to do."""
        if len(self._world.members) < 3 * self._world.plan.clients:
            self._start(self._world.member(), self._world.plan.operations // 2)
        else:
            member = self._world.member()  # so that somebody is always there to be cut off

    async def _examine(self) -> None:
        """Everything answers: whatever was acknowledged is there, for a client that has seen nothing of it."""
        world = self._world
        member = world.member()
        worker = Worker(world, member, f"{member.name} (after)", world.chance("examination"))
        await worker.list("", 1000, must=True)
        for key in keys_of(world):
            await worker.get(key, must=True)
            await worker.head(key, must=True)
        for key in keys_of(world):
            await worker.put(key)
            await worker.get(key, must=True)
        for other in world.members:
            if other.alive:
                await other.client.aclose()


def check_histories(history: History, failures: list[str]) -> None:
    """Add a failure for each key whose history is not linearizable."""
    for key, operations in history.by_key():
        try:
            if not is_linearizable(operations):
                lines = "\n".join(f"    {operation}" for operation in shortest_violation(operations))
                failures.append(f"the history of {key} is not linearizable:\n{lines}")
        except Undecided as error:
            failures.append(f"the history of {key} is not decided: {error}")


def _trace(world: World) -> list[str]:
    """What touched the keys that failures name, and the faults; messages are left out."""
    text = " ".join(world.failures)
    keys = [key for key in keys_of(world) if key in text] or keys_of(world)

    def wanted(what: tuple[object, ...]) -> bool:
        if what[0] in ("weather:", "FAILED", "the faults end"):
            return True
        return "->" not in what and "~>" not in what and any(key in what for key in keys)

    return world.journal.lines(wanted)
