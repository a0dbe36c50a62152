"""The embedded store on its disk: what is kept over a restart, a kill and damage; and the engine's bounds."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import lmdb
import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import Changes, EmbeddedCoordination, MemoryCoordination, Put, _engine
from coffre.cluster.errors import (
    ConfigurationError,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    ReadAgain,
    ResourceExhausted,
    Unavailable,
)

from tests.contract.coordination_stores import seeded_entropy

COMMITS = 30
KILLED = """
import asyncio, os, sys
from pathlib import Path
from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import EmbeddedCoordination, Put

async def main():
    store = await EmbeddedCoordination.open(Path(sys.argv[1]), SystemClock(), os.urandom)
    number = 0
    while True:
        done = await store.commit([], [Put(f"test/{number:06}", b"x" * 100)])
        print(number, done.revision, flush=True)
        number += 1

asyncio.run(main())
"""


async def opened(directory: Path, clock: ManualClock | None = None) -> EmbeddedCoordination:
    return await EmbeddedCoordination.open(directory, clock or ManualClock(), seeded_entropy("embedded"))


async def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    store = await opened(tmp_path, clock)
    lease = await store.grant(10)
    await store.commit([], [Put("test/a", b"one"), Put("test/leased", b"", lease.number)])
    last = await store.commit([], deletes=["test/a"])
    clock.advance(9)
    await store.close()
    store = await opened(tmp_path, clock)
    page = await store.range("test/")
    assert [entry.key for entry in page.entries] == ["test/leased"]
    assert page.revision == last.revision
    clock.advance(9)  # a restart lengthens a lease, and never shortens it
    await store.keep_alive(lease.number)
    clock.advance(10)
    assert await store.get("test/leased") is None
    with pytest.raises(NotFound):
        await store.keep_alive(lease.number)
    assert (await store.commit([], [Put("test/b", b"")])).revision > last.revision
    await store.close()


async def test_a_watch_over_a_restart_is_told_to_read_again(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    first = await store.commit([], [Put("test/a", b"")])
    await store.commit([], [Put("test/a", b"")])
    await store.close()
    store = await opened(tmp_path)
    with pytest.raises(ReadAgain):
        await anext(store.watch("test/", first.revision))
    await store.close()


async def test_a_store_that_is_made_anew_goes_on_above_the_old_one(tmp_path: Path) -> None:
    clock = ManualClock()
    old = await opened(tmp_path / "old", clock)
    revision = 0
    for _ in range(100):
        revision = (await old.commit([], [Put("test/a", b"")])).revision
    await old.close()
    clock.advance(1)
    new = await opened(tmp_path / "new", clock)
    assert (await new.commit([], [Put("test/a", b"")])).revision > revision
    await new.close()


async def test_what_was_confirmed_survives_a_kill(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(COMMITS):
        await process.stdout.readline()
    process.kill()
    lines = (await process.stdout.read()).splitlines()
    await process.wait()
    confirmed = COMMITS + sum(len(line.split()) == 2 for line in lines)
    store = await opened(tmp_path)
    held = (await store.range("test/")).entries
    assert confirmed <= len(held) <= confirmed + 1
    revisions = [entry.modified for entry in held]
    assert revisions == sorted(set(revisions))
    assert (await store.commit([], [Put("test/next", b"")])).revision > max(revisions)
    await store.close()


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    with pytest.raises(ConfigurationError, match="another process"):
        await opened(tmp_path)
    await store.close()
    await (await opened(tmp_path)).close()


async def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.commit([], [Put("test/a", b"value")])
    await store.close()
    with lmdb.open(str(tmp_path), max_dbs=3) as env:
        entries = env.open_db(b"entries")
        with env.begin(write=True) as txn:
            raw = bytearray(txn.get(b"test/a", db=entries) or b"")
            raw[-6] ^= 1
            txn.put(b"test/a", bytes(raw), db=entries)
    with pytest.raises(IntegrityError):
        await opened(tmp_path)


async def test_a_full_store_refuses_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coffre.cluster.coordination.embedded.MAP_BYTES", 1 << 20)
    store = await opened(tmp_path)
    kept = await store.commit([], [Put("test/a", b"kept")])
    with pytest.raises(ResourceExhausted):
        await store.commit([], [Put("test/b", bytes(1 << 20))])
    assert await store.get("test/b") is None
    assert (await store.range("test/")).revision == kept.revision
    await store.commit([], [Put("test/c", b"small")])
    await store.close()


async def test_a_cancelled_commit_is_done_whole_or_not_at_all(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    committing = asyncio.ensure_future(store.commit([], [Put("test/a", b"")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    after = await store.commit([], [Put("test/b", b"")])
    page = await store.range("test/")
    assert page.revision == after.revision
    assert len({entry.modified for entry in page.entries}) == len(page.entries)
    await store.close()
    store = await opened(tmp_path)
    assert await store.range("test/") == page
    await store.close()


# -------------------------------------------------------------------- the engine


async def test_a_watcher_that_falls_behind_is_told_to_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "HISTORY_COMMITS_MAX", 10)
    store = MemoryCoordination(ManualClock(), os.urandom)
    start = (await store.commit([], [Put("test/a", b"")])).revision
    slow = store.watch("test/", start)
    for _ in range(5):
        await store.commit([], [Put("test/a", b"")])
    await anext(slow)
    for _ in range(20):
        await store.commit([], [Put("test/a", b"")])
    with pytest.raises(ReadAgain):
        await _drain(slow)
    await store.close()


async def _drain(watching: AsyncGenerator[Changes]) -> None:
    async for _ in watching:
        pass


async def test_the_history_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "HISTORY_BYTES_MAX", 10_000)
    store = MemoryCoordination(ManualClock(), os.urandom)
    for _ in range(50):
        await store.commit([], [Put("test/a", bytes(1000))])
    assert store._engine._history_bytes <= 10_000
    assert len(store._engine._history) < 10
    await store.close()


async def test_leases_and_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "LEASES_MAX", 2)
    monkeypatch.setattr(_engine, "WATCHERS_MAX", 1)
    store = MemoryCoordination(ManualClock(), os.urandom)
    await store.grant(10)
    await store.grant(10)
    with pytest.raises(ResourceExhausted):
        await store.grant(10)
    await store.commit([], [Put("test/a", b"")])
    first = store.watch("test/", 0)
    await anext(first)
    with pytest.raises(ResourceExhausted):
        await anext(store.watch("test/", 0))
    await first.aclose()
    await store.close()


# ------------------------------------------------------------------ a disk that fails


class Heard:
    """What a watcher of locks heard, and how its watch ended."""

    def __init__(self, store: EmbeddedCoordination, revision: int) -> None:
        self.keys: list[str] = []
        self.task = asyncio.create_task(self._listen(store, revision))

    async def _listen(self, store: EmbeddedCoordination, revision: int) -> None:
        async for changes in store.watch("locks/", revision):
            self.keys += [change.key for change in changes.changes]


@pytest.mark.parametrize(
    "error",
    [
        lmdb.Error("mdb_txn_commit: Input/output error"),
        lmdb.Error("mdb_txn_commit: Read-only file system"),
        lmdb.CorruptedError("mdb_del: MDB_CORRUPTED"),
        OSError(5, "Input/output error"),
        IntegrityError("a row of the coordination store does not verify"),
    ],
    ids=["io", "read-only", "index", "os", "row"],
)
async def test_a_disk_that_fails_while_a_lease_ends_breaks_the_store_and_everybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Not one task of it, in silence: locks of the dead would be held for ever."""
    clock = ManualClock()
    store = await opened(tmp_path, clock)
    lease = await store.grant(5)
    done = await store.commit([], [Put("locks/a", b"1", lease.number)])
    watcher = Heard(store, done.revision)
    assert not store.failure

    def failing(write: object) -> None:
        raise error

    monkeypatch.setattr(store._lmdb, "_commit", failing)
    for _ in range(
        8
    ):  # nobody asks for anything: the store ends the lease by itself, or notices that it cannot
        clock.advance(1)
        for _ in range(50):
            await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="disk of this coordination store failed"):
        await asyncio.wait_for(watcher.task, 10)
    assert "failed" in store.failure
    for call in (
        store.get("locks/a"),
        store.range("locks/"),
        store.commit([], [Put("locks/b", b"")]),
        store.grant(5),
        store.keep_alive(lease.number),
        store.revoke(lease.number),
    ):
        with pytest.raises(Unavailable, match="until its node is restarted"):
            await call
    monkeypatch.undo()
    with pytest.raises(Unavailable):  # whatever the disk says now
        await store.commit([], [Put("locks/b", b"")])
    await store.close()
    store = await opened(tmp_path, clock)  # its node was restarted
    assert not store.failure
    clock.advance(5)
    assert await store.get("locks/a") is None
    await store.close()


async def test_a_full_disk_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    store = await opened(tmp_path, clock)
    lease = await store.grant(5)
    await store.commit([], [Put("locks/a", b"1", lease.number)])

    def failing(write: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(store._lmdb, "_commit", failing)
    clock.advance(6)
    with pytest.raises(ResourceExhausted):
        await store.get("locks/a")
    monkeypatch.undo()
    assert not store.failure
    assert await store.get("locks/a") is None
    await store.close()


async def test_on_a_full_disk_the_end_of_a_lease_is_tried_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again and again, as fast as a processor can."""
    clock = ManualClock()
    store = await opened(tmp_path, clock)
    await store.grant(5)
    tried = 0

    async def full(write: object) -> None:
        nonlocal tried
        tried += 1
        raise ResourceExhausted("full")

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)
        for _ in range(10):
            await asyncio.sleep(0)

    monkeypatch.setattr(store._lmdb, "write", full)
    await pass_time(0)
    for _ in range(5):
        await pass_time(1)
    for expected in (1, 2, 3):
        for _ in range(20):
            await pass_time(0)
        assert tried == expected
        await pass_time(1)
    await store.close()


async def test_what_the_disk_failed_at_may_be_there_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nobody is told that nothing was changed; of what comes after it, everybody is."""
    store = await opened(tmp_path)
    commit = store._lmdb._commit

    def late(write: _engine.Write) -> None:
        commit(write)
        raise lmdb.Error("mdb_env_sync: Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(store._lmdb, "_commit", late)
        with pytest.raises(OutcomeUnknown, match="not known whether that was agreed"):
            await store.commit([], [Put("test/a", b"")])
    with pytest.raises(Unavailable) as refused:
        await store.commit([], [Put("test/b", b"")])
    assert not isinstance(refused.value, OutcomeUnknown)
    await store.close()
    store = await opened(tmp_path)
    assert [entry.key for entry in (await store.range("test/")).entries] == ["test/a"]
    await store.close()
