"""The coordination that a node uses: its own store while the map names it a coordinator, else those that it names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import (
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
from coffre.cluster.errors import Unavailable
from coffre.node.config import CoordinationConfig, EmbeddedConfig
from coffre.node.following import MapHolder

__all__ = ["NearestCoordination", "open_coordination"]


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

    @property
    def _nearest(self) -> Coordination:
        return self._served if self._own in self._maps.map.coordinators else self._remote

    def map_changed(self) -> None:
        """To be told after each change of the map: a watch on a store that is not the cluster's any more ends."""
        if self._nearest is self._remote:
            self._dropped.set()
            self._dropped = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        return await self._nearest.get(key)

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        return await self._nearest.range(prefix, limit=limit, after=after)

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        return await self._nearest.commit(compares, puts, deletes)

    async def grant(self, seconds: int) -> Lease:
        return await self._nearest.grant(seconds)

    async def keep_alive(self, lease: int) -> None:
        await self._nearest.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._nearest.revoke(lease)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        nearest = self._nearest
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
