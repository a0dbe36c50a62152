"""Shards that are kept open: bounded, let go of when their file is freed, and never another shard's bytes."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import IntegrityError, NotFound
from coffre.codec import crc32c
from coffre.node.disk import LmdbStore, large_shards, open_shards
from coffre.node.disk.large_shards import LargeShardReader, LargeShardWriter, large_path
from coffre.node.disk.open_shards import OPEN_MAX, OpenShards
from coffre.node.disk.records import LargeShard
from coffre.node.store import StoredCell, StoreOptions

from tests.unit.node.store.store_cases import accept, adopt, name, settle, stamp

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=64 << 10)


def cells(count: int, seed: int, size_bytes: int = 5000) -> list[StoredCell]:
    data = [random.Random(seed << 16 | segment).randbytes(size_bytes) for segment in range(count)]
    return [StoredCell(segment, crc32c(data), data) for segment, data in enumerate(data)]


def write(directory: Path, number: int, count: int = 4, size_bytes: int = 5000) -> LargeShard:
    """A file with cells of its own."""
    data_id = number.to_bytes(16, "big")
    writer = LargeShardWriter(directory, number, "clinic", data_id, 2)
    for filled in writer.append(cells(count, number, size_bytes)):
        writer.write(filled)
    writer.finish()
    return LargeShard(number, data_id, count, writer.size_bytes, writer.shard_hash)


def open_files(directory: Path) -> list[str]:
    """What this process has open below a directory, unlinked files too."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # of the listing itself
        if target.startswith(str(directory)):
            found.append(target)
    return found


def test_a_shard_is_opened_once(tmp_path: Path) -> None:
    large = write(tmp_path, 1)
    shards = OpenShards(tmp_path)
    assert shards.get("clinic", 2, large) is shards.get("clinic", 2, large)
    assert shards.get("clinic", 2, large).chunk(1, 3) == cells(4, 1)[1:3]
    shards.clear()
    assert open_files(tmp_path) == []


def test_the_number_of_open_files_is_bounded_and_those_used_last_stay(tmp_path: Path) -> None:
    written = [write(tmp_path, number, count=1) for number in range(OPEN_MAX + 20)]
    shards = OpenShards(tmp_path)
    first = shards.get("clinic", 2, written[0])
    for number, large in enumerate(written):
        assert shards.get("clinic", 2, large).chunk(0, 1) == cells(1, number)
        assert shards.get("clinic", 2, written[0]) is first
        assert shards.get("clinic", 2, large) is shards.get("clinic", 2, large)
        assert len(open_files(tmp_path)) <= OPEN_MAX
    assert len(open_files(tmp_path)) == OPEN_MAX


def test_what_is_kept_of_a_table_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_shards, "_TABLE_PIECES_MAX", 2)
    large = write(tmp_path, 1, count=1100, size_bytes=9)
    reader = LargeShardReader(tmp_path, "clinic", 2, large)
    expected = cells(1100, 1, 9)
    for first in random.Random(4).choices(range(1100), k=300):
        found = reader.chunk(first, 1100)
        assert found == expected[first : first + len(found)]
        assert 0 < len(reader._table) <= 2
        assert all(isinstance(piece, bytes) and len(piece) <= 8192 for piece in reader._table.values())


def test_only_the_shard_that_was_asked_for(tmp_path: Path) -> None:
    one, other = write(tmp_path, 1), write(tmp_path, 2)
    shards = OpenShards(tmp_path)
    shards.get("clinic", 2, one)
    wrong = LargeShard(1, other.data_id, other.cell_count, other.size_bytes, other.shard_hash)
    for tenant, index, large in (("clinic", 2, wrong), ("clinic", 3, one), ("lab", 2, one)):
        with pytest.raises(IntegrityError):
            shards.get(tenant, index, large)
        assert open_files(tmp_path) == []
        shards.get("clinic", 2, one)


def test_a_file_that_went_or_was_replaced_is_not_served(tmp_path: Path) -> None:
    large, other = write(tmp_path, 1), write(tmp_path, 2)
    shards = OpenShards(tmp_path)
    shards.get("clinic", 2, large)
    large_path(tmp_path, other.file).replace(large_path(tmp_path, 1))
    with pytest.raises(IntegrityError):
        shards.get("clinic", 2, large)
    large_path(tmp_path, 1).unlink()
    with pytest.raises(FileNotFoundError):
        shards.get("clinic", 2, large)
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_is_freed_while_it_is_opened_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    shards = OpenShards(tmp_path)
    large = write(tmp_path, 1)

    def opened(directory: Path, tenant: str, shard_index: int, large: LargeShard) -> LargeShardReader:
        reader = LargeShardReader(directory, tenant, shard_index, large)
        large_path(directory, large.file).unlink()
        if told:
            shards.forget(large.file)
        return reader

    monkeypatch.setattr(open_shards, "LargeShardReader", opened)
    assert shards.get("clinic", 2, large).chunk(0, 4) == cells(4, 1)  # the reader had it in its hand
    assert open_files(tmp_path) == []


def test_threads_share_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shards, "OPEN_MAX", 2)
    written = [write(tmp_path, number) for number in range(5)]
    shards = OpenShards(tmp_path)
    ready = threading.Barrier(6)

    def read(seed: int) -> None:
        rng = random.Random(seed)
        ready.wait()
        for _ in range(300):
            number, first = rng.randrange(5), rng.randrange(4)
            assert shards.get("clinic", 2, written[number]).chunk(first, 4) == cells(4, number)[first:]
            if not rng.randrange(20):
                shards.forget(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
    assert len(open_files(tmp_path)) <= 2


def test_damage_is_seen_in_an_open_shard_and_is_not_remembered(tmp_path: Path) -> None:
    large = write(tmp_path, 1)
    reader = LargeShardReader(tmp_path, "clinic", 2, large)
    path = large_path(tmp_path, 1)
    whole = path.read_bytes()
    for offset in (100 + 12, 100 + 16 + 77, len(whole) - 32 - 4 * 16):  # a cell's header, its data, its row
        path.write_bytes(whole[:offset] + bytes((whole[offset] ^ 1,)) + whole[offset + 1 :])
        reader._table.clear()
        for _ in range(2):
            with pytest.raises(IntegrityError):
                reader.chunk(0, 1)
        path.write_bytes(whole)
        assert reader.chunk(0, 4) == cells(4, 1)


async def read_all(store: LmdbStore, number: int) -> list[StoredCell]:
    return [cell async for chunk in store.read_cells(name(), stamp(number), 1, 0, 0) for cell in chunk]


async def threads_let_go(store: LmdbStore) -> None:
    """Return when each thread of the store has dropped what it read for: it takes up something else."""
    count = store._threads._max_workers
    together = threading.Barrier(count)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(store._threads, together.wait) for _ in range(count)))


async def stage(store: LmdbStore, shard: list[StoredCell], data_id: bytes = bytes(16)) -> None:
    writer = await store.stage("tenant", data_id, 1)
    await writer.write(shard)
    await writer.commit()


async def test_what_was_deleted_is_closed_and_its_space_comes_back(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, OPTIONS, ManualClock())
    shard = cells(40, 1, 100_000)
    await stage(store, shard)
    await store.apply([adopt(1, shard=shard), settle(1)])
    assert await read_all(store, 1) == shard
    (path,) = (tmp_path / "large").glob("*/*")
    assert open_files(tmp_path / "large") == [str(path)]
    under_way = store.read_cells(name(), stamp(1), 1, 0, 0)
    found = list(await anext(under_way))
    await store.apply([accept(2, tombstone=True), settle(2)])
    async for chunk in under_way:
        found += chunk
    assert found == shard  # a read that had begun is answered
    del under_way, chunk, found
    assert not path.exists()
    await threads_let_go(store)
    assert open_files(tmp_path / "large") == []
    with pytest.raises(NotFound):
        await read_all(store, 1)
    await store.close()


async def test_an_accept_that_replaces_a_damaged_shard_is_what_is_read(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, OPTIONS, ManualClock())
    shard = cells(3, 1, 5000)
    await stage(store, shard)
    await store.apply([adopt(1, shard=shard), settle(1)])
    assert await read_all(store, 1) == shard
    (path,) = (tmp_path / "large").glob("*/*")
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"rot")
    with pytest.raises(IntegrityError):
        await read_all(store, 1)
    assert [repair.name async for repair in store.repair_queue()] == [name()]
    await stage(store, shard)
    await store.apply([adopt(1, shard=shard)])
    assert await read_all(store, 1) == shard
    assert not path.exists()
    await threads_let_go(store)
    assert len(open_files(tmp_path / "large")) == 1
    await store.close()
    assert open_files(tmp_path / "large") == []
