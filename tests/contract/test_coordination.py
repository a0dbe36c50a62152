"""What every `Coordination` promises: one suite for all implementations."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from coffre.cluster.coordination import RANGE_LIMIT_MAX, Change, Commit, Compare, Coordination, Put
from coffre.cluster.coordination.seam import COMMIT_KEYS_MAX, LEASE_SECONDS_MAX, VALUE_BYTES_MAX
from coffre.cluster.errors import InvalidArgument, NotFound, Unavailable

from tests.contract.coordination_stores import STORES, Store

LEASE_SECONDS = 3


@pytest.fixture(params=sorted(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Store]:
    async with STORES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def coordination(store: Store) -> Coordination:
    return store.coordination


async def put(coordination: Coordination, key: str, value: bytes, lease: int = 0) -> int:
    done = await coordination.commit([], [Put(key, value, lease)])
    assert done.succeeded
    return done.revision


async def until_gone(store: Store, key: str, after_revision: int) -> int:
    """Let time pass until a watcher hears that `key` is gone; the revision at which it went."""
    async with aclosing(store.coordination.watch(key, after_revision)) as watching:
        waiting = asyncio.ensure_future(anext(watching))
        while not waiting.done():
            if store.clock is not None:
                store.clock.advance(0.5)
            await asyncio.wait([waiting], timeout=0 if store.clock else None)
        changes = waiting.result()
    assert changes.changes == (Change(key, None),)
    return changes.revision


# -------------------------------------------------------------------- keys


async def test_a_key_that_never_was_is_not_there(coordination: Coordination) -> None:
    assert await coordination.get("test/none") is None
    assert (await coordination.range("test/")).entries == ()


async def test_an_entry_knows_when_it_was_made_and_last_changed(coordination: Coordination) -> None:
    first = await put(coordination, "test/a", b"one")
    second = await put(coordination, "test/a", b"two")
    entry = await coordination.get("test/a")
    assert entry is not None
    assert (entry.key, entry.value, entry.created, entry.modified) == ("test/a", b"two", first, second)
    assert 0 < first < second


async def test_revisions_rise_over_the_whole_store_and_survive_a_delete(coordination: Coordination) -> None:
    first = await put(coordination, "test/a", b"")
    other = await put(coordination, "test/b", b"")
    gone = await coordination.commit([], deletes=["test/a"])
    again = await put(coordination, "test/a", b"")
    assert first < other < gone.revision < again
    entry = await coordination.get("test/a")
    assert entry is not None
    assert entry.created == again


async def test_a_commit_is_all_or_nothing(coordination: Coordination) -> None:
    revision = await put(coordination, "test/a", b"one")
    stale = await coordination.commit(
        [Compare("test/a", revision), Compare("test/b", 7)], [Put("test/a", b"x"), Put("test/c", b"x")]
    )
    assert not stale.succeeded
    assert await coordination.get("test/c") is None
    done = await coordination.commit(
        [Compare("test/a", revision), Compare("test/b", 0)],
        [Put("test/b", b"2"), Put("test/c", b"3")],
        ["test/a"],
    )
    assert done.succeeded
    page = await coordination.range("test/")
    assert [(entry.key, entry.value) for entry in page.entries] == [("test/b", b"2"), ("test/c", b"3")]
    assert {entry.modified for entry in page.entries} == {done.revision}
    assert page.revision == done.revision


async def test_compare_tells_absent_from_present(coordination: Coordination) -> None:
    assert (await coordination.commit([Compare("test/a", 0)], [Put("test/a", b"mine")])).succeeded
    assert not (await coordination.commit([Compare("test/a", 0)], [Put("test/a", b"theirs")])).succeeded
    entry = await coordination.get("test/a")
    assert entry is not None
    assert entry.value == b"mine"


async def test_of_racing_creators_one_wins(coordination: Coordination) -> None:
    racing = [
        coordination.commit([Compare("test/race", 0)], [Put("test/race", b"%d" % number)])
        for number in range(32)
    ]
    outcomes = await asyncio.gather(*racing)
    winners = [number for number, outcome in enumerate(outcomes) if outcome.succeeded]
    assert len(winners) == 1
    entry = await coordination.get("test/race")
    assert entry is not None
    assert entry.value == b"%d" % winners[0]


async def test_a_delete_of_nothing_changes_nothing(coordination: Coordination) -> None:
    revision = await put(coordination, "test/a", b"")
    assert await coordination.commit([], deletes=["test/none"]) == Commit(True, revision)


async def test_a_range_goes_on_where_a_page_ended(coordination: Coordination) -> None:
    keys = [f"test/{number:03}" for number in range(25)]
    await coordination.commit([], [Put(key, key.encode()) for key in keys])
    await put(coordination, "tesu", b"beyond the prefix")
    await put(coordination, "test", b"before it")
    seen: list[str] = []
    more = True
    while more:
        page = await coordination.range("test/", limit=10, after=seen[-1] if seen else "")
        seen += [entry.key for entry in page.entries]
        more = page.more
    assert seen == keys
    assert (await coordination.range("test/", after="test/023")).entries[0].key == "test/024"


async def test_a_page_of_large_values_ends_early_and_says_so(coordination: Coordination) -> None:
    for number in range(5):
        await put(coordination, f"test/{number}", bytes(VALUE_BYTES_MAX))
    seen: list[str] = []
    more = True
    while more:
        page = await coordination.range("test/", after=seen[-1] if seen else "")
        assert 1 <= len(page.entries) < 5
        seen += [entry.key for entry in page.entries]
        more = page.more
    assert seen == [f"test/{number}" for number in range(5)]


# -------------------------------------------------------------------- bounds


async def test_bounds_are_checked(coordination: Coordination) -> None:
    for key in ("", "a b", "é", "x" * 513, "a\n"):
        with pytest.raises(InvalidArgument):
            await coordination.get(key)
        with pytest.raises(InvalidArgument):
            await coordination.range(key)
        with pytest.raises(InvalidArgument):
            await coordination.commit([], [Put(key, b"")])
        with pytest.raises(InvalidArgument):
            await anext(coordination.watch(key, 0))
    for limit in (0, RANGE_LIMIT_MAX + 1):
        with pytest.raises(InvalidArgument):
            await coordination.range("test/", limit=limit)
    for seconds in (0, LEASE_SECONDS_MAX + 1):
        with pytest.raises(InvalidArgument):
            await coordination.grant(seconds)
    too_large = bytes(VALUE_BYTES_MAX + 1)
    half = bytes(VALUE_BYTES_MAX // 2 + 100_000)
    many = [Put(f"test/{number}", b"") for number in range(COMMIT_KEYS_MAX + 1)]
    for puts in ([], [Put("test/a", too_large)], [Put("test/a", half), Put("test/b", half)], many):
        with pytest.raises(InvalidArgument):
            await coordination.commit([], puts)
    with pytest.raises(InvalidArgument):
        await coordination.commit([], [Put("test/a", b"")], ["test/a"])
    assert (await coordination.range("test/")).entries == ()


# -------------------------------------------------------------------- leases


async def test_keys_vanish_with_their_lease(store: Store) -> None:
    lease = await store.coordination.grant(LEASE_SECONDS)
    assert lease.seconds >= LEASE_SECONDS
    await put(store.coordination, "test/stays", b"")
    revision = await put(store.coordination, "test/goes", b"", lease.number)
    gone = await until_gone(store, "test/goes", revision)
    assert gone > revision
    assert await store.coordination.get("test/goes") is None
    assert await store.coordination.get("test/stays") is not None
    with pytest.raises(NotFound):
        await store.coordination.keep_alive(lease.number)
    with pytest.raises(NotFound):
        await put(store.coordination, "test/late", b"", lease.number)


async def test_a_lease_that_is_kept_alive_stays(store: Store) -> None:
    if store.clock is None:
        pytest.skip("takes real time: test_etcd.py has it")
    lease = await store.coordination.grant(LEASE_SECONDS)
    await put(store.coordination, "test/a", b"", lease.number)
    for _ in range(5):
        store.clock.advance(LEASE_SECONDS - 1)
        await store.coordination.keep_alive(lease.number)
    assert await store.coordination.get("test/a") is not None
    store.clock.advance(LEASE_SECONDS)
    assert await store.coordination.get("test/a") is None


async def test_revoking_ends_a_lease_at_once(coordination: Coordination) -> None:
    lease = await coordination.grant(LEASE_SECONDS_MAX)
    await coordination.commit([], [Put("test/a", b"", lease.number), Put("test/b", b"", lease.number)])
    await coordination.revoke(lease.number)
    assert (await coordination.range("test/")).entries == ()
    await coordination.revoke(lease.number)
    with pytest.raises(NotFound):
        await coordination.keep_alive(lease.number)


async def test_a_later_put_moves_a_key_off_its_lease(coordination: Coordination) -> None:
    lease = await coordination.grant(LEASE_SECONDS_MAX)
    await put(coordination, "test/a", b"leased", lease.number)
    await put(coordination, "test/a", b"free")
    await coordination.revoke(lease.number)
    entry = await coordination.get("test/a")
    assert entry is not None
    assert entry.value == b"free"


async def test_lease_numbers_cannot_be_guessed(coordination: Coordination) -> None:
    numbers = [(await coordination.grant(LEASE_SECONDS_MAX)).number for _ in range(8)]
    assert len(set(numbers)) == 8
    gaps = [abs(one - other) for one, other in itertools.pairwise(numbers)]
    assert min(gaps) > 1 << 40
    for number in numbers:
        await coordination.revoke(number)


# -------------------------------------------------------------------- watching


async def test_a_watch_tells_of_every_commit_below_its_prefix_in_order(coordination: Coordination) -> None:
    start = await put(coordination, "test/before", b"")
    async with aclosing(coordination.watch("test/", start)) as watching:
        one = await coordination.commit([], [Put("test/a", b"1"), Put("test/b", b"2")])
        await put(coordination, "other/a", b"")
        two = await coordination.commit([], [Put("test/a", b"3")], ["test/b"])
        seen = [await anext(watching), await anext(watching)]
    assert [changes.revision for changes in seen] == [one.revision, two.revision]
    assert set(seen[0].changes) == {Change("test/a", b"1"), Change("test/b", b"2")}
    assert set(seen[1].changes) == {Change("test/a", b"3"), Change("test/b", None)}


async def test_a_watch_that_waits_is_woken(coordination: Coordination) -> None:
    start = await put(coordination, "test/a", b"")
    async with aclosing(coordination.watch("test/", start)) as watching:
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        revision = await put(coordination, "test/a", b"new")
        changes = await waiting
    assert (changes.revision, changes.changes) == (revision, (Change("test/a", b"new"),))


async def test_several_watches_see_the_same(coordination: Coordination) -> None:
    start = await put(coordination, "test/a", b"")
    watches = [coordination.watch("test/", start) for _ in range(5)]
    waiting = [asyncio.ensure_future(anext(watching)) for watching in watches]
    await put(coordination, "test/a", b"new")
    seen = await asyncio.gather(*waiting)
    assert all(changes == seen[0] for changes in seen)
    for watching in watches:
        await watching.aclose()


# -------------------------------------------------------------------- the end


async def test_a_closed_store_is_unavailable(coordination: Coordination) -> None:
    await coordination.close()
    with pytest.raises(Unavailable):
        await coordination.get("test/a")
    with pytest.raises(Unavailable):
        await coordination.commit([], [Put("test/a", b"")])
