"""Files past the page cache: every size comes back, at every place, and disks that want it otherwise are served."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from coffre.node.disk.direct_io import DirectReader, DirectWriter

BLOCK, BUFFER = 4096, 1 << 20
SIZES = (
    0,
    1,
    BLOCK - 1,
    BLOCK,
    BLOCK + 1,
    BUFFER - 1,
    BUFFER,
    BUFFER + 1,
    2 * BUFFER,
    3 * BUFFER + BLOCK + 5,
)


def write(path: Path, parts: Sequence[bytes]) -> None:
    writer = DirectWriter(path)
    for part in parts:
        for filled in writer.fill([part]):
            writer.write(filled)
    writer.finish()


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_comes_back(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    cuts = sorted(random.Random(7).choices(range(size + 1), k=9))
    write(tmp_path / "file", [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)])
    assert (tmp_path / "file").read_bytes() == data
    reader = DirectReader(tmp_path / "file")
    for offset in {0, 1, BLOCK - 1, BLOCK, size // 2, max(size - 1, 0), size, size + BLOCK}:
        for length in (0, 1, 16, BLOCK, BUFFER + 3):
            assert reader.read(offset, length) == data[offset : offset + length]


def test_one_part_may_fill_many_buffers(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(5 * BUFFER + 77)
    writer = DirectWriter(tmp_path / "file")
    for buffers, filled in enumerate(writer.fill([data]), 1):
        writer.write(filled)
        assert writer.written_bytes == buffers * BUFFER
    writer.finish()
    assert buffers == 5
    assert writer.written_bytes == len(data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_buffer_rests_while_the_next_one_fills(tmp_path: Path) -> None:
    writer = DirectWriter(tmp_path / "file")
    first, second = random.Random(2).randbytes(BUFFER), random.Random(3).randbytes(BUFFER - 1)
    (resting,) = writer.fill([first])
    assert list(writer.fill([second])) == []
    assert resting == first  # a write that is still under way takes what it was given
    writer.write(resting)
    writer.finish()
    assert (tmp_path / "file").read_bytes() == first + second


def test_a_disk_that_wants_larger_blocks_gets_its_bytes_by_way_of_the_page_cache(tmp_path: Path) -> None:
    """The kernel refuses a write of 100 bytes past the page cache, as such a disk would refuse one of 4,096."""
    writer = DirectWriter(tmp_path / "file")
    writer.write(memoryview(b"x" * 100))
    (filled,) = writer.fill([b"y" * BUFFER])
    writer.write(filled)
    writer.finish()
    assert (tmp_path / "file").read_bytes() == b"x" * 100 + b"y" * BUFFER


def test_a_file_is_made_once(tmp_path: Path) -> None:
    write(tmp_path / "file", [b"x"])
    with pytest.raises(FileExistsError):
        DirectWriter(tmp_path / "file")
