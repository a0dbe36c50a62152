"""The same load throughout, while one node is killed, brought back, paused, resumed, slowed and left alone again.

It is slowed by a TCP proxy that stands in front of it from the start, so that its own cost is in every phase alike. The
kernel's netem could do the same, but only for root, only for a whole interface unless filters are set, and it stays
behind when the program dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.result import Event
from coffre.bench.load.session import Target, observing
from coffre.cluster.clock import Clock
from coffre.dev.local_cluster import LocalCluster

__all__ = ["PHASES", "SLOW_S", "DelayProxy", "disturbed"]

CHUNK_BYTES = 64 << 10
CHUNKS_UNDER_WAY = 128  # 8 MiB in each direction of a connection
_Entry = tuple[float, bytes] | None


class DelayProxy:
    """Listens at one address, connects to another. `delay_s` may be changed at any time."""

    def __init__(self, listen: str, upstream: str, clock: Clock) -> None:
        """Both are host:port."""
        self._listen, self._upstream, self._clock = listen, upstream, clock
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        host, port = _parsed(self._listen)
        self._server = await asyncio.start_server(self._accepted, host, port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions of one connection. It ends as a whole when either side ends it."""
        host, port = _parsed(self._upstream)
        try:
            answers, requests = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()  # nobody listens there: the caller's connection breaks at once
            return
        pumps = [
            asyncio.create_task(self._pump(reader, requests, slow=False)),
            asyncio.create_task(self._pump(answers, writer, slow=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            requests.transport.abort()
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool) -> None:
        """Carry one direction until its end, each chunk as late as the delay was when it came."""
        under_way: asyncio.Queue[_Entry] = asyncio.Queue(CHUNKS_UNDER_WAY)

        async def take() -> None:
            with contextlib.suppress(ConnectionError):
                while chunk := await source.read(CHUNK_BYTES):
                    await under_way.put((self._clock.monotonic() + (self.delay_s if slow else 0.0), chunk))
            await under_way.put(None)

        taking = asyncio.create_task(take())
        try:
            while (entry := await under_way.get()) is not None:
                if (early_s := entry[0] - self._clock.monotonic()) > 0:
                    await self._clock.sleep(early_s)
                sink.write(entry[1])
                await sink.drain()
        except ConnectionError:
            return
        finally:
            taking.cancel()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


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
