"""What the tests of the disk store share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c, hash_of_shard
from coffre.node.store import Accept, Mark, Settle, StoredCell, StoreOptions


def stamp(number: int) -> bytes:
    return number.to_bytes(16, "big")


def written(turn: int, writer: int = 0) -> int:
    """The number of a writer's stamp: a mark covers the turns of its writer up to its own."""
    return turn << 64 | writer


def name(key: str = "key") -> ObjectName:
    return ObjectName("tenant", "bucket", key)


def accept(
    number: int, key: str = "key", *, cell: bytes = b"cell", lock: bool = False, tombstone: bool = False
) -> Accept:
    return Accept(
        name(key), 7, stamp(number), tombstone, bytes(16), b"manifest %d" % number, b"m" * 16, (1, 2),
        None if tombstone else 1, b"" if tombstone else cell, 0 if tombstone else crc32c(cell),
        blake3_128(cell), lock=lock,
    )  # fmt: skip


def adopt(
    number: int, key: str = "key", data_id: bytes = bytes(16), *, shard: Sequence[StoredCell] = ()
) -> Accept:
    """Take the shard that was staged, which is `shard`, or as `cells` makes it of three."""
    digest = hash_of_shard(blake3_128(cell.data) for cell in shard or cells(3))
    return Accept(
        name(key), 7, stamp(number), False, data_id, b"manifest", b"m" * 16, (1, 2), 1, shard_hash=digest,
        staged=True,
    )  # fmt: skip


def settle(number: int, key: str = "key") -> Settle:
    return Settle(name(key), 7, stamp(number))


def mark(number: int) -> Mark:
    return Mark("tenant", stamp(number))


def cells(count: int, size_bytes: int = 1000) -> list[StoredCell]:
    data = [bytes((segment & 0xFF,)) * size_bytes for segment in range(count)]
    return [StoredCell(segment, crc32c(data), data) for segment, data in enumerate(data)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def options() -> StoreOptions:
    return StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=64 << 10)
