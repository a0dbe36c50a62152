"""A shard made from others is the one that the manifest names, or it is not made: whoever lies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import cast

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, codec, crc32c, hash_of_shard
from coffre.node.memory import MemoryStore
from coffre.node.repair.asking import Asking
from coffre.node.repair.handoff import _large_is_whole
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.pace import Pace
from coffre.node.repair.rebuild import Sealed, best_manifest, rebuild_large, small_shard
from coffre.node.repair.scene import Scene
from coffre.node.store import Accept, State, StoredCell, StoredVersion
from coffre.proto import coffre_pb2 as pb

from tests.forging import same_crc

K, M = 3, 2
STAMP = bytes(15) + b"\7"
NAME = ObjectName("clinic", "b", "k")


def shards(segments: int, size_bytes: int = 64) -> list[list[bytes]]:
    """By shard index: its cells."""
    columns = []
    for _ in range(segments):
        data = [os.urandom(size_bytes) for _ in range(K)]
        parity = [bytearray(size_bytes) for _ in range(M)]
        codec(K, M).encode_into(data, parity)
        columns.append([*data, *map(bytes, parity)])
    return [[column[index] for column in columns] for index in range(K + M)]


def sealed_of(cells: list[list[bytes]]) -> Sealed:
    hashes = b"".join(hash_of_shard(map(blake3_128, shard)) for shard in cells)
    manifest = pb.Manifest(
        format=MANIFEST_FORMAT, kind=pb.KIND_OBJECT, stamp=STAMP, data_id=bytes(16), size_bytes=len(cells[0]) * 100,
        segment_bytes=100, k=K, m=M, shard_hashes=hashes,
    )  # fmt: skip
    return Sealed(manifest.SerializeToString(), b"m" * 16, manifest, (1, 2, 3, 4, 5))


def version(index: int, data: bytes, sealed: Sealed) -> StoredVersion:
    cell = StoredCell(0, crc32c(data), data)
    return StoredVersion(
        State.SETTLED, STAMP, False, sealed.raw, sealed.mac, (1, 2, 3, 4, 5), index, len(data), cell
    )


def test_any_k_cells_make_any_shard() -> None:
    cells = shards(1)
    sealed = sealed_of(cells)
    versions = [version(index, cells[index][0], sealed) for index in (0, 3, 4)]
    for wanted in range(K + M):
        assert small_shard(sealed, wanted, versions) == (cells[wanted][0], crc32c(cells[wanted][0]))
    assert small_shard(sealed, 1, versions[:2]) is None


def test_a_forged_cell_under_a_good_checksum_is_left_out() -> None:
    cells = shards(1)
    sealed = sealed_of(cells)
    versions = [version(index, cells[index][0], sealed) for index in (1, 2, 3)]
    forged = version(0, same_crc(cells[0][0]), sealed)
    assert small_shard(sealed, 4, [forged, *versions[:2]]) is None
    made = small_shard(sealed, 4, [forged, *versions])
    assert made is not None
    assert made[0] == cells[4][0]


def test_cells_that_do_not_verify_are_no_cells() -> None:
    cells = shards(1)
    sealed = sealed_of(cells)
    versions = [version(index, cells[index][0], sealed) for index in (0, 1, 2)]
    rotten = versions[0]._replace(cell=StoredCell(0, crc32c(cells[0][0]), b"x" * 64))
    other = version(0, b"another" * 9, sealed)
    damaged = versions[0]._replace(damaged=True)
    for bad in (rotten, other, damaged, versions[0]._replace(cell=None)):
        assert small_shard(sealed, 4, [bad, *versions[1:]]) is None


def test_the_manifest_that_most_nodes_hold() -> None:
    true = sealed_of(shards(1))
    held = version(0, b"x", true)
    other = held._replace(mac=b"f" * 16)
    chosen = best_manifest([other, held, held], STAMP)
    assert chosen is not None
    assert chosen.mac == true.mac
    for wrong in (
        held._replace(manifest=b"\xff\xff"),
        held._replace(manifest=pb.Manifest(kind=pb.KIND_OBJECT, stamp=bytes(16)).SerializeToString()),
        held._replace(placement=(1, 2)),
        held._replace(manifest=b""),
    ):
        assert best_manifest([wrong], STAMP) is None


# ------------------------------------------------------------------ large shards


class Sources:
    """Nodes that send their shards' cells; some stop, some lie."""

    def __init__(self, cells: Mapping[int, list[bytes]], stops: Mapping[int, int]) -> None:
        self.cells_of = cells
        self.stops = stops
        self.asked: list[tuple[int, int]] = []

    async def cells(
        self, node: int, name: ObjectName, stamp: bytes, shard_index: int, first: int
    ) -> AsyncIterator[list[StoredCell]]:
        """Chunks of one, two, three cells, depending on the node: they need not end at the same segments."""
        self.asked.append((node, first))
        cells, stop = self.cells_of[node], self.stops.get(node)
        end = len(cells) if stop is None or stop < first else stop
        for begin in range(first, end, 1 + node % 3):
            yield [
                StoredCell(segment, crc32c(cells[segment]), cells[segment])
                for segment in range(begin, min(begin + 1 + node % 3, end))
            ]
        if end == stop:
            raise Unavailable("gone")


async def rebuild(
    cells: list[list[bytes]], wanted: int, nodes: Mapping[int, list[bytes]], **stops: int
) -> tuple[list[bytes] | None, Sources]:
    """Shard `wanted`, from nodes that are numbered like the shards they have; None when it cannot be made."""
    sealed = sealed_of(cells)
    clock = ManualClock()
    store = MemoryStore(clock)
    sources = Sources(nodes, {int(node[1:]): segment for node, segment in stops.items()})
    pace = Pace(clock, 1 << 60)
    holders = {node: node for node in nodes}
    try:
        await rebuild_large(store, cast(Asking, sources), pace, NAME, sealed, wanted, holders, 5.0)
    except CoffreError:
        assert (await store.status()).disk_bytes == 0
        return None, sources
    accept = Accept(NAME, 1, STAMP, False, bytes(16), sealed.raw, sealed.mac, (1,), wanted,
        shard_hash=sealed.shard_hash(wanted), staged=True)  # fmt: skip
    await store.apply([accept])
    chunks = [c async for chunk in store.read_cells(NAME, STAMP, wanted, 0, 0) for c in chunk]
    return [bytes(cell.data) for cell in chunks], sources


def of(cells: list[list[bytes]], *indexes: int) -> dict[int, list[bytes]]:
    return {index: cells[index] for index in indexes}


async def test_a_large_shard_is_made_from_k_or_copied_from_one() -> None:
    cells = shards(5)
    for wanted in (0, 4):
        others = [index for index in range(K + M) if index != wanted]
        assert (await rebuild(cells, wanted, of(cells, *others[:K])))[0] == cells[wanted]
    made, sources = await rebuild(cells, 1, of(cells, 0, 1, 2, 3))
    assert made == cells[1]
    assert sources.asked == [(1, 0)]
    assert (await rebuild(cells, 0, of(cells, 1, 2)))[0] is None


async def test_a_source_that_stops_gives_its_place_to_another_in_mid_shard() -> None:
    cells = shards(6)
    made, sources = await rebuild(cells, 0, of(cells, 1, 2, 3, 4), n2=3)
    assert made == cells[0]
    assert (4, 3) in sources.asked
    assert (await rebuild(cells, 0, of(cells, 1, 2, 3), n2=3))[0] is None
    made, _ = await rebuild(cells, 0, of(cells, 0, 1, 2, 3), n0=2)  # a copy that stops
    assert made == cells[0]


@pytest.mark.parametrize("liar", [1, 2, 3])
async def test_a_source_that_lies_is_found_and_left_out(liar: int) -> None:
    cells = shards(4)
    nodes = of(cells, 1, 2, 3, 4)
    nodes[liar] = [*cells[liar][:2], os.urandom(64), cells[liar][3]]
    assert (await rebuild(cells, 0, nodes))[0] == cells[0]
    del nodes[4 if liar != 4 else 3]
    assert (await rebuild(cells, 0, nodes))[0] is None


async def test_a_source_with_other_sizes_or_fewer_cells() -> None:
    cells = shards(4)
    nodes = of(cells, 1, 2, 3, 4)
    nodes[1] = cells[1][:3]
    assert (await rebuild(cells, 0, nodes))[0] == cells[0]
    for liar in (1, 2, 3):
        nodes = of(cells, 1, 2, 3, 4)
        nodes[liar] = [*cells[liar][:2], cells[liar][2][:-1], cells[liar][3]]
        assert (await rebuild(cells, 0, nodes))[0] == cells[0]


async def test_nobody_listens_on_behind_the_end_of_a_shard_that_is_read_back() -> None:
    """A node that never ends would keep this one from handing on what it holds for others."""
    cells = shards(2)
    asked = 0

    async def endless(*arguments: object) -> AsyncIterator[list[StoredCell]]:
        nonlocal asked
        for segment in range(5):
            asked = segment
            data = cells[0][segment % 2]
            yield [StoredCell(segment, crc32c(data), data)]

    scene = cast(Scene, SimpleNamespace(asking=SimpleNamespace(cells=endless)))
    assert not await _large_is_whole(scene, RepairOptions(), 1, NAME, sealed_of(cells), 0)
    assert asked == 2


async def test_a_shard_of_other_bytes_is_not_read_back_whatever_their_checksums() -> None:
    """What this node holds for others goes once that is whole elsewhere: no liar must have it go for nothing."""
    cells = shards(2)

    async def sent(data: list[bytes]) -> bool:
        async def two(*arguments: object) -> AsyncIterator[list[StoredCell]]:
            yield [StoredCell(segment, crc32c(cell), cell) for segment, cell in enumerate(data)]

        scene = cast(Scene, SimpleNamespace(asking=SimpleNamespace(cells=two)))
        return await _large_is_whole(scene, RepairOptions(), 1, NAME, sealed_of(cells), 0)

    assert await sent(cells[0])
    assert not await sent([cells[0][0], same_crc(cells[0][1])])
