"""Compression of segments: Zstandard, with a dictionary for small JSON (docs/formats/segment.md)."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import zstandard
from coffre.cluster.errors import IntegrityError, Unsupported

__all__ = ["RAW", "Shrinker", "compress", "decompress"]

RAW, ZSTD, ZSTD_FHIR = 0, 1, 2
_SMALL_BYTES_MAX = 64 << 10  # what is longer learns its own vocabulary
_SMALL_LEVELS_MORE = 2  # it costs microseconds, and each byte saved is saved on k + m nodes' way and disk
_JSON = (b"{", b"[")
_WORTHWHILE = 0.97  # keep a compressed segment when it is at least 3 % smaller
_SKIP_MAX = 64
_DICTIONARY = Path(__file__).with_name("dictionary-1.txt")


class _PerThread(threading.local):
    """Compression contexts: costly to make, and not to be shared between threads."""

    def __init__(self) -> None:
        self.compressors: dict[tuple[int, int], zstandard.ZstdCompressor] = {}
        self.decompressors: dict[int, zstandard.ZstdDecompressor] = {}


_per_thread = _PerThread()


@cache
def _dictionary() -> bytes:
    return _DICTIONARY.read_bytes()


def _compressor(kind: int, level: int) -> zstandard.ZstdCompressor:
    found = _per_thread.compressors.get((kind, level))
    if found is None:
        if kind == ZSTD_FHIR:
            dictionary = zstandard.ZstdCompressionDict(_dictionary(), zstandard.DICT_TYPE_RAWCONTENT)
            dictionary.precompute_compress(level=level)
            found = zstandard.ZstdCompressor(level=level, dict_data=dictionary)
        else:
            found = zstandard.ZstdCompressor(level=level)
        _per_thread.compressors[kind, level] = found
    return found


def _decompressor(kind: int) -> zstandard.ZstdDecompressor:
    found = _per_thread.decompressors.get(kind)
    if found is None:
        dictionary = None
        if kind == ZSTD_FHIR:
            dictionary = zstandard.ZstdCompressionDict(_dictionary(), zstandard.DICT_TYPE_RAWCONTENT)
        found = _per_thread.decompressors[kind] = zstandard.ZstdDecompressor(dict_data=dictionary)
    return found


def compress(plain: bytes | bytearray | memoryview, level: int) -> tuple[int, bytes]:
    """The kind of compression that suits `plain`, and the result, which may be longer."""
    small_json = len(plain) <= _SMALL_BYTES_MAX and bytes(plain[:1]) in _JSON
    if small_json:
        return ZSTD_FHIR, _compressor(ZSTD_FHIR, level + _SMALL_LEVELS_MORE).compress(plain)
    return ZSTD, _compressor(ZSTD, level).compress(plain)


def decompress(kind: int, payload: memoryview, plain_bytes: int) -> bytes | memoryview:
    """The `plain_bytes` bytes that were compressed. Raises `IntegrityError`, or `Unsupported` for an unknown kind."""
    if kind == RAW:
        return payload
    if kind not in (ZSTD, ZSTD_FHIR):
        raise Unsupported(f"segment compression {kind} is not known to this client")
    try:
        return _decompressor(kind).decompress(payload, plain_bytes)
    except zstandard.ZstdError:
        raise IntegrityError("a segment does not decompress") from None


class Shrinker:
    """Compresses the segments of one object where it helps; after some that did not shrink, ever more pass untried."""

    def __init__(self, level: int | None) -> None:
        self._level = level
        self._skip = 0
        self._skip_next = 1

    @property
    def tries_next(self) -> bool:
        """Whether the next segment costs an attempt, which takes longer than encrypting and coding it."""
        return self._level is not None and not self._skip

    def shrink(self, plain: bytes | bytearray | memoryview) -> tuple[int, bytes | bytearray | memoryview]:
        """The kind of compression, and the result; `RAW` and `plain` itself when it is not worthwhile."""
        if self._level is None or len(plain) < 64:
            return RAW, plain
        if self._skip:
            self._skip -= 1
            return RAW, plain
        kind, shrunk = compress(plain, self._level)
        if len(shrunk) < len(plain) * _WORTHWHILE:
            self._skip_next = 1
            return kind, shrunk
        self._skip = self._skip_next
        self._skip_next = min(2 * self._skip_next, _SKIP_MAX)
        return RAW, plain
