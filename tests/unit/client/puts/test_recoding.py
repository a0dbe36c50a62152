"""Objects get their bucket's new k and m one by one, whatever is killed, written or damaged in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from coffre.client import AsyncClient, KeyRing, RecodeReport
from coffre.client._began import Began
from coffre.client.puts import Recoder
from coffre.client.puts._recoding import Pace
from coffre.client.writing import Writer
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    PreconditionFailed,
)
from coffre.cluster.map import ClusterMap, Policy
from coffre.cluster.membership import set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic, in_process_cluster
from coffre.node.following import MapHolder
from coffre.node.repair import RepairOptions
from coffre.node.serving import Handler
from coffre.node.store import Abort, State
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

from tests.forging import same_crc

SMALL = {f"small-{number}": os.urandom(100 * number) for number in range(6)}
LARGE = {f"large-{number}": os.urandom(1_500_000 + number) for number in range(2)}
OBJECTS = SMALL | LARGE
NO_PACE = Pace(SystemClock(), None)
FOUR_TWO = Policy("4+2", 4, 2, ("FR",))


class Killed(BaseException):
    """Stands for the end of the process: nothing of the client runs any more."""


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(3, 1, nodes=8)
    yield made
    await made.aclose()


def adopt(cluster: InProcessCluster, cluster_map: ClusterMap) -> AsyncClient:
    for node in cluster_map.nodes:
        store, holder = cluster.stores[node.number], MapHolder(cluster_map, b"")
        cluster.handlers[node.number] = Handler(node.number, node.node_id, store, holder, SystemClock())
    return cluster.client(cluster_map=cluster_map)


async def move(cluster: InProcessCluster, cluster_map: ClusterMap) -> AsyncClient:
    """Carry out a change of the map to its end; return a client at the map after it."""
    adopt(cluster, cluster_map)
    for _ in range(2):
        for number in cluster.stores:
            await cluster.repairer(number, RepairOptions(settling_seconds=-5.0)).round()
    return adopt(cluster, finish_move(cluster_map))


async def changed(cluster: InProcessCluster) -> AsyncClient:
    """All objects 3+1, and a client at a map that wants 4+2 of them."""
    before = cluster.client()
    for key, value in OBJECTS.items():
        await before.put("notes", key, value, content_type="text/plain", metadata={"of": key})
    await before.put("notes", "gone", b"x")
    await before.delete("notes", "gone")
    await before.flush()
    return await move(cluster, set_policy(cluster.cluster_map, "clinic", "notes", "4+2", FOUR_TWO))


async def coding(client: AsyncClient, key: str) -> tuple[int, int]:
    found = await client._parts.lookup.found(ObjectName("clinic", "notes", key), None)
    return found.opened.manifest.k, found.opened.manifest.m


async def held(cluster: InProcessCluster, key: str) -> set[bytes]:
    """Stamps that any node holds of an object."""
    name = ObjectName("clinic", "notes", key)
    return {
        version.stamp
        for store in cluster.stores.values()
        for version in await store.read(name, every=True)
        if version.state is not State.ABORTED
    }


async def check_all(client: AsyncClient, wanted: tuple[int, int] | None = (4, 2)) -> None:
    for key, value in OBJECTS.items():
        assert await client.get("notes", key) == value
        info = await client.head("notes", key)
        assert (info.content_type, info.metadata) == ("text/plain", {"of": key})
        if wanted is not None:
            assert await coding(client, key) == wanted
    with pytest.raises(NotFound):
        await client.head("notes", "gone")


# ------------------------------------------------------------------ the whole bucket


async def test_one_object_that_cannot_be_opened_does_not_stop_the_others(cluster: InProcessCluster) -> None:
    stranger = cluster.client(keys=KeyRing.generate())
    await stranger.put("notes", "closed", b"x")
    await stranger.put("notes", "dead", b"x")
    await stranger.delete("notes", "dead")
    await stranger.flush()
    client = await changed(cluster)
    assert (await client.recode("notes", dry_run=True)).objects == len(OBJECTS) + 1
    report = await client.recode("notes")
    assert (report.done_objects, report.failures) == (len(OBJECTS), 1)
    assert "key ring" in report.failed["closed"]
    await check_all(client)


async def test_a_bucket_is_coded_anew(cluster: InProcessCluster) -> None:
    client = await changed(cluster)
    before = {key: await client.head("notes", key) for key in OBJECTS}
    await check_all(client, (3, 1))
    survey = await client.recode("notes", dry_run=True)
    size_bytes = sum(map(len, OBJECTS.values()))
    assert survey == RecodeReport("4+2", len(OBJECTS), size_bytes)
    heard: list[RecodeReport] = []
    report = await client.recode("notes", progress=heard.append)
    assert report == RecodeReport("4+2", len(OBJECTS), size_bytes, len(OBJECTS), size_bytes)
    assert len(heard) == len(OBJECTS) + 1
    assert heard[-1] == report
    await client.flush()
    await check_all(client)
    assert {key: await client.head("notes", key) for key in OBJECTS} == before
    assert await client.recode("notes") == RecodeReport("4+2")
    for key in OBJECTS:
        assert len(await held(cluster, key)) == 1  # the old one is gone
    await check_all(cluster.client(cluster_map=client.cluster_map))


async def test_who_reads_cannot_tell(cluster: InProcessCluster) -> None:
    """The version and its time are those of what it was made from, in every answer."""
    client = await changed(cluster)
    before = await client.head("notes", "small-3")
    await client.recode("notes")
    listed = [entry async for entry in client.list("notes", prefix="small-3")]
    assert listed == [before]
    assert await client.versions("notes", "small-3") == [before]
    assert await client.get("notes", "small-3", version=before.version) == OBJECTS["small-3"]
    assert await client.head("notes", "small-3", version=before.version) == before
    # Twice coded anew, it is still the same.
    back = await move(cluster, set_policy(client.cluster_map, "clinic", "notes", "3+1"))
    await back.recode("notes")
    assert await coding(back, "small-3") == (3, 1)
    assert await back.head("notes", "small-3") == before


async def test_writes_on_condition_of_the_version_of_before(cluster: InProcessCluster) -> None:
    client = await changed(cluster)
    first, second = await client.head("notes", "small-1"), await client.head("notes", "small-2")
    await client.recode("notes")
    with pytest.raises(PreconditionFailed):
        await client.put("notes", "small-1", b"new", if_version=second.version)
    stored = await client.put("notes", "small-1", b"new", if_version=first.version)
    assert (await client.head("notes", "small-1")).version == stored.version
    await client.delete("notes", "small-2", if_version=second.version)
    with pytest.raises(NotFound):
        await client.get("notes", "small-2")


async def test_several_versions_are_not_coded_anew(cluster: InProcessCluster) -> None:
    kept = Policy("2+1", 2, 1, ("FR",), versions_kept=3)
    client = adopt(cluster, set_policy(cluster.cluster_map, "clinic", "notes", "2+1", kept))
    with pytest.raises(InvalidArgument, match="keeps several versions"):
        await client.recode("notes")


async def test_while_data_moves_objects_wait(cluster: InProcessCluster) -> None:
    client = await changed(cluster)
    moving = set_policy(client.cluster_map, "clinic", "notes", "2+1", Policy("2+1", 2, 1, ("FR",)))
    during = adopt(cluster, moving)
    report = await during.recode("notes")
    assert (report.done_objects, report.failures) == (0, len(OBJECTS))
    assert "data is moving" in report.failed["large-0"]
    await check_all(during, (3, 1))
    after = await move(cluster, moving)
    assert (await after.recode("notes")).done_objects == len(OBJECTS)
    await check_all(after, (2, 1))


async def test_one_client_at_a_time(cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coffre.client.puts._recoding.LOCK_SECONDS", 0.0)
    client, other = await changed(cluster), None
    errors: list[Exception] = []

    async def meanwhile(node: int, request: object) -> None:
        nonlocal other
        if other is None and isinstance(request, pb.BatchRequest) and _accepts(request):
            other = cluster.client(cluster_map=client.cluster_map)
            try:
                await other.recode("notes")
            except Conflict as error:
                errors.append(error)

    cluster.network.before = meanwhile
    assert (await client.recode("notes")).done_objects == len(OBJECTS)
    assert len(errors) == 1


def _accepts(request: pb.BatchRequest) -> bool:
    return any(operation.WhichOneof("operation") == "accept" for operation in request.operations)


# ------------------------------------------------------------------ others write meanwhile


async def before_the_accept(
    monkeypatch: pytest.MonkeyPatch, key: str, work: Callable[[], Awaitable[object]]
) -> None:
    """Do something once, when an object is coded and about to be written anew."""
    original, done = Writer.establish_once, False

    async def establish_once(self: Writer, draft, *args):  # type: ignore[no-untyped-def]
        nonlocal done
        if draft.name.key == key and draft.manifest.recodes and not done:
            done = True
            await work()
        return await original(self, draft, *args)

    monkeypatch.setattr(Writer, "establish_once", establish_once)


async def before_the_lock(
    monkeypatch: pytest.MonkeyPatch, key: str, work: Callable[[], Awaitable[object]]
) -> None:
    """Do something once, when all nodes have the new version and it was read back."""
    original, done = Recoder._read_back, False

    async def read_back(self: Recoder, draft, *args):  # type: ignore[no-untyped-def]
        nonlocal done
        began = await original(self, draft, *args)
        if draft.name.key == key and not done:
            done = True
            await work()
        return began

    monkeypatch.setattr(Recoder, "_read_back", read_back)


MOMENTS = [before_the_accept, before_the_lock]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("key", ["small-3", "large-1"])
async def test_a_put_meanwhile_wins(
    cluster: InProcessCluster,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[..., Awaitable[None]],
    key: str,
) -> None:
    client = await changed(cluster)
    writer = cluster.client(cluster_map=client.cluster_map)
    await moment(monkeypatch, key, lambda: writer.put("notes", key, b"newer"))
    report = await client.recode("notes")
    assert not report.failures
    await client.flush()
    assert await client.get("notes", key) == b"newer"
    assert await writer.get("notes", key) == b"newer"
    assert await coding(writer, key) == (4, 2)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_delete_meanwhile_wins(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch, moment: Callable[..., Awaitable[None]]
) -> None:
    client = await changed(cluster)
    writer = cluster.client(cluster_map=client.cluster_map)
    await moment(monkeypatch, "large-0", lambda: writer.delete("notes", "large-0"))
    report = await client.recode("notes")
    assert not report.failures
    await client.flush()
    for reader in (client, writer, cluster.client(cluster_map=client.cluster_map)):
        with pytest.raises(NotFound):
            await reader.get("notes", "large-0")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_conditional_write_meanwhile_wins_and_does_not_wait(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch, moment: Callable[..., Awaitable[None]]
) -> None:
    client = await changed(cluster)
    patient = replace(QUICK, patience=5.0)
    writer = cluster.client(cluster_map=client.cluster_map, options=patient)
    info = await writer.head("notes", "large-0")

    async def write() -> None:
        async with asyncio.timeout(10.0):
            await writer.put("notes", "large-0", b"newer", if_version=info.version)

    if moment is before_the_accept:  # the lock of the key is held: it comes after
        task: list[asyncio.Task[None]] = []

        async def begin() -> None:
            task.append(asyncio.create_task(write()))

        await moment(monkeypatch, "large-0", begin)
        assert not (await client.recode("notes")).failures
        await task[0]
    else:
        await moment(monkeypatch, "large-0", write)
        assert not (await client.recode("notes")).failures
    assert await cluster.client(cluster_map=client.cluster_map).get("notes", "large-0") == b"newer"


# ------------------------------------------------------------------ killed


def killed_at(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    async def killed(*args: object, **options: object) -> None:
        raise Killed

    if stage == "accepted":
        monkeypatch.setattr(Recoder, "_read_back", killed)
        return
    original = Writer._accept
    locks = 0

    async def accept(self: Writer, *args, lock: Began | None = None):  # type: ignore[no-untyped-def]
        nonlocal locks
        if lock is None:
            return await original(self, *args)
        if stage == "verified":
            raise Killed
        await original(self, *args, lock=lock)
        raise Killed

    monkeypatch.setattr(Writer, "_accept", accept)


@pytest.mark.parametrize("stage", ["accepted", "verified", "locked"])
async def test_killed_at_any_moment_it_can_be_read_and_coded_anew(
    cluster: InProcessCluster, stage: str
) -> None:
    client = await changed(cluster)
    for key in ("small-4", "large-0"):
        with pytest.MonkeyPatch.context() as dying:
            killed_at(dying, stage)
            with pytest.raises(Killed):
                await client._parts.recoder.recode(ObjectName("clinic", "notes", key), NO_PACE)
    # Not even waited for: the process is gone.
    reader = cluster.client(cluster_map=client.cluster_map)
    await check_all(reader, None)
    assert await coding(reader, "large-0") == ((4, 2) if stage == "locked" else (3, 1))
    writer = cluster.client(cluster_map=client.cluster_map)
    info = await writer.head("notes", "small-4")
    await writer.put(
        "notes",
        "small-4",
        OBJECTS["small-4"],
        if_version=info.version,
        content_type="text/plain",
        metadata={"of": "small-4"},
    )
    assert not (await writer.recode("notes")).failures
    await writer.flush()
    await check_all(writer)
    for key in ("small-4", "large-0"):
        assert len(await held(cluster, key)) == 1


@pytest.mark.parametrize("key", ["small-3", "large-0"])
async def test_given_up_by_others_on_some_nodes_before_it_is_locked(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Who was told that it stands, when too few have promised to keep it, would lose both."""
    client = await changed(cluster)
    name = ObjectName("clinic", "notes", key)

    async def give_up() -> None:
        stamp = max(await held(cluster, key))
        partition = partition_of(name, client.cluster_map.partitions)
        holders = [
            store
            for store in cluster.stores.values()
            if any(version.stamp == stamp for version in await store.read(name, every=True))
        ]
        for store in holders[::2]:
            await store.apply([Abort(name, partition, stamp)])

    with monkeypatch.context() as meanwhile:
        await before_the_lock(meanwhile, key, give_up)
        assert list((await client.recode("notes")).failed) == [key]
    await client.flush()
    reader = cluster.client(cluster_map=client.cluster_map)
    assert await coding(reader, key) == (3, 1)
    await check_all(reader, None)
    # Some have locked it, so that it stands in the way: until nodes see that it is dead, in their next round.
    for number in cluster.stores:
        await cluster.repairer(number, RepairOptions(settling_seconds=-5.0)).round()
    assert len(await held(cluster, key)) == 1
    assert not (await client.recode("notes")).failures
    await check_all(client)


async def test_a_leftover_may_be_read_by_all_and_written_over_by_anybody(cluster: InProcessCluster) -> None:
    client = await changed(cluster)
    with pytest.MonkeyPatch.context() as dying:
        killed_at(dying, "accepted")
        with pytest.raises(Killed):
            await client._parts.recoder.recode(ObjectName("clinic", "notes", "large-0"), NO_PACE)
    assert len(await held(cluster, "large-0")) == 2
    reader = cluster.client(cluster_map=client.cluster_map)
    assert await reader.get("notes", "large-0") == OBJECTS["large-0"]
    assert len(await held(cluster, "large-0")) == 2  # a reader completes nothing that nobody has verified
    for down in range(1, 9):
        cluster.network.down.add(down)
        assert await reader.get("notes", "large-0") == OBJECTS["large-0"]
        cluster.network.down.clear()
    await reader.put("notes", "large-0", b"over")
    await reader.flush()
    assert len(await held(cluster, "large-0")) == 1


async def test_nodes_give_up_a_leftover_that_nobody_comes_back_to(cluster: InProcessCluster) -> None:
    client = await changed(cluster)
    with pytest.MonkeyPatch.context() as dying:
        killed_at(dying, "accepted")
        with pytest.raises(Killed):
            await client._parts.recoder.recode(ObjectName("clinic", "notes", "large-0"), NO_PACE)
    young = RepairOptions(settling_seconds=-5.0)
    old = RepairOptions(settling_seconds=-5.0, unfinished_seconds=-5.0)
    for options, stamps in ((young, 2), (old, 1)):
        for number in cluster.stores:
            repairer = cluster.repairer(number, options)
            for _ in range(2):
                await repairer.round()
                await repairer.walk()
        assert len(await held(cluster, "large-0")) == stamps
    assert await coding(client, "large-0") == (3, 1)
    await check_all(client, None)


# ------------------------------------------------------------------ what was read back is wrong


@pytest.mark.parametrize("key", ["small-5", "large-1"])
async def test_what_cannot_be_read_back_does_not_replace_anything(
    cluster: InProcessCluster, key: str
) -> None:
    """Two shards of the new version rot as soon as they are written."""
    client = await changed(cluster)
    name = ObjectName("clinic", "notes", key)
    original = Recoder._read_back

    async def rotten(self: Recoder, draft, shards, *args):  # type: ignore[no-untyped-def]
        if draft.name == name:
            for node in shards.placement[:2]:
                cluster.stores[node].flip_cell(name, draft.manifest.stamp)
        return await original(self, draft, shards, *args)

    with pytest.MonkeyPatch.context() as rotting:
        rotting.setattr(Recoder, "_read_back", rotten)
        report = await client.recode("notes")
    assert report.failures == 1
    assert "read back" in report.failed[key]
    await client.flush()
    assert await coding(client, key) == (3, 1)
    assert len(await held(cluster, key)) == 1
    assert await client.get("notes", key) == OBJECTS[key]
    assert (await client.recode("notes")).done_objects == 1
    await check_all(client)


async def test_other_bytes_under_their_checksums_do_not_replace_anything(cluster: InProcessCluster) -> None:
    """Two nodes took a shard of a large object, and send another one of the same checksums."""
    client = await changed(cluster)
    name = ObjectName("clinic", "notes", "large-1")
    original = Recoder._read_back

    async def poisoned(self: Recoder, draft, shards, *args):  # type: ignore[no-untyped-def]
        if draft.name != name:
            return await original(self, draft, shards, *args)
        liars = shards.placement[:2]

        async def lie(node: int, reply: Traffic) -> None:
            if node in liars and isinstance(reply, ShardChunk):
                for cell in reply.cells:
                    cell.data = same_crc(bytes(cell.data))

        cluster.network.after = lie
        try:
            return await original(self, draft, shards, *args)
        finally:
            cluster.network.heal()

    with pytest.MonkeyPatch.context() as poisoning:
        poisoning.setattr(Recoder, "_read_back", poisoned)
        report = await client.recode("notes")
    assert "read back" in report.failed["large-1"]
    assert await coding(client, "large-1") == (3, 1)
    assert await client.get("notes", "large-1") == OBJECTS["large-1"]


async def test_content_that_is_not_the_same_does_not_replace_anything(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await changed(cluster)
    original = Recoder._plain

    async def other(self: Recoder, found, digest, pace):  # type: ignore[no-untyped-def]
        async for piece in original(self, found, digest, pace):
            yield bytes([(piece[0] if piece else 0) ^ 1]) + piece[1:]

    with monkeypatch.context() as lying:
        lying.setattr(Recoder, "_plain", other)
        report = await client.recode("notes")
    assert report.failures == len(OBJECTS)
    assert "not what was written" in report.failed["large-0"]
    await check_all(client, None)


async def test_a_node_that_is_down_or_full(cluster: InProcessCluster) -> None:
    """As for any put: with substitutes it goes on; without enough nodes everything stays as it was."""
    client = await changed(cluster)
    cluster.network.down.update({1, 2})
    report = await client.recode("notes")
    assert report.done_objects + report.failures == len(OBJECTS)
    cluster.network.down.clear()
    again = cluster.client(cluster_map=client.cluster_map)
    assert not (await again.recode("notes")).failures
    await check_all(again)


async def test_a_rate(cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await changed(cluster)
    slept: list[float] = []
    original = SystemClock.sleep

    async def sleep(self: SystemClock, seconds: float) -> None:
        if seconds > 2:
            slept.append(seconds)
            seconds = 0.0
        await original(self, seconds)

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    await client.recode("notes", bytes_per_second=1000.0)
    total = sum(map(len, OBJECTS.values()))
    assert max(slept) > 0.9 * (total - max(map(len, OBJECTS.values()))) / 1000.0 / 2
