"""The life of a client: what it is made of, the maps that it follows, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

from coffre.client._checks import check_parts, seconds_of
from coffre.client._door import CLOSE_SECONDS, Call, Door
from coffre.client._fetch import Fetcher
from coffre.client._ground import Ground
from coffre.client._parts import assemble, locks_of, peers_of
from coffre.client._pool import DaemonPool
from coffre.client.keys import KeyProvider
from coffre.client.model import ClientOptions
from coffre.client.nodes import Background, MapSource, Views
from coffre.client.sealing import Sealer
from coffre.client.writing import Issuer
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.coordination import Coordination, Session
from coffre.cluster.errors import CoffreError
from coffre.cluster.map import ClusterMap
from coffre.cluster.names import ObjectName, check_tenant
from coffre.cluster.transport import Transport

__all__ = ["ClientLife"]

_log = logging.getLogger("coffre.client")

MAPS_PAUSE_SECONDS = 0.5  # before coordination is asked for maps again
LARGE_AT_ONCE = 8  # whole objects of several segments, so that many of them do not fill the memory


class ClientLife:
    """What `AsyncClient` is besides its operations."""

    def __init__(
        self,
        cluster_map: ClusterMap,
        transport: Transport,
        keys: KeyProvider,
        tenant: str,
        *,
        options: ClientOptions | None = None,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        coordination: Coordination | None = None,
        maps: MapSource | None = None,
    ) -> None:
        """`coordination`: for conditional writes and buckets. `maps`: where newer maps come from."""
        check_tenant(tenant)
        check_parts(keys, options)
        options, clock = options or ClientOptions(), clock or SystemClock()
        issuer = Issuer(clock, entropy)
        lanes = peers_of(transport, clock, tenant, options.timeout, issuer)
        self._tenant = tenant
        self._transport = transport
        self._maps = maps
        self._coordination = coordination
        self._session = Session(coordination, clock) if coordination is not None else None
        self._background = Background()
        self._following = False
        self._views = Views(cluster_map, lanes, transport, maps)
        self._door = Door(self)
        self._pool = DaemonPool(2, "coffre-coding")
        self._ground = Ground(self._views, clock, Sealer(keys, entropy), self._pool, options, entropy)
        self._parts = assemble(self._ground, issuer, locks_of(coordination, self._session, clock, entropy))
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._fetcher = Fetcher(self._ground, self._parts.lookup, self._parts.ranges, self._large)

    @property
    def tenant(self) -> str:
        """The tenant whose objects these are, from the client's certificate."""
        return self._tenant

    @property
    def cluster_map(self) -> ClusterMap:
        return self._views.current.map

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def flush(self, *, timeout: float | None = None) -> None:
        """Wait until every node has answered every write begun so far, those beyond the bar too."""
        with self._door.call(timeout):
            await self._views.drain()

    async def aclose(self, *, timeout: float = CLOSE_SECONDS) -> None:
        """Close the connections. Calls under way get `timeout` seconds; then they end with `Cancelled`, writes with
        `OutcomeUnknown`. Later calls raise `InvalidArgument`. A second time, or after a fork, nothing is done."""
        if self._door.is_closed or not self._door.is_of_this_process:
            return
        try:
            await self._door.close(seconds_of("timeout", timeout, or_least=True) or 0.0)
            await self._background.stop()
            with suppress(TimeoutError):  # what no node answers in time is closed with the connections
                async with asyncio.timeout(self._ground.options.timeout):
                    await self._views.drain()
            _log.debug("a client of tenant %s is closed", self._tenant)
            if self._session is not None:
                await self._session.close()
        finally:
            self._pool.shutdown(wait=False)
            await self._transport.close()

    async def _follow(self, maps: MapSource) -> None:
        """Adopt maps as they are published, until this client is closed."""
        while True:
            with suppress(CoffreError):  # no coordination now, or a map of no use here: what there is goes on
                async with aclosing(maps.watch()) as published:
                    async for found in published:
                        await self._views.adopt(found.map)
                        _log.info("the cluster map is at epoch %d", self.cluster_map.epoch)
            await self._ground.clock.sleep(MAPS_PAUSE_SECONDS)

    def _follow_maps(self) -> None:
        """With the first operation, begin to adopt maps as they are published."""
        if self._maps is not None and not self._following:
            self._following = True
            self._background.start(self._follow(self._maps))

    def _call(
        self, timeout: float | None, name: ObjectName, version: str | None = None, *, writes: bool = False
    ) -> Call:
        """Around a call about one object."""
        call = self._door.call(timeout, bucket=name.bucket, key=name.key, version=version, writes=writes)
        self._follow_maps()
        return call
