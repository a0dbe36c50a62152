"""Repair in the simulated world: every node runs the repairer as it ships, an `Actor` that dies with its node.

Times are either those of the product (then what takes hours happens once the faults have ended), or all of them are so
short that unfinished versions are decided and tombstones are collected while clients are at work. Short times keep the
order that docs/repair.md asks for: a version is old only when no message that brings it is taken any more, whatever the
clocks of a run say, so runs whose clocks jump have none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from coffre.cluster.clock import Clock
from coffre.cluster.transport import Transport
from coffre.node.repair import Repairer, RepairOptions, await_testimony
from coffre.node.serving import Handler
from coffre.node.serving import times as node_times
from coffre.node.store import ShardStore, StoreIdentity

from tests.simulation.network import SimulatedTransport
from tests.simulation.virtual_time import Actor, VirtualLoop

__all__ = ["NodeRepair", "RepairPlan", "draw_repair", "message_age", "shipped_repair"]

PATIENCE_SECONDS = 10.0  # well above the time that a client sends messages about one stamp
DRIFT_SECONDS = 200.0  # as long as work and faults last, so clocks drift apart for


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """How the nodes of a run repair. Times in seconds; docs/repair.md says what they are."""

    round_seconds: float
    settling_seconds: float
    sweep_seconds: float
    scrub_seconds: float
    unfinished_seconds: float
    retention_seconds: float
    message_age_seconds: float

    @property
    def is_hasty(self) -> bool:
        """Whether old is what has existed for less than a minute."""
        return self.unfinished_seconds < 60

    def options(self) -> RepairOptions:
        return RepairOptions(
            round_seconds=self.round_seconds,
            settling_seconds=self.settling_seconds,
            unfinished_seconds=self.unfinished_seconds,
            retention_seconds=self.retention_seconds,
            sweep_seconds=self.sweep_seconds,
            scrub_seconds=self.scrub_seconds,
        )


def draw_repair(seed: int, *, jumps: bool, offset: float, drift: float) -> RepairPlan | None:
    """Whether somebody repairs, and how. `jumps`, `offset`, `drift`: how wrong the clocks of the run are."""
    rng = random.Random(f"{seed}/repair")
    if rng.random() < 0.5:
        return None
    return _draw(rng, jumps=jumps, offset=offset, drift=drift)


def shipped_repair(seed: int) -> RepairPlan:
    """Somebody repairs, by the ages that the product has."""
    return _draw(random.Random(f"{seed}/repair with clocks"), jumps=True, offset=0.0, drift=0.0)


def _draw(rng: random.Random, *, jumps: bool, offset: float, drift: float) -> RepairPlan:
    shipped = RepairOptions()
    age = node_times.MESSAGE_AGE_MS_MAX / 1000
    unfinished, retention = shipped.unfinished_seconds, shipped.retention_seconds
    hasty = rng.random() < 0.5
    if hasty and not jumps and offset <= 2.0:
        apart = 2 * (offset + drift * DRIFT_SECONDS)  # two clocks, at most
        age = 5.0 + apart
        unfinished = age + PATIENCE_SECONDS + apart
        retention = unfinished + 1.0
    return RepairPlan(
        rng.choice([1.0, 3.0, 8.0]),
        rng.choice([0.2, 1.0, 5.0]),
        rng.choice([1.0, 4.0, 60.0]),
        rng.choice([2.0, 10.0, shipped.scrub_seconds]),
        unfinished,
        retention,
        age,
    )


@contextmanager
def message_age(plan: RepairPlan | None) -> Iterator[None]:
    """Let nodes refuse messages as early as the plan says: the times of repair follow from it."""
    if plan is None:
        yield
        return
    age_ms = int(plan.message_age_seconds * 1000)
    stamp_age_ms = age_ms if plan.is_hasty else node_times.STAMP_AGE_MS_MAX  # what repair calls old is older
    with (
        patch.object(node_times, "MESSAGE_AGE_MS_MAX", age_ms),
        patch.object(node_times, "STAMP_AGE_MS_MAX", stamp_age_ms),
    ):
        yield


class NodeRepair:
    """The repair of one node, from one start to the next crash."""

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        handler: Handler,
        repairer: Repairer,
        options: RepairOptions,
        transport: SimulatedTransport,
    ) -> None:
        self.repairer = repairer
        self.options = options
        self._transport = transport
        self._handler = handler
        self.actor = Actor(loop, f"repair of {name}")
        handler.repairs = repairer

    def start(self, clock: Clock, wait_seconds: float) -> None:
        """Serve at once and repair, after a while: nodes do not begin their rounds together."""
        self.actor.spawn(self._run(clock, wait_seconds))

    def start_again(
        self,
        clock: Clock,
        wait_seconds: float,
        store: ShardStore,
        others: Collection[int],
        *,
        new: bool,
        served: Callable[[], None],
    ) -> None:
        """The same once the others have testified, as a node that starts does. `new`: with an empty disk. `served`: to
        be called when it serves."""
        self._handler.serving = False
        self.actor.spawn(self._when_admitted(clock, wait_seconds, store, others, new, served))

    async def _when_admitted(
        self,
        clock: Clock,
        wait_seconds: float,
        store: ShardStore,
        others: Collection[int],
        new: bool,
        served: Callable[[], None],
    ) -> None:
        own = await store.identity()
        found: StoreIdentity | None = None if new else own
        transport: Transport = self._transport
        clocks = self._handler.clocks
        await await_testimony(transport, self._handler.maps.map.epoch, others, found, own, clock, clocks)
        self._handler.serving = True
        served()
        await self._run(clock, wait_seconds)

    async def _run(self, clock: Clock, wait_seconds: float) -> None:
        await clock.sleep(wait_seconds)
        await self.repairer.run()

    def rest(self) -> None:
        """Repair no more by itself: from now on rounds are made step by step."""
        self.actor.kill()

    def kill(self) -> None:
        self.actor.kill()
        self._transport.die()
