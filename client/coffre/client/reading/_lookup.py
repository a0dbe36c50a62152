"""Reading with patience: the version that a name stands for, what overwrote it, and where its shards lie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from coffre.client._ground import Ground
from coffre.client.model import ShardPlace
from coffre.client.reading._found import Found
from coffre.client.reading._reads import Reader
from coffre.cluster.errors import CoffreError, IntegrityError, NotFound, StaleMap, Unavailable
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp

__all__ = ["RETRY_SECONDS", "Lookup"]

RETRY_SECONDS = 0.05
_T = TypeVar("_T")


class Lookup:
    """`patience`: seconds for which to read again while too few nodes answer, or are at another epoch."""

    def __init__(self, ground: Ground, reader: Reader) -> None:
        self._views = ground.views
        self._reader = reader
        self._clock = ground.clock
        self._patience = ground.options.patience

    async def patiently(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """Read again for a while when too few nodes answer: one that restarts is back in a second."""
        deadline = self._clock.monotonic() + self._patience
        while True:
            view = self._views.current
            try:
                return await read()
            except (Unavailable, StaleMap) as error:
                renewed = isinstance(error, StaleMap) and await self._views.renew(view)
                if not renewed:
                    if self._clock.monotonic() >= deadline:
                        raise
                    await self._clock.sleep(RETRY_SECONDS)

    async def found(
        self,
        name: ObjectName,
        version: str | None,
        *,
        want_cell: bool = False,
        want_range: range = range(0),
        may_be_closed: bool = False,
    ) -> Found:
        """The newest version, or the one given. Raises `NotFound`, for a deleted object too, and unless it
        `may_be_closed`, `KeyUnavailable` or `Unsupported` for one that this client cannot open."""
        if version is None:
            found = await self.patiently(
                lambda: self._reader.resolve(name, want_cell=want_cell, want_range=want_range)
            )
        else:
            stamp = Stamp.parse(version)
            found = await self.patiently(lambda: self._reader.find(name, stamp, want_cell=want_cell))
        if found is None or found.opened.tombstone:
            raise NotFound(
                f"{name.bucket}/{name.key} does not exist" + (f" as version {version}" if version else "")
            )
        if found.opened.closed is not None and not may_be_closed:
            raise found.opened.closed
        return found

    async def successor(
        self, found: Found, version: str | None, error: CoffreError, deadline: float
    ) -> Found:
        """After a version could not be read for `error`: the one that overwrote it, or itself to be tried again.

        A version that was replaced or deleted between finding and reading is no damage, and must not look like it.
        Raises `error` when there is no newer one, and trying again is no use or the deadline has passed.
        """
        newer = await self.found(found.opened.name, version, want_cell=True)
        if newer.opened.stamp == found.opened.stamp:
            if isinstance(error, IntegrityError) or self._clock.monotonic() >= deadline:
                raise error
            await self._clock.sleep(RETRY_SECONDS)
        return newer

    async def places(self, name: ObjectName, found: Found) -> Sequence[ShardPlace]:
        """Where each shard of a version lies, and its state."""
        view = self._views.current
        places = await self._reader.places(found)
        answers = await self._reader.holders(name, found.opened.stamp, places)
        nodes = {node.number: node for node in view.map.nodes}
        result = []
        for index, number in enumerate(places):
            held = answers.get(number)
            if number not in answers:
                state = "unreachable"
            elif held is None or not held.HasField("shard_index") or held.shard_index != index:
                state = "missing"
            else:
                state = "damaged" if held.damaged else "ok"
            entry = nodes[number]
            size_bytes = held.shard_bytes if held is not None else 0
            parity = index >= found.opened.manifest.k
            result.append(
                ShardPlace(index, parity, entry.node_id, entry.site, entry.operator, state, size_bytes)
            )
        return result
