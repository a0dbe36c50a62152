"""What a node's health service says: whether it takes writes, and whether the coordination that it serves decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from coffre.cluster.clock import Clock
from coffre.node.serving.servicer import COORDINATION, SERVICE
from coffre.node.store import StoreStatus
from grpc_health.v1 import health, health_pb2

__all__ = ["VitalSigns"]

_log = logging.getLogger("coffre.node")
LOOK_SECONDS = 5.0
PROBE_SECONDS = 60.0  # between two small writes: a disk that failed is known before anybody needs it
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Probed(Protocol):
    """What is needed of a store on a disk."""

    async def status(self) -> StoreStatus: ...

    async def probe(self) -> None: ...


class VitalSigns:
    """Tells the health service of a node that serves, and its log when something has changed.

    The service "" is SERVING while the node answers at all; the service of storage while it takes writes, too; that of
    coordination while its store decides.
    """

    def __init__(
        self,
        store: Probed,
        servicer: health.aio.HealthServicer,
        clock: Clock,
        coordination_failure: Callable[[], str] | None,
    ) -> None:
        """`coordination_failure` is None on a node that has no store of coordination."""
        self._store = store
        self._servicer = servicer
        self._clock = clock
        self._coordination_failure = coordination_failure
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._look_forever(), self._probe_forever())

    async def look(self) -> None:
        """Once."""
        status = await self._store.status()
        reason = status.cannot_write or (
            "" if status.writable else "its disk is full: it takes deletes alone"
        )
        await self._say(SERVICE, "writes", reason)
        if self._coordination_failure is not None:
            await self._say(COORDINATION, "coordination", self._coordination_failure())

    async def _say(self, service: str, what: str, reason: str) -> None:
        await self._servicer.set(service, _NOT_SERVING if reason else _SERVING)
        if reason != self._said.get(service, ""):
            if reason:
                _log.error("this node serves no %s: %s", what, reason)
            else:
                _log.info("this node serves %s again", what)
        self._said[service] = reason

    async def _look_forever(self) -> None:
        while True:
            await self.look()
            await self._clock.sleep(LOOK_SECONDS)

    async def _probe_forever(self) -> None:
        """Beside the other: a disk that hangs lets nobody wait for what can be told of it."""
        while True:
            await self._clock.sleep(PROBE_SECONDS)
            await self._store.probe()
