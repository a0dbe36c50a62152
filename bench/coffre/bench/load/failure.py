"""The same load throughout, while one node is killed, brought back, paused, resumed, slowed and left alone again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from coffre.bench.load.facts import Observer
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.proxy import DelayProxy
from coffre.bench.load.result import Event
from coffre.bench.load.session import Target
from coffre.bench.local_cluster import LocalCluster
from coffre.cluster.clock import Clock

__all__ = ["PHASES", "SLOW_S", "Disturbance", "disturbed", "failure_plan"]

SLOW_S = 0.2
PHASES = ("steady", "killed", "brought back", "paused", "resumed", "slowed", "left alone")


def failure_plan(plan: LoadPlan, phase_s: float) -> LoadPlan:
    """The plan with the length of all phases."""
    return replace(plan, duration_s=phase_s * len(PHASES))


@dataclass(frozen=True, slots=True)
class _Step:
    phase: str
    what: str
    act: Callable[[], Awaitable[None]]


class Disturbance:
    """What is done to the victim, and when: one step at the beginning of each phase."""

    def __init__(self, cluster: LocalCluster, victim: int, proxy: DelayProxy, plan: LoadPlan) -> None:
        self._cluster, self._victim, self._proxy = cluster, victim, proxy
        phase_intervals = plan.duration_s / len(PHASES) / plan.interval_s
        # On the edges of intervals, so that no interval is of two phases.
        self._at_s = [
            (plan.ramp_intervals + round(number * phase_intervals)) * plan.interval_s
            for number in range(len(PHASES))
        ]
        name = cluster.map.node(victim).node_id
        whats = (
            f"all nodes serve; {name} is the victim",
            f"SIGKILL to {name}",
            f"{name} is started again",
            f"SIGSTOP to {name}",
            f"SIGCONT to {name}",
            f"everything that {name} says arrives {SLOW_S * 1e3:.0f} ms later",
            f"{name} is at full speed again",
        )
        acts = (
            self._nothing,
            lambda: self._signal(signal.SIGKILL),
            lambda: self._cluster.start([self._victim]),
            lambda: self._signal(signal.SIGSTOP),
            lambda: self._signal(signal.SIGCONT),
            lambda: self._delay(SLOW_S),
            lambda: self._delay(0.0),
        )
        self._steps = [_Step(*each) for each in zip(PHASES, whats, acts, strict=True)]

    async def __call__(self, start: float, clock: Clock) -> tuple[Event, ...]:
        """Take the steps at their times after `start` (monotonic), and return when they were taken."""
        events = []
        for at_s, step in zip(self._at_s, self._steps, strict=True):
            at = start + at_s
            await clock.sleep(max(0.0, at - clock.monotonic()))
            events.append(Event(max(clock.monotonic(), at) - start, step.phase, step.what))
            await step.act()
        return tuple(events)

    async def _nothing(self) -> None:
        pass

    async def _signal(self, which: signal.Signals) -> None:
        await asyncio.to_thread(self._cluster.kill, self._victim, which)

    async def _delay(self, seconds: float) -> None:
        self._proxy.delay_s = seconds


@asynccontextmanager
async def disturbed(
    cluster: LocalCluster, plan: LoadPlan, clock: Clock
) -> AsyncIterator[tuple[Target, Disturbance]]:
    """Start the cluster with a proxy before the node that the seed has chosen."""
    victim = random.Random(plan.seed).choice(cluster.numbers)
    apart = cluster.listen_apart(victim)
    async with (
        DelayProxy(cluster.map.node(victim).address, apart, clock) as proxy,
        cluster,
        Observer(
            cluster.map, None
        ) as observer,  # no counters: the victim's begin anew when it is brought back
    ):
        target = Target(cluster.client_config(), cluster.map, observer)
        yield target, Disturbance(cluster, victim, proxy, plan)
