"""The rows of the index, byte for byte: docs/formats/node.md, "Index". All numbers are big-endian.

Every row that answers a read carries a CRC32C over its key and itself, so a flipped bit is noticed and never
believed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName
from coffre.codec import HASH_BYTES, crc32c
from coffre.node.store import (
    ABORTED,
    ACCEPTED,
    LOCKED,
    SETTLED,
    STAMP_BYTES,
    Entry,
    QueueRepair,
    State,
    digest_of,
)

__all__ = [
    "COUNTERS",
    "DIGEST",
    "REST_BYTES_MAX",
    "VOLUME",
    "Counters",
    "LargeFile",
    "LargeState",
    "Location",
    "Row",
    "decode_directory",
    "decode_large",
    "decode_mark",
    "decode_repair",
    "decode_row",
    "directory_code",
    "encode_directory",
    "encode_first",
    "encode_large",
    "encode_mark",
    "encode_repair",
    "encode_row",
    "mark_key",
    "note_key",
    "repair_key",
    "repair_prefix",
    "seal",
    "staging_key",
    "unseal",
]

REST_BYTES_MAX = 400  # a longer key goes on in a directory of its own
_ROW_FORMAT = 1
_NO_SHARD = 255
_TOMBSTONE, _PLACED, _LARGE, _CONDITIONAL, _WAS_LOCKED = 0x08, 0x10, 0x20, 0x40, 0x80
_CONDEMNED = 5  # in place of the state of a settled tombstone
_HEAD = struct.Struct(">BH")  # format, partition
_ENTRY = struct.Struct(">16sBBIII")  # stamp, flags and state, shard index, volume, offset, record bytes
_SINGLE = struct.Struct(">BH16sBBIII")  # a row's head and its only entry, which most rows are
_FILE = struct.Struct(">Q16s")  # large file, data id
_CRC = struct.Struct(">I")
_new = tuple.__new__
_STATES = (None, ACCEPTED, LOCKED, SETTLED, ABORTED, SETTLED, None, None)

DIGEST = struct.Struct(">16sQ")  # XOR of digests, versions
VOLUME = struct.Struct(">QQ")  # committed length, bytes of live records


class Location(NamedTuple):
    """Where a record lies; `file` is the number of its large shard's file, 0 when the shard is in the
    record."""

    volume: int
    offset: int
    size_bytes: int
    file: int = 0
    data_id: bytes = b""


class Row(NamedTuple):
    """What the index holds of one key."""

    partition: int
    entries: tuple[Entry, ...]


def seal(key: bytes, body: bytes) -> bytes:
    """A row's value: the body, and a CRC32C over key and body."""
    return body + _CRC.pack(crc32c(body, crc32c(key)))


def unseal(key: bytes, value: bytes) -> bytes:
    """The body of a row's value. Raises `IntegrityError` when it is not the one that was written under
    `key`."""
    body, crc = value[:-4], value[-4:]
    if _CRC.pack(crc32c(body, crc32c(key))) != crc:
        raise IntegrityError("a row of this node's index does not verify")
    return body


# ------------------------------------------------------------------ objects


def encode_first(
    key: bytes,
    partition: int,
    stamp: bytes,
    state: State,
    tombstone: bool,
    shard_index: int | None,
    place: tuple[int, int, int],
) -> bytes:
    """The row of a key's only version, whose record lies at `place`: volume, offset, bytes."""
    flags = state | _TOMBSTONE if tombstone else state
    index = _NO_SHARD if shard_index is None else shard_index
    body = _SINGLE.pack(_ROW_FORMAT, partition, stamp, flags, index, *place)
    return body + crc32c(body, crc32c(key)).to_bytes(4, "big")


def encode_row(key: bytes, partition: int, entries: tuple[Entry, ...]) -> bytes:
    """A row of the table `objects`: docs/formats/node.md, "Index"."""
    if len(entries) == 1:
        stamp, state, tombstone, index, _, record, placed, conditional, condemned, was_locked = entries[0]
        plain = not (placed or conditional or condemned or was_locked)
        if plain and isinstance(record, Location) and not record.file:
            return encode_first(key, partition, stamp, state, tombstone, index, record[:3])
    parts = [_HEAD.pack(_ROW_FORMAT, partition)]
    for entry in entries:
        flags: int = _CONDEMNED if entry.condemned else entry.state
        if entry.was_locked:
            flags |= _WAS_LOCKED
        location = entry.record
        index = entry.shard_index
        if location is None:
            parts.append(_ENTRY.pack(entry.stamp, flags, _NO_SHARD, 0, 0, 0))
            continue
        assert isinstance(location, Location)
        volume, offset, size_bytes, file, data_id = location
        if entry.tombstone:
            flags |= _TOMBSTONE
        if entry.placement:
            flags |= _PLACED
        if file:
            flags |= _LARGE
        if entry.conditional:
            flags |= _CONDITIONAL
        shard_index = _NO_SHARD if index is None else index
        parts.append(_ENTRY.pack(entry.stamp, flags, shard_index, volume, offset, size_bytes))
        if file:
            parts.append(_FILE.pack(file, data_id))
        if entry.placement:
            count = len(entry.placement)
            parts.append(struct.pack(f">B{count}H", count, *entry.placement))
    return seal(key, b"".join(parts))


def decode_row(key: bytes, value: bytes) -> Row:
    """Raise `IntegrityError` when the row is not the one that was written under `key`."""
    end = len(value) - 4
    if end < 3 or int.from_bytes(value[end:], "big") != crc32c(value[:end], crc32c(key)):
        raise IntegrityError("a row of this node's index does not verify")
    if value[0] != _ROW_FORMAT:
        raise IntegrityError(f"a row of this node's index has the unknown format {value[0]}")
    if end == _SINGLE.size and value[19] & 7 != ABORTED:
        return _decode_single(value)
    _, partition = _HEAD.unpack_from(value)
    place = 3
    entries: list[Entry] = []
    while place < end:
        stamp, flags, index, volume, offset, size_bytes = _ENTRY.unpack_from(value, place)
        place += 30
        state = _STATES[flags & 7]
        assert state is not None
        if state is ABORTED:
            entries.append(Entry(stamp, state, was_locked=flags & _WAS_LOCKED != 0))
            continue
        file, data_id = 0, b""
        if flags & _LARGE:
            file, data_id = _FILE.unpack_from(value, place)
            place += 24
        placement: tuple[int, ...] = ()
        if flags & _PLACED:
            count = value[place]
            placement = struct.unpack_from(f">{count}H", value, place + 1)
            place += 1 + 2 * count
        entries.append(
            Entry(
                stamp,
                state,
                flags & _TOMBSTONE != 0,
                None if index == _NO_SHARD else index,
                0,
                Location(volume, offset, size_bytes, file, data_id),
                placement,
                flags & _CONDITIONAL != 0,
                flags & 7 == _CONDEMNED,
                flags & _WAS_LOCKED != 0,
            )
        )
    return Row(partition, tuple(entries))


def _decode_single(value: bytes) -> Row:
    """Most rows have one entry, and most reads and lists are of them: hence tuples made without their class's
    `__new__`, which costs as much as all the rest."""
    _, partition, stamp, flags, index, volume, offset, size_bytes = _SINGLE.unpack_from(value)
    state = _STATES[flags & 7]
    assert state is not None
    shard_index = None if index == _NO_SHARD else index
    record = _new(Location, (volume, offset, size_bytes, 0, b""))
    tombstone, conditional = flags & _TOMBSTONE != 0, flags & _CONDITIONAL != 0
    condemned, was_locked = flags & 7 == _CONDEMNED, flags & _WAS_LOCKED != 0
    rest = (tombstone, shard_index, 0, record, (), conditional, condemned, was_locked)
    entry = _new(Entry, (stamp, state, *rest))
    return _new(Row, (partition, (entry,)))


# ------------------------------------------------------------------ directories


def directory_code(number: int) -> bytes:
    """A directory's number as a key begins with it: one byte for the length, then the bytes. Keeps no prefix
    of another."""
    size = (number.bit_length() + 7) // 8
    return bytes((size,)) + number.to_bytes(size, "big")


def encode_directory(key: bytes, number: int) -> bytes:
    """A row of the table of directories: the number that stands for a (tenant, bucket)."""
    return seal(key, number.to_bytes(8, "big"))


def decode_directory(key: bytes, value: bytes) -> int:
    """The number of a directory. Raises `IntegrityError`: a wrong one would show another bucket."""
    return int.from_bytes(unseal(key, value), "big")


# ------------------------------------------------------------------ large files, staging


class LargeState:
    """What a large file is at; the numbers are those of the row."""

    WRITING = 0  # its writer is at work; after a restart it is garbage
    STAGED = 1
    ADOPTED = 2
    UNLINKING = 3  # freed; the file may be gone already


@dataclass(frozen=True, slots=True)
class LargeFile:
    """The row of one large file. `owner` is its key in the staging table."""

    state: int
    expires_ms: int = 0
    cell_count: int = 0
    size_bytes: int = 0
    file_bytes: int = 0
    shard_hash: bytes = bytes(HASH_BYTES)
    owner: bytes = b""


_LARGE_ROW = struct.Struct(">BQIQQ16s")


def encode_large(key: bytes, file: LargeFile) -> bytes:
    """A row of the table of large files."""
    head = _LARGE_ROW.pack(
        file.state, file.expires_ms, file.cell_count, file.size_bytes, file.file_bytes, file.shard_hash
    )
    return seal(key, head + file.owner)


def decode_large(key: bytes, value: bytes) -> LargeFile:
    """The reverse of `encode_large`. Raises `IntegrityError` when it is damaged."""
    body = unseal(key, value)
    state, expires_ms, cell_count, size_bytes, file_bytes, shard_hash = _LARGE_ROW.unpack_from(body)
    owner = body[_LARGE_ROW.size :]
    return LargeFile(state, expires_ms, cell_count, size_bytes, file_bytes, shard_hash, owner)


def staging_key(tenant: str, data_id: bytes, shard_index: int) -> bytes:
    """The key under which a staged shard waits: tenant, data id, index."""
    return b"%s\0%s%c" % (tenant.encode(), data_id, shard_index)


# ------------------------------------------------------------------ repairs


_REPAIR = struct.Struct(">BHB16sBB")  # found here, partition, shard index, stamp, tenant and bucket bytes


def repair_prefix(context: bytes, stamp: bytes) -> bytes:
    """What the keys of a version's repair rows begin with; one byte of shard index follows."""
    return digest_of(context, stamp).to_bytes(16, "big")


def repair_key(context: bytes, stamp: bytes, shard_index: int | None) -> bytes:
    """The key of one report in the queue of repairs."""
    return repair_prefix(context, stamp) + bytes((_NO_SHARD if shard_index is None else shard_index,))


def encode_repair(key: bytes, repair: QueueRepair, *, found_here: bool) -> bytes:
    """A row of the queue of repairs; `found_here`: this node found the damage in its own shard."""
    name = repair.name
    tenant, bucket = name.tenant.encode(), name.bucket.encode()
    index = _NO_SHARD if repair.shard_index is None else repair.shard_index
    head = _REPAIR.pack(found_here, repair.partition, index, repair.stamp, len(tenant), len(bucket))
    return seal(key, head + tenant + bucket + name.key.encode())


def decode_repair(key: bytes, value: bytes) -> tuple[QueueRepair, bool]:
    """The repair, and whether this node found the damage in its own shard."""
    value = unseal(key, value)
    found_here, partition, index, stamp, tenant, bucket = _REPAIR.unpack_from(value)
    place = _REPAIR.size
    name = ObjectName(
        value[place : place + tenant].decode(),
        value[place + tenant : place + tenant + bucket].decode(),
        value[place + tenant + bucket :].decode(),
    )
    assert len(stamp) == STAMP_BYTES
    return QueueRepair(name, partition, stamp, None if index == _NO_SHARD else index), bool(found_here)


# ------------------------------------------------------------------ writers


def mark_key(tenant: str, writer: bytes) -> bytes:
    """The key of a writer's mark; `writer` is the last 8 bytes of its stamps."""
    return b"%s\0%s" % (tenant.encode(), writer)


def encode_mark(key: bytes, stamp: bytes) -> bytes:
    """A row of the table of marks."""
    return seal(key, stamp)


def decode_mark(key: bytes, value: bytes) -> bytes:
    """The stamp up to which all of a writer's versions are established. Raises `IntegrityError`: a wrong one
    would settle what nobody acknowledged."""
    return unseal(key, value)


# ------------------------------------------------------------------ notes


def note_key(title: str) -> bytes:
    """The key of a note in the meta table."""
    return b"note " + title.encode()


# ------------------------------------------------------------------ counters


COUNTERS = struct.Struct(">QQQQQ")


@dataclass(slots=True)
class Counters:
    """Numbers given out, and totals. One row of the meta table."""

    directories: int = 0  # the last number given
    volumes: int = 0
    files: int = 0
    objects: int = 0
    shards: int = 0

    def encode(self) -> bytes:
        """The bytes of the row `counters`."""
        return COUNTERS.pack(self.directories, self.volumes, self.files, self.objects, self.shards)

    @classmethod
    def decode(cls, value: bytes) -> Counters:
        """The reverse of `encode`; its checksum was verified before."""
        return cls(*COUNTERS.unpack(value))
