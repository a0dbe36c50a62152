"""How a client comes to a newer map: told by coordination, or asked of any node after one refused an old epoch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Protocol

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination
from coffre.cluster.coordination.maps import watch_maps
from coffre.cluster.errors import CoffreError, RetryableError
from coffre.cluster.map import ClusterMap, NodeState, newer_map, verify_map
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as pb
from cryptography import x509

__all__ = ["Background", "ClusterMaps", "MapSource"]

ASK_SECONDS = 2.0
WATCH_PAUSE_SECONDS = 0.5


class Background:
    """Tasks that go on behind the calls of a client, and end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class MapSource(Protocol):
    """Where newer maps come from, verified."""

    async def newer(self, than: ClusterMap) -> ClusterMap | None:
        """A newer map, None when no node that answers has one."""

    def watch(self) -> AsyncGenerator[ClusterMap]:
        """Maps as they are published, without end."""


class ClusterMaps:
    """Asks nodes and coordination; nobody is believed without an operator's signature."""

    def __init__(
        self, transport: Transport, coordination: Coordination, authority: x509.Certificate, clock: Clock
    ) -> None:
        self._transport = transport
        self._coordination = coordination
        self._authority = authority
        self._clock = clock

    async def newer(self, than: ClusterMap) -> ClusterMap | None:
        nodes = [node.number for node in than.nodes if node.state is not NodeState.REMOVED]
        asking = [asyncio.ensure_future(self._ask(node, than)) for node in nodes]
        try:
            for answer in asyncio.as_completed(asking):
                if (found := await answer) is not None:
                    return found
            return None
        finally:
            for task in asking:
                task.cancel()

    async def _ask(self, node: int, than: ClusterMap) -> ClusterMap | None:
        try:
            reply = await self._transport.get_map(node, pb.GetMapRequest(known_epoch=than.epoch), ASK_SECONDS)
            if not reply.signed_map:
                return None
            found = newer_map(than, self._verified(reply.signed_map))
        except CoffreError:
            return None  # it does not answer, or not with a map of this cluster: the others are asked too
        return found if found.epoch > than.epoch else None

    def _verified(self, signed: bytes) -> ClusterMap:
        return verify_map(signed, self._authority, self._clock.unixtime_ms())

    async def watch(self) -> AsyncGenerator[ClusterMap]:
        while True:
            try:
                async with aclosing(watch_maps(self._coordination)) as watching:
                    async for published in watching:
                        yield self._verified(published.signed)
            except RetryableError:
                await self._clock.sleep(WATCH_PAUSE_SECONDS)
