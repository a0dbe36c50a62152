"""What connects a node with the rest of its cluster: the coordination it serves or uses, its map, its announcement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, EmbeddedCoordination, RemoteCoordination
from coffre.cluster.identity import read_certificate
from coffre.cluster.map import ClusterMap, MapNode, write_map
from coffre.cluster.membership import ClusterMaps
from coffre.cluster.transport import GrpcTransport
from coffre.node.config import NodeConfig
from coffre.node.following import Announcer, MapFollower, MapHolder, Suspensions
from coffre.node.serving.coordination import CoordinationHandler
from coffre.node.serving.coordinator import NearestCoordination, StoreWatch, open_coordination
from coffre.proto import coffre_pb2 as pb

__all__ = ["Membership"]


class Membership:
    """Opened before the node serves, started once it does. `handler` answers the calls to its coordination service."""

    def __init__(self, config: NodeConfig, maps: MapHolder, own: MapNode, clock: Clock) -> None:
        self._config = config
        self._maps = maps
        self._own = own
        self._clock = clock
        self._served: Coordination | None = None
        self._transport: GrpcTransport | None = None
        self._updates: set[asyncio.Task[None]] = set()
        self._used: NearestCoordination | None = None
        self.handler = CoordinationHandler(own.number, None, maps, clock)
        self.store_watch = StoreWatch(own.number, maps, None, None, clock)
        self.on_dropped: Callable[[], None] = lambda: (
            None
        )  # called when the map does not name this node any more

    async def open(self, entropy: Callable[[int], bytes]) -> GrpcTransport:
        """Return the way to the other nodes. Raises `ConfigurationError` when coordination is not configured well."""
        config, cluster_map = self._config, self._maps.map
        self._served = await open_coordination(
            config.coordination, self._clock, entropy, cluster_map.cluster_id
        )
        self.handler = CoordinationHandler(self._own.number, self._served, self._maps, self._clock)
        self.store_watch = StoreWatch(
            self._own.number, self._maps, self._served, config.coordination, self._clock
        )
        self._transport = GrpcTransport(cluster_map, config.tls)
        return self._transport

    def tell(self, reply: pb.StatusReply) -> None:
        """Add to a status what this node serves of coordination."""
        self.store_watch.tell(reply)
        reply.coordination_failure = self.coordination_failure()

    @property
    def serves_coordination(self) -> bool:
        """Whether this node has a store of coordination, be it in use or not."""
        return self._served is not None

    def coordination_failure(self) -> str:
        """Why the store of this node decides nothing any more; empty while it does, or there is none here."""
        return self._served.failure if isinstance(self._served, EmbeddedCoordination) else ""

    def start(self, suspensions: Suspensions) -> list[asyncio.Task[None]]:
        """Follow the map and suspensions, and announce this node, until the tasks are cancelled."""
        assert self._transport is not None
        used: Coordination = RemoteCoordination(self._transport)
        if self._served is not None:
            used = self._used = NearestCoordination(self._own.number, self._maps, self._served, used)
        authority = read_certificate(self._config.tls.authority)
        source = ClusterMaps(self._transport, used, authority, self._clock)
        follower = MapFollower(
            self._maps,
            source,
            partial(write_map, self._config.map),
            self._clock,
            own=self._own,
            on_change=self._map_changed,
        )
        announcer = Announcer(used, self._clock, self._maps, self._own, self._clock.unixtime_ms())
        return [
            asyncio.create_task(follower.run()),
            asyncio.create_task(suspensions.run(used)),
            asyncio.create_task(announcer.run()),
            asyncio.create_task(self.store_watch.run()),
        ]

    def _map_changed(self, cluster_map: ClusterMap) -> None:
        self._config.store.versions_kept = max(policy.versions_kept for policy in cluster_map.policies)
        if self._used is not None:
            self._used.map_changed()
        if self._own.number not in cluster_map.coordinators:
            self.on_dropped()
        self._begin(self.store_watch.look())
        if self._transport is not None:
            self._begin(self._transport.update_map(cluster_map))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._updates.add(task)
        task.add_done_callback(self._updates.discard)

    async def close(self) -> None:
        for task in self._updates:
            task.cancel()
        await asyncio.gather(*self._updates, return_exceptions=True)
        if self._transport is not None:
            await self._transport.close()
        if self._served is not None:
            await self._served.close()
