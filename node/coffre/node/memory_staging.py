"""How the store in memory takes a large shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coffre.cluster.errors import IntegrityError, InvalidArgument, ResourceExhausted, Unavailable
from coffre.codec import crc32c
from coffre.node.limits import CELL_BYTES_MAX
from coffre.node.memory_rows import Shard
from coffre.node.store import StagedShard, StoredCell

if TYPE_CHECKING:
    from coffre.node.memory_store import MemoryStore

__all__ = ["MemoryStagedWriter"]


class MemoryStagedWriter:
    """`StagedWriter` in memory."""

    def __init__(self, store: MemoryStore, key: tuple[str, bytes, int], incarnation: int) -> None:
        self._store = store
        self._key = key
        self._incarnation = incarnation
        self._shard: Shard | None = Shard()

    async def write(self, cells: Sequence[StoredCell]) -> None:
        shard = self._open_shard()
        for cell in cells:
            if cell.segment != len(shard.cells):
                raise InvalidArgument(f"segment {cell.segment} does not follow; {len(shard.cells)} does")
            if len(cell.data) > CELL_BYTES_MAX:
                raise InvalidArgument(f"a cell has at most {CELL_BYTES_MAX} bytes")
            if crc32c(cell.data) != cell.crc:
                raise IntegrityError("the cell does not have its checksum: damaged on the way")
            if not self._store._has_room(shard.size_bytes + len(cell.data)):
                raise ResourceExhausted("the disk is full")
            shard.cells.append((cell.crc, bytearray(cell.data)))

    async def commit(self) -> StagedShard:
        shard = self._open_shard()
        self._shard = None
        store = self._store
        options = store._options
        shard.expires_ms = store._clock.unixtime_ms() + int(options.staging_expiry * 1000)
        replaced = store._staging.get(self._key)
        store._used_bytes += shard.size_bytes - (replaced.size_bytes if replaced else 0)
        store._staging[self._key] = shard
        store._sync()
        crcs = b"".join(crc.to_bytes(4, "little") for crc, _ in shard.cells)
        return StagedShard(len(shard.cells), shard.size_bytes, crc32c(crcs))

    async def discard(self) -> None:
        self._shard = None

    def _open_shard(self) -> Shard:
        self._store._check_open()
        if self._shard is None or self._incarnation != self._store._incarnation:
            raise Unavailable("this shard is not being staged any more")
        return self._shard
