"""What the store in memory keeps of a version, a key and a partition."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c, hash_of_shard
from coffre.node.store import ABORTED, Accept, Entry, Outcome, StoredCell, StoredVersion, Verdict, is_buried

__all__ = [
    "Partition",
    "Record",
    "Row",
    "Shard",
    "is_damaged",
    "outcome",
    "record_of",
    "version_of",
]


class Shard:
    """The cells of one shard, with the checksums that they came with, and the hashes that they had then."""

    def __init__(self, first_segment: int = 0) -> None:
        self.first_segment = first_segment
        self.cells: list[tuple[int, bytearray]] = []
        self._hashes: list[bytes] = []
        self.expires_ms = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all cells."""
        return sum(len(data) for _, data in self.cells)

    @property
    def hash(self) -> bytes:
        """Of the shard as it came."""
        return hash_of_shard(self._hashes)

    def append(self, crc: int, data: bytes | memoryview) -> None:
        """Take the next cell."""
        self.cells.append((crc, bytearray(data)))
        self._hashes.append(blake3_128(data))

    def cell(self, place: int) -> StoredCell | None:
        """The cell at `place`, or None when it does not verify."""
        crc, data = self.cells[place]
        sound = crc32c(data) == crc and blake3_128(data) == self._hashes[place]
        return StoredCell(self.first_segment + place, crc, bytes(data)) if sound else None


@dataclass(slots=True, eq=False)
class Record:
    """An accepted version's manifest, and its shard if one came."""

    accept: Accept
    shard: Shard | None
    manifest_rotten: bool = False


@dataclass(slots=True)
class Row:
    """The versions of one key."""

    partition: int
    entries: tuple[Entry, ...] = ()

    def put(self, name: ObjectName, entries: tuple[Entry, ...], listed: list[bytes]) -> None:
        """Take other entries. `listed`: the sorted keys that a list walks over, of the rows that are not buried."""
        key, shows = name.key.encode(), bool(entries) and not is_buried(entries)
        if shows != (bool(self.entries) and not is_buried(self.entries)):
            if shows:
                insort(listed, key)
            else:
                del listed[bisect_left(listed, key)]
        self.entries = entries


@dataclass(slots=True)
class Partition:
    """What a partition holds, and its digest."""

    digest: int = 0
    versions: int = 0
    names: set[ObjectName] = field(default_factory=set)


def record_of(entry: Entry) -> Record:
    """The record of an entry that is not aborted."""
    assert isinstance(entry.record, Record)
    return entry.record


def is_damaged(entry: Entry) -> bool:
    """Whether anything of an entry does not verify."""
    if entry.state == ABORTED:
        return False
    record = record_of(entry)
    shard = record.shard
    return record.manifest_rotten or (
        shard is not None and any(shard.cell(place) is None for place in range(len(shard.cells)))
    )


def version_of(entry: Entry, *, want_cell: bool) -> StoredVersion:
    """A version as readers get it; `damaged` when what is wanted of it does not verify."""
    if entry.state == ABORTED:
        return StoredVersion(entry.state, entry.stamp, was_locked=entry.was_locked)
    record = record_of(entry)
    cell: StoredCell | None = None
    damaged = record.manifest_rotten
    if want_cell and not damaged and record.shard is not None and not record.accept.staged:
        cell = record.shard.cell(0)
        damaged = cell is None
    return StoredVersion(
        entry.state,
        entry.stamp,
        entry.tombstone,
        b"" if record.manifest_rotten else record.accept.manifest,
        b"" if record.manifest_rotten else record.accept.mac,
        () if record.manifest_rotten else entry.placement or record.accept.placement,
        entry.shard_index,
        entry.shard_bytes,
        cell,
        damaged,
        entry.condemned,
    )


def outcome(verdict: Verdict, *, replaces: bool = False) -> Outcome:
    """What a caller learns of what a mutation did."""
    return Outcome(verdict.state, verdict.error, verdict.newest_stamp, verdict.has_shard, replaces)
