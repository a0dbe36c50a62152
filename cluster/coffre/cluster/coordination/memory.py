"""A coordination store in memory: deterministic on its clock and its entropy, for tests and simulation."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from coffre.cluster.clock import Clock
from coffre.cluster.coordination._engine import Engine, LeaseRow, Row, Write
from coffre.cluster.coordination.seam import (
    RANGE_BYTES_MAX,
    RANGE_LIMIT_MAX,
    Changes,
    Commit,
    Compare,
    Entry,
    Lease,
    Page,
    Put,
)
from coffre.cluster.errors import Unavailable

__all__ = ["MemoryCoordination", "MemoryRows"]


class MemoryRows:
    """Rows in a dict, and their keys in order. The first change has the revision after `first_revision`."""

    def __init__(self, first_revision: int = 0) -> None:
        self.revision = first_revision
        self._rows: dict[str, Row] = {}
        self._keys: list[str] = []
        self._leases: dict[int, LeaseRow] = {}

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def scan(self, prefix: str, after: str, limit: int) -> tuple[list[Row], bool]:
        place = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        found: list[Row] = []
        size_bytes = 0
        while place < len(self._keys) and self._keys[place].startswith(prefix):
            row = self._rows[self._keys[place]]
            size_bytes += len(row.entry.value)
            if len(found) == limit or (found and size_bytes > RANGE_BYTES_MAX):
                return found, True
            found.append(row)
            place += 1
        return found, False

    def leases(self) -> list[LeaseRow]:
        """All leases, in no order."""
        return list(self._leases.values())

    def leased(self) -> list[tuple[str, int]]:
        return [(key, row.lease) for key, row in self._rows.items() if row.lease]

    async def write(self, write: Write) -> None:
        for number, lease in write.leases.items():
            if lease is None:
                self._leases.pop(number, None)
            else:
                self._leases[number] = lease
        for key, row in write.rows.items():
            if row is None:
                if self._rows.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._rows:
                    insort(self._keys, key)
                self._rows[key] = row
        self.revision = write.revision


class MemoryCoordination:
    """`Coordination` in memory. While `down`, every call fails as if the store could not be reached, and open
    watches end; leases run on, as they would behind a broken network."""

    def __init__(self, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._engine = Engine(MemoryRows(), clock, entropy)
        self._down = False

    @property
    def down(self) -> bool:
        """Whether nobody can reach it: then every call raises `Unavailable`."""
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        if down:
            self._engine.interrupt_watches()

    def _reach(self) -> Engine:
        if self._down:
            raise Unavailable("coordination cannot be reached")
        return self._engine

    async def get(self, key: str) -> Entry | None:
        return await self._reach().get(key)

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        return await self._reach().range(prefix, limit=limit, after=after)

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        return await self._reach().commit(compares, puts, deletes)

    async def grant(self, seconds: int) -> Lease:
        return await self._reach().grant(seconds)

    async def keep_alive(self, lease: int) -> None:
        await self._reach().keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._reach().revoke(lease)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        async with aclosing(self._reach().watch(prefix, revision)) as watching:
            async for changes in watching:
                self._reach()
                yield changes

    async def close(self) -> None:
        await self._engine.close()
