"""How the store in memory takes a large shard, and where it stays until a version takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from coffre.cluster.clock import Clock
from coffre.cluster.errors import IntegrityError, InvalidArgument, ResourceExhausted, Unavailable
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX
from coffre.codec import crc32c
from coffre.node.memory.rows import Record, Shard
from coffre.node.store import CELL_BYTES_MAX, RETRY_SECONDS, StagedShard, StoredCell

__all__ = ["MemoryStagedWriter", "MemoryStaging", "ShardId"]

ShardId = tuple[str, bytes, int]  # tenant, data id, shard index


class MemoryStaging:
    """Shards that no version has taken yet. Whoever puts and takes them counts their bytes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shards: dict[ShardId, Shard] = {}

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards.values())

    def get(self, key: ShardId) -> Shard | None:
        return self._shards.get(key)

    def put(self, key: ShardId, shard: Shard, seconds: float) -> None:
        """Keep a shard for so long, in the place of the one that was there."""
        shard.expires_ms = self._clock.unixtime_ms() + int(seconds * 1000)
        self._shards[key] = shard

    def put_back(self, record: Record) -> None:
        """Keep the shard of a version that went, for its writer's next stamp."""
        accept = record.accept
        assert record.shard is not None
        assert accept.shard_index is not None
        self.put((accept.name.tenant, accept.data_id, accept.shard_index), record.shard, RETRY_SECONDS)

    def take(self, key: ShardId) -> Shard | None:
        """Take a staged shard out, for the version that adopts it; None when there is none."""
        return self._shards.pop(key, None)

    def expire(self, seconds: float) -> int:
        """Let go of what is too old, or was staged in the future, by a clock that was wrong; its bytes. `seconds`: for
        how long anything is kept."""
        now_ms = self._clock.unixtime_ms()
        last_ms = now_ms + int(max(seconds, RETRY_SECONDS) * 1000) + STAMP_AHEAD_MS_MAX
        expired = [key for key, shard in self._shards.items() if not now_ms < shard.expires_ms <= last_ms]
        return sum(self._shards.pop(key).size_bytes for key in expired)


class MemoryStagedWriter:
    """`StagedWriter` in memory.

    `check`: raises `Unavailable` once the store is not the one any more that began this. `keep`: stages the shard.
    """

    def __init__(
        self, check: Callable[[], None], has_room: Callable[[int], bool], keep: Callable[[Shard], None]
    ) -> None:
        self._check = check
        self._has_room = has_room
        self._keep = keep
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
            if not self._has_room(shard.size_bytes + len(cell.data)):
                raise ResourceExhausted("the disk is full")
            shard.append(cell.crc, cell.data)

    async def commit(self) -> StagedShard:
        shard = self._open_shard()
        self._shard = None
        self._keep(shard)
        return StagedShard(len(shard.cells), shard.size_bytes, shard.hash)

    async def discard(self) -> None:
        self._shard = None

    def _open_shard(self) -> Shard:
        self._check()
        if self._shard is None:
            raise Unavailable("this shard is not being staged any more")
        return self._shard
