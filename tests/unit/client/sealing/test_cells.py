"""Cells: any k open a segment, liars under a matching checksum are found, and only truth is rebuilt."""

from __future__ import annotations

import itertools
import random

import pytest
from coffre.client.sealing import CellSet, Draft, OpenManifest, SegmentCipher, open_segment, rebuild_cells
from coffre.client.sealing._cells import data_cells
from coffre.client.writing import SegmentCoder
from coffre.cluster.errors import IntegrityError
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.codec import crc32c
from coffre.proto import coffre_pb2 as pb

NAME = ObjectName("clinic", "b", "k")
DATA_KEY = bytes(range(32))
STAMP = Stamp(1 << 60, 1)


def coded(k: int, m: int, plain: bytes) -> tuple[OpenManifest, dict[int, bytes]]:
    manifest = pb.Manifest(
        format=MANIFEST_FORMAT, kind=pb.KIND_OBJECT, stamp=STAMP.to_bytes(), data_id=bytes(16), k=k, m=m,
        size_bytes=len(plain), segment_bytes=1 << 20,
    )  # fmt: skip
    segment = SegmentCoder(Draft(NAME, DATA_KEY, manifest), k, m, None).code(0, plain)
    manifest.shard_hashes = segment.hashes
    return OpenManifest(NAME, manifest, DATA_KEY, STAMP), {i: bytes(c) for i, c in enumerate(segment.cells)}


def cipher_of(opened: OpenManifest) -> SegmentCipher:
    return SegmentCipher(DATA_KEY, opened.manifest.data_id, opened.manifest.k)


@pytest.mark.parametrize(("k", "m"), [(2, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_any_k_cells_open(k: int, m: int, size: int) -> None:
    plain = random.Random(size).randbytes(size)
    opened, cells = coded(k, m, plain)
    for chosen in itertools.combinations(range(k + m), k):
        some = {index: cells[index] for index in chosen}
        assert open_segment(opened, cipher_of(opened), 0, some) == plain
    with pytest.raises(IntegrityError):
        open_segment(opened, cipher_of(opened), 0, {i: cells[i] for i in range(k - 1)})


@pytest.mark.parametrize(("k", "m"), [(4, 2), (8, 3)])
def test_liars_are_found_by_leaving_cells_out(k: int, m: int) -> None:
    opened, cells = coded(k, m, b"x" * 999)
    for liars in [(0,), (k + m - 1,), tuple(range(m)), (0, k)]:
        lying = cells | {index: bytes(len(cells[index])) for index in liars}
        assert open_segment(opened, cipher_of(opened), 0, lying) == b"x" * 999
    shorter = cells | {0: cells[0][:-1]}
    assert open_segment(opened, cipher_of(opened), 0, shorter) == b"x" * 999
    with pytest.raises(IntegrityError):
        open_segment(opened, cipher_of(opened), 0, cells | dict.fromkeys(range(m + 1), b""))
    with pytest.raises(IntegrityError, match="differ in size"):
        data_cells(k, m, shorter)


def test_cells_must_be_those_that_the_manifest_names() -> None:
    opened, cells = coded(4, 2, b"abc")
    found = CellSet()
    found.add(opened, 0, bytes(len(cells[0])))
    found.add(opened, 1, cells[0])  # of another index
    found.add(opened, 2, cells[2])
    assert (set(found.good), found.bad) == ({2}, {0, 1})
    found.add(opened, 0, cells[0])
    assert (set(found.good), found.bad) == ({0, 2}, {1})
    version = pb.Version(stamp=b"\1" * 16, shard_index=3, cell=cells[3], cell_crc=crc32c(cells[3]))
    beyond = pb.Version(stamp=STAMP.to_bytes(), shard_index=6, cell=cells[3], cell_crc=crc32c(cells[3]))
    damaged = pb.Version(stamp=STAMP.to_bytes(), shard_index=5, damaged=True)
    found.add_versions(opened, [version, beyond, damaged])
    assert (set(found.good), found.bad) == ({0, 2}, {1, 5})


@pytest.mark.parametrize("liar", [None, 0, 3, 5])
def test_only_the_true_cells_are_rebuilt(liar: int | None) -> None:
    """A liar whose cell has the named checksum (CRC32C can be forged) does not stop the rebuilding."""
    opened, cells = coded(4, 2, b"y" * 500)
    good = {index: cells[index] for index in (0, 1, 3, 4, 5)}
    if liar is not None:
        good[liar] = bytes(len(cells[liar]))
    rebuilt = rebuild_cells(opened, CellSet(good), range(6))
    assert {index: cell for index, (cell, _) in rebuilt.items()} == cells
    assert all(crc32c(cell) == crc for cell, crc in rebuilt.values())


def test_nothing_is_rebuilt_from_too_little_or_from_lies() -> None:
    opened, cells = coded(4, 2, b"z" * 500)
    assert rebuild_cells(opened, CellSet({i: cells[i] for i in range(3)}), [5]) == {}
    with pytest.raises(IntegrityError):
        rebuild_cells(opened, CellSet({i: bytes(len(cells[i])) for i in range(6)}), [5])
