"""A record of a volume, byte for byte: docs/formats/node.md, "Records". All numbers are big-endian.

A record says whose it is, so the index can be rebuilt from the volumes. It begins with a CRC32C over
everything but the cell; the cell has its own, which came with it from the client.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from coffre.cluster.errors import IntegrityError
from coffre.codec import HASH_BYTES, blake3_128, crc32c
from coffre.node.store import Accept, placement_bytes, placement_of

__all__ = [
    "HEADER_BYTES",
    "LargeShard",
    "Record",
    "decode_record",
    "encode_record",
    "head_bytes",
    "is_sound_cell",
    "record_bytes_at",
]

_MAGIC = b"Cr\2"  # the third byte is the format
_PREFIX = struct.Struct(">3sI")  # magic and format, CRC32C of all that follows up to the cell
# flags, shard index, bytes of tenant, bucket and mac, nodes of the placement, bytes of key and manifest,
# partition, bytes of the cell, CRC32C of the cell
_BODY = struct.Struct(">BBBBBBHHHII")
_LARGE = struct.Struct(">Q16sIQ16s")
HEADER_BYTES = _PREFIX.size + _BODY.size
_TOMBSTONE, _SHARD, _IN_FILE = 1, 2, 4


@dataclass(frozen=True, slots=True)
class LargeShard:
    """The part of a record that names the large file which holds its shard."""

    file: int
    data_id: bytes
    cell_count: int
    size_bytes: int
    shard_hash: bytes


class Record(NamedTuple):
    """A decoded record whose CRC verified; its cell is not verified yet."""

    tombstone: bool
    shard_index: int | None
    context: bytes  # tenant, bucket and key as in `ObjectName.context`
    partition: int
    manifest: bytes
    mac: bytes
    placement: tuple[int, ...]
    cell_offset: int
    cell_bytes: int
    cell_crc: int
    cell_hash: bytes  # of the cell that follows; empty where none does
    large: LargeShard | None


def encode_record(accept: Accept, context: bytes, shard_index: int | None, large: LargeShard | None) -> bytes:
    """`shard_index` is None where the shard did not come; `context` is that of the name."""
    flags = _TOMBSTONE if accept.tombstone else 0
    cell = tail = b""
    if large is not None:
        flags |= _SHARD | _IN_FILE
        tail = _LARGE.pack(large.file, large.data_id, large.cell_count, large.size_bytes, large.shard_hash)
    elif shard_index is not None:
        flags |= _SHARD
        cell, tail = accept.cell, accept.shard_hash
    name, manifest, mac = accept.name, accept.manifest, accept.mac
    tenant, bucket = len(name.tenant), len(name.bucket)  # ASCII
    head = _BODY.pack(
        flags,
        shard_index or 0,
        tenant,
        bucket,
        len(mac),
        len(accept.placement),
        len(context) - tenant - bucket - 2,
        len(manifest),
        accept.partition,
        len(cell),
        accept.cell_crc if cell else 0,
    )
    body = b"".join((head, context, manifest, mac, placement_bytes(accept.placement), tail))
    return b"".join((_PREFIX.pack(_MAGIC, crc32c(body)), body, cell))


def _body_bytes(fields: tuple[int, ...]) -> int:
    flags, _, tenant, bucket, mac, count, key, manifest = fields[:8]
    extra = _LARGE.size if flags & _IN_FILE else HASH_BYTES if flags & _SHARD else 0
    return _BODY.size + tenant + bucket + key + 2 + manifest + mac + 2 * count + extra


def record_bytes_at(data: bytes, offset: int) -> int:
    """How long the record at `offset` says it is: not verified. Raises `IntegrityError` when there is
    none."""
    if len(data) - offset < HEADER_BYTES or data[offset : offset + 3] != _MAGIC:
        raise IntegrityError("a record of this node does not begin like one")
    fields = _BODY.unpack_from(data, offset + _PREFIX.size)
    return _PREFIX.size + _body_bytes(fields) + int(fields[9])


def head_bytes(data: bytes) -> int:
    """How long the part before the cell says it is, of the record that `data` begins with: not verified; 0
    when there is no record."""
    if len(data) < HEADER_BYTES or data[:3] != _MAGIC:
        return 0
    return _PREFIX.size + _body_bytes(_BODY.unpack_from(data, _PREFIX.size))


def decode_record(data: bytes, size_bytes: int) -> Record:
    """Read a record of `size_bytes`; `data` may end before its cell does. Raises `IntegrityError` unless it
    verifies (the cell aside)."""
    if len(data) < HEADER_BYTES or data[:3] != _MAGIC:
        raise IntegrityError("a record of this node does not begin like one")
    fields = _BODY.unpack_from(data, 7)
    flags, index, tenant, bucket, mac, count, key, manifest, partition, cell_bytes, cell_crc = fields
    name_end = HEADER_BYTES + tenant + bucket + key + 2
    manifest_end = name_end + manifest
    mac_end = manifest_end + mac
    placement_end = end = mac_end + 2 * count
    if flags & _IN_FILE:
        end += _LARGE.size
    elif flags & _SHARD:
        end += HASH_BYTES
    # Data that is cut short fails its checksum.
    if end + cell_bytes != size_bytes or crc32c(data[7:end]) != int.from_bytes(data[3:7], "big"):
        raise IntegrityError("a record of this node does not verify")
    large = None
    if flags & _IN_FILE:
        large = LargeShard(*_LARGE.unpack_from(data, placement_end))
    return tuple.__new__(  # without the class's own `__new__`: every read and every row of a list comes here
        Record,
        (
            flags & _TOMBSTONE != 0,
            index if flags & _SHARD else None,
            data[HEADER_BYTES:name_end],
            partition,
            data[name_end:manifest_end],
            data[manifest_end:mac_end],
            placement_of(data[mac_end:placement_end]),
            end,
            cell_bytes,
            cell_crc,
            data[placement_end:end] if large is None else b"",
            large,
        ),
    )


def is_sound_cell(record: Record, data: bytes | memoryview) -> bool:
    """Whether `data` is the cell of a record, or there is none: its length, checksum and hash."""
    if len(data) != record.cell_bytes or crc32c(data) != record.cell_crc:
        return False
    return not record.cell_hash or blake3_128(data) == record.cell_hash
