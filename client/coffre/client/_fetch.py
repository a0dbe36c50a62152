"""Objects, whole or in pieces: of the version that stands when they are read, also when it is overwritten meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from coffre.client._ground import Ground
from coffre.client.reading import Found, Lookup, RangeReader, short_range
from coffre.cluster.errors import IntegrityError, Unavailable
from coffre.cluster.names import ObjectName

__all__ = ["Fetcher"]


class Fetcher:
    """`large`: how many objects of several segments are in memory at once."""

    def __init__(self, ground: Ground, lookup: Lookup, ranges: RangeReader, large: asyncio.Semaphore) -> None:
        self._clock = ground.clock
        self._patience = ground.options.patience
        self._lookup = lookup
        self._ranges = ranges
        self._large = large

    async def whole(self, name: ObjectName, version: str | None, start: int, length: int | None) -> bytes:
        """An object, or a range of it. Raises `NotFound`, `IntegrityError`, `Unavailable`."""
        deadline = self._clock.monotonic() + self._patience
        wanted = short_range(start, length)
        found = await self._lookup.found(name, version, want_cell=True, want_range=wanted)
        while True:
            try:
                if found.opened.segments == 1:
                    return await self._joined(found, start, length)
                async with self._large:
                    return await self._joined(found, start, length)
            except (IntegrityError, Unavailable) as error:
                found = await self._lookup.successor(found, version, error, deadline)

    async def _joined(self, found: Found, start: int, length: int | None) -> bytes:
        pieces = [piece async for piece in self._ranges.pieces(found, start, length)]
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def stream(
        self, name: ObjectName, version: str | None, start: int, length: int | None
    ) -> AsyncGenerator[bytes | memoryview]:
        """The same in pieces of about a segment. Raises `Unavailable` when it is overwritten once it has begun."""
        deadline = self._clock.monotonic() + self._patience
        found = await self._lookup.found(name, version, want_cell=True)
        begun = False
        while True:
            try:
                async with aclosing(self._ranges.pieces(found, start, length)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (IntegrityError, Unavailable) as error:
                until = 0.0 if begun else deadline
                found = await self._lookup.successor(found, version, error, until)
                if begun:
                    raise Unavailable("the object was overwritten while it was read; read it again") from None
