"""Space: a map that grows, disks that fill up, and what reclaim gives back."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ResourceExhausted, Unavailable
from coffre.node.disk import LmdbStore
from coffre.node.disk.chores import Copy, MoveRecords
from coffre.node.disk.rows import Location
from coffre.node.memory import MemoryStore
from coffre.node.store import Abort, StoreOptions

from tests.unit.node.store.store_cases import accept, adopt, cells, name, settle, stamp


def options(**changes: int) -> StoreOptions:
    return StoreOptions(**{"reserve_bytes": 0, "map_bytes": 1 << 20, "volume_bytes": 64 << 10, **changes})


def disk_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


async def test_the_map_grows_from_a_tiny_start_under_readers(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, options(map_bytes=1 << 17, volume_bytes=1 << 20), ManualClock())
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            await store.list("tenant", "bucket", "")
            await store.read(name("key 0"))

    readers = [asyncio.create_task(read()) for _ in range(3)]
    twin = MemoryStore(ManualClock())
    for start in range(0, 3000, 250):
        batch = [
            accept(1, f"{'k' * (number % 900)} {number}", cell=b"") for number in range(start, start + 250)
        ]
        assert await store.apply(batch) == await twin.apply(batch)
        # A transaction that meets a full map is begun again: nothing may count twice.
        assert await store.partition_digest(7) == await twin.partition_digest(7)
    done.set()
    await asyncio.gather(*readers)
    assert (await store.status()).objects == 3000
    assert (tmp_path / "index" / "data.mdb").stat().st_size > 1 << 20
    await store.close()
    store = await LmdbStore.open(tmp_path, options(map_bytes=1 << 17), ManualClock())
    assert len([row async for rows in store.partition_rows(7) for row in rows]) == 3000
    await store.close()


async def test_a_quota_keeps_room_for_deletes(tmp_path: Path) -> None:
    limits = options(capacity_bytes=2 << 20, reserve_bytes=256 << 10)
    store = await LmdbStore.open(tmp_path, limits, ManualClock())
    number = 0
    while True:
        number += 1
        (outcome,) = await store.apply([accept(1, f"key {number}", cell=bytes(20_000))])
        if outcome.error is not None:
            break
    assert isinstance(outcome.error, ResourceExhausted)
    assert number > 50
    assert (await store.status()).free_bytes < (256 << 10) + 20_500
    assert limits.capacity_bytes is not None
    limits.capacity_bytes -= 30_000
    assert not (await store.status()).writable
    with pytest.raises(ResourceExhausted):
        await store.stage("tenant", bytes(16), 1)
    (version,) = await store.read(name("key 1"), want_cell=True)
    assert version.cell is not None
    for key in (f"key {n}" for n in range(1, number)):
        outcomes = await store.apply([accept(2, key, tombstone=True), settle(2, key)])
        assert [outcome.error for outcome in outcomes] == [None, None]
    while await store.reclaim():
        pass
    assert (await store.status()).writable
    assert (await store.apply([accept(3, "again", cell=bytes(20_000))]))[0].error is None
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_without_a_reserve(small_disk: Path) -> None:
    """ENOSPC in the middle of anything: refused, consistent, and well again when there is space."""
    store = await LmdbStore.open(small_disk / "node", options(volume_bytes=256 << 10), ManualClock())
    (small_disk / "more").write_bytes(b"")
    written: list[str] = []
    refused = 0
    for number in range(400):
        keys = [f"key {number} {part}" for part in range(4)]
        outcomes: list[object]
        try:
            outcomes = list(await store.apply([accept(1, key, cell=bytes(9000)) for key in keys]))
        except ResourceExhausted:
            refused += 1
        else:
            written += [k for k, o in zip(keys, outcomes, strict=True) if getattr(o, "error", 1) is None]
        if refused > 3:
            break
        if number == 60:
            (small_disk / "ballast").write_bytes(bytes(1 << 20))
    assert len(written) > 50
    store = await _fill_with_ballast(store, small_disk)
    for key in written:
        (version,) = await store.read(name(key), want_cell=True)
        assert version.cell is not None
    writer = await _try_stage(store)
    assert writer
    (small_disk / "ballast").unlink(missing_ok=True)
    (small_disk / "more").unlink()
    assert (await store.apply([accept(1, "after")]))[0].error is None
    await store.close()
    store = await LmdbStore.open(small_disk / "node", options(), ManualClock())
    assert (await store.status()).damaged == 0
    assert {row.name.key async for rows in store.partition_rows(7) for row in rows} == {*written, "after"}
    await store.close()


async def _fill_with_ballast(store: LmdbStore, disk: Path) -> LmdbStore:
    """Take every free byte from outside, and see that a delete is refused and not broken."""
    with (disk / "more").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        list(iter(lambda: file.write(bytes(4096)), 0))
    big = [Abort(name(f"none {number} " + "n" * 900), 7, stamp(1)) for number in range(400)]
    with pytest.raises(ResourceExhausted):
        await store.apply(big)
    return store


async def _try_stage(store: LmdbStore) -> bool:
    try:
        writer = await store.stage("tenant", bytes(16), 1)
        await writer.write(cells(400, 10_000))
    except ResourceExhausted:
        return True
    return False


async def test_reclaim_gives_space_back_while_the_store_works(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, options(volume_bytes=128 << 10), ManualClock())
    keys = [f"key {number}" for number in range(600)]
    for start in range(0, 600, 50):
        await store.apply(
            [m for k in keys[start : start + 50] for m in (accept(1, k, cell=k.encode() * 300),)]
        )
        await store.apply([settle(1, k) for k in keys[start : start + 50]] + [accept(9, f"x {start}")])
    writer = await store.stage("tenant", bytes(16), 1)
    await writer.write(cells(300, 10_000))
    await writer.commit()
    await store.apply([adopt(1, "large", shard=cells(300, 10_000)), settle(1, "large")])
    full = disk_bytes(tmp_path)
    kept = set(keys[::7])
    gone = [key for key in keys if key not in kept] + ["large"]
    await store.apply([m for k in gone for m in (accept(2, k, tombstone=True), settle(2, k))])
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            for key in kept:
                (version,) = await store.read(name(key), want_cell=True)
                assert version.cell is not None
                assert version.cell.data == key.encode() * 300
                await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    freed = 0
    while step := await store.reclaim():
        freed += step
    done.set()
    await reader
    assert freed > 800_000
    assert disk_bytes(tmp_path) < full - 3_500_000
    assert len(await _listed(store)) == len(kept) + len(range(0, len(keys), 50))
    await store.close()
    store = await LmdbStore.open(tmp_path, options(), ManualClock())
    for key in kept:
        (version,) = await store.read(name(key), want_cell=True)
        assert version.cell is not None
        assert version.cell.data == key.encode() * 300
    await store.close()


async def _listed(store: LmdbStore) -> list[str]:
    return [entry.key for entry in (await store.list("tenant", "bucket", "")).entries]


async def test_reclaim_leaves_what_is_damaged_where_it_is(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, options(volume_bytes=8192), ManualClock())
    for number in range(40):
        await store.apply([accept(1, f"key {number}", cell=bytes(700)), settle(1, f"key {number}")])
    path = tmp_path / "volumes" / "00000001.vol"
    with path.open("r+b") as file:
        file.seek(36 + 700)
        file.write(b"\1")
    await store.apply(
        [m for n in range(1, 40) for m in (accept(2, f"key {n}", tombstone=True), settle(2, f"key {n}"))]
    )
    while await store.reclaim():
        pass
    assert path.exists()
    assert [repair.name.key async for repair in store.repair_queue()] == ["key 0"]
    await store.apply([accept(1, "key 0", cell=bytes(700), lock=True)])
    while await store.reclaim():
        pass
    assert not path.exists()
    (version,) = await store.read(name("key 0"), want_cell=True)
    assert version.cell is not None
    await store.close()


async def test_staging_expires_across_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    store = await LmdbStore.open(tmp_path, options(), clock)
    writer = await store.stage("tenant", bytes(16), 1)
    await writer.write(cells(50, 1000))
    await writer.commit()
    unfinished = await store.stage("tenant", bytes(15) + b"1", 1)
    await unfinished.write(cells(50, 1000))
    await store.close()
    assert len(list((tmp_path / "large").glob("*/*"))) == 2
    store = await LmdbStore.open(tmp_path, options(), clock)
    assert len(list((tmp_path / "large").glob("*/*"))) == 1
    assert await store.reclaim() == 0
    clock.advance(25 * 3600)
    assert await store.reclaim() > 50_000
    assert await store.reclaim() == 0
    assert list((tmp_path / "large").glob("*/*")) == []
    assert (await store.status()).live_bytes == 0
    await store.close()


async def test_many_callers_share_few_syncs_and_a_bounded_queue(tmp_path: Path) -> None:
    limits = options(queue_bytes=64 << 10, volume_bytes=4 << 20)
    store = await LmdbStore.open(tmp_path, limits, ManualClock())
    before = (await store.status()).syncs
    calls = [store.apply([accept(1, f"key {n}", cell=bytes(1000))]) for n in range(800)]
    outcomes = await asyncio.gather(*calls)
    assert all(outcome.error is None for (outcome,) in outcomes)
    assert (await store.status()).syncs - before < 100
    with pytest.raises(ResourceExhausted):
        await store.apply([accept(1, f"big {n}", cell=bytes(1000)) for n in range(100)])
    cancelled = asyncio.create_task(store.apply([accept(1, "cancelled")]))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert (await store.apply([accept(1, "after")]))[0].error is None
    pending = [asyncio.create_task(store.apply([accept(1, f"late {n}")])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    for task in pending:
        assert (await task)[0].error is None


async def test_what_waits_for_room_in_the_queue_keeps_its_turn(tmp_path: Path) -> None:
    """Who comes when there is room again stands behind who waits: an Abort that was sent after an Accept must
    find it."""
    store = await LmdbStore.open(tmp_path, options(queue_bytes=64 << 10, volume_bytes=4 << 20), ManualClock())

    async def fill_and_abort() -> None:
        await store.apply([accept(1, f"key {n}", cell=bytes(1000)) for n in range(40)])
        await store.apply([Abort(name("wanted"), 7, stamp(1))])

    first = asyncio.create_task(fill_and_abort())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(store.apply([accept(1, "wanted", cell=bytes(30_000))]))
    (outcome,) = await waiting
    assert outcome.error is None
    await first
    await store.close()


async def test_callers_that_wait_for_room_are_refused_by_a_store_that_closes(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, options(queue_bytes=64 << 10, volume_bytes=4 << 20), ManualClock())
    calls = [asyncio.create_task(store.apply([accept(1, f"key {n}", cell=bytes(30_000))])) for n in range(6)]
    await asyncio.sleep(0)
    calls[4].cancel()
    await store.close()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(end, list) for end in ends] == [True, True, False, False, False, False]
    assert [type(end) for end in ends[2:]] == [
        Unavailable,
        Unavailable,
        asyncio.CancelledError,
        Unavailable,
    ]


async def test_a_record_is_synced_before_the_index_refers_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await LmdbStore.open(tmp_path, options(), ManualClock())
    seen: list[bool] = []
    fdatasync = os.fdatasync

    def watched(fd: int) -> None:
        fdatasync(fd)
        seen.append(store._reader.row(name()) is None)

    monkeypatch.setattr("coffre.node.disk.volumes.os.fdatasync", watched)
    await store.apply([accept(1)])
    assert seen == [True]
    assert store._reader.row(name()) is not None
    await store.close()


async def test_a_copy_of_a_record_that_moved_on_is_not_taken(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path, options(), ManualClock())
    await store.apply([accept(1)])
    row = store._reader.row(name())
    assert row is not None
    held = row.entries[0].record
    assert isinstance(held, Location)
    with store._parts.index.reading() as txn:
        key = store._parts.index.find(txn, name())
    assert key is not None
    stale = Copy(key, stamp(1), held._replace(offset=held.offset + 1), bytes(held.size_bytes))
    assert await store._committer.run([MoveRecords([stale])]) == [0]
    assert store._reader.row(name()) == row
    await store.close()


async def test_a_shard_that_is_given_up_half_way_leaves_nothing_in_the_count(tmp_path: Path) -> None:
    """A part of it is in a file, a part in a buffer; the count of bytes on the disk ends where it began."""
    store = await LmdbStore.open(tmp_path, options(), ManualClock())
    for count in (0, 1, 9, 30):
        writer = await store.stage("clinic", bytes(16), 0)
        await writer.write(cells(count, 100_001))
        assert (await store.status()).live_bytes >= count * 100_001
        await writer.discard()
        assert (await store.status()).live_bytes == 0
    await store.close()
