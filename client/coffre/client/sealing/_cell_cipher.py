"""Data cells that are sealed each on its own (docs/formats/segment.md, sealing 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from coffre.client.sealing._compression import RAW, Shrinker
from coffre.client.sealing._memory import SegmentMemory
from coffre.client.sealing._sealing import FRAME, TAG_BYTES, OpenManifest, SegmentCipher, unframe
from coffre.cluster.errors import IntegrityError
from coffre.cluster.transport import part_bytes
from coffre.proto import coffre_pb2 as pb
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["CellCipher", "Parts", "Way", "cipher_of"]

_Buffer = bytes | bytearray | memoryview


class Way(IntEnum):
    """What the parts of a segment are cut from; the first byte of their nonces."""

    FRAMED = 1  # a frame with a compressed payload, smaller than the plaintext
    RAW = 2  # the plaintext itself


@dataclass(frozen=True, slots=True)
class Parts:
    """A segment cut into k equal parts, ready to be sealed."""

    way: Way
    parts: tuple[_Buffer, ...]

    @property
    def cell_bytes(self) -> int:
        """Bytes of each cell, with its tag."""
        return len(self.parts[0]) + TAG_BYTES


def cipher_of(opened: OpenManifest) -> SegmentCipher | CellCipher:
    """What opens the segments of a version."""
    manifest = opened.manifest
    kind = CellCipher if manifest.sealing == pb.SEALING_CELL else SegmentCipher
    return kind(opened.data_key, manifest.data_id, manifest.k)


class CellCipher:
    """Turns plaintext segments into k data cells, and back.

    One data key encrypts one write, so way, segment and cell make the nonce. Threads may share a cipher.
    """

    def __init__(self, data_key: bytes, data_id: bytes, k: int, *, compress_level: int | None = 3) -> None:
        self._cipher = AESGCM(data_key)
        self._data_id = data_id
        self._k = k
        self._shrinker = Shrinker(compress_level)
        self._memory = SegmentMemory()

    @property
    def compresses_next(self) -> bool:
        """Whether the next segment costs an attempt to compress it, which takes longer than all the rest."""
        return self._shrinker.tries_next

    def cut(self, plain: _Buffer) -> Parts:
        """Compress a segment when that makes its cells smaller, and cut it."""
        raw_bytes = part_bytes(len(plain), self._k)
        compression, payload = self._shrinker.shrink(plain)
        if compression != RAW and part_bytes(FRAME.size + len(payload), self._k) < raw_bytes:
            frame = b"".join((FRAME.pack(compression, len(payload)), payload))
            return Parts(Way.FRAMED, self._cut(frame))
        return Parts(Way.RAW, self._cut(plain))

    def _cut(self, whole: _Buffer) -> tuple[_Buffer, ...]:
        """Views of `whole`; those behind its end are filled up with zeros."""
        size_bytes = part_bytes(len(whole), self._k)
        view = memoryview(whole)
        parts = [view[place * size_bytes : (place + 1) * size_bytes] for place in range(self._k)]
        return tuple(
            part if len(part) == size_bytes else bytes(part).ljust(size_bytes, b"\0") for part in parts
        )

    def seal_into(self, segment: int, parts: Parts, cells: Sequence[memoryview]) -> None:
        """Encrypt part by part into memory of `cell_bytes` each. No nonce may serve twice: once for a segment."""
        for index, (part, cell) in enumerate(zip(parts.parts, cells, strict=True)):
            self._cipher.encrypt_into(_nonce(parts.way, segment, index), part, self._data_id, cell)

    def open(self, segment: int, cells: Sequence[_Buffer], plain_bytes: int) -> bytes | memoryview:
        """Return the `plain_bytes` bytes of one segment from its k data cells.

        Raises `IntegrityError` when anything is not as written; then nothing of the plaintext has left this function.
        """
        if len(cells) != self._k:
            raise IntegrityError(f"segment {segment} has {len(cells)} data cells instead of {self._k}")
        way = self._way(len(cells[0]), plain_bytes)
        size_bytes = len(cells[0]) - TAG_BYTES
        whole = self._memory.take(self._k * size_bytes)
        for index, cell in enumerate(cells):
            part = whole[index * size_bytes : (index + 1) * size_bytes]
            self._open_into(way, segment, index, cell, part)
        if way is Way.RAW:
            return whole[:plain_bytes].toreadonly()
        return unframe(segment, whole, plain_bytes)

    def open_raw(self, segment: int, index: int, cell: _Buffer, plain_bytes: int) -> memoryview:
        """Return what data cell `index` has of a raw segment of `plain_bytes`, zeros behind its end included.

        Raises `IntegrityError` for any other cell, one of a framed segment too.
        """
        if self._way(len(cell), plain_bytes) is not Way.RAW:
            raise IntegrityError(f"segment {segment} is not raw")
        part = memoryview(bytearray(len(cell) - TAG_BYTES))
        self._open_into(Way.RAW, segment, index, cell, part)
        return part.toreadonly()

    def is_genuine(self, segment: int, index: int, cell: _Buffer, plain_bytes: int) -> bool:
        """Whether data cell `index` of a segment of `plain_bytes` is as it was written, by its own tag."""
        try:
            way = self._way(len(cell), plain_bytes)
            self._open_into(way, segment, index, cell, memoryview(bytearray(len(cell) - TAG_BYTES)))
        except IntegrityError:
            return False
        return True

    def _way(self, cell_bytes: int, plain_bytes: int) -> Way:
        """Which way a segment of `plain_bytes` went whose cells have `cell_bytes`."""
        raw_bytes = part_bytes(plain_bytes, self._k)
        if not TAG_BYTES <= cell_bytes <= raw_bytes + TAG_BYTES:
            raise IntegrityError("a cell has a size that its segment cannot have")
        return Way.RAW if cell_bytes == raw_bytes + TAG_BYTES else Way.FRAMED

    def _open_into(self, way: Way, segment: int, index: int, cell: _Buffer, part: memoryview) -> None:
        if len(cell) != len(part) + TAG_BYTES:
            raise IntegrityError(f"the cells of segment {segment} differ in size")
        try:
            self._cipher.decrypt_into(_nonce(way, segment, index), cell, self._data_id, part)
        except InvalidTag:
            raise IntegrityError(f"cell {index} of segment {segment} does not verify") from None


def _nonce(way: Way, segment: int, index: int) -> bytes:
    return bytes((way, 0, 0, 0)) + index.to_bytes(4, "big") + segment.to_bytes(4, "big")
