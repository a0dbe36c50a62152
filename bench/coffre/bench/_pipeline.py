"""What a client does to a large object before it sends it, memory to memory, beside encryption alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter

from coffre.client.sealing import CellCipher, Draft
from coffre.client.writing import CellCoder
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName
from coffre.codec import codec, crc32c
from coffre.proto import coffre_pb2 as pb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Pipeline"]

_SEGMENT_BYTES = 1 << 20


class Pipeline:
    """Segments of 1 MiB, `size_bytes` in all, so many that they do not stay in the caches.

    A turn goes over all of them once. Messages are made and dropped, as an upload does once they are sent.
    """

    def __init__(self, k: int, m: int, size_bytes: int, seed: int) -> None:
        source = random.Random(seed)
        self._k, self._m = k, m
        self._segments = [source.randbytes(_SEGMENT_BYTES) for _ in range(size_bytes // _SEGMENT_BYTES)]
        self._key, self._data_id = source.randbytes(32), source.randbytes(16)
        name = ObjectName("clinic", "bench", "pipeline")
        draft = Draft(name, self._key, pb.Manifest(data_id=self._data_id))
        self._coder = CellCoder(draft, k, m, None)
        self._plain_cipher = AESGCM(self._key)

    def code(self) -> float:
        """Encrypt, encode, and checksum every cell: plaintext bytes per second."""
        coder = self._coder

        def code(number: int, segment: bytes) -> None:
            coder.add(number, coder.cut(segment))
            if coder.is_full:
                coder.finish()

        rate = self._rate(code)
        coder.finish()
        return rate

    def encrypt(self) -> float:
        """AES-256-GCM alone: bytes per second."""
        cipher, data_id = self._plain_cipher, self._data_id
        return self._rate(
            lambda number, segment: cipher.encrypt(number.to_bytes(12, "big"), segment, data_id)
        )

    def check(self) -> None:
        """Code one segment and rebuild it from parity. Raises `IntegrityError` unless all of it comes back."""
        plain = self._segments[0]
        self._coder.add(0, self._coder.cut(plain))
        cells = [chunk.cells[0] for chunk in self._coder.finish()]
        if any(crc32c(cell.data) != cell.crc for cell in cells):
            raise IntegrityError("a cell's checksum is not that of the cell")
        cipher = CellCipher(self._key, self._data_id, self._k, compress_level=None)
        if cipher.open(0, self._rebuilt([cell.data for cell in cells]), len(plain)) != plain:
            raise IntegrityError("the pipeline returned other bytes than it was given")

    def _rebuilt(self, cells: Sequence[bytes | memoryview]) -> list[bytes | bytearray | memoryview]:
        """The segment's data cells, the first m of them made from the others."""
        lost = {index: bytearray(len(cells[index])) for index in range(self._m)}
        left = {index: cell for index, cell in enumerate(cells) if index not in lost}
        codec(self._k, self._m).reconstruct_into(left, lost)
        return [lost.get(index, cells[index]) for index in range(self._k)]

    def _rate(self, work: Callable[[int, bytes], object]) -> float:
        start = perf_counter()
        for number, segment in enumerate(self._segments):
            work(number, segment)
        return len(self._segments) * _SEGMENT_BYTES / (perf_counter() - start)
