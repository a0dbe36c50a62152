"""The two messages that carry cells, written and read by hand: a cell is copied once, not four times.

The bytes are those that protobuf writes for `WriteShardRequest` and `ReadShardReply` (coffre.proto); the tests hold
them equal. What does not look like them exactly is left to protobuf to read, or to refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import SEEK_END, BytesIO

from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import varint

__all__ = [
    "CellMessage",
    "ShardChunk",
    "WireCell",
    "decode_read",
    "decode_write",
    "encode_read",
    "encode_write",
]

_SEGMENT, _CRC, _DATA = 0x08, 0x15, 0x1A  # tags of Cell's fields
_HEADER_OF_WRITE, _CELL_OF_WRITE, _CELL_OF_READ = 0x0A, 0x12, 0x0A
_FIXED32 = struct.Struct("<I")


@dataclass(slots=True)
class WireCell:
    """One cell under way. `data` may be a view into the message that it came in."""

    segment: int = 0
    crc: int = 0
    data: bytes | memoryview = b""


@dataclass(slots=True)
class ShardChunk:
    """Cells of one shard, in order; the first chunk of a write says which shard."""

    cells: Sequence[WireCell] = field(default_factory=list)
    header: pb.ShardHeader | None = None
    encoded: bytes | None = None  # the `WriteShardRequest` that these cells are views of


def encode_write(chunk: ShardChunk) -> bytes:
    """A serialized `WriteShardRequest`."""
    if chunk.encoded is not None:
        return chunk.encoded
    parts: list[bytes | memoryview] = []
    if chunk.header is not None:
        header = chunk.header.SerializeToString()
        parts += (bytes((_HEADER_OF_WRITE,)), varint(len(header)), header)
    return _encode(parts, _CELL_OF_WRITE, chunk.cells)


def encode_read(chunk: ShardChunk) -> bytes:
    """A serialized `ReadShardReply`."""
    return _encode([], _CELL_OF_READ, chunk.cells)


def decode_write(raw: bytes) -> ShardChunk:
    """Read a `WriteShardRequest`. Raises protobuf's `DecodeError`."""
    cells = _decode(raw, _CELL_OF_WRITE)
    if cells is not None:
        return ShardChunk(cells)
    request = pb.WriteShardRequest.FromString(raw)
    header = request.header if request.HasField("header") else None
    return ShardChunk([WireCell(cell.segment, cell.crc, cell.data) for cell in request.cells], header)


def decode_read(raw: bytes) -> ShardChunk:
    """Read a `ReadShardReply`. Raises protobuf's `DecodeError`."""
    cells = _decode(raw, _CELL_OF_READ)
    if cells is None:
        reply = pb.ReadShardReply.FromString(raw)
        cells = [WireCell(cell.segment, cell.crc, cell.data) for cell in reply.cells]
    return ShardChunk(cells)


class CellMessage:
    """A `WriteShardRequest` in the making: cells are written where they will travel.

    `memory` may hold an older message. Whoever still has that one keeps it as it is: BytesIO copies when it is written
    to while its value is shared.
    """

    def __init__(self, memory: BytesIO) -> None:
        self._memory = memory
        self._end = 0
        self._crc_place = 0

    def reserve(self, segment: int, size_bytes: int) -> memoryview:
        """The place of the next cell's data, with anything in it; to be released before anything else is done here."""
        head = _cell_head(_CELL_OF_WRITE, segment, 1, size_bytes)  # a checksum other than 0 takes place
        start = self._end + len(head)
        end = start + size_bytes
        if self._memory.seek(0, SEEK_END) < end:
            self._memory.seek(end - 1)
            self._memory.write(b"\0")
        self._crc_place = start - len(varint(size_bytes)) - 1 - _FIXED32.size
        with self._memory.getbuffer() as whole:
            whole[self._end : start] = head
            self._end = end
            return whole[start:end]

    def set_crc(self, crc: int) -> None:
        """Say the checksum of the cell that was reserved last."""
        with self._memory.getbuffer() as whole:
            _FIXED32.pack_into(whole, self._crc_place, crc)

    def finish(self) -> ShardChunk:
        """The message; its memory may be used for another one from now on."""
        self._memory.truncate(self._end)
        encoded = self._memory.getvalue()
        chunk = decode_write(encoded)
        chunk.encoded = encoded
        return chunk


def _cell_head(tag: int, segment: int, crc: int, size_bytes: int) -> bytes:
    """What precedes a cell's data."""
    head = bytearray()
    if segment:
        head.append(_SEGMENT)
        head += varint(segment)
    if crc:
        head.append(_CRC)
        head += _FIXED32.pack(crc)
    if size_bytes:
        head.append(_DATA)
        head += varint(size_bytes)
    return bytes((tag,)) + varint(len(head) + size_bytes) + head


def _encode(parts: list[bytes | memoryview], tag: int, cells: Sequence[WireCell]) -> bytes:
    for cell in cells:
        parts += (_cell_head(tag, cell.segment, cell.crc, len(cell.data)), cell.data)
    return b"".join(parts)


def _decode(raw: bytes, tag: int) -> list[WireCell] | None:
    """The cells of a message that has nothing else, written as `_encode` writes; None for any other."""
    view = memoryview(raw)
    cells: list[WireCell] = []
    place, end = 0, len(raw)
    try:
        while place < end:
            if raw[place] != tag:
                return None
            size_bytes, place = _read_varint(raw, place + 1)
            cell_end = place + size_bytes
            cell = WireCell()
            if raw[place] == _SEGMENT:
                cell.segment, place = _read_varint(raw, place + 1)
            if raw[place] == _CRC:
                (cell.crc,) = _FIXED32.unpack_from(raw, place + 1)
                place += 5
            if raw[place] != _DATA:
                return None
            size_bytes, place = _read_varint(raw, place + 1)
            if place + size_bytes != cell_end or cell_end > end or cell.segment >> 32:
                return None
            cell.data = view[place:cell_end]
            cells.append(cell)
            place = cell_end
    except (IndexError, struct.error):
        return None
    return cells


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    """A number of at most 35 bits, and where it ends. Raises `IndexError` for what is not one."""
    number = shift = 0
    while shift < 35:
        byte = raw[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
    raise IndexError("no varint of a size")
