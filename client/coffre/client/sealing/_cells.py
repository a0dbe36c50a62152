"""Cells of one segment: which are good, and what can be rebuilt from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice

from coffre.client.sealing._cell_cipher import CellCipher, cipher_of
from coffre.client.sealing._sealing import OpenManifest, SegmentCipher
from coffre.cluster.errors import IntegrityError
from coffre.cluster.manifest import named_hash
from coffre.codec import blake3_128, codec, crc32c
from coffre.proto import coffre_pb2 as pb

__all__ = ["CellSet", "data_cells", "open_segment", "rebuild_cells"]

COMBINATIONS_MAX = 1000


@dataclass(slots=True)
class CellSet:
    """Verified cells of one segment by shard index, and the indexes whose cells did not verify."""

    good: dict[int, bytes] = field(default_factory=dict)
    bad: set[int] = field(default_factory=set)

    def add_versions(self, opened: OpenManifest, versions: Iterable[pb.Version]) -> None:
        """Take the cells of a one-segment object that answers to a Read brought along."""
        for version in versions:
            if (
                not version.HasField("shard_index")
                or version.shard_index >= opened.manifest.k + opened.manifest.m
            ):
                continue
            if version.damaged:
                self.bad.add(version.shard_index)
            elif version.cell and version.stamp == opened.manifest.stamp:
                self.add(opened, version.shard_index, version.cell)

    def add(self, opened: OpenManifest, shard_index: int, cell: bytes) -> None:
        """Take a cell when it is the one that the manifest names."""
        if blake3_128(cell) == named_hash(opened.manifest, shard_index):
            self.good[shard_index] = cell
            self.bad.discard(shard_index)
        else:
            self.bad.add(shard_index)


def data_cells(
    k: int, m: int, cells: Mapping[int, bytes | memoryview]
) -> list[bytes | bytearray | memoryview]:
    """Return the k cells of a segment, in order, from any k. Raises `IntegrityError` when they do not fit together."""
    if len({len(cell) for cell in cells.values()}) > 1:
        raise IntegrityError("the cells of a segment differ in size")
    missing = [index for index in range(k) if index not in cells]
    size_bytes = len(next(iter(cells.values())))
    rebuilt = {index: bytearray(size_bytes) for index in missing}
    if missing:
        codec(k, m).reconstruct_into(cells, rebuilt)
    return [cells[index] if index in cells else rebuilt[index] for index in range(k)]


def open_segment(
    opened: OpenManifest,
    cipher: SegmentCipher | CellCipher,
    segment: int,
    cells: Mapping[int, bytes | memoryview],
) -> bytes | memoryview:
    """Return a segment's plaintext from k or more cells.

    With more than k, a cell that lies under a matching checksum is found: a data cell by its own tag where it has one,
    any other by leaving cells out. Raises `IntegrityError`.
    """
    return _open_some(opened, cipher, segment, cells)[0]


def _open_some(
    opened: OpenManifest,
    cipher: SegmentCipher | CellCipher,
    segment: int,
    cells: Mapping[int, bytes | memoryview],
) -> tuple[bytes | memoryview, dict[int, bytes | memoryview]]:
    """Return a segment's plaintext, and the k cells that it was decrypted from."""
    manifest = opened.manifest
    k, m, plain_bytes = manifest.k, manifest.m, opened.plain_bytes(segment)

    def open_from(chosen: Iterable[int]) -> tuple[bytes | memoryview, dict[int, bytes | memoryview]]:
        some = {index: cells[index] for index in chosen}
        return cipher.open(segment, data_cells(k, m, some), plain_bytes), some

    candidates = sorted(cells)
    if len(candidates) > k and isinstance(cipher, CellCipher):
        try:
            return open_from(candidates[:k])
        except IntegrityError:
            candidates = [
                i for i in candidates if i >= k or cipher.is_genuine(segment, i, cells[i], plain_bytes)
            ]
    for chosen in islice(combinations(candidates, k), COMBINATIONS_MAX):
        try:
            return open_from(chosen)
        except IntegrityError:
            continue
    raise IntegrityError(f"segment {segment} does not verify from {len(cells)} cells")


def rebuild_cells(
    opened: OpenManifest, cells: CellSet, wanted: Iterable[int]
) -> dict[int, tuple[bytes, int]]:
    """Return the wanted cells of a one-segment object, each with its CRC32C; empty when fewer than k are good.

    Only segments that decrypt are rebuilt, so nothing wrong is spread.
    """
    manifest = opened.manifest
    k, m = manifest.k, manifest.m
    if len(cells.good) < k:
        return {}
    _, true = _open_some(opened, cipher_of(opened), 0, cells.good)
    size_bytes = len(next(iter(true.values())))
    rebuilt = {index: bytearray(size_bytes) for index in wanted if index not in true}
    codec(k, m).reconstruct_into(true, rebuilt)
    result = {}
    for index in wanted:
        cell = bytes(rebuilt[index] if index in rebuilt else true[index])
        if blake3_128(cell) != named_hash(manifest, index):
            raise IntegrityError("a rebuilt cell is not the one that the manifest names")
        result[index] = (cell, crc32c(cell))
    return result
