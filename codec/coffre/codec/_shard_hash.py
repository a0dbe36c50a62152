"""The hash of a shard, from those of its cells: docs/formats/coding.md, "Hash"."""

from __future__ import annotations

from collections.abc import Iterable

from coffre.codec._tier import blake3_128

__all__ = ["GROUP_CELLS", "HASH_BYTES", "ShardHash", "hash_of_shard"]

HASH_BYTES = 16
GROUP_CELLS = 256
"""Cells whose hashes are hashed together, so that a part of a large shard can be checked by itself."""


class ShardHash:
    """Takes the hashes of a shard's cells in order. Memory: 16 bytes per 256 cells, and 4 KiB."""

    __slots__ = ("_group", "_groups", "_only", "cell_count")

    def __init__(self) -> None:
        self._groups = bytearray()
        self._group = bytearray()
        self._only = b""
        self.cell_count = 0

    def add(self, cell_hash: bytes) -> None:
        """Take the hash of the next cell, 16 bytes."""
        self._only = b"" if self.cell_count else cell_hash
        self.cell_count += 1
        self._group += cell_hash
        if len(self._group) == GROUP_CELLS * HASH_BYTES:
            self._groups += blake3_128(self._group)
            self._group.clear()

    def groups(self) -> bytes:
        """The hashes of all groups so far, one after the other; the last one may be of fewer cells."""
        return bytes(self._groups) + (blake3_128(self._group) if self._group else b"")

    def digest(self) -> bytes:
        """The hash of the shard: of its only cell, or else of the hashes of its groups."""
        return self._only or blake3_128(self.groups())


def hash_of_shard(cell_hashes: Iterable[bytes]) -> bytes:
    """The hash of a shard with these cells."""
    shard = ShardHash()
    for cell_hash in cell_hashes:
        shard.add(cell_hash)
    return shard.digest()
