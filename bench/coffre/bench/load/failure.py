"""The same load throughout, while one node is killed, brought back, paused, resumed, slowed and left alone again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.proxy import DelayProxy
from coffre.bench.load.result import Event
from coffre.bench.load.session import Target, observing
from coffre.bench.local_cluster import LocalCluster
from coffre.cluster.clock import Clock

__all__ = ["PHASES", "SLOW_S", "disturbed"]

SLOW_S = 0.2
PHASES = {
    "steady": "all nodes serve; {node} is the victim",
    "killed": "SIGKILL to {node}",
    "brought back": "{node} is started again",
    "paused": "SIGSTOP to {node}",
    "resumed": "SIGCONT to {node}",
    "slowed": f"everything that {{node}} says arrives {SLOW_S * 1e3:.0f} ms later",
    "left alone": "{node} is at full speed again",
}
"""What is done at the beginning of each."""


@asynccontextmanager
async def disturbed(cluster: LocalCluster, plan: LoadPlan, clock: Clock) -> AsyncIterator[Target]:
    """Start the cluster with a proxy before the node that the seed has chosen, to which all this will be done."""
    victim = random.Random(plan.seed).choice(cluster.numbers)
    node = cluster.map.node(victim)
    phase_intervals = plan.duration_s / len(PHASES) / plan.interval_s

    async def act(phase: str) -> None:
        match phase:
            case "killed" | "paused" | "resumed":
                which = {"killed": signal.SIGKILL, "paused": signal.SIGSTOP, "resumed": signal.SIGCONT}[phase]
                await asyncio.to_thread(cluster.kill, victim, which)
            case "brought back":
                await cluster.start([victim])
            case "slowed" | "left alone":
                proxy.delay_s = SLOW_S if phase == "slowed" else 0.0

    async def disturb(start: float) -> tuple[Event, ...]:
        events = []
        for number, (phase, what) in enumerate(PHASES.items()):
            # On the edges of intervals, so that no interval is of two phases.
            at = start + (plan.ramp_intervals + round(number * phase_intervals)) * plan.interval_s
            await clock.sleep(max(0.0, at - clock.monotonic()))
            events.append(Event(max(clock.monotonic(), at) - start, phase, what.format(node=node.node_id)))
            await act(phase)
        return tuple(events)

    apart = cluster.listen_apart(victim)
    async with (
        DelayProxy(node.address, apart, clock) as proxy,
        cluster,
        # No counters: the victim's begin anew when it is brought back.
        observing(cluster.map, None) as observe,
    ):
        yield Target(cluster.client_config(), cluster.map, observe, disturb)
