"""When a node begins an epoch: once all that it was asked for at earlier ones is decided on its disk, and not before.

docs/consistency.md, "Changing the map", says what rests on it.
"""

from __future__ import annotations

from typing import Protocol

from coffre.cluster.map import ClusterMap
from coffre.node.following.mapholder import MapHolder

__all__ = ["EpochFence"]


class Drained(Protocol):
    """What is needed of a `ShardStore`."""

    async def drain(self) -> None: ...


class EpochFence:
    """Stands between the map that a node has adopted and the first answer that it gives by it.

    Who asks the store for something by a map does so in the same step as it looks at the map. So what is queued when
    another map is adopted is all that can still come of the earlier ones, and once it is decided nothing does.
    """

    def __init__(self, store: Drained, maps: MapHolder) -> None:
        self._store = store
        self._maps = maps
        self._begun: ClusterMap = maps.map

    @property
    def is_passed(self) -> bool:
        """Whether this node may answer by the map that it has now."""
        return self._begun is self._maps.map

    async def wait(self) -> None:
        """Return when it may. Look at the map after that. Raises `Unavailable` when the store is closed."""
        while not self.is_passed:
            coming = self._maps.map
            await self._store.drain()
            self._begun = coming
