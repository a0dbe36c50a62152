"""Large shards, one file each: written once in order, read at random. docs/formats/node.md, "Large shards".

Every part carries a CRC32C; that of a cell's header is seeded with the shard's identity, so that a cell of
another shard is never taken for this one's. The cells' hashes hang on that of the shard, which the manifest names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.errors import IntegrityError, InvalidArgument
from coffre.codec import GROUP_CELLS, HASH_BYTES, ShardHash, blake3_128, crc32c
from coffre.node.disk.direct_io import DirectReader, DirectWriter
from coffre.node.disk.records import LargeShard
from coffre.node.disk.volumes import sync_directory
from coffre.node.store import CELL_BYTES_MAX, CHUNK_BYTES, StoredCell

__all__ = ["LargeShardReader", "LargeShardWriter", "large_path"]

_MAGIC, _END_MAGIC = b"coffrels", b"coffrele"
_FORMAT = 2
_HEADER = struct.Struct(">8sI16sBB63s3x")  # magic, format, data id, shard index, bytes of tenant, tenant
_HEADER_BYTES = _HEADER.size + 4
_CELL = struct.Struct(">III")  # segment, bytes, CRC32C of the data; then CRC32C of these
_CELL_BYTES = _CELL.size + 4
_TABLE = struct.Struct(">QII16s")  # offset, bytes, CRC32C and hash of the data
# magic, cells, CRC32C of table and groups, bytes of data, hash of the shard
_FOOTER = struct.Struct(">8sIIQ16s")
_FOOTER_BYTES = _FOOTER.size + 4
_TABLE_PIECE = GROUP_CELLS  # rows of the table that are read, checked and kept together
_TABLE_PIECES_MAX = 64  # of one shard in memory: 16,384 cells


def large_path(directory: Path, number: int) -> Path:
    """Where the large file of this number lies: docs/formats/node.md, "Large shards"."""
    return directory / f"{number & 0xFF:02x}" / f"{number:016x}"


def _seed(data_id: bytes, shard_index: int) -> int:
    return crc32c(data_id + bytes((shard_index,)))


def _sealed(body: bytes, seed: int = 0) -> bytes:
    return body + crc32c(body, seed).to_bytes(4, "big")


def _unseal(raw: bytes | memoryview, size_bytes: int, what: str, seed: int = 0) -> bytes | memoryview:
    body = raw[: size_bytes - 4]
    if len(raw) < size_bytes or crc32c(body, seed) != int.from_bytes(raw[size_bytes - 4 : size_bytes], "big"):
        raise IntegrityError(f"the {what} of a large shard does not verify")
    return body


class LargeShardWriter:
    """Appends cells to a new file. One call at a time; what blocks says so. Raises `OSError`."""

    def __init__(self, directory: Path, number: int, tenant: str, data_id: bytes, shard_index: int) -> None:
        self.path = large_path(directory, number)
        if not self.path.parent.exists():
            self.path.parent.mkdir(exist_ok=True)
            sync_directory(directory)
        self._file = DirectWriter(self.path)
        self._seed = _seed(data_id, shard_index)
        self._table = bytearray()
        self._hash = ShardHash()
        self.size_bytes = 0
        self.file_bytes = 0
        raw = tenant.encode()
        header = _HEADER.pack(_MAGIC, _FORMAT, data_id, shard_index, len(raw), raw)
        for _ in self._fill([_sealed(header)]):
            raise AssertionError("a header fills no buffer")

    def check(self, cells: Sequence[StoredCell]) -> None:
        """Raise `InvalidArgument` or `IntegrityError` for cells that cannot follow."""
        for segment, cell in enumerate(cells, self.cell_count):
            if cell.segment != segment:
                raise InvalidArgument(f"segment {cell.segment} does not follow; {segment} does")
            if len(cell.data) > CELL_BYTES_MAX:
                raise InvalidArgument(f"a cell has at most {CELL_BYTES_MAX} bytes")
            if crc32c(cell.data) != cell.crc:
                raise IntegrityError("the cell does not have its checksum: damaged on the way")

    def append(self, cells: Sequence[StoredCell]) -> Iterator[memoryview]:
        """Take cells that were checked. Yields buffers for `write`, as `DirectWriter.fill` does; run it to its end."""
        parts: list[bytes | memoryview] = []
        offset = self.file_bytes
        for cell in cells:
            parts.append(_sealed(_CELL.pack(cell.segment, len(cell.data), cell.crc), self._seed))
            parts.append(cell.data)
            cell_hash = blake3_128(cell.data)
            self._hash.add(cell_hash)
            self._table += _TABLE.pack(offset, len(cell.data), cell.crc, cell_hash)
            offset += _CELL_BYTES + len(cell.data)
            self.size_bytes += len(cell.data)
        return self._fill(parts)

    def write(self, filled: memoryview) -> None:
        """Let the disk have a buffer that `append` yielded. Blocks."""
        self._file.write(filled)

    def finish(self) -> None:
        """Write table and footer, and sync the file and its directory. Blocks.

        Raises `IntegrityError` when a buffer that `append` yielded was never written.
        """
        table = bytes(self._table) + self._hash.groups()
        footer = _FOOTER.pack(_END_MAGIC, self.cell_count, crc32c(table), self.size_bytes, self.shard_hash)
        for filled in self._fill([table, _sealed(footer)]):
            self._file.write(filled)
        self._file.finish()
        if self.written_bytes != self.file_bytes:
            raise IntegrityError("a large shard was not written whole")
        sync_directory(self.path.parent)

    @property
    def cell_count(self) -> int:
        """How many cells it has so far."""
        return self._hash.cell_count

    @property
    def shard_hash(self) -> bytes:
        """The hash of the shard as it is so far, 16 bytes."""
        return self._hash.digest()

    @property
    def written_bytes(self) -> int:
        """How much of `file_bytes` the file has already."""
        return self._file.written_bytes

    def _fill(self, parts: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
        self.file_bytes += sum(map(len, parts))
        return self._file.fill(parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """A row of the table: where a cell's header begins, and what follows it."""

    offset: int
    size_bytes: int
    crc: int
    hash: bytes


class LargeShardReader:
    """Reads verified cells of one open file. Methods block; any thread. Raises `OSError` and `IntegrityError`.

    Header, footer and the hashes of groups are verified once, rows of the table by their group when they are read. They
    stay in memory, a bounded number of them; each cell is held against its row and its checksum whenever it is read.
    """

    def __init__(self, directory: Path, tenant: str, shard_index: int, large: LargeShard) -> None:
        self._file = file = DirectReader(large_path(directory, large.file))
        self._shard = (tenant, shard_index, large)
        self._seed = _seed(large.data_id, shard_index)
        raw = _unseal(file.read(0, _HEADER_BYTES), _HEADER_BYTES, "header")
        magic, format_, data_id, index, count, owner = _HEADER.unpack(raw)
        if (magic, format_, data_id, index) != (_MAGIC, _FORMAT, large.data_id, shard_index):
            raise IntegrityError("a large shard's file is another shard's")
        if owner[:count].decode() != tenant:
            raise IntegrityError("a large shard's file is another shard's")
        end = file.size_bytes - _FOOTER_BYTES
        raw = _unseal(file.read(max(end, 0), _FOOTER_BYTES), _FOOTER_BYTES, "footer")
        magic, cells, _, size_bytes, shard_hash = _FOOTER.unpack(raw)
        if (magic, cells, size_bytes, shard_hash) != (
            _END_MAGIC,
            large.cell_count,
            large.size_bytes,
            large.shard_hash,
        ):
            raise IntegrityError("the footer of a large shard does not verify")
        self.cell_count: int = cells
        groups = -(-cells // _TABLE_PIECE)
        self._table_offset = end - cells * _TABLE.size - groups * HASH_BYTES
        self._groups = bytes(file.read(end - groups * HASH_BYTES, groups * HASH_BYTES))
        self._shard_hash = large.shard_hash
        if cells != 1 and blake3_128(self._groups) != large.shard_hash:
            raise IntegrityError("the table of a large shard does not verify")
        self._table: dict[int, bytes] = {}  # pieces of `_TABLE_PIECE` rows, by number

    def serves(self, tenant: str, shard_index: int, large: LargeShard) -> bool:
        """Whether this is that shard, and its file is still on the disk."""
        return self._shard == (tenant, shard_index, large) and self.linked

    @property
    def linked(self) -> bool:
        """Whether the file has a name: one that was freed lives on, unseen, until its last user lets go."""
        return self._file.linked

    def chunk(self, first: int, end: int) -> list[StoredCell]:
        """Cells from `first` on, before `end`, of about 1 MiB together and at least one."""
        try:
            return self._read(first, end)
        except IntegrityError:
            self._table.clear()  # what went wrong may be in memory: the next read asks the disk
            raise

    def _read(self, first: int, end: int) -> list[StoredCell]:
        places = self._places(first, end)
        start, last = places[0], places[-1]
        raw = self._file.read(start.offset, last.offset + _CELL_BYTES + last.size_bytes - start.offset)
        cells = []
        for segment, place in enumerate(places, first):
            begin = place.offset - start.offset
            cells.append(self._cell(segment, place, raw[begin : begin + _CELL_BYTES + place.size_bytes]))
        return cells

    def _places(self, first: int, end: int) -> list[_Place]:
        """The rows of the table for as many cells, which lie one behind the other, as make a chunk."""
        places: list[_Place] = []
        total = following = 0
        for row in self._rows(first, end):
            place = _Place(*row)
            if places and total + place.size_bytes > CHUNK_BYTES:
                break
            if (
                place.size_bytes > CELL_BYTES_MAX
                or place.offset > self._table_offset
                or (places and place.offset != following)
            ):
                raise IntegrityError("the table of a large shard does not verify")
            places.append(place)
            total += place.size_bytes
            following = place.offset + _CELL_BYTES + place.size_bytes
        return places

    def _rows(self, first: int, end: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Offset, bytes, CRC and hash of cells from `first` on; within one piece of the table, and at least one."""
        number, skipped = divmod(first, _TABLE_PIECE)
        count = min(end - first, _TABLE_PIECE - skipped)
        piece = self._table.get(number) or self._load_piece(number)
        return _TABLE.iter_unpack(piece[skipped * _TABLE.size : (skipped + count) * _TABLE.size])

    def _load_piece(self, number: int) -> bytes:
        first = number * _TABLE_PIECE
        wanted = min(_TABLE_PIECE, self.cell_count - first) * _TABLE.size
        piece = bytes(self._file.read(self._table_offset + first * _TABLE.size, wanted))
        hashes = b"".join(row[3] for row in _TABLE.iter_unpack(piece)) if len(piece) == wanted else b""
        group = self._groups[number * HASH_BYTES : (number + 1) * HASH_BYTES]
        if blake3_128(hashes) != group or (self.cell_count == 1 and hashes != self._shard_hash):
            raise IntegrityError("the table of a large shard does not verify")
        if len(self._table) >= _TABLE_PIECES_MAX:
            self._table.clear()
        self._table[number] = piece
        return piece

    def _cell(self, segment: int, place: _Place, raw: memoryview) -> StoredCell:
        header = _unseal(raw[:_CELL_BYTES], _CELL_BYTES, "cell header", self._seed)
        data = raw[_CELL_BYTES:]
        if _CELL.unpack(header) != (segment, place.size_bytes, place.crc) or crc32c(data) != place.crc:
            raise IntegrityError("a cell of a large shard does not verify")
        if blake3_128(data) != place.hash:
            raise IntegrityError("a cell of a large shard does not verify")
        return StoredCell(segment, place.crc, data)
