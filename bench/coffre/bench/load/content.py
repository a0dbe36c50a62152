"""What objects consist of: bytes that follow from the seed and the key alone, so that every byte read can be checked.

An object is cut into blocks of 1 MiB. A block starts with 32 bytes that no other block has, then comes a slice of a
pool that was generated once; nothing of an object is kept, and an object of any size is made, or compared, in
constant memory at the speed of a copy.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from enum import Enum
from hashlib import blake2b

from coffre.bench.fhir_records import fhir_records
from coffre.cluster.errors import IntegrityError

__all__ = [
    "BLOCK_BYTES",
    "DATA_ERRORS",
    "Content",
    "Lost",
    "Resurrected",
    "Texture",
    "Verifier",
    "WrongBytes",
]

BLOCK_BYTES = 1 << 20
MARK_BYTES = 32
_POOL_BYTES = 4 << 20  # several segments, so that no segment repeats itself
_STRIPE_BYTES = 64 << 10


class WrongBytes(IntegrityError):
    """Something else came back than was put, and nobody noticed but the load generator."""


class Lost(IntegrityError):
    """An acknowledged object is not there, or not in a listing."""


class Resurrected(IntegrityError):
    """An object is there that was deleted, or whose put was refused."""


# By name, as errors are counted. `IntegrityError` itself is the client's: it found the damage, and the data is gone.
DATA_ERRORS = frozenset(each.__name__ for each in (IntegrityError, WrongBytes, Lost, Resurrected))


class Texture(Enum):
    """What the bytes look like to a compressor; the ratios are zstd's at level 3, and a test holds them."""

    RECORD = "record"  # FHIR JSON, about 3:1 at 3 kB and 12:1 at 1 MiB
    DOCUMENT = "document"  # text with streams that are compressed already, about 1.25:1
    IMAGE = "image"  # 12-bit pixels in 16 bits with detector noise, about 1.6:1
    ARCHIVE = "archive"  # records and noise by turns, about 1.65:1
    RANDOM = "random"  # does not compress


class Content:
    """The bytes of every object of a run."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[Texture, bytes] = {}

    def block(self, key: str, texture: Texture, number: int, size_bytes: int = BLOCK_BYTES) -> bytes:
        """The first bytes of block `number` of an object: all of it, or what a last block has."""
        mark = blake2b(f"{self._seed}/{key}/{number}".encode(), digest_size=MARK_BYTES).digest()
        if size_bytes <= MARK_BYTES:
            return mark[:size_bytes]
        pool = self._pool(texture)
        start = int.from_bytes(mark[:8], "big") % (_POOL_BYTES - BLOCK_BYTES)
        return mark + pool[start : start + size_bytes - MARK_BYTES]

    def whole(self, key: str, texture: Texture, size_bytes: int) -> bytes:
        """A small object. Of a large one use `stream`."""
        return b"".join(
            self.block(key, texture, start // BLOCK_BYTES, min(BLOCK_BYTES, size_bytes - start))
            for start in range(0, size_bytes, BLOCK_BYTES)
        )

    async def stream(self, key: str, texture: Texture, size_bytes: int) -> AsyncIterator[bytes]:
        """An object of any size, block by block."""
        for start in range(0, size_bytes, BLOCK_BYTES):
            yield self.block(key, texture, start // BLOCK_BYTES, min(BLOCK_BYTES, size_bytes - start))

    def _pool(self, texture: Texture) -> bytes:
        pool = self._pools.get(texture)
        if pool is None:
            source = random.Random(f"{self._seed}/{texture.value}")
            pool = self._pools[texture] = _MAKERS[texture](source, _POOL_BYTES)
        return pool


class Verifier:
    """Compares the pieces of one read, in order, with what the object must be."""

    def __init__(
        self, content: Content, key: str, texture: Texture, *, start: int, length_bytes: int
    ) -> None:
        self._content, self._key, self._texture = content, key, texture
        self._position = start
        self._end = start + length_bytes
        self._block_number = -1
        self._block = b""

    def check(self, piece: bytes | memoryview) -> None:
        """Raise `WrongBytes` at the first byte that differs, or when there are too many."""
        view = memoryview(piece)
        if self._position + len(view) > self._end:
            raise WrongBytes(f"{self._key} has more bytes than were put")
        while view:
            number, offset = divmod(self._position, BLOCK_BYTES)
            if number != self._block_number:
                self._block, self._block_number = (
                    self._content.block(self._key, self._texture, number),
                    number,
                )
            take = min(len(view), BLOCK_BYTES - offset)
            if view[:take] != memoryview(self._block)[offset : offset + take]:
                raise WrongBytes(f"{self._key} has other bytes than were put, in block {number}")
            self._position += take
            view = view[take:]

    def finish(self) -> None:
        """Raise `WrongBytes` when bytes are missing at the end."""
        if self._position != self._end:
            raise WrongBytes(f"{self._key} ended {self._end - self._position} bytes early")


# ---------------------------------------------------------------- the pools


def _record(source: random.Random, size_bytes: int) -> bytes:
    """FHIR resources one after the other, as a bulk export has them."""
    made = bytearray()
    for record in fhir_records(source.getrandbits(32)):
        made += record.data + b"\n"
        if len(made) >= size_bytes:
            return bytes(made[:size_bytes])
    raise AssertionError("they come without end")


def _stripes(source: random.Random, size_bytes: int, *, text_share: float) -> bytes:
    """Stripes of records and of noise by chance, so that the share of text is about `text_share`."""
    text, noise = _record(source, size_bytes), source.randbytes(size_bytes)
    made = []
    for start in range(0, size_bytes, _STRIPE_BYTES):
        chosen = text if source.random() < text_share else noise
        made.append(chosen[start : start + _STRIPE_BYTES])
    return b"".join(made)


def _image(source: random.Random, size_bytes: int) -> bytes:
    """16-bit little-endian pixels: 6.5 bits of noise in the low byte, a slow drift of grey in the high one."""
    made = bytearray(size_bytes)
    made[0::2] = source.randbytes(size_bytes // 2).translate(bytes(value % 96 for value in range(256)))
    drift = bytearray()
    while len(drift) < size_bytes // 2:
        drift += bytes([source.randrange(12)]) * source.randrange(64, 1024)
    made[1::2] = drift[: size_bytes // 2]
    return bytes(made)


_MAKERS: dict[Texture, Callable[[random.Random, int], bytes]] = {
    Texture.RECORD: _record,
    Texture.DOCUMENT: lambda source, size: _stripes(source, size, text_share=0.22),
    Texture.IMAGE: _image,
    Texture.ARCHIVE: lambda source, size: _stripes(source, size, text_share=0.43),
    Texture.RANDOM: lambda source, size: source.randbytes(size),
}
