"""Conditional writes: of many that race one wins, with the lock and without it, and nothing is overwritten unseen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
from coffre.client import AsyncClient, ObjectInfo
from coffre.cluster.coordination import KeyLocks, Session
from coffre.cluster.coordination.locks import LockHeld
from coffre.cluster.errors import (
    AlreadyExists,
    CoffreError,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
)
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb

MIB = 1 << 20
PATIENT = replace(QUICK, patience=5.0, timeout=5.0)
MakeCluster = Callable[..., InProcessCluster]


async def test_create_only(any_cluster: InProcessCluster) -> None:
    client = any_cluster.client()
    first = await client.put("b", "k", b"one", if_absent=True)
    with pytest.raises(AlreadyExists):
        await client.put("b", "k", b"two", if_absent=True)
    with pytest.raises(AlreadyExists):
        await any_cluster.client().put("b", "k", b"two", if_absent=True)
    assert await client.get("b", "k") == b"one"
    assert (await client.head("b", "k")).version == first.version
    await client.delete("b", "k")
    await client.put("b", "k", b"three", if_absent=True)
    assert await client.get("b", "k") == b"three"


async def test_compare_and_swap(any_cluster: InProcessCluster) -> None:
    client, other = any_cluster.client(), any_cluster.client()
    first = await client.put("b", "k", b"one")
    second = await other.put("b", "k", b"two", if_version=first.version)
    with pytest.raises(PreconditionFailed):
        await client.put("b", "k", b"three", if_version=first.version)
    with pytest.raises(PreconditionFailed):
        await client.delete("b", "k", if_version=first.version)
    assert await client.get("b", "k") == b"two"
    await client.delete("b", "k", if_version=second.version)
    with pytest.raises(NotFound):
        await client.get("b", "k")
    for missing in (first.version, second.version):
        with pytest.raises(PreconditionFailed):
            await client.put("b", "k", b"four", if_version=missing)
    with pytest.raises(InvalidArgument):
        await client.put("b", "k", b"", if_absent=True, if_version=first.version)


async def test_large_objects_and_failed_conditions_leave_nothing(cluster: InProcessCluster) -> None:
    client = cluster.client()
    data = random.Random(1).randbytes(3 * MIB)
    await client.put("b", "k", data, if_absent=True)
    assert await client.get("b", "k") == data
    with pytest.raises(AlreadyExists):
        await client.put("b", "k", data, if_absent=True)
    await client.flush()
    assert not any(store._staging for store in cluster.stores.values())


def shuffle_network(cluster: InProcessCluster, seed: int) -> None:
    rng = random.Random(seed)

    async def wait(node: int, message: Traffic) -> None:
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)

    cluster.network.before = cluster.network.after = wait


@pytest.mark.parametrize("seed", range(2))
async def test_of_32_racing_creators_exactly_one_wins(cluster: InProcessCluster, seed: int) -> None:
    shuffle_network(cluster, seed)
    clients = [cluster.client(options=PATIENT) for _ in range(4)]
    for turn in range(5):
        outcomes = await asyncio.gather(
            *(clients[n % 4].put("b", f"k{turn}", b"%d" % n, if_absent=True) for n in range(32)),
            return_exceptions=True,
        )
        winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, ObjectInfo)]
        assert len(winners) == 1
        losers = [outcome for outcome in outcomes if not isinstance(outcome, ObjectInfo)]
        assert {type(outcome) for outcome in losers} == {AlreadyExists}
        assert await clients[turn % 4].get("b", f"k{turn}") == b"%d" % winners[0]
    assert (await cluster.coordination.range("locks/")).entries == ()


# -------------------------------------------------------------------- without the lock


@asynccontextmanager
async def no_lock(self: KeyLocks, name: ObjectName, patience: float) -> AsyncGenerator[LockHeld]:
    """As if every writer had been paused until its lock was lost, and did not notice."""

    class Blind(Session):
        def __init__(self) -> None:
            pass

        def holds(self, lease: int) -> bool:
            return True

    yield LockHeld(1, Blind(), 1)


@dataclass(slots=True)
class History:
    """Acknowledged versions of one key, and what conditional ones were decided on."""

    established: set[str] = field(default_factory=set)
    decided: dict[str, str] = field(default_factory=dict)

    async def plain(self, client: AsyncClient, value: bytes) -> None:
        with suppress(Unavailable):
            self.established.add((await client.put("b", "k", value)).version)

    async def swap(self, client: AsyncClient, value: bytes) -> None:
        try:
            base = (await client.head("b", "k")).version
        except NotFound:
            base = ""
        except Unavailable:
            return
        try:
            if base:
                info = await client.put("b", "k", value, if_version=base)
            else:
                info = await client.put("b", "k", value, if_absent=True)
        except (AlreadyExists, PreconditionFailed, Unavailable):
            return
        self.established.add(info.version)
        self.decided[info.version] = base

    async def read(self, client: AsyncClient) -> None:
        try:
            self.established.add((await client.head("b", "k")).version)
        except CoffreError:
            return

    def check(self) -> None:
        for version, base in self.decided.items():
            between = [other for other in self.established if base < other < version]
            assert not between, f"{version} was decided on {base or 'nothing'}, over {between}"


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "m"), [(4, 2), (2, 1)])
async def test_nothing_is_overwritten_unseen(
    make_cluster: MakeCluster, k: int, m: int, seed: int, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locked:
        monkeypatch.setattr(KeyLocks, "hold", no_lock)
    cluster = make_cluster(k, m)
    shuffle_network(cluster, seed)
    rng = random.Random(seed)
    history = History()
    clients = [cluster.client(options=QUICK) for _ in range(4)]

    async def work(client: AsyncClient) -> None:
        for turn in range(12):
            move = rng.choice([history.swap, history.swap, history.plain])
            await move(client, b"%d" % turn)
            await history.read(client)
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)

    await asyncio.gather(*(work(client) for client in clients))
    await history.read(cluster.client(options=PATIENT))
    history.check()
    assert history.decided


@pytest.mark.parametrize("seed", range(6))
async def test_without_a_lock_at_most_one_creator_wins(
    cluster: InProcessCluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyLocks, "hold", no_lock)
    shuffle_network(cluster, seed)
    clients = [cluster.client() for _ in range(4)]
    for turn in range(5):
        outcomes = await asyncio.gather(
            *(client.put("b", f"k{turn}", b"x", if_absent=True) for client in clients), return_exceptions=True
        )
        assert sum(isinstance(outcome, ObjectInfo) for outcome in outcomes) <= 1


# -------------------------------------------------------------------- leftovers


async def leave(cluster: InProcessCluster, nodes: tuple[int, ...]) -> None:
    """A version that its writer left on the first so many primaries of the key, and died."""
    dying = cluster.client()
    sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def cut(node: int, message: Traffic) -> None:
        if isinstance(message, pb.BatchRequest) and any(o.HasField("abort") for o in message.operations):
            raise Unavailable("it is dead")
        if isinstance(message, pb.BatchRequest) and any(o.HasField("accept") for o in message.operations):
            if node not in nodes:
                raise Unavailable("it never sent this")
            if not sent.done():
                sent.set_result(None)

    cluster.network.before = cut
    with pytest.raises(OutcomeUnknown):
        await dying.put("b", "k", b"left")
    cluster.network.heal()


def primaries(cluster: InProcessCluster) -> tuple[int, ...]:
    client = cluster.client()
    name = ObjectName("clinic", "b", "k")
    return client._views.current.electorate(name).primaries


async def test_a_leftover_on_one_node_does_not_matter(cluster: InProcessCluster) -> None:
    client = cluster.client(options=replace(QUICK, patience=0.5))
    await client.put("b", "k", b"one")
    await leave(cluster, primaries(cluster)[2:3])
    version = (await client.head("b", "k")).version
    await client.put("b", "k", b"two", if_version=version)
    assert await client.get("b", "k") == b"two"
    assert await cluster.client().get("b", "k") == b"two"


async def test_leftovers_on_two_nodes_stop_conditional_writes_until_a_plain_one(
    cluster: InProcessCluster,
) -> None:
    client = cluster.client()
    await client.put("b", "k", b"one")
    await leave(cluster, primaries(cluster)[:2])
    version = (await client.head("b", "k")).version
    with pytest.raises(Unavailable):
        await client.put("b", "k", b"two", if_version=version)
    assert await client.get("b", "k") == b"one"
    plain = await client.put("b", "k", b"three")
    await client.put("b", "k", b"four", if_version=plain.version)
    assert await client.get("b", "k") == b"four"


async def test_what_was_given_up_does_not_stop_conditional_writes(cluster: InProcessCluster) -> None:
    """Two nodes took a version, and missed that its writer gave it up."""
    client = cluster.client(options=replace(QUICK, patience=1.0))
    await client.put("b", "k", b"one")
    missed = primaries(cluster)[4:]  # whom a read asks last

    async def cut(node: int, message: Traffic) -> None:
        for operation in message.operations if isinstance(message, pb.BatchRequest) else ():
            if operation.HasField("abort" if node in missed else "accept"):
                raise Unavailable("cut off")

    cluster.network.before = cut
    with pytest.raises(Unavailable) as caught:
        await cluster.client().put("b", "k", b"given up")
    assert type(caught.value) is Unavailable
    cluster.network.heal()
    version = (await client.head("b", "k")).version
    await client.put("b", "k", b"two", if_version=version)
    assert await client.get("b", "k") == b"two"


# -------------------------------------------------------------------- coordination


async def test_without_coordination_plain_operations_go_on(cluster: InProcessCluster) -> None:
    client = cluster.client()
    info = await client.put("b", "k", b"one", if_absent=True)
    cluster.coordination.down = True
    with pytest.raises(Unavailable):
        await client.put("b", "k2", b"two", if_absent=True)
    with pytest.raises(Unavailable):
        await client.put("b", "k", b"two", if_version=info.version)
    with pytest.raises(Unavailable):
        await client.delete("b", "k", if_version=info.version)
    with pytest.raises(Unavailable):
        await client.create_bucket("new")
    await client.put("b", "k3", b"three")
    assert await client.get("b", "k") == b"one"
    assert [entry.key async for entry in client.list("b") if isinstance(entry, ObjectInfo)] == ["k", "k3"]
    await client.delete("b", "k3")
    cluster.coordination.down = False
    await client.put("b", "k2", b"two", if_absent=True)
    assert await client.get("b", "k2") == b"two"


async def test_a_lost_lock_is_noticed_before_anything_is_written(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client()
    seen: list[pb.Operation] = []

    async def look(node: int, message: Traffic) -> None:
        if isinstance(message, pb.BatchRequest):
            seen.extend(o for o in message.operations if o.HasField("accept"))

    cluster.network.before = look
    monkeypatch.setattr(Session, "holds", lambda self, lease: False)
    with pytest.raises(Unavailable):
        await client.put("b", "k", b"x", if_absent=True)
    assert not seen


async def test_buckets(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.create_bucket("scans", policy="4+2")
    await client.create_bucket("records")
    with pytest.raises(AlreadyExists):
        await client.create_bucket("scans")
    with pytest.raises(NotFound):
        await client.create_bucket("other", policy="9+3")
    assert await client.list_buckets() == ["records", "scans"]
    assert await cluster.client("other").list_buckets() == []
    await client.delete_bucket("scans")
    assert await client.list_buckets() == ["records"]
    await client.put("never-created", "k", b"goes on working")
