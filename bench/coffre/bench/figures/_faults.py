"""Figures of a cluster in trouble: the slowest gets while one node of six hangs."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from coffre.bench._workload import SmallObjects, latencies, percentile
from coffre.bench.figures._session import BUCKET, CALLERS, Group, Session, at_most
from coffre.bench.local_cluster import LocalCluster
from coffre.bench.processes import is_stopped
from coffre.bench.references import Measurement
from coffre.bench.result import Figure
from coffre.client import connect

__all__ = ["FAULTS", "paused"]

_PAUSED = Figure("get_p99_paused_node", "s", at_most(3.0))
_CALLERS = 16
_STOP_SECONDS, _POLL_SECONDS = 10.0, 0.001


@asynccontextmanager
async def paused(cluster: LocalCluster, number: int) -> AsyncIterator[None]:
    """Stop a node with SIGSTOP: its connections stay, and nothing answers on them. Afterwards it serves again."""
    cluster.kill(number, signal.SIGSTOP)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            while not is_stopped(cluster.pid(number)):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        cluster.kill(number, signal.SIGCONT)
        await cluster.wait_ready(number)


async def _measure(session: Session) -> None:
    """Both halves do the same with a new client that has been at work while all was well.

    Every node is paused in its turn, and the moment of the pause is inside the measured time.
    """
    scale = session.scale
    async with session.data_path() as path:
        objects = SmallObjects(path.blocks, BUCKET, "faults")
        await objects.put_all(path.writer, scale.small_objects, CALLERS)
        nodes = itertools.cycle(path.cluster.numbers)

        async def p99_s(number: int | None) -> float:
            async with await connect(path.cluster.client_config()) as client:

                async def gets(duration_s: float) -> list[float]:
                    return await latencies(
                        lambda number: objects.get(client, number % scale.small_objects),
                        callers=_CALLERS,
                        duration_s=duration_s,
                    )

                await gets(scale.warmup_s)
                async with nullcontext() if number is None else paused(path.cluster, number):
                    return percentile(await gets(scale.duration_s), 99)

        async def with_one_paused() -> float:
            return await p99_s(next(nodes))

        async def with_all_well() -> Measurement:
            return Measurement("get_p99", await p99_s(None), "s", "all nodes well")

        await session.turns(_PAUSED, with_one_paused, with_all_well, scale.fault_rounds)


FAULTS = Group((_PAUSED,), _measure)
