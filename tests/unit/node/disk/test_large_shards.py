"""Files of large shards: whole, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from coffre.cluster.errors import IntegrityError
from coffre.codec import crc32c
from coffre.node.disk.large_shards import LargeShardReader, LargeShardWriter
from coffre.node.disk.records import LargeShard
from coffre.node.store import StoredCell

DATA_ID = bytes(range(16))


def cells(count: int, size_bytes: int) -> list[StoredCell]:
    found = [random.Random(segment).randbytes(size_bytes) for segment in range(count)]
    return [StoredCell(segment, crc32c(data), data) for segment, data in enumerate(found)]


def test_a_shard_of_which_a_buffer_was_never_written_is_not_finished(tmp_path: Path) -> None:
    writer = LargeShardWriter(tmp_path, 1, "clinic", DATA_ID, 0)
    assert len(list(writer.append(cells(6, 400_000)))) == 2  # as after a cancellation
    with pytest.raises(IntegrityError):
        writer.finish()


@pytest.mark.parametrize(
    ("count", "size_bytes"), [(1, 1), (3, 400_000), (700, 1_000), (2, 3 << 20), (600, 9)]
)
def test_chunks_of_every_range(tmp_path: Path, count: int, size_bytes: int) -> None:
    written = cells(count, size_bytes)
    writer = LargeShardWriter(tmp_path, 1, "clinic", DATA_ID, 2)
    for cell in written:
        writer.check([cell])
        for filled in writer.append([cell]):
            writer.write(filled)
    writer.finish()
    large = LargeShard(1, DATA_ID, count, count * size_bytes, writer.shard_hash)
    reader = LargeShardReader(tmp_path, "clinic", 2, large)
    for first, end in ((0, count), (count - 1, count), (count // 2, count), (0, max(count // 3, 1))):
        found: list[StoredCell] = []
        while first + len(found) < end:
            found += reader.chunk(first + len(found), end)
        assert [(c.segment, c.crc, bytes(c.data)) for c in found] == [
            (c.segment, c.crc, c.data) for c in written[first:end]
        ]
