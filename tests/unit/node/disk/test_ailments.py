"""A disk that fails in one way or another: nothing is acknowledged that it may lose, and the store says why."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import CoffreError, IntegrityError, ResourceExhausted, Unavailable
from coffre.node.disk import LmdbStore
from coffre.node.disk.ailments import Ailments
from coffre.node.disk.transaction import Transaction
from coffre.node.disk.volumes import VolumeState
from coffre.node.serving import COORDINATION, SERVICE, VitalSigns
from coffre.node.store import StoreOptions
from grpc_health.v1 import health, health_pb2

from tests.patience import PATIENCE_SECONDS
from tests.unit.node.store.store_cases import accept, cells, name, settle

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=8 << 10)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PAGE_BYTES = 4096


async def opened(path: Path) -> LmdbStore:
    return await LmdbStore.open(path, OPTIONS, ManualClock())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    store = await opened(tmp_path / "node")
    await store.apply([accept(1, "kept", cell=b"kept"), settle(1, "kept")])
    yield store
    await store.close()


async def reads_on(store: LmdbStore) -> None:
    (version,) = await store.read(name("kept"), want_cell=True)
    assert version.cell is not None
    assert version.cell.data == b"kept"


async def says(store: LmdbStore, text: str) -> None:
    status = await store.status()
    assert text in status.cannot_write
    assert status.writable is (not text)


# ------------------------------------------------------------------ what ends writing until a restart


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        ("fdatasync", errno.EIO, "disk failed (Input/output error)"),
        ("pwritev", errno.EROFS, "disk failed (Read-only file system)"),
        ("pwritev", errno.EIO, "disk failed (Input/output error)"),
    ],
)
async def test_a_disk_that_fails_is_told_of_and_writes_nothing_more(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int, text: str
) -> None:
    def failing(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    await says(store, "")
    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing)
        with pytest.raises(Unavailable, match="disk failed"):
            await store.apply([accept(1, "lost")])
    await says(store, text)
    with pytest.raises(Unavailable, match="until it is restarted"):  # whatever the disk says now
        await store.apply([accept(1, "later")])
    with pytest.raises(Unavailable, match="until it is restarted"):
        await store.stage("tenant", bytes(16), 0)
    await reads_on(store)


async def test_a_disk_that_fails_under_a_large_shard_is_told_of(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await store.stage("tenant", bytes(16), 0)
    await writer.write(cells(1))

    def failing(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        broken.setattr(os, "fdatasync", failing)
        with pytest.raises(Unavailable, match="disk failed"):
            await writer.commit()
    await says(store, "disk failed (Input/output error)")
    with pytest.raises(Unavailable, match="disk failed"):
        await store.apply([accept(1, "later")])


async def test_a_disk_that_hangs_is_told_of_while_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, reached, gate = ManualClock(), threading.Event(), threading.Event()
    store = await LmdbStore.open(tmp_path, OPTIONS, clock)
    commit = Transaction.commit

    def hanging(transaction: Transaction) -> None:
        reached.set()
        gate.wait()
        commit(transaction)

    monkeypatch.setattr(Transaction, "commit", hanging)
    writing = asyncio.create_task(store.apply([accept(1)]))
    assert await asyncio.to_thread(reached.wait, 10)
    await says(store, "")
    clock.advance(12)
    await says(store, "has not answered for 12 s")
    gate.set()
    await writing
    await says(store, "")
    await store.close()


async def test_a_probe_finds_it_before_anybody_writes(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(transaction: Transaction) -> None:
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    await store.probe()
    await says(store, "")
    with monkeypatch.context() as broken:
        broken.setattr(Transaction, "commit", failing)
        await store.probe()
    await says(store, "disk failed (mdb_txn_commit: Input/output error)")


# ------------------------------------------------------------------ the index


async def test_a_rotten_page_of_the_index_says_that_the_node_is_to_be_replaced(tmp_path: Path) -> None:
    """Pages are zeroed while the store is open, as a disk does that has lost them."""
    store = await opened(tmp_path)
    for number in range(40):
        await store.apply([accept(1, f"key {number}" + "x" * 200), settle(1, f"key {number}" + "x" * 200)])
    data = tmp_path / "index" / "data.mdb"
    with data.open("r+b") as file:
        for page in range(2, data.stat().st_size // PAGE_BYTES):
            file.seek(page * PAGE_BYTES)
            file.write(bytes(PAGE_BYTES))
    with pytest.raises((IntegrityError, Unavailable)):
        await store.read(name("key 1" + "x" * 200))
    with pytest.raises(Unavailable, match="replace this node"):
        await store.apply([accept(2, "key 1")])
    await says(store, "index is damaged")
    status = await store.status()  # which reads of the index, too
    assert status.index_damaged
    assert "replace this node" in status.cannot_write
    await store.close()


@pytest.mark.parametrize("how", ["read", "write", "walk"])
async def test_a_damaged_row_is_told_of_and_everything_else_is_served(tmp_path: Path, how: str) -> None:
    store = await opened(tmp_path)
    await store.apply([accept(1, "kept", cell=b"kept"), settle(1, "kept"), accept(1, "damaged")])
    await store.close()
    with lmdb.open(str(tmp_path / "index"), max_dbs=16) as env:
        table = env.open_db(b"objects")
        with env.begin(write=True) as txn, txn.cursor(db=table) as cursor:
            for key, value in cursor:
                if b"damaged" in key:
                    txn.put(key, value[:-1] + bytes((value[-1] ^ 1,)), db=table)
    store = await opened(tmp_path)
    assert not (await store.status()).index_damaged
    if how == "read":
        with pytest.raises(IntegrityError):
            await store.read(name("damaged"))
    elif how == "write":
        (outcome,) = await store.apply([accept(2, "damaged")])
        assert isinstance(outcome.error, IntegrityError)
    else:
        assert [row.name.key async for rows in store.partition_rows(7) for row in rows] == ["kept"]
    assert (await store.status()).index_damaged
    await says(store, "")
    await reads_on(store)
    await store.apply([accept(2, "other")])
    await store.close()


# ------------------------------------------------------------------ what passes


async def fill_a_volume(store: LmdbStore) -> None:
    """Write until the store begins another one, which is a new file."""
    for number in range(20):
        await store.apply([accept(1, f"key {number}", cell=bytes(1000))])


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_no_file_descriptors_are_no_damage_and_pass(store: LmdbStore) -> None:
    store._parts.volumes._handles.clear()
    with no_descriptors():
        await says(store, "no file descriptors")
        with pytest.raises(Unavailable, match="file descriptors"):
            await store.read(name("kept"), want_cell=True)
        with pytest.raises(ResourceExhausted, match="file descriptors"):
            await fill_a_volume(store)
    await says(store, "")
    await reads_on(store)
    assert (await store.status()).damaged == 0
    assert (await store.apply([accept(1, "again")]))[0].error is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with few inodes."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=300", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_no_inodes_left_is_told_as_that(small_disk: Path) -> None:
    store = await opened(small_disk / "node")
    await store.apply([accept(1, "kept", cell=b"kept"), settle(1, "kept")])
    await says(store, "")
    junk = small_disk / "junk"
    junk.mkdir()
    with pytest.raises(OSError, match="No space"):  # noqa: PT012 - as many as there is room for
        for number in range(1000):
            (junk / str(number)).touch()
    await says(store, "no inodes left")
    with pytest.raises(ResourceExhausted, match="no inodes left"):
        await fill_a_volume(store)
    for path in junk.iterdir():
        path.unlink()
    await says(store, "")
    await store.apply([accept(1, "again")])
    await reads_on(store)
    await store.close()


def test_a_disk_that_is_mounted_read_only_is_told_of_before_anybody_writes(small_disk: Path) -> None:
    ailments = Ailments(small_disk)
    assert ailments.cannot_write() == ""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "mounted read-only" in ailments.cannot_write()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert ailments.cannot_write() == ""


# ------------------------------------------------------------------ what the health service says


async def test_health_serves_no_writes_while_the_disk_takes_none(store: LmdbStore) -> None:
    servicer = health.aio.HealthServicer()
    broken = ""
    signs = VitalSigns(store, servicer, ManualClock(), lambda: broken)

    async def said(service: str) -> object:
        return (await servicer.Check(health_pb2.HealthCheckRequest(service=service), None)).status

    await signs.look()
    assert (await said(SERVICE), await said(COORDINATION)) == (SERVING, SERVING)
    with no_descriptors():
        await signs.look()
        assert await said(SERVICE) == NOT_SERVING
    await signs.look()
    assert await said(SERVICE) == SERVING
    store._parts.ailments.disk_failed(OSError(errno.EIO, "Input/output error"))
    broken = "its disk failed"
    await signs.look()
    assert (await said(SERVICE), await said(COORDINATION)) == (NOT_SERVING, NOT_SERVING)
    with pytest.raises(CoffreError):
        await store.apply([accept(1, "later")])


# ------------------------------------------------------------------ what is told while it works


async def test_what_is_told_of_a_store_does_not_mind_volumes_that_come(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes begins a volume while another one counts them."""
    table = store._parts.volumes.table

    class Counted(VolumeState):
        @property
        def live_bytes(self) -> int:
            table.setdefault(99, VolumeState(0, 0))
            return 0

        @live_bytes.setter
        def live_bytes(self, value: int) -> None: ...

    monkeypatch.setitem(table, 98, Counted(0, 0))
    assert (await store.status()).writable
    del table[99]


async def test_whoever_compares_while_the_disk_hangs_keeps_nobody_from_reading(store: LmdbStore) -> None:
    """A commit holds what digests wait for; peers ask for them again and again, and a list needs a thread, too."""
    with store._parts.index.recent.lock:
        comparing = [asyncio.create_task(store.digests()) for _ in range(8)]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert len((await store.list("tenant", "bucket", "")).entries) == 1
        for task in comparing[1:]:
            task.cancel()
    assert await comparing[0]
    await asyncio.gather(*comparing, return_exceptions=True)
