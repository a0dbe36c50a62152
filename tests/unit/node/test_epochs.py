"""A node begins an epoch when nothing of earlier ones can reach its disk any more (docs/consistency.md, "Changing the
map"): here with a disk that hangs in the middle of a commit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ResourceExhausted, StaleMap, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import blake3_128, crc32c
from coffre.node.disk import LmdbStore
from coffre.node.disk.transaction import Transaction
from coffre.node.following import MapHolder
from coffre.node.repair.messages import unpack_digests
from coffre.node.serving import Handler
from coffre.node.store import (
    Abort,
    Accept,
    Condemn,
    Forget,
    Lock,
    Mutation,
    Refuse,
    Restore,
    Settle,
    State,
    StoredVersion,
    StoreOptions,
)
from coffre.proto import coffre_pb2 as pb

CLINIC = Identity("test", Role.TENANT, "clinic")
NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
PEER = MapNode(2, "a2", "127.0.0.1:7401", "beta", "lille", "ikoula", "FR", 1 << 40)
MAP = ClusterMap("test", 5, 16, (NODE, PEER), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")
NAME = ObjectName("clinic", "b", "k")
PARTITION = partition_of(NAME, MAP.partitions)


def stamp(number: int) -> bytes:
    return ((ManualClock().unixtime_ms() + number) << 80).to_bytes(16, "big")


class HungDisk:
    """A disk that hangs in a commit from `hang` until `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self._gate = threading.Event()
        self._gate.set()
        self.error: Exception | None = None
        commit = Transaction.commit

        def slow(transaction: Transaction) -> None:
            if not self._gate.is_set():
                self.reached.set()
                self._gate.wait()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            commit(transaction)

        monkeypatch.setattr(Transaction, "commit", slow)

    def hang(self) -> None:
        self.reached.clear()
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> HungDisk:
    return HungDisk(monkeypatch)


@pytest.fixture
async def store(tmp_path: Path, disk: HungDisk) -> AsyncIterator[LmdbStore]:
    options = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=256 << 10)
    store = await LmdbStore.open(tmp_path / "node", options, ManualClock())
    yield store
    disk.release()
    await store.close()


@pytest.fixture
def maps() -> MapHolder:
    return MapHolder(MAP, b"")


@pytest.fixture
def handler(store: LmdbStore, maps: MapHolder) -> Handler:
    return Handler(1, "a1", store, maps, ManualClock())


def next_epoch(maps: MapHolder) -> None:
    maps.adopt(replace(maps.map, epoch=maps.map.epoch + 1), b"")


def accept(number: int, *, lock: bool = False) -> Accept:
    return Accept(
        NAME, PARTITION, stamp(number), False, bytes(16), b"manifest", b"m" * 16, (1, 2), 0, b"cell", crc32c(b"cell"),
        blake3_128(b"cell"), lock=lock,
    )  # fmt: skip


def tombstone(number: int) -> Accept:
    return Accept(NAME, PARTITION, stamp(number), True, bytes(16), b"manifest", b"m" * 16, (), None)


def batch(epoch: int, *operations: pb.Operation, tenant: str = "clinic") -> pb.BatchRequest:
    return pb.BatchRequest(
        epoch=epoch,
        tenant=tenant,
        operations=operations,
        sent_unixtime_ms=ManualClock().unixtime_ms(),
    )


def read_at(epoch: int) -> pb.BatchRequest:
    return batch(epoch, pb.Operation(read=pb.Read(bucket="b", key="k", all=True)))


def delete() -> pb.Operation:
    manifest = pb.Manifest(format=MANIFEST_FORMAT, stamp=stamp(2), data_id=bytes(16), kind=pb.KIND_TOMBSTONE)
    sealed = pb.SealedManifest(manifest=manifest.SerializeToString(), mac=bytes(16))
    return pb.Operation(accept=pb.Accept(bucket="b", key="k", sealed=sealed))


async def reached(disk: HungDisk) -> None:
    assert await asyncio.to_thread(disk.reached.wait, 10)


async def let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def states(store: LmdbStore) -> list[State]:
    return [version.state for version in await store.read(NAME, every=True)]


# ------------------------------------------------------------------ what is under way when a map comes


async def test_a_delete_of_the_epoch_before_is_seen_by_whoever_reads_at_the_next(
    handler: Handler, maps: MapHolder, store: LmdbStore, disk: HungDisk
) -> None:
    """Else R nodes answer without it, and it is acknowledged after that: nobody who knows it is asked any more."""
    await store.apply([accept(1)])
    disk.hang()
    deleting = asyncio.create_task(handler.batch(CLINIC, batch(5, delete())))
    await reached(disk)
    next_epoch(maps)
    reading = asyncio.create_task(handler.batch(CLINIC, read_at(6)))
    await let_others_run()
    assert not reading.done()
    disk.release()
    assert (await deleting).votes[
        0
    ] & 7 == pb.STATE_ACCEPTED  # true, since nobody heard of the next epoch before
    assert [version.stamp for version in (await reading).outcomes[0].versions] == [stamp(2), stamp(1)]


BEFORE: dict[str, tuple[list[Mutation], Mutation, list[State]]] = {
    "accept": ([], accept(1), [State.ACCEPTED]),
    "delete": ([], tombstone(1), [State.ACCEPTED]),
    "complete": ([accept(1)], accept(1, lock=True), [State.LOCKED]),
    "settle": ([accept(1)], Settle(NAME, PARTITION, stamp(1)), [State.SETTLED]),
    "abort": ([accept(1)], Abort(NAME, PARTITION, stamp(1)), [State.ABORTED]),
    "restore": ([], Restore(accept(1)), [State.SETTLED]),
    "refuse": ([], Refuse(NAME, PARTITION, stamp(1)), [State.ABORTED]),
    "lock": ([accept(1)], Lock(NAME, PARTITION, stamp(1)), [State.LOCKED]),
    "forget": ([accept(1)], Forget(NAME, PARTITION, (stamp(1),)), []),
    "condemn": ([tombstone(1), Settle(NAME, PARTITION, stamp(1))], Condemn(NAME, PARTITION, stamp(1)), [State.SETTLED]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BEFORE)
async def test_every_kind_of_change_is_decided_before_the_next_epoch_begins(
    handler: Handler, maps: MapHolder, store: LmdbStore, disk: HungDisk, kind: str
) -> None:
    """A client's, and those of this node's own repair: a row that is forgotten, say, after it was counted as moved."""
    before, change, after = BEFORE[kind]
    await store.apply(before)
    disk.hang()
    changing = asyncio.create_task(store.apply([change]))
    await reached(disk)
    next_epoch(maps)
    peer = Identity("test", Role.NODE, "a2", PEER.attributes)
    reading = asyncio.create_task(handler.batch(CLINIC, read_at(6)))
    others: list[asyncio.Task[object]] = [
        asyncio.create_task(handler.list(CLINIC, pb.ListRequest(epoch=6, tenant="clinic", bucket="b"))),
        asyncio.create_task(rows(handler, peer)),
    ]
    await let_others_run()
    assert not any(task.done() for task in (reading, *others))
    disk.release()
    await asyncio.gather(*others)
    assert [State(version.state) for version in (await reading).outcomes[0].versions] == after
    assert [outcome.error for outcome in await changing] == [None]


async def rows(handler: Handler, peer: Identity) -> list[pb.PartitionRowsReply]:
    request = pb.PartitionRowsRequest(epoch=6, partition=PARTITION)
    return [reply async for reply in handler.partition_rows(peer, request)]


async def test_digests_of_an_epoch_have_all_of_the_epochs_before(
    handler: Handler, maps: MapHolder, store: LmdbStore, disk: HungDisk
) -> None:
    peer = Identity("test", Role.NODE, "a2", PEER.attributes)
    disk.hang()
    writing = asyncio.create_task(store.apply([accept(1)]))
    await reached(disk)
    next_epoch(maps)
    asking = asyncio.create_task(handler.digests(peer, pb.DigestsRequest(epoch=6)))
    await let_others_run()
    assert not asking.done()
    disk.release()
    reply = await asking
    assert not reply.starting
    assert unpack_digests(reply.digests)[PARTITION].versions == 1
    await writing


async def test_a_write_that_fails_holds_no_map_up(
    handler: Handler, maps: MapHolder, store: LmdbStore, disk: HungDisk
) -> None:
    """Nor does a disk that is full, or broken: what failed is decided, too."""
    for error in (OSError(28, "No space left on device"), OSError(5, "Input/output error")):
        disk.error = error
        disk.hang()
        writing = asyncio.create_task(store.apply([accept(1)]))
        await reached(disk)
        next_epoch(maps)
        reading = asyncio.create_task(handler.batch(CLINIC, read_at(maps.map.epoch)))
        disk.release()
        assert not (await reading).outcomes[0].versions
        with pytest.raises((ResourceExhausted, Unavailable)):
            await writing


# ------------------------------------------------------------------ what looked at the map of before


class SlowReads:
    """A store whose reads take so long that a map comes meanwhile."""

    def __init__(self, store: LmdbStore, meanwhile: Callable[[], None]) -> None:
        self._store = store
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def read(self, name: ObjectName, **how: bool) -> Sequence[StoredVersion]:
        self._meanwhile()
        return await self._store.read(name, **how)  # type: ignore[arg-type]


async def test_a_message_whose_reads_last_into_the_next_epoch_changes_nothing(
    maps: MapHolder, store: LmdbStore
) -> None:
    """It was checked at the old one, and would be taken at the new one, after whoever reads there was answered."""
    came: list[int] = []

    def meanwhile() -> None:
        if not came:
            came.append(1)
            next_epoch(maps)

    slow = SlowReads(store, meanwhile)
    handler = Handler(1, "a1", slow, maps, ManualClock())  # type: ignore[arg-type]
    read = pb.Operation(read=pb.Read(bucket="b", key="k"))
    with pytest.raises(StaleMap):
        await handler.batch(CLINIC, batch(5, read, delete()))
    assert await states(store) == []


async def test_a_vote_to_give_up_is_taken_whatever_came_meanwhile(maps: MapHolder, store: LmdbStore) -> None:
    """It is about its stamp, whatever the map; but what came with it is of the epoch before."""
    came: list[int] = []

    def meanwhile() -> None:
        if not came:
            came.append(1)
            next_epoch(maps)

    handler = Handler(1, "a1", SlowReads(store, meanwhile), maps, ManualClock())  # type: ignore[arg-type]
    give_up = pb.Operation(abort=pb.Abort(bucket="b", key="k", stamp=stamp(7)))
    reply = await handler.batch(
        CLINIC, batch(5, pb.Operation(read=pb.Read(bucket="b", key="k")), give_up, delete())
    )
    assert [vote & 7 for vote in reply.votes] == [0, pb.STATE_ABORTED, 0]
    assert [outcome.code for outcome in reply.outcomes] == [StaleMap.code] * 2
    assert await states(store) == [State.ABORTED]
