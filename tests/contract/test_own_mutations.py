"""What a node's own repair does to its store, the same on both twins (docs/repair.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import Conflict, NotFound, ResourceExhausted
from coffre.node.disk import LmdbStore
from coffre.node.memory import MemoryStore
from coffre.node.store import (
    Collect,
    Condemn,
    Drop,
    Forget,
    Lock,
    Mark,
    Mutation,
    QueueRepair,
    Refuse,
    Restore,
    ShardStore,
    State,
    StoreOptions,
)

from tests.contract.test_shard_store import (
    OPTIONS,
    abort,
    accept,
    cells,
    name,
    one,
    read_all,
    settle,
    stage,
    stamp,
    states,
)

A, L, S, X = State.ACCEPTED, State.LOCKED, State.SETTLED, State.ABORTED


@pytest.fixture
def options() -> StoreOptions:
    return dataclasses.replace(OPTIONS)


@pytest.fixture(params=["memory", "lmdb"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, options: StoreOptions
) -> AsyncIterator[ShardStore]:
    clock = ManualClock()
    store: ShardStore
    if request.param == "memory":
        store = MemoryStore(clock, options)
    else:
        store = await LmdbStore.open(tmp_path / "node", options, clock)
    yield store
    await store.close()


def own(kind: type[Refuse | Lock | Drop | Condemn | Collect], number: int) -> Mutation:
    return kind(name(), 7, stamp(number))


async def cell_of(store: ShardStore, number: int) -> bytes | None:
    (version,) = await store.read(name(), stamp=stamp(number), want_cell=True)
    return None if version.cell is None else bytes(version.cell.data)


# ------------------------------------------------------------------ restore


async def test_restore_brings_a_settled_version_and_trims(store: ShardStore) -> None:
    await store.apply([accept(1), settle(1), accept(2, shard_index=0)])
    outcome = await one(store, Restore(accept(3)))
    assert (outcome.state, outcome.has_shard, outcome.error) == (S, True, None)
    assert await states(store) == [(3, S)]
    assert await cell_of(store, 3) == b"cell"
    assert (await store.status()).shards == 1


async def test_restore_stands_against_the_node_s_own_vote(store: ShardStore) -> None:
    await store.apply([abort(3)])
    await one(store, Restore(accept(3)))
    assert await states(store) == [(3, S)]


async def test_restore_settles_what_is_held_and_brings_the_shard_that_lacks(store: ShardStore) -> None:
    await one(store, accept(3, shard_index=None))
    lacking = await store.partition_digest(7)
    await one(store, Restore(accept(3, shard_index=4)))
    assert await states(store) == [(3, S)]
    assert await cell_of(store, 3) == b"cell"
    assert await store.partition_digest(7) != lacking
    await one(store, Restore(accept(3, shard_index=1, cell=b"other")))  # it has one
    assert await cell_of(store, 3) == b"cell"
    assert (await store.status()).shards == 1


async def test_restore_replaces_a_shard_only_when_told(store: ShardStore) -> None:
    await store.apply([accept(3), settle(3), QueueRepair(name(), 7, stamp(3), 2)])
    await one(store, Restore(accept(3, shard_index=1, cell=b"other"), replace=True))
    (version,) = await store.read(name(), want_cell=True)
    assert (version.shard_index, await cell_of(store, 3)) == (1, b"other")
    assert [repair async for repair in store.repair_queue()] == []
    status = await store.status()
    assert (status.shards, status.objects) == (1, 1)


async def test_restore_of_what_a_newer_version_trims_leaves_no_repair(store: ShardStore) -> None:
    await store.apply([accept(2, shard_index=None), QueueRepair(name(), 7, stamp(2), None)])
    await store.apply([accept(3), Mark("tenant", stamp(3))])  # what a mark settles trims nothing yet
    await one(store, Restore(accept(2, shard_index=None)))
    assert await states(store) == [(3, S)]
    assert [repair async for repair in store.repair_queue()] == []


async def test_restore_takes_an_older_version_that_is_kept(store: ShardStore, options: StoreOptions) -> None:
    options.versions_kept = 2
    await store.apply([accept(5), settle(5)])
    assert (await one(store, accept(3, lock=True))).error is not None  # a writer could not
    await one(store, Restore(accept(3)))
    assert await states(store) == [(5, S), (3, S)]
    await one(store, Restore(accept(2)))
    assert await states(store) == [(5, S), (3, S)]
    await one(store, Restore(accept(4)))
    assert await states(store) == [(5, S), (4, S)]
    assert (await store.status()).shards == 2
    assert (await store.partition_digest(7)).versions == 2


async def test_restore_of_a_tombstone_ends_the_history(store: ShardStore) -> None:
    await store.apply([accept(1), settle(1)])
    await one(store, Restore(accept(2, tombstone=True)))
    assert await states(store) == [(2, S)]
    assert (await store.status()).shards == 0


async def test_restore_adopts_a_staged_shard(store: ShardStore) -> None:
    missing = await one(store, Restore(accept(3, staged=cells(2), data_id=b"d" * 16)))
    assert isinstance(missing.error, NotFound)
    assert await states(store) == []
    await stage(store, cells(2), b"d" * 16)
    await one(store, Restore(accept(3, staged=cells(2), data_id=b"d" * 16)))
    assert await read_all(store, 3) == cells(2)
    await stage(store, cells(3), b"d" * 16)
    replaced = await one(store, Restore(accept(3, staged=cells(3), data_id=b"d" * 16), replace=True))
    assert replaced.error is None
    assert await read_all(store, 3) == cells(3)
    assert (await store.status()).shards == 1


async def test_restore_needs_room_and_tombstones_do_not(store: ShardStore, options: StoreOptions) -> None:
    options.capacity_bytes = 1
    assert isinstance((await one(store, Restore(accept(1)))).error, ResourceExhausted)
    assert (await one(store, Restore(accept(2, tombstone=True)))).error is None
    assert await states(store) == [(2, S)]


# ------------------------------------------------------------------ votes of its own


async def test_refuse_votes_only_on_what_is_not_held(store: ShardStore) -> None:
    await store.apply([accept(3), accept(4, lock=True)])
    for number, vote in ((3, A), (4, L), (5, X)):
        assert (await one(store, own(Refuse, number))).state is vote
    assert await states(store) == [(5, X), (4, L), (3, A)]
    assert (await one(store, accept(5))).error is not None


async def test_lock_promises_what_was_accepted(store: ShardStore) -> None:
    await store.apply([accept(3), abort(4)])
    for number, vote in ((3, L), (4, X), (5, None)):
        assert (await one(store, own(Lock, number))).state is vote
    assert (await one(store, abort(3))).state is L


@pytest.mark.parametrize("lock", [False, True])
async def test_drop_frees_what_is_dead_and_never_what_is_settled(store: ShardStore, lock: bool) -> None:
    await store.apply([accept(3, lock=lock)])
    assert (await one(store, own(Drop, 3))).state is X
    assert await states(store) == [(3, X)]
    assert (await store.status()).live_bytes == 0
    await store.apply([accept(5), settle(5)])
    assert (await one(store, own(Drop, 5))).state is S
    assert (await one(store, own(Drop, 6))).state is None
    assert await states(store) == [(5, S)]
    assert (await store.partition_digest(7)).versions == 1


# ------------------------------------------------------------------ rows that go


async def test_forget_takes_a_row_and_nothing_that_came_meanwhile(store: ShardStore) -> None:
    await store.apply([accept(1), settle(1), accept(2), abort(3)])
    known = (stamp(1),)
    assert isinstance((await one(store, Forget(name(), 7, known))).error, Conflict)
    assert len(await states(store)) == 3
    assert (await one(store, Forget(name(), 7, (*known, stamp(2))))).error is None
    assert await states(store) == []
    status = await store.status()
    assert (status.objects, status.shards, status.live_bytes) == (0, 0, 0)
    assert await store.digests() == {}
    assert (await one(store, Forget(name(), 7, known))).error is None


async def test_a_tombstone_is_condemned_and_then_collected(store: ShardStore) -> None:
    await store.apply([accept(1), accept(2, tombstone=True)])
    assert isinstance((await one(store, own(Condemn, 2))).error, Conflict)  # not settled, not alone
    await one(store, settle(2))
    assert isinstance((await one(store, own(Collect, 2))).error, Conflict)  # not condemned
    before = await store.partition_digest(7)
    assert (await one(store, own(Condemn, 2))).state is S
    assert await store.partition_digest(7) == before
    (row,) = [row async for rows in store.partition_rows(7) for row in rows]
    assert row.versions[0].condemned
    (version,) = await store.read(name())  # it still answers
    assert (version.state, version.tombstone, version.manifest) == (S, True, b"manifest 2")
    await one(store, settle(2))
    await one(store, accept(2, tombstone=True))
    assert isinstance((await one(store, own(Collect, 1))).error, Conflict)
    assert (await one(store, own(Collect, 2))).error is None
    assert await states(store) == []
    assert await store.digests() == {}


async def test_a_condemned_tombstone_with_a_newer_version_stays(store: ShardStore) -> None:
    await store.apply([accept(2, tombstone=True), settle(2), own(Condemn, 2), accept(3)])
    assert isinstance((await one(store, own(Collect, 2))).error, Conflict)
    assert await states(store) == [(3, A), (2, S)]
    assert (await one(store, own(Condemn, 3))).error is not None


async def test_an_object_is_never_condemned(store: ShardStore) -> None:
    await store.apply([accept(2), settle(2)])
    assert isinstance((await one(store, own(Condemn, 2))).error, Conflict)
