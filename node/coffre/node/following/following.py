"""A node's life in the cluster: it adopts newer maps, and says that it is alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, NodeStatus, Session, announce
from coffre.cluster.errors import CoffreError, ConfigurationError, RetryableError
from coffre.cluster.map import ClusterMap, MapNode, newer_map
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.cluster.version import __version__
from coffre.node.following.mapholder import MapHolder

__all__ = ["Announcer", "MapFollower"]

_log = logging.getLogger("coffre.node")
PAUSE_SECONDS = 0.5  # before coordination is tried again, and between two rounds of questions to other nodes
ANNOUNCE_SECONDS = 5.0
FAREWELL_SECONDS = 0.5


class MapFollower:
    """Adopts newer maps: verified, then in the node's file, then in use.

    They come from coordination. When a request comes with a newer epoch than this node's, or another node's status has
    one, other nodes are asked, too: coordination may be down, and a map that some nodes have must reach all.
    """

    def __init__(
        self,
        maps: MapHolder,
        source: ClusterMaps,
        keep: Callable[[bytes], None],
        clock: Clock,
        *,
        own: MapNode,
        on_change: Callable[[ClusterMap], None] = lambda _: None,
    ) -> None:
        """`keep`: puts a signed map in the place where this node finds it when it starts, whole or not at all."""
        self._maps = maps
        self._source = source
        self._keep = keep
        self._clock = clock
        self._own = own
        self._on_change = on_change

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._listen(), self._ask_others())

    async def _listen(self) -> None:
        said = ""
        while True:
            try:
                async with aclosing(self._source.watch()) as published:
                    async for found in published:
                        self.adopt(found)
                        said = ""
            except CoffreError as error:
                if type(error).__name__ != said:  # once: it is tried again and again
                    said = type(error).__name__
                    level = logging.INFO if isinstance(error, RetryableError) else logging.ERROR
                    _log.log(level, "cannot follow the map", extra={"error": said, "reason": str(error)})
            await self._clock.sleep(PAUSE_SECONDS)

    async def _ask_others(self) -> None:
        while True:
            await self._maps.behind.wait()
            self._maps.behind.clear()
            found = await self._source.newer(self._maps.map, but=(self._own.number,))
            if found is not None:
                try:
                    self.adopt(found)
                except CoffreError as error:
                    _log.error("map refused", extra={"error": type(error).__name__, "reason": str(error)})
            await self._clock.sleep(PAUSE_SECONDS)

    def adopt(self, found: VerifiedMap) -> None:
        """Take a map if it is newer. Raises as `newer_map`, and `ConfigurationError`; then the old one goes on."""
        if found.map.epoch <= self._maps.map.epoch:
            return
        newer_map(self._maps.map, found.map)
        if found.map.node(self._own.number).attributes != self._own.attributes:
            raise ConfigurationError("the new map says other attributes of this node than its certificate")
        self._keep(found.signed)
        self._maps.adopt(found.map, found.signed)
        self._on_change(found.map)
        _log.info("map adopted", extra={"epoch": found.map.epoch})


class Announcer:
    """Keeps this node's status in coordination, under a session of its own."""

    def __init__(
        self, coordination: Coordination, clock: Clock, maps: MapHolder, own: MapNode, since_unixtime_ms: int
    ) -> None:
        self._coordination = coordination
        self._session = Session(coordination, clock)
        self._clock = clock
        self._maps = maps
        self._own = own
        self._since_unixtime_ms = since_unixtime_ms

    async def run(self) -> None:
        """Until cancelled; then the status goes at once if coordination can be reached, else when its lease ends."""
        lease, epoch = 0, 0
        try:
            while True:
                if not self._session.holds(lease) or epoch != self._maps.map.epoch:
                    try:
                        epoch = self._maps.map.epoch
                        lease = await announce(self._coordination, self._session, self._status(epoch))
                    except CoffreError as error:
                        lease = 0
                        about = {"error": type(error).__name__, "reason": str(error)}
                        _log.debug("cannot announce this node", extra=about)
                await self._clock.sleep(PAUSE_SECONDS if not lease else ANNOUNCE_SECONDS)
        finally:
            # A node that stops waits for nobody: its status goes with its lease if not at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._session.close()

    def _status(self, epoch: int) -> NodeStatus:
        return NodeStatus(self._own.number, self._own.node_id, epoch, __version__, self._since_unixtime_ms)
