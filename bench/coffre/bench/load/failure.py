"""The same load throughout, while one node is killed, brought back, paused, resumed, slowed and left alone again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.proxy import DelayProxy
from coffre.bench.load.result import Event
from coffre.bench.load.session import Disturb, Target, observing
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


def _acts(cluster: LocalCluster, victim: int, proxy: DelayProxy) -> dict[str, Callable[[], Awaitable[None]]]:
    async def delay(seconds: float) -> None:
        proxy.delay_s = seconds

    async def send(which: signal.Signals) -> None:
        await asyncio.to_thread(cluster.kill, victim, which)

    return {
        "steady": lambda: asyncio.sleep(0),
        "killed": lambda: send(signal.SIGKILL),
        "brought back": lambda: cluster.start([victim]),
        "paused": lambda: send(signal.SIGSTOP),
        "resumed": lambda: send(signal.SIGCONT),
        "slowed": lambda: delay(SLOW_S),
        "left alone": lambda: delay(0.0),
    }


@asynccontextmanager
async def disturbed(
    cluster: LocalCluster, plan: LoadPlan, clock: Clock
) -> AsyncIterator[tuple[Target, Disturb]]:
    """Start the cluster with a proxy before the node that the seed has chosen; what is to be done to it meanwhile."""
    victim = random.Random(plan.seed).choice(cluster.numbers)
    node = cluster.map.node(victim)
    phase_intervals = plan.duration_s / len(PHASES) / plan.interval_s

    async def disturb(start: float, clock: Clock) -> tuple[Event, ...]:
        events = []
        acts = _acts(cluster, victim, proxy)
        for number, (phase, what) in enumerate(PHASES.items()):
            # On the edges of intervals, so that no interval is of two phases.
            at = start + (plan.ramp_intervals + round(number * phase_intervals)) * plan.interval_s
            await clock.sleep(max(0.0, at - clock.monotonic()))
            events.append(Event(max(clock.monotonic(), at) - start, phase, what.format(node=node.node_id)))
            await acts[phase]()
        return tuple(events)

    apart = cluster.listen_apart(victim)
    async with (
        DelayProxy(node.address, apart, clock) as proxy,
        cluster,
        # No counters: the victim's begin anew when it is brought back.
        observing(cluster.map, None) as observe,
    ):
        yield Target(cluster.client_config(), cluster.map, observe), disturb
