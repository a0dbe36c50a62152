"""Disks rot: whatever byte flips or goes missing, a store says so and never returns other bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lmdb
import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import CoffreError, ConfigurationError, IntegrityError
from coffre.codec import blake3_128, crc32c, hash_of_shard
from coffre.node.disk import LmdbStore
from coffre.node.disk.large_shards import LargeShardWriter
from coffre.node.disk.rows import seal
from coffre.node.store import Abort, State, StoredCell, StoreOptions

from tests.forging import same_crc
from tests.unit.node.store.store_cases import accept, adopt, cells, mark, name, settle, stamp, written

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=64 << 10)


async def reopen(path: Path) -> LmdbStore:
    return await LmdbStore.open(path, OPTIONS, ManualClock())


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 0x10,)))


async def filled(path: Path, count: int = 8) -> None:
    store = await reopen(path)
    for number in range(count):
        key = f"key {number}"
        await store.apply([accept(1, key, cell=key.encode() * 9), settle(1, key)])
    await store.close()


async def survey(path: Path, count: int = 8) -> tuple[int, int]:
    """How many keys read right and how many report damage; anything else fails."""
    store = await reopen(path)
    right = wrong = 0
    for number in range(count):
        key = f"key {number}"
        try:
            versions = await store.read(name(key), want_cell=True)
        except IntegrityError:
            wrong += 1
            continue
        for version in versions:
            assert version.stamp == stamp(1)
            if version.damaged:
                wrong += 1
                assert version.cell is None
                assert version.manifest in (b"", b"manifest 1")
                assert (await store.status()).repair_queue >= 0
                queued = [repair.name async for repair in store.repair_queue()]
                assert name(key) in queued
            else:
                right += 1
                assert version.manifest == b"manifest 1"
                assert (version.mac, version.placement, version.shard_index) == (b"m" * 16, (1, 2), 1)
                assert version.cell is not None
                assert version.cell.data == key.encode() * 9
    await store.close()
    return right, wrong


async def test_every_byte_of_a_record(tmp_path: Path) -> None:
    await filled(tmp_path, 1)
    volume = tmp_path / "volumes" / "00000001.vol"
    for offset in range(36, volume.stat().st_size):
        flip(volume, offset)
        assert await survey(tmp_path, 1) == (0, 1), offset
        flip(volume, offset)
    assert await survey(tmp_path, 1) == (1, 0)


async def test_a_listing_reports_damage_and_shows_its_neighbours(tmp_path: Path) -> None:
    await filled(tmp_path)
    volume = tmp_path / "volumes" / "00000001.vol"
    flip(volume, volume.read_bytes().find(b"key 3") + 8)  # in its manifest
    store = await reopen(tmp_path)
    entries = (await store.list("tenant", "bucket", "")).entries
    assert [entry.versions[0].damaged for entry in entries] == [number == 3 for number in range(8)]
    assert [entry.versions[0].manifest for entry in entries if entry.key != "key 3"] == [b"manifest 1"] * 7
    assert [repair.name async for repair in store.repair_queue()] == [name("key 3")]
    await store.close()
    with volume.open("r+b") as file:
        file.truncate(volume.stat().st_size - 100)  # in the last record, before its cell
    store = await reopen(tmp_path)
    entries = (await store.list("tenant", "bucket", "")).entries
    assert [entry.versions[0].damaged for entry in entries] == [n in (3, 7) for n in range(8)]
    await store.close()


async def test_no_row_of_a_partition_outlives_its_key(tmp_path: Path) -> None:
    store = await reopen(tmp_path)
    await store.apply([accept(1), Abort(name(), 7, stamp(1)), settle(1), accept(1, "kept")])
    index = store._parts.index
    with index.reading() as txn:
        assert [txn.stat(table)["entries"] for table in (index.objects, index.partitions)] == [1, 1]
    await store.close()


async def test_sampled_bytes_of_index_rows(tmp_path: Path) -> None:
    await filled(tmp_path)
    data = (tmp_path / "index" / "data.mdb").read_bytes()
    rng = random.Random(11)
    places: list[int] = []
    start = data.find(stamp(1))
    while start >= 0:
        # The row's value around the stamp, and the key before it.
        places += rng.sample(range(start - 12, start + 34), 3)
        start = data.find(stamp(1), start + 1)
    assert len(places) > 40
    noticed = 0
    for place in places:
        (tmp_path / "index" / "data.mdb").write_bytes(data)
        flip(tmp_path / "index" / "data.mdb", place)
        try:
            right, wrong = await survey(tmp_path)
        except ConfigurationError:
            noticed += 1
            continue
        noticed += wrong > 0
        assert right >= 7 or right + wrong < 8  # a key that rotted is not found; it is never another one
    assert noticed >= 10  # most of the places are in pages that LMDB has replaced


async def test_every_part_of_a_large_shard(tmp_path: Path) -> None:
    store = await reopen(tmp_path)
    writer = await store.stage("tenant", bytes(16), 1)
    await writer.write(cells(5, 300))
    await writer.commit()
    await store.apply([adopt(1, shard=cells(5, 300)), settle(1)])
    await store.close()
    (path,) = (tmp_path / "large").glob("*/*")
    for offset in random.Random(3).sample(range(path.stat().st_size), 250):
        flip(path, offset)
        store = await reopen(tmp_path)
        found: list[StoredCell] = []
        try:
            async for chunk in store.read_cells(name(), stamp(1), 1, 0, 0):
                found += chunk
        except IntegrityError:
            assert [repair.name async for repair in store.repair_queue()] == [name()]
            assert (await store.status()).damaged == 1
        else:
            assert found == cells(5, 300)  # padding, or a checksum that a read of cells does not need
        assert found == cells(5, 300)[: len(found)]
        await store.close()
        flip(path, offset)


async def test_bytes_that_somebody_put_there_under_their_checksum(tmp_path: Path) -> None:
    """Of a small shard and of a large one: the checksum is right, and they are not what the manifest names."""
    store = await reopen(tmp_path)
    small, large = b"what the doctor wrote" * 20, cells(300, 300)
    await store.apply([accept(1, "small", cell=small), settle(1, "small")])
    writer = await store.stage("tenant", bytes(16), 1)
    await writer.write(large)
    await writer.commit()
    await store.apply([adopt(1, shard=large), settle(1)])
    await store.close()
    (shard,) = (tmp_path / "large").glob("*/*")
    for path, data in (
        (tmp_path / "volumes" / "00000001.vol", small),
        (shard, bytes(large[200].data)),
    ):
        raw = path.read_bytes()
        assert raw.count(data) == 1
        path.write_bytes(raw.replace(data, same_crc(data)))
    store = await reopen(tmp_path)
    (version,) = await store.read(name("small"), want_cell=True)
    assert (version.damaged, version.cell) == (True, None)
    assert await anext(store.read_cells(name(), stamp(1), 1, 0, 200)) == large[:200]
    with pytest.raises(IntegrityError):
        await anext(store.read_cells(name(), stamp(1), 1, 200, 1))
    assert {repair.name async for repair in store.repair_queue()} == {name(), name("small")}
    await store.close()


async def test_a_file_of_other_cells_is_not_believed(tmp_path: Path) -> None:
    """A large shard's file that somebody wrote anew, as its writer would, and named as the true one in its footer."""
    store = await reopen(tmp_path)
    shard = cells(3, 300)
    writer = await store.stage("tenant", bytes(16), 1)
    await writer.write(shard)
    await writer.commit()
    await store.apply([adopt(1, shard=shard), settle(1)])
    await store.close()
    (path,) = (tmp_path / "large").glob("*/*")
    forger = LargeShardWriter(tmp_path / "large", 0x99, "tenant", bytes(16), 1)
    for filled in forger.append([StoredCell(i, crc32c(b"x" * 300), b"x" * 300) for i in range(3)]):
        forger.write(filled)
    forger.finish()
    footer = bytearray(forger.path.read_bytes()[-44:])
    footer[24:40] = hash_of_shard(blake3_128(cell.data) for cell in shard)
    footer[40:] = crc32c(footer[:40]).to_bytes(4, "big")
    path.write_bytes(forger.path.read_bytes()[:-44] + footer)
    store = await reopen(tmp_path)
    with pytest.raises(IntegrityError, match="table"):
        await anext(store.read_cells(name(), stamp(1), 1, 0, 0))
    await store.close()


async def test_a_damaged_mark_is_no_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = await reopen(tmp_path)
    await store.apply([accept(written(3)), accept(written(7), "later"), mark(written(5))])
    await store.close()
    store = await reopen(tmp_path)
    env, writers = store._parts.index.env, store._parts.index.marks.table
    with env.begin() as txn:
        ((key, value),) = list(txn.cursor(db=writers))
    for bit in range(len(value) * 8):
        raw = bytearray(value)
        raw[bit // 8] ^= 1 << bit % 8
        for row_key, row in ((key, bytes(raw)), (key[:-1] + b"\1", value), (b"other" + key[6:], value)):
            with env.begin(write=True) as txn:
                txn.drop(writers, delete=False)
                txn.put(row_key, row, db=writers)
            caplog.clear()
            assert [v.state for v in await store.read(name())] == [State.ACCEPTED]
            assert [v.state for v in await store.read(name("later"))] == [State.ACCEPTED]
            assert ("counts as none" in caplog.text) == (row_key == key)
    await store.apply([mark(written(4))])
    assert [v.state for v in await store.read(name())] == [State.SETTLED]
    assert [v.state for v in await store.read(name("later"))] == [State.ACCEPTED]
    await store.close()


async def test_marks_outlive_a_restart_and_a_full_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coffre.node.disk.marks._CACHED_MAX", 2)
    store = await reopen(tmp_path)
    await store.apply([accept(written(3)), mark(written(5))])
    for writer in range(1, 9):
        await store.apply([mark(written(5, writer))])
    await store.apply([mark(written(2))])
    for _ in range(2):
        assert [v.state for v in await store.read(name())] == [State.SETTLED]
        assert len(store._parts.index.marks._cached) <= 2
        await store.close()
        store = await reopen(tmp_path)
    (outcome,) = await store.apply([Abort(name(), 7, stamp(written(3)))])
    assert outcome.state is State.SETTLED
    await store.close()


async def test_an_accept_replaces_a_damaged_shard(tmp_path: Path) -> None:
    await filled(tmp_path, 1)
    volume = tmp_path / "volumes" / "00000001.vol"
    flip(volume, volume.stat().st_size - 3)
    store = await reopen(tmp_path)
    (version,) = await store.read(name("key 0"), want_cell=True)
    assert version.damaged
    assert len([repair async for repair in store.repair_queue()]) == 1
    (outcome,) = await store.apply([accept(1, "key 0", cell=b"key 0" * 9, lock=True)])
    assert outcome.has_shard
    assert [repair async for repair in store.repair_queue()] == []
    await store.close()
    assert await survey(tmp_path, 1) == (1, 0)


async def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    await filled(tmp_path)
    volume = tmp_path / "volumes" / "00000001.vol"
    length = volume.stat().st_size
    with volume.open("ab") as file:
        file.write(b"Cr\1 half a record")
    (tmp_path / "volumes" / "00000002.vol").write_bytes(b"never committed")
    (tmp_path / "large" / "ab").mkdir()
    (tmp_path / "large" / "ab" / "00000000000000ab").write_bytes(b"untracked")
    assert await survey(tmp_path) == (8, 0)
    assert volume.stat().st_size == length
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == ["00000001.vol"]
    assert list((tmp_path / "large").glob("*/*")) == []


@pytest.mark.parametrize("keep", [0, 20, 500, -1])
async def test_a_shortened_volume_is_damage_and_not_a_crash(tmp_path: Path, keep: int) -> None:
    await filled(tmp_path)
    volume = tmp_path / "volumes" / "00000001.vol"
    if keep < 0:
        volume.unlink()
    else:
        with volume.open("r+b") as file:
            file.truncate(keep)
    store = await reopen(tmp_path)
    assert (await store.status()).damaged == 1
    await store.apply([accept(1, "new"), settle(1, "new")])
    (version,) = await store.read(name("new"), want_cell=True)
    assert version.cell is not None
    assert not version.damaged
    assert await store.reclaim() == 0
    await store.close()
    right, wrong = await survey(tmp_path)
    assert right + wrong == 8
    assert wrong >= 5


async def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    env = lmdb.open(str(tmp_path / "index"), max_dbs=20)
    with env.begin(write=True) as txn:
        txn.put(b"format", seal(b"format", struct.pack(">I", 9)), db=env.open_db(b"meta", txn=txn))
    env.close()
    with pytest.raises(ConfigurationError, match="format 9"):
        await reopen(tmp_path)


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"", b"\0" * 8192])
async def test_an_unreadable_index_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    await filled(tmp_path)
    (tmp_path / "index" / "data.mdb").write_bytes(content)
    with pytest.raises(ConfigurationError, match="index") as caught:
        await reopen(tmp_path)
    assert isinstance(caught.value, CoffreError)
    volume = tmp_path / "volumes" / "00000001.vol"
    assert volume.stat().st_size > 500, "volumes without an index must never be swept"


async def test_a_lost_index_does_not_take_the_volumes_along(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "index" / "data.mdb").unlink()
    with pytest.raises(ConfigurationError, match="index is gone"):
        await reopen(tmp_path)
    assert (tmp_path / "volumes" / "00000001.vol").exists()
