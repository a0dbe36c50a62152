"""Figures of a cluster in trouble: the slowest gets while one node of six hangs."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from coffre.bench._workload import SmallObjects, latencies, percentile
from coffre.bench.figures._session import (
    BUCKET,
    CALLERS,
    CONDITIONS,
    DataPath,
    Group,
    Session,
    Turns,
    measure_turns,
)
from coffre.bench.local_cluster import LocalCluster
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Target
from coffre.client import AsyncClient, connect

__all__ = ["FAULTS", "paused"]

_PAUSED = "get_p99_paused_node"
_CALLERS = 16


_STOP_SECONDS, _POLL_SECONDS = 10.0, 0.001


def _is_stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped: proc_pid_stat(5)."""
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return set(states) == {"T"}


@asynccontextmanager
async def paused(cluster: LocalCluster, number: int) -> AsyncIterator[None]:
    """Stop a node with SIGSTOP: its connections stay, and nothing answers on them. Afterwards it serves again."""
    cluster.kill(number, signal.SIGSTOP)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            while not _is_stopped(cluster.pid(number)):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        cluster.kill(number, signal.SIGCONT)
        await cluster.wait_ready(number)


class _Product:
    """Both halves do the same with a new client that has been at work while all was well."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path = path
        self._scale = session.scale
        self._objects = SmallObjects(path.blocks, BUCKET, "faults")
        self._nodes = itertools.cycle(path.cluster.numbers)

    async def fill(self) -> None:
        await self._objects.put_all(self._path.writer, self._scale.small_objects, CALLERS)

    async def with_all_well(self) -> Measurement:
        async with await connect(self._path.cluster.client_config()) as client:
            await self._gets(client, self._scale.warmup_s)
            found = await self._gets(client, self._scale.duration_s)
        return self._p99("get_p99", found, "all nodes well")

    async def with_one_paused(self) -> Measurement:
        """Every node in its turn. The moment of the pause is inside the measured time."""
        number = next(self._nodes)
        async with await connect(self._path.cluster.client_config()) as client:
            await self._gets(client, self._scale.warmup_s)
            async with paused(self._path.cluster, number):
                found = await self._gets(client, self._scale.duration_s)
        return self._p99(_PAUSED, found, f"node {number} of six stopped")

    async def _gets(self, client: AsyncClient, duration_s: float) -> list[float]:
        count = self._scale.small_objects

        async def get(number: int) -> None:
            await self._objects.get(client, number % count)

        return await latencies(get, callers=_CALLERS, duration_s=duration_s)

    @staticmethod
    def _p99(name: str, found: Sequence[float], state: str) -> Measurement:
        detail = f"p99 of {len(found)} gets of 4 KiB, {_CALLERS} at a time, {state}, {CONDITIONS}"
        return Measurement(name, percentile(found, 99), "s", detail)


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    async with session.data_path() as path:
        product = _Product(path, session)
        await product.fill()
        rounds = session.scale.fault_rounds
        await measure_turns(
            session, wanted, {_PAUSED: Turns(product.with_one_paused, product.with_all_well, rounds)}
        )


FAULTS = Group({_PAUSED: Target(Bound.AT_MOST, 3.0)}, _measure)
