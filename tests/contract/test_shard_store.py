"""What every `ShardStore` does: the seam of coffre.node.store.seam, run against both twins."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    Conflict,
    IntegrityError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c, hash_of_shard
from coffre.node.disk import LmdbStore
from coffre.node.memory import MemoryStore
from coffre.node.store import (
    WINDOW_MS,
    Abort,
    Accept,
    DropRepair,
    Listing,
    Mark,
    Mutation,
    Outcome,
    PartitionDigest,
    QueueRepair,
    Settle,
    ShardStore,
    State,
    StoredCell,
    StoredVersion,
    StoreOptions,
    window_start_ms,
)

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=256 << 10)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def options() -> StoreOptions:
    return dataclasses.replace(OPTIONS)


@pytest.fixture(params=["memory", "lmdb"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, options: StoreOptions
) -> AsyncIterator[ShardStore]:
    store: ShardStore
    if request.param == "memory":
        store = MemoryStore(clock, options)
    else:
        store = await LmdbStore.open(tmp_path / "node", options, clock)
    yield store
    await store.close()


def stamp(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(8)


def name(key: str = "key", bucket: str = "bucket", tenant: str = "tenant") -> ObjectName:
    return ObjectName(tenant, bucket, key)


def accept(
    number: int,
    key: str = "key",
    *,
    shard_index: int | None = 2,
    cell: bytes = b"cell",
    tombstone: bool = False,
    lock: bool = False,
    staged: Sequence[StoredCell] = (),
    bucket: str = "bucket",
    tenant: str = "tenant",
    partition: int = 7,
    data_id: bytes = bytes(16),
) -> Accept:
    if tombstone:
        shard_index = None
    if shard_index is None or staged:
        cell = b""
    return Accept(
        name(key, bucket, tenant),
        partition,
        stamp(number),
        tombstone,
        data_id,
        b"manifest %d" % number,
        b"m" * 16,
        (3, 1, 2),
        shard_index,
        cell,
        crc32c(cell),
        hash_of_shard(blake3_128(one.data) for one in staged) if staged else blake3_128(cell),
        bool(staged),
        lock,
    )


def settle(number: int, key: str = "key", placement: tuple[int, ...] = ()) -> Settle:
    return Settle(name(key), 7, stamp(number), placement)


def abort(number: int, key: str = "key") -> Abort:
    return Abort(name(key), 7, stamp(number))


def mark(number: int, tenant: str = "tenant") -> Mark:
    return Mark(tenant, stamp(number))


async def one(store: ShardStore, mutation: Mutation) -> Outcome:
    (outcome,) = await store.apply([mutation])
    return outcome


async def put(store: ShardStore, *keys: str) -> None:
    for outcome in await store.apply([m for key in keys for m in (accept(1, key), settle(1, key))]):
        assert outcome.error is None


async def states(store: ShardStore, key: str = "key") -> list[tuple[int, State]]:
    versions = await store.read(name(key), every=True)
    return [(int.from_bytes(v.stamp[:8], "big"), v.state) for v in versions]


# ------------------------------------------------------------------ votes


async def test_an_accepted_version_is_read_back_whole(store: ShardStore) -> None:
    outcome = await one(store, accept(5))
    assert outcome == Outcome(State.ACCEPTED, has_shard=True)
    (version,) = await store.read(name(), want_cell=True)
    assert version.state is State.ACCEPTED
    assert (version.stamp, version.manifest, version.mac) == (stamp(5), b"manifest 5", b"m" * 16)
    assert (version.placement, version.shard_index, version.shard_bytes) == ((3, 1, 2), 2, 4)
    assert version.cell == StoredCell(0, crc32c(b"cell"), b"cell")
    assert not version.tombstone
    assert not version.damaged
    (bare,) = await store.read(name())
    assert bare.cell is None
    assert bare.manifest == b"manifest 5"


async def test_a_name_that_was_never_written_has_no_versions(store: ShardStore) -> None:
    assert await store.read(name("nothing")) == ()
    assert await store.read(name("nothing"), stamp=stamp(1)) == ()


async def test_an_empty_cell_is_a_shard(store: ShardStore) -> None:
    assert (await one(store, accept(1, cell=b""))).has_shard
    (version,) = await store.read(name(), want_cell=True)
    assert version.cell == StoredCell(0, 0, b"")


async def test_accept_again_changes_nothing(store: ShardStore) -> None:
    await one(store, accept(5))
    outcome = await one(store, dataclasses.replace(accept(5, cell=b"other"), manifest=b"other"))
    assert outcome == Outcome(State.ACCEPTED, has_shard=True)
    (version,) = await store.read(name(), want_cell=True)
    assert version.manifest == b"manifest 5"
    assert version.cell is not None
    assert version.cell.data == b"cell"


async def test_a_manifest_alone_gains_its_shard(store: ShardStore) -> None:
    assert await one(store, accept(5, shard_index=None)) == Outcome(State.ACCEPTED)
    assert await one(store, accept(5, shard_index=1, lock=True)) == Outcome(State.LOCKED, has_shard=True)
    (version,) = await store.read(name(), want_cell=True)
    assert (version.shard_index, version.shard_bytes) == (1, 4)
    assert (await store.status()).shards == 1


async def test_lock_raises_an_accepted_version(store: ShardStore) -> None:
    await one(store, accept(5))
    assert (await one(store, accept(5, lock=True))).state is State.LOCKED
    assert (await one(store, accept(5))).state is State.LOCKED
    await one(store, settle(5))
    assert (await one(store, accept(5, lock=True))).state is State.SETTLED


async def test_an_older_stamp_is_refused_and_told_the_newest(store: ShardStore) -> None:
    await store.apply([accept(5), accept(6)])
    outcome = await one(store, accept(4))
    assert isinstance(outcome.error, Conflict)
    assert outcome.newest_stamp == stamp(6)
    assert outcome.state is None
    assert (await one(store, accept(4, lock=True))).state is State.LOCKED


async def test_a_settled_version_stands_even_in_the_way_of_a_lock(store: ShardStore) -> None:
    await store.apply([accept(5), settle(5)])
    outcome = await one(store, accept(4, lock=True))
    assert isinstance(outcome.error, Conflict)
    assert outcome.newest_stamp == stamp(5)


async def test_an_aborted_version_stands_in_nobody_s_way(store: ShardStore) -> None:
    await one(store, abort(9))
    assert (await one(store, accept(5))).state is State.ACCEPTED


async def test_abort_before_accept_refuses_it_for_ever(store: ShardStore) -> None:
    assert await one(store, abort(5)) == Outcome(State.ABORTED)
    for lock in (False, True):
        outcome = await one(store, accept(5, lock=lock))
        assert isinstance(outcome.error, Conflict)
        assert outcome.state is State.ABORTED
        assert outcome.newest_stamp == b""
    (version,) = await store.read(name())
    assert (version.state, version.manifest, version.cell) == (State.ABORTED, b"", None)


async def test_abort_frees_an_accepted_version(store: ShardStore) -> None:
    await one(store, accept(5))
    assert await one(store, abort(5)) == Outcome(State.ABORTED)
    assert await states(store) == [(5, State.ABORTED)]
    status = await store.status()
    assert (status.shards, status.live_bytes) == (0, 0)


async def test_abort_does_not_move_a_locked_or_settled_vote(store: ShardStore) -> None:
    await one(store, accept(5, lock=True))
    outcome = await one(store, abort(5))
    assert (outcome.state, outcome.error) == (State.LOCKED, None)
    await one(store, settle(5))
    assert (await one(store, abort(5))).state is State.SETTLED


async def test_abort_below_a_settled_version_is_not_remembered(store: ShardStore) -> None:
    await store.apply([accept(5), settle(5)])
    assert (await one(store, abort(3))).state is State.ABORTED
    assert await states(store) == [(5, State.SETTLED)]


async def test_settle_trims_what_is_older(store: ShardStore) -> None:
    await store.apply([accept(1), accept(2), abort(3), accept(4), accept(5)])
    assert (await one(store, settle(4))).state is State.SETTLED
    assert await states(store) == [(5, State.ACCEPTED), (4, State.SETTLED)]


async def test_a_vote_to_keep_that_outlives_its_version_is_told_from_others(store: ShardStore) -> None:
    await store.apply([accept(1, lock=True), accept(2), settle(2), abort(3)])
    versions = await store.read(name("key"), every=True)
    assert [(v.stamp, v.state, v.was_locked) for v in versions] == [
        (stamp(3), State.ABORTED, False),
        (stamp(2), State.SETTLED, False),
        (stamp(1), State.ABORTED, True),
    ]


async def test_settle_keeps_versions_when_told(store: ShardStore, options: StoreOptions) -> None:
    options.versions_kept = 2
    await store.apply([accept(0), settle(0), accept(1), settle(1), accept(2), abort(3), accept(4), settle(4)])
    assert await states(store) == [(4, State.SETTLED), (2, State.ACCEPTED), (1, State.SETTLED)]


async def test_a_settled_tombstone_takes_everything_older(store: ShardStore, options: StoreOptions) -> None:
    options.versions_kept = 5
    await store.apply([accept(1), settle(1), accept(2), settle(2), accept(3, tombstone=True)])
    assert len(await states(store)) == 3
    await one(store, settle(3))
    (version,) = await store.read(name(), every=True)
    assert version.tombstone
    assert version.manifest == b"manifest 3"


async def test_settle_brings_the_true_placement(store: ShardStore) -> None:
    await store.apply([accept(1), settle(1, placement=(9, 1, 2))])
    assert (await store.read(name()))[0].placement == (9, 1, 2)
    await one(store, settle(1))
    assert (await store.read(name()))[0].placement == (9, 1, 2)


async def test_settle_of_the_unknown_and_the_aborted(store: ShardStore) -> None:
    assert await one(store, settle(1)) == Outcome()
    assert await states(store) == []
    await one(store, abort(1))
    await one(store, settle(1))
    assert await states(store) == []
    assert (await store.status()).objects == 0


@pytest.mark.parametrize("together", [True, False])
async def test_a_key_is_cleared_and_written_again(store: ShardStore, together: bool) -> None:
    async def run(*mutations: Mutation) -> None:
        for batch in [list(mutations)] if together else [[mutation] for mutation in mutations]:
            assert all(outcome.error is None for outcome in await store.apply(batch))

    await run(accept(1), abort(1), settle(1))
    assert [row async for rows in store.partition_rows(7) for row in rows] == []
    assert (await store.status()).objects == 0
    await run(abort(2), settle(2), accept(3), abort(3), settle(3), accept(4), settle(4))
    assert [row.name async for rows in store.partition_rows(7) for row in rows] == [name()]
    assert await states(store) == [(4, State.SETTLED)]
    assert (await store.status()).objects == 1
    assert (await store.partition_digest(7)).versions == 1
    await run(accept(1, "b"), abort(1, "b"), settle(1, "b"), accept(2, "b"))
    assert await states(store, "b") == [(2, State.ACCEPTED)]
    assert [entry.key for entry in (await store.list("tenant", "bucket", "")).entries] == ["b", "key"]


async def test_read_down_to_the_newest_settled_or_every_or_one(
    store: ShardStore, options: StoreOptions
) -> None:
    options.versions_kept = 9
    await store.apply([accept(1), settle(1), accept(2), settle(2), accept(3), abort(4)])
    shown = [v.stamp for v in await store.read(name())]
    assert shown == [stamp(4), stamp(3), stamp(2)]
    assert len(await store.read(name(), every=True)) == 4
    (only,) = await store.read(name(), stamp=stamp(1), want_cell=True)
    assert only.stamp == stamp(1)
    assert only.cell is not None


async def test_one_bad_mutation_does_not_touch_the_others(store: ShardStore) -> None:
    bad = dataclasses.replace(accept(1, "bad"), cell_crc=1)
    outcomes = await store.apply([accept(1, "a"), bad, accept(1, "c"), settle(1, "c")])
    assert [o.error is None for o in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1].error, IntegrityError)
    assert await states(store, "bad") == []
    assert await states(store, "c") == [(1, State.SETTLED)]


@pytest.mark.parametrize(
    "mutation",
    [
        dataclasses.replace(accept(1), stamp=b"short"),
        dataclasses.replace(accept(1), partition=1 << 16),
        dataclasses.replace(accept(1), manifest=b""),
        dataclasses.replace(accept(1), manifest=bytes(1 << 20)),
        dataclasses.replace(accept(1), data_id=b""),
        dataclasses.replace(accept(1), placement=(1 << 16,)),
        dataclasses.replace(accept(1), shard_index=255),
        dataclasses.replace(accept(1), shard_index=None),
        dataclasses.replace(accept(1), tombstone=True),
        dataclasses.replace(settle(1), placement=(1,) * 256),
        dataclasses.replace(abort(1), partition=-1),
        dataclasses.replace(mark(1), stamp=b""),
        dataclasses.replace(mark(1), tenant="a\0b"),
        dataclasses.replace(mark(1), tenant=""),
    ],
    ids=lambda m: type(m).__name__,
)
async def test_a_mutation_that_cannot_be_is_refused(store: ShardStore, mutation: Mutation) -> None:
    assert isinstance((await one(store, mutation)).error, InvalidArgument)
    assert await states(store) == []


async def test_an_object_does_not_change_its_partition(store: ShardStore) -> None:
    await one(store, accept(1, partition=3))
    assert isinstance((await one(store, accept(2, partition=4))).error, InvalidArgument)


async def test_a_key_has_a_bounded_number_of_unsettled_versions(store: ShardStore) -> None:
    for start in range(1, 4097, 1024):
        await store.apply([abort(number) for number in range(start, start + 1024)])
    assert isinstance((await one(store, abort(5000))).error, ResourceExhausted)
    assert isinstance((await one(store, accept(5000))).error, ResourceExhausted)
    assert len(await store.read(name(), every=True)) == 4096


async def test_tenants_and_buckets_do_not_meet(store: ShardStore) -> None:
    await one(store, accept(1, tenant="a", bucket="b.c", cell=b"one"))
    await one(store, accept(2, tenant="a.b", bucket="c", cell=b"two"))
    (version,) = await store.read(name(bucket="b.c", tenant="a"))
    assert version.stamp == stamp(1)
    listing = await store.list("a.b", "c", "")
    assert [entry.versions[0].stamp for entry in listing.entries] == [stamp(2)]


async def test_the_buckets_of_a_tenant(store: ShardStore) -> None:
    for place, (tenant, bucket) in enumerate(
        [("a", "b.c"), ("a", "b"), ("a.b", "c"), ("a", "x"), ("aa", "b")]
    ):
        await one(store, accept(place + 1, tenant=tenant, bucket=bucket))
        await one(store, accept(place + 1, "another key", tenant=tenant, bucket=bucket))
    assert await store.buckets("a") == ("b", "b.c", "x")
    assert await store.buckets("a.b") == ("c",)
    assert await store.buckets("nobody") == ()
    assert await store.buckets("a", limit=2) == ("b", "b.c")
    assert await store.buckets("a", after=b"b") == ("b.c", "x")
    assert await store.buckets("a", after=b"b.c", limit=1) == ("x",)
    assert await store.buckets("a", after=b"x") == ()
    assert await store.buckets("a", after=b"\xff\x00") == ()


# ------------------------------------------------------------------ marks


async def shown(store: ShardStore) -> list[list[tuple[int, State]]]:
    """The versions of "key" by each way to read them; they must not differ."""
    listing = await store.list("tenant", "bucket", "")
    rows = [row async for rows in store.partition_rows(7) for row in rows]
    listed = [entry.versions for entry in listing.entries if entry.key == "key"]
    partition = [row.versions for row in rows if row.name == name()]
    every = await store.read(name(), every=True)
    single = tuple([v for version in every for v in await store.read(name(), stamp=version.stamp)])
    found = [*listed, await store.read(name()), *partition, every, single]
    return [[(int.from_bytes(v.stamp[:8], "big"), v.state) for v in versions] for versions in found]


async def test_a_mark_settles_what_its_writer_wrote_up_to_it(store: ShardStore) -> None:
    await store.apply(
        [accept(1, "a"), accept(2, "b", lock=True), accept(3, "c"), accept(2, "d", tombstone=True)]
    )
    assert await one(store, mark(2)) == Outcome()
    assert await states(store, "a") == [(1, State.SETTLED)]
    assert await states(store, "b") == [(2, State.SETTLED)]
    assert await states(store, "c") == [(3, State.ACCEPTED)]
    assert await states(store, "d") == [(2, State.SETTLED)]
    await one(store, accept(2, "later"))  # a copy that comes after the mark is established all the same
    assert await states(store, "later") == [(2, State.SETTLED)]


async def test_every_read_knows_the_marks(store: ShardStore) -> None:
    await store.apply([accept(1), accept(2), abort(3), accept(4), mark(2)])
    down, whole = [(4, State.ACCEPTED), (3, State.ABORTED), (2, State.SETTLED)], [(1, State.SETTLED)]
    assert await shown(store) == [down, down, down + whole, down + whole, down + whole]


async def test_a_mark_is_its_writer_s_and_its_tenant_s(store: ShardStore) -> None:
    other = b"\0" * 15 + b"\1"
    await store.apply([accept(1), accept(1, tenant="other"), Mark("tenant", stamp(9)[:8] + other[8:])])
    assert await states(store) == [(1, State.ACCEPTED)]
    await one(store, Mark("other", stamp(9)))
    assert await states(store) == [(1, State.ACCEPTED)]
    (version,) = await store.read(name(tenant="other"))
    assert version.state is State.SETTLED


async def test_a_mark_only_moves_up(store: ShardStore) -> None:
    await store.apply([accept(5), mark(6), mark(4)])
    assert await states(store) == [(5, State.SETTLED)]
    await one(store, mark(3))
    assert await states(store) == [(5, State.SETTLED)]


async def test_a_mark_leaves_votes_to_give_up_alone(store: ShardStore) -> None:
    await store.apply([abort(5), mark(9)])
    assert await states(store) == [(5, State.ABORTED)]
    assert isinstance((await one(store, accept(5))).error, Conflict)


async def test_what_a_mark_settles_counts_where_votes_are_decided(store: ShardStore) -> None:
    outcomes = await store.apply([accept(5), mark(5), abort(5), accept(4, lock=True), accept(5, lock=True)])
    assert outcomes[2].state is State.SETTLED
    assert isinstance(outcomes[3].error, Conflict)
    assert outcomes[3].newest_stamp == stamp(5)
    assert outcomes[4].state is State.SETTLED
    assert (await one(store, abort(5))).state is State.SETTLED  # in a later transaction, too
    assert (await one(store, abort(3))).state is State.ABORTED
    assert await states(store) == [(5, State.SETTLED)]
    await one(store, QueueRepair(name(), 7, stamp(4), 0))
    assert (await store.status()).repair_queue == 0


async def test_a_mark_trims_nothing_and_a_settle_below_it_does(store: ShardStore) -> None:
    await store.apply([accept(1), abort(2), accept(3), mark(3)])
    assert len(await states(store)) == 3
    assert (await one(store, settle(3))).state is State.SETTLED
    assert await states(store) == [(3, State.SETTLED)]
    status = await store.status()
    assert (status.shards, status.objects) == (1, 1)
    assert (await store.partition_digest(7)).versions == 1


async def test_settle_of_what_a_mark_settled_brings_the_placement(store: ShardStore) -> None:
    await store.apply([accept(1), mark(1), settle(1, placement=(9, 1, 2))])
    assert (await store.read(name()))[0].placement == (9, 1, 2)


async def test_an_accept_tells_whether_it_replaces(store: ShardStore, options: StoreOptions) -> None:
    assert not (await one(store, accept(5))).replaces
    assert not (await one(store, accept(5, lock=True))).replaces
    assert (await one(store, accept(6))).replaces
    await one(store, settle(6))
    assert not (await one(store, accept(6))).replaces
    await one(store, abort(9))
    assert not (await one(store, accept(6))).replaces  # a Settle of it leaves the newer vote alone
    assert (await one(store, accept(10, tombstone=True))).replaces
    options.versions_kept = 2
    await store.apply([accept(1, "b"), settle(1, "b")])
    assert not (await one(store, accept(2, "b"))).replaces
    assert not (await one(store, accept(3, "b"))).replaces  # 2 may be given up yet
    await one(store, settle(2, "b"))
    assert (await one(store, accept(3, "b"))).replaces
    assert not (await one(store, accept(2, "b", lock=True))).replaces


# ------------------------------------------------------------------ listing


async def keys(store: ShardStore, prefix: str = "", **how: object) -> list[str]:
    """Every key and common prefix, page by page."""
    found: list[str] = []
    after, after_prefix = b"", False
    while True:
        page: Listing = await store.list(
            "tenant",
            "bucket",
            prefix,
            after=after,
            after_prefix=after_prefix,
            **how,  # type: ignore[arg-type]
        )
        found += [entry.common_prefix or entry.key for entry in page.entries]
        if not page.more:
            return found
        last = page.entries[-1]
        after, after_prefix = (last.common_prefix or last.key).encode(), bool(last.common_prefix)


STEM = "x" * 399
AWKWARD = [
    "a", "a\0", "a\0b", "a\0\0", "a/", "a/b", "a/b/c", "aa", "é", "😀", "😀😀", "\uffff", "\U00010000",
    "\x7f",
    "z" * 1024, "z" * 1023, "z" * 400, "z" * 401, "z" * 399, "z" * 800, "z" * 801, "z" * 799 + "y",
    STEM, STEM + "y", STEM + "y\0", STEM + "y/", STEM + "y/z", STEM + "é", STEM + "z", STEM + "y" * 500,
    "é" * 200, "é" * 200 + "a", "é" * 200 + "\0", "é" * 512, "/", "//", "/a",
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_keys_come_in_the_order_of_their_bytes(store: ShardStore, limit: int) -> None:
    shuffled = AWKWARD[:]
    random.Random(4).shuffle(shuffled)
    await put(store, *shuffled)
    assert await keys(store, limit=limit) == sorted(AWKWARD, key=str.encode)


@pytest.mark.parametrize(
    "prefix",
    ["a", "a/", "z", "z" * 400, "z" * 401, "z" * 1024, STEM, STEM + "y", "é" * 200, "é", "nothing", "/"],
)
@pytest.mark.parametrize("delimiter", ["", "/", "y", "zz"])
async def test_prefixes_and_delimiters(store: ShardStore, prefix: str, delimiter: str) -> None:
    await put(store, *AWKWARD)
    expected: list[str] = []
    for key in sorted(AWKWARD, key=str.encode):
        if not key.startswith(prefix):
            continue
        place = key.find(delimiter, len(prefix)) if delimiter else -1
        shown = key if place < 0 else key[: place + len(delimiter)]
        if not expected or expected[-1] != shown or place < 0:
            expected.append(shown)
    for limit in (2, 1000):
        assert await keys(store, prefix, delimiter=delimiter, limit=limit) == expected


async def test_a_listing_shows_versions_and_leaves_out_the_aborted(store: ShardStore) -> None:
    await store.apply(
        [accept(1, "a"), settle(1, "a"), accept(2, "a"), abort(1, "b"), accept(3, "c", tombstone=True)]
    )
    listing = await store.list("tenant", "bucket", "")
    assert [entry.key for entry in listing.entries] == ["a", "c"]
    assert [v.manifest for v in listing.entries[0].versions] == [b"manifest 2", b"manifest 1"]
    assert listing.entries[1].versions[0].tombstone
    assert not listing.more


async def test_a_listing_has_manifests_and_cells_of_any_size_around_them(
    store: ShardStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Written out of the order of keys, so that neighbours on a disk are not neighbours in the page."""
    rng = random.Random(5)
    manifests: dict[str, bytes] = {}
    for batch in range(6):
        accepts = []
        for number in rng.sample(range(1000), 60):
            key = f"{batch} {number:04}"
            manifests[key] = rng.randbytes(rng.choice([1, 170, 170, 170, 1900, 2100, 9000]))
            cell = bytes(rng.choice([0, 10, 700, 3000, 20_000]))
            accepts.append(dataclasses.replace(accept(1, key, cell=cell), manifest=manifests[key]))
        assert all(outcome.error is None for outcome in await store.apply(accepts))
    listing = await store.list("tenant", "bucket", "")
    assert [entry.key for entry in listing.entries] == sorted(manifests)
    for entry in listing.entries:
        assert [v.manifest for v in entry.versions] == [manifests[entry.key]]
        assert not entry.versions[0].damaged
    assert {row.name.key async for rows in store.partition_rows(7) for row in rows} == set(manifests)
    assert caplog.records == []  # a read of the wrong place would be noticed, told and made good


async def test_a_common_prefix_has_a_live_key(store: ShardStore) -> None:
    await store.apply([accept(1, "a/1", tombstone=True), accept(1, "a/2"), accept(1, "b/1", tombstone=True)])
    listing = await store.list("tenant", "bucket", "", delimiter="/")
    assert [(entry.common_prefix, entry.key) for entry in listing.entries] == [("a/", "a/2")]


async def test_more_says_whether_entries_follow(store: ShardStore) -> None:
    await put(store, "a", "b", "c/1", "c/2")
    assert (await store.list("tenant", "bucket", "", limit=2)).more
    assert not (await store.list("tenant", "bucket", "", limit=4)).more
    assert not (await store.list("tenant", "bucket", "", limit=3, delimiter="/")).more
    after_c = await store.list("tenant", "bucket", "", after=b"c/", after_prefix=True)
    assert after_c.entries == ()
    assert [e.key for e in (await store.list("tenant", "bucket", "", after=b"c/")).entries] == ["c/1", "c/2"]
    assert (await store.list("tenant", "bucket", "", after=b"\xff\xff", after_prefix=True)).entries == ()


async def test_a_page_of_deleted_keys_is_bounded_and_goes_on(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coffre.node.store.listing.SCAN_MAX", 8)
    deleted = [accept(1, f"a/{number:02}", tombstone=True) for number in range(30)]
    await store.apply([*deleted, accept(1, "a/99"), accept(1, "b")])
    pages, after, after_prefix = 0, b"", False
    prefixes, found = [], []
    while True:
        page = await store.list("tenant", "bucket", "", after=after, after_prefix=after_prefix, delimiter="/")
        pages += 1
        found += [entry.key for entry in page.entries if not entry.versions[0].tombstone]
        prefixes += [entry.common_prefix for entry in page.entries if entry.common_prefix]
        if not page.more:
            break
        last = page.entries[-1]
        after, after_prefix = (last.common_prefix or last.key).encode(), bool(last.common_prefix)
    assert prefixes == ["a/"]
    assert 3 < pages < 10
    assert found == ["a/99", "b"]


async def test_settled_tombstones_count_for_no_page(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted keys are not looked at: they would count for `SCAN_MAX`."""
    monkeypatch.setattr("coffre.node.store.listing.SCAN_MAX", 8)
    deleted = [f"a/{number:02}" for number in range(30)]
    await put(store, *deleted)
    await store.apply([settle(1, key) for key in deleted])
    await store.apply([accept(2, key, tombstone=True) for key in deleted])
    await store.apply([settle(2, key) for key in deleted])
    absent = [f"b/{number:02}" for number in range(30)]  # what was deleted had never been there
    outcomes = await store.apply([accept(2, key, tombstone=True) for key in absent])
    assert all(outcome.replaces for outcome in outcomes)  # so that its writer says when it is settled
    await store.apply([mark(2), *(settle(2, key) for key in absent)])
    await put(store, "c", "d")
    for limit, delimiter in ((1, ""), (1000, ""), (1, "/")):
        page = await store.list("tenant", "bucket", "", limit=limit, delimiter=delimiter)
        assert [entry.key for entry in page.entries] == ["c", "d"][:limit]
    assert {row.name.key async for rows in store.partition_rows(7) for row in rows} == {
        *deleted,
        *absent,
        "c",
        "d",
    }
    assert [v.state for v in await store.read(name("a/00"))] == [State.SETTLED]
    await store.apply([accept(3, "a/05")])
    assert [entry.key for entry in (await store.list("tenant", "bucket", "", limit=2)).entries] == [
        "a/05",
        "c",
    ]
    await store.apply([abort(3, "a/05")])
    assert [entry.key for entry in (await store.list("tenant", "bucket", "", limit=2)).entries] == ["c", "d"]


async def test_a_tombstone_that_is_not_settled_is_listed_with_what_it_deletes(store: ShardStore) -> None:
    await put(store, "k")
    await store.apply([settle(1, "k")])
    await store.apply([accept(2, "k", tombstone=True)])
    (entry,) = (await store.list("tenant", "bucket", "")).entries
    assert [(v.tombstone, v.state) for v in entry.versions] == [
        (True, State.ACCEPTED),
        (False, State.SETTLED),
    ]
    await store.apply([mark(2)])  # which settles it, too
    assert (await store.list("tenant", "bucket", "")).entries == ()


async def test_a_page_needs_a_limit(store: ShardStore) -> None:
    with pytest.raises(InvalidArgument):
        await store.list("tenant", "bucket", "", limit=0)


# ------------------------------------------------------------------ large shards


def cells(count: int, size_bytes: int = 1000, seed: int = 1) -> list[StoredCell]:
    rng = random.Random(seed)
    data = [rng.randbytes(size_bytes + segment) for segment in range(count)]
    return [StoredCell(segment, crc32c(data), data) for segment, data in enumerate(data)]


async def stage(
    store: ShardStore, shard: list[StoredCell], data_id: bytes = bytes(16), index: int = 2
) -> None:
    writer = await store.stage("tenant", data_id, index)
    for start in range(0, len(shard), 3):
        await writer.write(shard[start : start + 3])
    staged = await writer.commit()
    await writer.discard()
    assert staged.cell_count == len(shard)
    assert staged.size_bytes == sum(len(cell.data) for cell in shard)
    assert staged.shard_hash == hash_of_shard(blake3_128(cell.data) for cell in shard)


async def read_all(
    store: ShardStore, number: int = 1, index: int = 2, first: int = 0, count: int = 0, key: str = "key"
) -> list[StoredCell]:
    found: list[StoredCell] = []
    async for chunk in store.read_cells(name(key), stamp(number), index, first, count):
        assert sum(len(cell.data) for cell in chunk) <= 1 << 20 or len(chunk) == 1
        found += chunk
    return found


async def test_a_staged_shard_is_adopted_and_read(store: ShardStore) -> None:
    shard = cells(10, 200_000)
    await stage(store, shard)
    assert await one(store, accept(1, staged=shard)) == Outcome(State.ACCEPTED, has_shard=True)
    (version,) = await store.read(name(), want_cell=True)
    assert version.cell is None
    assert (version.shard_bytes, version.shard_index) == (sum(len(c.data) for c in shard), 2)
    assert await read_all(store) == shard
    assert await read_all(store, first=3, count=4) == shard[3:7]
    assert await read_all(store, first=8, count=40) == shard[8:]
    assert await read_all(store, first=10) == []


async def test_a_one_cell_shard_reads_as_cells(store: ShardStore) -> None:
    await one(store, accept(1))
    assert await read_all(store) == [StoredCell(0, crc32c(b"cell"), b"cell")]


async def test_cells_of_what_is_not_here(store: ShardStore) -> None:
    await store.apply([accept(1), accept(2, shard_index=None), abort(3)])
    for number, index in ((1, 3), (2, 2), (3, 2), (4, 2)):
        with pytest.raises(NotFound):
            await read_all(store, number, index)


async def test_another_shard_than_the_one_that_is_held_is_not_counted(store: ShardStore) -> None:
    """Who sends a shard counts it by the answer; counted twice, k of them would be fewer."""
    await one(store, accept(1, shard_index=3))
    assert await one(store, accept(1, shard_index=1)) == Outcome(State.ACCEPTED)
    assert await one(store, accept(1, shard_index=3)) == Outcome(State.ACCEPTED, has_shard=True)
    assert await one(store, accept(1, shard_index=None)) == Outcome(State.ACCEPTED, has_shard=True)
    assert await one(store, accept(1, shard_index=1, lock=True)) == Outcome(State.LOCKED)
    await stage(store, cells(2))
    assert (await one(store, accept(1, staged=cells(2), lock=True))).has_shard is False
    assert isinstance((await one(store, accept(1, shard_index=4, staged=cells(2)))).error, NotFound)


async def test_a_shard_that_was_not_staged(store: ShardStore) -> None:
    assert isinstance((await one(store, accept(1, staged=cells(2)))).error, NotFound)
    assert await states(store) == []
    assert await one(store, accept(1, staged=cells(2), lock=True)) == Outcome(State.LOCKED)
    await stage(store, cells(2))
    assert (await one(store, accept(1, staged=cells(2), lock=True))).has_shard
    assert (await one(store, accept(1, staged=cells(2)))).has_shard  # again: adopted long ago


async def test_another_shard_than_the_one_that_the_manifest_names_is_not_taken(store: ShardStore) -> None:
    """Whatever its checksum says: a hash is what no forger can hit."""
    forged = dataclasses.replace(accept(1, "a"), cell=b"evil", cell_crc=crc32c(b"evil"))
    assert isinstance((await one(store, forged)).error, IntegrityError)
    nameless = dataclasses.replace(accept(1, "a"), shard_hash=b"")
    assert isinstance((await one(store, nameless)).error, IntegrityError)
    assert await states(store, "a") == []
    await stage(store, cells(2, seed=1))
    assert isinstance((await one(store, accept(1, staged=cells(2, seed=2)))).error, NotFound)
    assert (await one(store, accept(1, staged=cells(2, seed=2), lock=True))).has_shard is False
    assert (await one(store, accept(1, staged=cells(2, seed=1)))).has_shard


async def test_cells_follow_one_another_and_verify(store: ShardStore) -> None:
    shard = cells(4)
    writer = await store.stage("tenant", bytes(16), 2)
    await writer.write(shard[:2])
    with pytest.raises(InvalidArgument):
        await writer.write(shard[3:])
    await writer.discard()
    writer = await store.stage("tenant", bytes(16), 2)
    with pytest.raises(IntegrityError):
        await writer.write([StoredCell(0, 1, b"data")])
    await writer.discard()
    assert isinstance((await one(store, accept(1, staged=cells(2)))).error, NotFound)


async def test_an_abandoned_shard_leaves_nothing(store: ShardStore) -> None:
    writer = await store.stage("tenant", bytes(16), 2)
    await writer.write(cells(3))
    await writer.discard()
    await store.reclaim()
    assert (await store.status()).disk_bytes < 1 << 20
    assert isinstance((await one(store, accept(1, staged=cells(2)))).error, NotFound)


async def test_a_shard_staged_twice_is_the_last_one(store: ShardStore) -> None:
    await stage(store, cells(2, seed=1))
    await stage(store, cells(3, seed=2))
    await one(store, accept(1, staged=cells(3, seed=2)))
    assert await read_all(store) == cells(3, seed=2)


async def test_a_staged_shard_is_dropped(store: ShardStore) -> None:
    await store.drop_staged("tenant", bytes(16), 2)
    await stage(store, cells(2))
    await store.drop_staged("other", bytes(16), 2)
    await store.drop_staged("tenant", bytes(16), 2)
    assert isinstance((await one(store, accept(1, staged=cells(2)))).error, NotFound)


async def test_drop_does_not_touch_what_was_adopted(store: ShardStore) -> None:
    await stage(store, cells(2))
    await one(store, accept(1, staged=cells(2)))
    await store.drop_staged("tenant", bytes(16), 2)
    assert await read_all(store) == cells(2)


async def test_a_staged_shard_expires(store: ShardStore, clock: ManualClock, options: StoreOptions) -> None:
    await stage(store, cells(2))
    await stage(store, cells(2), index=3)
    await one(store, accept(1, staged=cells(2)))
    clock.advance(options.staging_expiry + 1)
    while await store.reclaim():
        pass
    assert isinstance((await one(store, accept(2, staged=cells(2), shard_index=3))).error, NotFound)
    assert await read_all(store) == cells(2)


async def test_an_aborted_version_gives_its_staged_shard_back(store: ShardStore) -> None:
    await stage(store, cells(2))
    await store.apply([accept(1, staged=cells(2)), abort(1)])
    assert await one(store, accept(2, staged=cells(2))) == Outcome(
        State.ACCEPTED, has_shard=True, replaces=True
    )
    assert await read_all(store, 2) == cells(2)


async def test_a_version_that_lost_a_race_gives_its_staged_shard_back_when_it_is_trimmed(
    store: ShardStore,
) -> None:
    """Its writer was told that a newer version stands in the way, and tries again above that one."""
    await stage(store, cells(2))
    await store.apply([accept(1, staged=cells(2)), accept(2), settle(2)])
    assert await states(store) == [(2, State.SETTLED)]
    assert (await one(store, accept(3, staged=cells(2)))).has_shard
    assert await read_all(store, 3) == cells(2)


async def test_a_large_shard_that_was_established_is_freed_when_it_is_trimmed(store: ShardStore) -> None:
    await stage(store, cells(2))
    await store.apply([accept(1, staged=cells(2)), settle(1), accept(2), settle(2)])
    assert isinstance((await one(store, accept(3, staged=cells(2)))).error, NotFound)
    assert await states(store) == [(2, State.SETTLED)]


async def test_data_staged_for_one_tenant_is_not_another_s(store: ShardStore) -> None:
    await stage(store, cells(2))
    assert isinstance((await one(store, accept(1, staged=cells(2), tenant="other"))).error, NotFound)


async def test_a_bad_shard_id_cannot_be_staged(store: ShardStore) -> None:
    with pytest.raises(InvalidArgument):
        await store.stage("tenant", b"short", 2)
    with pytest.raises(InvalidArgument):
        await store.stage("tenant", bytes(16), 255)


# ------------------------------------------------------------------ partitions, repair


async def test_digests_tell_content_and_not_its_order(store: ShardStore) -> None:
    assert await store.partition_digest(7) == PartitionDigest()
    await store.apply([accept(1, "a"), accept(1, "b"), abort(1, "c")])
    first = await store.partition_digest(7)
    assert first.versions == 2
    await store.apply([accept(2, "a"), settle(2, "a")])
    assert (await store.partition_digest(7)).digest != first.digest
    twin = MemoryStore(ManualClock())
    await twin.apply(
        [accept(2, "a", shard_index=0), accept(1, "b", shard_index=None, lock=True), settle(1, "b")]
    )
    lacking = await twin.partition_digest(7)
    assert lacking.versions == 2
    assert lacking != await store.partition_digest(7)  # the shard of "b" is not there
    await twin.apply([accept(1, "b", shard_index=1)])
    assert await twin.partition_digest(7) == await store.partition_digest(7)
    assert await store.digests() == {7: await store.partition_digest(7)}
    await store.apply([abort(1, "b")])
    assert (await store.partition_digest(7)).versions == 1
    tombstone = MemoryStore(ManualClock())
    await tombstone.apply([accept(2, "a", tombstone=True)])
    assert (await tombstone.partition_digest(7)).digest != (await store.partition_digest(7)).digest
    assert await store.partition_digest(8) == PartitionDigest()
    await store.apply([abort(9, "d"), accept(9, "e", partition=9)])
    assert set(await store.digests()) == {7, 9}


async def test_digests_leave_out_what_is_young(store: ShardStore, clock: ManualClock) -> None:
    """A store that took a new version, one that trimmed the old one for it, and one that has not heard of it agree."""
    now_ms = clock.unixtime_ms()
    boundary_ms = window_start_ms(now_ms)
    old, young = (boundary_ms - 1) << 16, now_ms << 16

    await store.apply([accept(old, "a"), settle(old, "a"), accept(old, "b")])
    settled = (await store.digests())[7].digest
    assert (await store.digests(boundary_ms))[7].digest == settled
    await store.apply(
        [accept(young, "a"), accept(young, "new", tombstone=True), accept(young, "x", partition=9)]
    )
    assert (await store.digests())[7].digest != settled
    found = await store.digests(boundary_ms)
    assert found[7] == PartitionDigest(settled, 4)
    assert found[9] == PartitionDigest(bytes(16), 1)  # there is something all the same
    await store.apply([settle(young, "a")])  # trims the old one
    assert (await store.digests(boundary_ms))[7] == PartitionDigest(settled, 3)
    assert (await store.digests(boundary_ms + WINDOW_MS))[7] == (await store.digests())[7]
    await store.apply([accept(old, "late")])  # it was missing, and is old: that shows
    assert (await store.digests(boundary_ms))[7].digest != settled
    clock.advance(1000)
    await store.apply([accept((clock.unixtime_ms()) << 16, "b")])
    assert (
        len((await store.digests(boundary_ms))[7].digest) == 16
    )  # what is too long ago is not known any more
    assert (await store.digests(boundary_ms))[7].digest == (await store.digests(boundary_ms + 900_000))[
        7
    ].digest


async def test_every_key_of_a_partition(store: ShardStore) -> None:
    await put(store, *AWKWARD)
    await one(store, accept(1, "elsewhere", partition=8))
    await one(store, accept(1, "other", bucket="b"))
    await one(store, accept(2, "a"))
    rows = {row.name: row.versions async for rows in store.partition_rows(7) for row in rows}
    assert set(rows) == {*map(name, AWKWARD), name("other", "b")}
    assert [v.stamp for v in rows[name("a")]] == [stamp(2), stamp(1)]
    assert rows[name("a")][0] == StoredVersion(State.ACCEPTED, stamp(2), shard_index=2)
    parts = [
        {row.name async for some in store.partition_rows(7, slot=slot, slots=3) for row in some}
        for slot in range(3)
    ]
    assert set.union(*parts) == set(rows)
    assert sum(map(len, parts)) == len(rows)
    assert max(map(len, parts)) < len(rows)


async def test_the_repair_queue_remembers_and_forgets(store: ShardStore) -> None:
    await store.apply([accept(2), settle(2), accept(5, "long" * 250)])
    wanted = [
        QueueRepair(name(), 7, stamp(2), 1),
        QueueRepair(name(), 7, stamp(2), None),
        QueueRepair(name("unknown"), 7, stamp(9), 0),
        QueueRepair(name("long" * 250), 7, stamp(5), 2),
    ]
    await store.apply([*wanted, wanted[0], QueueRepair(name(), 7, stamp(1), 1)])
    found = [repair async for repair in store.repair_queue()]
    assert len(found) == 4
    assert set(found) == set(wanted)
    assert (await store.status()).repair_queue == 4
    done = [DropRepair(repair.name, 7, repair.stamp, repair.shard_index) for repair in wanted[1:]]
    await store.apply([done[1], done[1], done[2]])
    assert {repair async for repair in store.repair_queue()} == set(wanted[:2])
    await store.apply([accept(3, tombstone=True), settle(3)])
    assert [repair async for repair in store.repair_queue()] == []
    assert (await store.status()).repair_queue == 0


async def test_an_accept_that_brings_the_shard_is_a_repair(store: ShardStore) -> None:
    await one(store, accept(1, shard_index=None))
    await one(store, QueueRepair(name(), 7, stamp(1), 2))
    await one(store, accept(1, lock=True))
    assert [repair async for repair in store.repair_queue()] == []


# ------------------------------------------------------------------ status, life


async def test_counters(store: ShardStore) -> None:
    empty = await store.status()
    assert (empty.objects, empty.shards, empty.live_bytes, empty.writable) == (0, 0, 0, True)
    await store.apply([accept(1, "a"), accept(1, "b", shard_index=None), abort(1, "c")])
    await stage(store, cells(3))
    await one(store, accept(1, "d", staged=cells(3)))
    status = await store.status()
    assert (status.objects, status.shards, status.damaged) == (4, 2, 0)
    assert status.live_bytes > 3000
    assert status.disk_bytes > 3000
    assert status.syncs > empty.syncs
    await store.apply([settle(1, key) for key in "abd"])
    await store.apply([m for key in "abd" for m in (accept(2, key, tombstone=True), settle(2, key))])
    after = await store.status()
    assert (after.objects, after.shards) == (4, 0)
    assert after.live_bytes < 1000


async def test_a_full_store_refuses_writes_and_takes_deletes(
    store: ShardStore, options: StoreOptions
) -> None:
    await put(store, "a", "b")
    writer = await store.stage("tenant", bytes(16), 2)
    await writer.write(cells(1))
    options.capacity_bytes = 1
    assert isinstance((await one(store, accept(2, "c"))).error, ResourceExhausted)
    assert (await one(store, accept(1, "a"))).error is None
    with pytest.raises(ResourceExhausted):
        await writer.write(cells(2)[1:])
    await writer.discard()
    outcomes = await store.apply(
        [abort(3, "b"), accept(2, "a", tombstone=True), settle(2, "a"), accept(2, "d")]
    )
    assert [type(o.error) for o in outcomes] == [type(None)] * 3 + [ResourceExhausted]
    assert (await store.read(name("b"), want_cell=True))[-1].cell is not None
    assert not (await store.status()).writable
    options.capacity_bytes = None
    assert (await one(store, accept(2, "c"))).error is None


async def test_a_closed_store_says_so(store: ShardStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.apply([accept(1)])
    with pytest.raises(Unavailable):
        await store.read(name())
    with pytest.raises(Unavailable):
        await store.list("tenant", "bucket", "")
    with pytest.raises(Unavailable):
        await store.status()
