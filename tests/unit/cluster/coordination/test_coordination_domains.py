"""What is built on coordination: maps, buckets, tenants, sessions, locks, repairs, liveness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import (
    Bucket,
    Entry,
    KeyLocks,
    MemoryCoordination,
    NodeStatus,
    Page,
    Put,
    Session,
    Tenant,
    _engine,
    alive_nodes,
    announce,
    create_bucket,
    create_tenant,
    delete_bucket,
    list_buckets,
    list_tenants,
    newest_map,
    publish_map,
    suspend_tenant,
    watch_maps,
    watch_tenants,
)
from coffre.cluster.coordination.buckets import get_bucket
from coffre.cluster.coordination.locks import lock_prefix
from coffre.cluster.coordination.maps import map_of_epoch
from coffre.cluster.coordination.repairs import claim_repair, release_repair, repairs, report_repair
from coffre.cluster.coordination.sessions import SESSION_SECONDS
from coffre.cluster.coordination.tenants import get_tenant
from coffre.cluster.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    NotFound,
    StaleMap,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from coffre.cluster.identity import NodeAttributes, read_certificate
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy, sign_map
from coffre.cluster.names import ObjectName
from coffre.cluster.testing import Members, make_members
from coffre.proto import coordination_pb2 as pb
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.contract.coordination_stores import seeded_entropy

NAME = ObjectName("clinic", "records", "patient-1")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> AsyncGenerator[MemoryCoordination]:
    opened = MemoryCoordination(clock, seeded_entropy("store"))
    yield opened
    await opened.close()


async def turn(count: int = 50) -> None:
    """Let every task run until it waits for something."""
    for _ in range(count):
        await asyncio.sleep(0)


# -------------------------------------------------------------------- maps


class Cluster:
    """Signed maps of one cluster."""

    def __init__(self, directory: Path) -> None:
        attributes = NodeAttributes("a1", "alpha", "rennes", "ovh", "FR")
        self.members: Members = make_members(directory, "test", [attributes], ["clinic"], ["alice"])
        node = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
        policy = Policy("1-1", 1, 1, ("FR",), Domain.NODE)
        self.map = ClusterMap("test", 1, 16, (node,), (policy,), "1-1")
        self.authority = read_certificate(directory / "ca.crt")

    def signed(self, epoch: int, signer: str = "alice", capacity: int = 1 << 40) -> bytes:
        issued = self.members.issued[signer]
        key = load_pem_private_key(issued.key, None)
        node = replace(self.map.nodes[0], capacity_bytes=capacity)
        moves = epoch > 1 and node != self.map.nodes[0]
        prior = (self.map.as_prior(),) if moves else ()  # what moves data consults the old map
        changed = replace(self.map, epoch=epoch, nodes=(node,), prior=prior)
        return sign_map(changed, x509.load_pem_x509_certificate(issued.certificate), key)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("pki"))


async def publish(store: MemoryCoordination, cluster: Cluster, signed: bytes) -> ClusterMap:
    return await publish_map(store, signed, cluster.authority, ManualClock().unixtime_ms())


async def test_maps_are_published_one_epoch_after_the_other(
    store: MemoryCoordination, cluster: Cluster
) -> None:
    assert await newest_map(store) is None
    for epoch in (4, 5, 6):  # the first may have any epoch: a store may be filled again
        await publish(store, cluster, cluster.signed(epoch))
    newest = await newest_map(store)
    assert newest is not None
    assert newest.epoch == 6
    assert await map_of_epoch(store, 5) == (await store.range("maps/epoch/")).entries[1].value
    with pytest.raises(Conflict):
        await publish(store, cluster, cluster.signed(8))
    with pytest.raises(StaleMap):
        await publish(store, cluster, cluster.signed(5))
    with pytest.raises(NotFound):
        await map_of_epoch(store, 3)


async def test_publishing_the_newest_map_again_does_nothing(
    store: MemoryCoordination, cluster: Cluster
) -> None:
    await publish(store, cluster, cluster.signed(1))
    before = (await store.range("maps/")).revision
    await publish(store, cluster, cluster.signed(1))
    assert (await store.range("maps/")).revision == before
    with pytest.raises(IntegrityError):
        await publish(store, cluster, cluster.signed(1, capacity=7))


async def test_only_verified_maps_are_published(
    store: MemoryCoordination, cluster: Cluster, tmp_path: Path
) -> None:
    stranger = Cluster(tmp_path)
    refused = (
        (stranger.signed(1), Unauthenticated),
        (cluster.signed(1)[:-1] + b"x", IntegrityError),
        (b"", IntegrityError),
    )
    for signed, error in refused:
        with pytest.raises(error):
            await publish(store, cluster, signed)
    assert await newest_map(store) is None


class LostMeanwhile(MemoryCoordination):
    """Gone, and set up anew with `instead`, once somebody has read which map is the newest."""

    def __init__(self, clock: ManualClock, instead: MemoryCoordination) -> None:
        super().__init__(clock, seeded_entropy("lost"))
        self.instead = instead
        self.lost = False

    async def range(self, prefix: str, *, limit: int = 1000, after: str = "") -> Page:
        page = await super().range(prefix, limit=limit, after=after)
        self.lost = self.lost or bool(page.entries)
        return page

    async def get(self, key: str) -> Entry | None:
        if self.lost:
            return await self.instead.get(key)
        found = await super().get(key)
        self.lost = self.lost or found is not None
        return found


async def test_a_store_that_is_lost_while_it_is_read_is_worth_another_try(
    store: MemoryCoordination, cluster: Cluster, clock: ManualClock
) -> None:
    async def follow(lost: LostMeanwhile) -> None:
        async with aclosing(watch_maps(lost)) as watching:
            await anext(watching)

    for refilled in (False, True):
        if refilled:  # by another epoch, in a store whose revisions have gone on
            await store.commit([], [Put("nodes/0000000001", b"")])
            await publish(store, cluster, cluster.signed(4))
        readers: tuple[Callable[[LostMeanwhile], Awaitable[object]], ...]
        readers = (newest_map, follow, lambda lost: publish(lost, cluster, cluster.signed(6)))
        for reads in readers:
            lost = LostMeanwhile(clock, store)
            await publish(lost, cluster, cluster.signed(5))
            with pytest.raises(Unavailable, match="lost the map of epoch 5"):
                await reads(lost)
            await lost.close()


async def test_a_store_without_the_map_that_it_names_is_damaged(
    store: MemoryCoordination, cluster: Cluster
) -> None:
    await store.commit([], [Put("maps/current", b"5")])
    with pytest.raises(IntegrityError, match="epoch 5"):
        await newest_map(store)
    with pytest.raises(IntegrityError, match="epoch 5"):
        await publish(store, cluster, cluster.signed(6))


async def test_of_racing_publishers_one_wins(store: MemoryCoordination, cluster: Cluster) -> None:
    await publish(store, cluster, cluster.signed(1))
    racing = [publish(store, cluster, cluster.signed(2, capacity=number)) for number in (7, 8, 9)]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert sum(isinstance(outcome, ClusterMap) for outcome in outcomes) == 1
    assert all(isinstance(outcome, (ClusterMap, Conflict, IntegrityError)) for outcome in outcomes)


async def test_a_watch_yields_each_new_map(store: MemoryCoordination, cluster: Cluster) -> None:
    async with aclosing(watch_maps(store)) as watching:
        first = asyncio.ensure_future(anext(watching))
        await turn()
        assert not first.done()
        await publish(store, cluster, cluster.signed(1))
        assert (await first).epoch == 1
        await publish(store, cluster, cluster.signed(2))
        assert (await anext(watching)).epoch == 2
        third = asyncio.ensure_future(anext(watching))
        await turn()
        store.down = True
        with pytest.raises(Unavailable):
            await third


async def test_a_watch_of_a_map_published_long_ago_waits(
    store: MemoryCoordination, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store does not remember any more, as after a restart, must not make it read again and again."""
    monkeypatch.setattr(_engine, "HISTORY_COMMITS_MAX", 1)
    await publish(store, cluster, cluster.signed(1))
    for _ in range(3):
        await store.commit([], [Put("nodes/0000000001", b"")])
    reads = 0
    real = store.range

    async def counted(prefix: str, *, limit: int = 1000, after: str = "") -> Page:
        nonlocal reads
        reads += 1
        assert reads < 10, "it spins"
        return await real(prefix, limit=limit, after=after)

    monkeypatch.setattr(store, "range", counted)
    async with aclosing(watch_maps(store)) as watching:
        assert (await anext(watching)).epoch == 1
        second = asyncio.ensure_future(anext(watching))
        await turn()
        assert not second.done()
        await publish(store, cluster, cluster.signed(2))
        assert (await second).epoch == 2


# -------------------------------------------------------------------- buckets, tenants


async def test_a_bucket_is_created_once(store: MemoryCoordination) -> None:
    wanted = Bucket("clinic", "scans", "4-2", 17)
    await create_bucket(store, wanted)
    with pytest.raises(AlreadyExists):
        await create_bucket(store, wanted)
    assert await get_bucket(store, "clinic", "scans") == wanted
    with pytest.raises(NotFound):
        await get_bucket(store, "other", "scans")


async def test_buckets_are_listed_by_tenant_and_deleted(store: MemoryCoordination) -> None:
    for tenant, name in (("clinic", "b"), ("clinic", "a"), ("clinic-2", "c")):
        await create_bucket(store, Bucket(tenant, name, "", 1))
    assert [bucket.name for bucket in await list_buckets(store, "clinic")] == ["a", "b"]
    await delete_bucket(store, "clinic", "a")
    assert [bucket.name for bucket in await list_buckets(store, "clinic")] == ["b"]
    with pytest.raises(NotFound):
        await delete_bucket(store, "clinic", "a")
    for bad in ("", "a/b", "A"):
        with pytest.raises(InvalidArgument):
            await create_bucket(store, Bucket("clinic", bad, "", 1))


async def test_a_value_of_a_later_format_or_another_key_is_refused(store: MemoryCoordination) -> None:
    later = pb.Bucket(format=2, tenant="clinic", name="a").SerializeToString()
    other = pb.Bucket(format=1, tenant="clinic", name="b").SerializeToString()
    await store.commit([], [Put("buckets/clinic/a", later)])
    with pytest.raises(Unsupported):
        await get_bucket(store, "clinic", "a")
    await store.commit([], [Put("buckets/clinic/a", other)])
    with pytest.raises(IntegrityError):
        await get_bucket(store, "clinic", "a")


async def test_tenants_are_entered_and_suspended(store: MemoryCoordination) -> None:
    await create_tenant(store, Tenant("clinic", 5))
    with pytest.raises(AlreadyExists):
        await create_tenant(store, Tenant("clinic", 6))
    assert (await suspend_tenant(store, "clinic", suspended=True, unixtime_ms=9)).suspended
    assert await get_tenant(store, "clinic") == Tenant("clinic", 5, True, 9)
    assert await list_tenants(store) == [Tenant("clinic", 5, True, 9)]
    lifted = await suspend_tenant(
        store, "clinic", suspended=False, unixtime_ms=8
    )  # by a clock that is behind
    assert lifted == Tenant("clinic", 5, False, 10)
    # Whose certificate was stolen need not have been entered.
    assert await suspend_tenant(store, "nobody", suspended=True, unixtime_ms=3) == Tenant(
        "nobody", 3, True, 3
    )


async def test_whoever_watches_tenants_hears_of_each_change(store: MemoryCoordination) -> None:
    watching = watch_tenants(store)
    assert await anext(watching) == []
    await create_tenant(store, Tenant("clinic", 5))
    assert await anext(watching) == [Tenant("clinic", 5)]
    await suspend_tenant(store, "clinic", suspended=True, unixtime_ms=9)
    await suspend_tenant(store, "other", suspended=True, unixtime_ms=9)
    assert [tenant.suspended for tenant in await anext(watching)] == [True, True]
    await watching.aclose()


# -------------------------------------------------------------------- sessions and locks


def locks(store: MemoryCoordination, clock: ManualClock, who: str) -> tuple[KeyLocks, Session]:
    session = Session(store, clock)
    return KeyLocks(store, session, clock, seeded_entropy(who)), session


async def test_a_session_lives_as_long_as_it_is_kept_alive(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    session = Session(store, clock)
    lease = await session.lease()
    for _ in range(8):
        clock.advance(SESSION_SECONDS / 3)
        await turn()
        assert session.holds(lease)
    await session.close()
    assert not session.holds(lease)
    with pytest.raises(NotFound):
        await store.keep_alive(lease)


async def test_a_session_that_cannot_reach_coordination_is_lost_by_its_own_clock(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    session = Session(store, clock)
    lost: list[bool] = []
    session.on_loss = lambda: lost.append(True)
    lease = await session.lease()
    await turn()
    store.down = True
    clock.advance(SESSION_SECONDS - 1)
    await turn()
    assert session.holds(lease)
    clock.advance(1)
    assert not session.holds(lease)  # before any task has run
    await turn()
    clock.advance(1)
    await turn()
    assert lost
    store.down = False
    assert await session.lease() != lease
    await session.close()


async def test_locks_are_given_in_order_with_rising_tokens(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    order: list[int] = []
    tokens: list[int] = []
    inside = 0

    async def use(number: int) -> None:
        nonlocal inside
        mine, session = locks(store, clock, f"client {number}")
        async with mine.hold(NAME, 60.0) as held:
            inside += 1
            assert inside == 1
            await turn(3)
            held.check()
            order.append(number)
            tokens.append(held.token)
            inside -= 1
        await session.close()

    users = []
    for number in range(16):
        users.append(asyncio.create_task(use(number)))
        await turn(20)
    await asyncio.gather(*users)
    assert order == list(range(16))
    assert tokens == sorted(set(tokens))
    assert (await store.range("locks/")).entries == ()


async def test_locks_of_other_keys_do_not_wait(store: MemoryCoordination, clock: ManualClock) -> None:
    mine, session = locks(store, clock, "one")
    async with mine.hold(NAME, 1.0), mine.hold(ObjectName("clinic", "records", "patient-2"), 1.0):
        assert len((await store.range("locks/clinic/")).entries) == 2
    await session.close()


async def test_a_lock_of_a_dead_client_is_free_after_its_session(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    dead, its_session = locks(store, clock, "dead")
    holding = dead.hold(NAME, 1.0)
    first = await holding.__aenter__()
    assert its_session._keeping is not None
    its_session._keeping.cancel()  # it dies: nobody keeps its lease alive
    heir, session = locks(store, clock, "heir")

    async def take() -> int:
        async with heir.hold(NAME, 60.0) as held:
            return held.token

    taking = asyncio.create_task(take())
    await turn()
    assert not taking.done()
    clock.advance(SESSION_SECONDS / 3)
    await turn()
    for _ in range(SESSION_SECONDS):
        clock.advance(1)
        await turn()
    assert await taking > first.token
    with pytest.raises(Unavailable):
        first.check()
    await session.close()


async def test_who_waits_too_long_for_a_lock_is_told_so(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    one, session = locks(store, clock, "one")
    two, other = locks(store, clock, "two")
    async with one.hold(NAME, 1.0):
        waiting = asyncio.create_task(two.hold(NAME, 2.0).__aenter__())
        await turn()
        clock.advance(2)
        with pytest.raises(DeadlineExceeded):
            await waiting
        assert len((await store.range(lock_prefix(NAME))).entries) == 1
    await session.close()
    await other.close()


async def test_a_lock_without_coordination_is_unavailable(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    mine, session = locks(store, clock, "one")
    store.down = True
    with pytest.raises(Unavailable):
        await mine.hold(NAME, 1.0).__aenter__()
    store.down = False
    async with mine.hold(NAME, 1.0) as held:
        store.down = True  # the release fails: the claim must not be kept alive
    assert not session.holds(held._lease)
    store.down = False
    for _ in range(SESSION_SECONDS + 1):
        clock.advance(1)
        await turn()
    assert (await store.range("locks/")).entries == ()
    await session.close()


def test_a_lock_does_not_tell_the_name() -> None:
    prefix = lock_prefix(NAME)
    assert "patient" not in prefix
    assert "records" not in prefix
    assert prefix == "locks/clinic/2a5f18da6c6704cd07bdf93dcc77a27c/"


# -------------------------------------------------------------------- repairs, liveness


async def test_one_node_repairs_a_partition(store: MemoryCoordination, clock: ManualClock) -> None:
    one, two = Session(store, clock), Session(store, clock)
    held = await claim_repair(store, one, 7, 1)
    assert held is not None
    assert await claim_repair(store, two, 7, 2) is None
    held = await report_repair(store, one, held, b"half")
    assert await repairs(store) == [held]
    await release_repair(store, held)
    heir = await claim_repair(store, two, 7, 2)
    assert heir is not None
    assert heir.token > held.token
    with pytest.raises(Unavailable):
        await report_repair(store, one, held, b"more")
    await release_repair(store, held)  # of a former holder: changes nothing
    assert await repairs(store) == [heir]
    await two.close()
    assert await repairs(store) == []
    await one.close()


async def test_nodes_that_announce_themselves_are_alive(
    store: MemoryCoordination, clock: ManualClock
) -> None:
    sessions = [Session(store, clock) for _ in range(2)]
    for number, session in enumerate(sessions, start=1):
        await announce(store, session, NodeStatus(number, f"node-{number}", 1, "0.1.0", 5))
    assert set(await alive_nodes(store)) == {1, 2}
    await sessions[0].close()
    assert set(await alive_nodes(store)) == {2}
    await sessions[1].close()
