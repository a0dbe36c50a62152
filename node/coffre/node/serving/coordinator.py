"""The coordination that a node uses: its own store while the map names it a coordinator, else those that it names.

And what the node says of its own store: which it is, and whether it is at hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import (
    CURRENT,
    MAPS,
    RANGE_LIMIT_MAX,
    Changes,
    Commit,
    Compare,
    Coordination,
    EmbeddedCoordination,
    Entry,
    EtcdCoordination,
    Lease,
    Page,
    Put,
)
from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.map import ClusterMap
from coffre.node.config import CoordinationConfig, EmbeddedConfig
from coffre.node.following import MapHolder
from coffre.proto import coffre_pb2 as pb

__all__ = ["NearestCoordination", "StoreWatch", "one_of_several", "open_coordination"]

_log = logging.getLogger("coffre.node")
LOOK_SECONDS = 5.0  # between two looks at the store that this node serves


def one_of_several(store: Coordination | None, own: int, cluster_map: ClusterMap) -> str:
    """Why a node's own store may not decide: the map names other coordinators, too, and they cannot share it.

    Empty when it may. Signed maps may still be published there, so that a map that names one alone can end this.
    """
    named = cluster_map.coordinators
    if not isinstance(store, EmbeddedCoordination) or own not in named or len(named) < 2:
        return ""
    nodes = ", ".join(cluster_map.node(number).node_id for number in named)
    return (
        f"the map names {nodes} as coordinators, and this node has a store of its own (embedded): there would be two, "
        'so it decides nothing. Let all of them share one etcd (kind = "etcd" in node.toml), or name one node alone '
        "(coffre cluster set-coordinators)"
    )


async def open_coordination(
    config: CoordinationConfig | None, clock: Clock, entropy: Callable[[int], bytes], cluster_id: str
) -> Coordination | None:
    """The store that this node serves, None when it serves none. Raises `ConfigurationError`."""
    if config is None:
        return None
    if isinstance(config, EmbeddedConfig):
        return await EmbeddedCoordination.open(config.folder, clock, entropy)
    return EtcdCoordination(config.endpoints, config.tls, cluster_id, entropy)


class NearestCoordination:
    """`Coordination` of one node, whose role the map may change at any time. Both stores are their owner's."""

    def __init__(self, own: int, maps: MapHolder, served: Coordination, remote: Coordination) -> None:
        self._own = own
        self._maps = maps
        self._served = served
        self._remote = remote
        self._dropped = asyncio.Event()

    def _nearest(self, *keys: str) -> Coordination:
        """Own stores of several coordinators decide nothing, so that each asks the others. But a signed map may be
        published in any of them, and nobody else may be looking there."""
        cluster_map = self._maps.map
        if self._own not in cluster_map.coordinators:
            return self._remote
        of_maps = bool(keys) and all(key.startswith(MAPS) for key in keys)
        if not of_maps and one_of_several(self._served, self._own, cluster_map):
            return self._remote
        return self._served

    def map_changed(self) -> None:
        """To be told after each change of the map: a watch on a store that is not the cluster's any more ends."""
        if self._nearest() is self._remote:
            self._dropped.set()
            self._dropped = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        return await self._nearest(key).get(key)

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        return await self._nearest(prefix).range(prefix, limit=limit, after=after)

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        changed = [*(put.key for put in puts), *deletes]
        return await self._nearest(*changed).commit(compares, puts, deletes)

    async def grant(self, seconds: int) -> Lease:
        return await self._nearest().grant(seconds)

    async def keep_alive(self, lease: int) -> None:
        await self._nearest().keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._nearest().revoke(lease)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        nearest = self._nearest(prefix)
        async with aclosing(nearest.watch(prefix, revision)) as watching:
            if nearest is self._remote:  # coordinators that are none any more end it themselves
                async for changes in watching:
                    yield changes
                return
            dropped = asyncio.create_task(self._dropped.wait())
            try:
                while True:
                    following = asyncio.ensure_future(anext(watching))
                    try:
                        await asyncio.wait((following, dropped), return_when=asyncio.FIRST_COMPLETED)
                        if not following.done():
                            raise Unavailable("this node is no coordinator any more")
                        yield following.result()
                    finally:
                        following.cancel()
                        await asyncio.gather(following, return_exceptions=True)
            finally:
                dropped.cancel()

    async def close(self) -> None:
        """Nothing: both are closed by who opened them."""


class StoreWatch:
    """Looks at the store that this node serves, again and again; says so in its log and its status."""

    def __init__(
        self,
        own: int,
        maps: MapHolder,
        store: Coordination | None,
        config: CoordinationConfig | None,
        clock: Clock,
    ) -> None:
        self._own = own
        self._maps = maps
        self._store = store
        self._config = config
        self._clock = clock
        self._etcd_cluster = 0
        self.trouble = (
            ""  # why the store cannot be used, though the map names this node; empty: it can, or need not
        )

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Find out once, and log what has changed."""
        before, self.trouble = self.trouble, await self._find()
        if self.trouble and self.trouble != before:
            _log.error("coordination is not served", extra={"reason": self.trouble})
        elif before and not self.trouble:
            _log.info("coordination is served again")

    async def _find(self) -> str:
        cluster_map = self._maps.map
        if self._own not in cluster_map.coordinators:
            return ""
        if self._store is None:
            return "the map names this node as a coordinator, and its node.toml has no [coordination]"
        if several := one_of_several(self._store, self._own, cluster_map):
            return several
        try:
            if isinstance(self._store, EtcdCoordination):
                self._etcd_cluster = await self._store.cluster()
            else:
                await self._store.get(CURRENT)
        except CoffreError as error:
            if isinstance(self._config, EmbeddedConfig) or self._config is None:
                return str(error)
            return f"etcd ({', '.join(self._config.endpoints)}) does not answer: {error}"
        return ""

    def tell(self, reply: pb.StatusReply) -> None:
        """Add to a status which store this node serves, and how it is."""
        served = reply.coordination
        served.kind = pb.COORDINATION_KIND_NONE
        if isinstance(self._store, EmbeddedCoordination):
            served.kind = pb.COORDINATION_KIND_EMBEDDED
        elif self._store is not None:
            served.kind = pb.COORDINATION_KIND_ETCD
        served.etcd_cluster = self._etcd_cluster
        served.trouble = self.trouble
        served.SetInParent()
