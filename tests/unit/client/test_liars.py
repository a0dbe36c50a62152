"""Damaged and lying nodes, other tenants, substitutes, and what a list may show."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from coffre.client import AsyncClient, KeyRing
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    InvalidArgument,
    KeyUnavailable,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.transport import Batch
from coffre.codec import crc32c
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.node.store import Abort, State
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded
from coffre.proto.shard_stream import ShardChunk, WireCell, encode_write

MIB = 1 << 20
MakeCluster = Callable[..., InProcessCluster]


def primaries(cluster: InProcessCluster, key: str) -> tuple[int, ...]:
    name = ObjectName("clinic", "b", key)
    placement = Placement(cluster.cluster_map, cluster.cluster_map.policy())
    return placement.primaries(partition_of(name, cluster.cluster_map.partitions))


def batch_of(accept: pb.Accept) -> pb.BatchRequest:
    sent_ms = SystemClock().unixtime_ms()
    operations = [pb.Operation(accept=accept)]
    return pb.BatchRequest(epoch=1, tenant="clinic", operations=operations, sent_unixtime_ms=sent_ms)


def tells_what_stands(request: pb.BatchRequest) -> bool:
    """Whether a message says of some version that it is established."""
    return bool(request.settled) or any(operation.HasField("settle") for operation in request.operations)


def lie(cluster: InProcessCluster, liars: set[int], change: Callable[[pb.Version], None]) -> None:
    """Change every version that the liars return."""

    async def after(node: int, reply: Traffic) -> None:
        if node not in liars:
            return
        if isinstance(reply, pb.BatchReply):
            for outcome in reply.outcomes:
                for version in outcome.versions:
                    change(version)
        elif isinstance(reply, pb.ListReply):
            for entry in reply.entries:
                for version in entry.versions:
                    change(version)

    cluster.network.after = after


def _other_bytes(version: pb.Version) -> None:
    version.cell = bytes(len(version.cell))
    version.cell_crc = crc32c(version.cell)


def _flip_manifest(version: pb.Version) -> None:
    raw = bytearray(version.sealed.manifest)
    if raw:
        raw[len(raw) // 2] ^= 1
    version.sealed.manifest = bytes(raw)


def _parsed(change: Callable[[pb.Manifest], None]) -> Callable[[pb.Version], None]:
    def changed(version: pb.Version) -> None:
        manifest = pb.Manifest.FromString(version.sealed.manifest)
        change(manifest)
        version.sealed.manifest = manifest.SerializeToString()

    return changed


def _future(version: pb.Version) -> None:
    version.stamp = b"\x7f" * 16
    version.state = pb.STATE_SETTLED


def _settled_garbage(version: pb.Version) -> None:
    version.stamp = b"\xfe" * 16
    version.state = pb.STATE_SETTLED
    version.sealed.Clear()


LIES: dict[str, Callable[[pb.Version], None]] = {
    "other bytes under their own checksum": _other_bytes,
    "a flipped manifest": _flip_manifest,
    "an unknown key id": _parsed(lambda manifest: setattr(manifest, "key_id", "k000000000000")),
    "a future format": _parsed(lambda manifest: setattr(manifest, "format", 9)),
    "another size": _parsed(lambda manifest: setattr(manifest, "size_bytes", 3)),
    "no manifest": lambda version: version.sealed.Clear(),
    "a stamp in the future": _future,
    "a settled stamp without a manifest": _settled_garbage,
    "a short stamp": lambda version: setattr(version, "stamp", b"x"),
    "a long stamp": lambda version: setattr(version, "stamp", b"\xff" * 40),
    "an index beyond": lambda version: setattr(version, "shard_index", 4_000_000_000),
    "another's index": lambda version: setattr(version, "shard_index", (version.shard_index + 1) % 6),
    "nodes that there are not": lambda version: version.sealed.placement.__setitem__(
        slice(None), [9999] * len(version.sealed.placement)
    ),
    "a state that there is not": lambda version: setattr(version, "state", 77),
    "damaged": lambda version: setattr(version, "damaged", True),
}


@pytest.mark.parametrize("what", LIES)
async def test_two_liars_of_six_change_nothing(cluster: InProcessCluster, what: str) -> None:
    client = cluster.client()
    objects = {f"k{i}": random.Random(i).randbytes(size) for i, size in enumerate((0, 50, 5000, MIB + 9))}
    for key, data in objects.items():
        await client.put("b", key, b"older")
        await client.put("b", key, data)
    await client.flush()
    rng = random.Random(what)
    for liars in ({1, 2}, set(rng.sample(range(1, 7), 2)), {rng.randrange(1, 7)}):
        lie(cluster, liars, LIES[what])
        reader = cluster.client()
        for key, data in objects.items():
            assert await reader.get("b", key) == data, (liars, key)
            assert (await reader.head("b", key)).size_bytes == len(data)
            assert len(await reader.locate("b", key)) == 6
        assert [e.key async for e in reader.list("b") if not isinstance(e, str)] == sorted(objects)
        await reader.put("b", "new", b"x")
        await reader.delete("b", "new")
        cluster.network.heal()


@pytest.mark.parametrize("what", ["other bytes under their own checksum", "a flipped manifest", "damaged"])
async def test_liars_do_not_stop_a_reader_that_completes_a_write(
    cluster: InProcessCluster, what: str
) -> None:
    """The writer dies before anything is settled; one node lies to the reader that completes its write."""
    writer = cluster.client()
    nodes = primaries(cluster, "k")

    async def lose_settles(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest):
            if tells_what_stands(request):
                raise Unavailable("lost")
            if node == nodes[5]:
                raise Unavailable("lost")

    cluster.network.before = lose_settles
    await writer.put("b", "k", b"value" * 20)
    await writer.flush()
    cluster.network.heal()
    lie(cluster, {nodes[0]}, LIES[what])
    assert await cluster.client().get("b", "k") == b"value" * 20
    cluster.network.heal()
    cluster.network.down = {nodes[1], nodes[2]}
    assert await cluster.client().get("b", "k") == b"value" * 20


async def test_garbage_outcomes_end_the_call_and_hang_nobody(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", b"value")

    async def garble(node: int, reply: Traffic) -> None:
        if node == 1 and isinstance(reply, pb.BatchReply):
            for outcome in reply.outcomes:
                outcome.code = 99
        if node == 2 and isinstance(reply, pb.BatchReply):
            del reply.outcomes[:]

    cluster.network.after = garble
    assert await cluster.client().get("b", "k") == b"value"
    with pytest.raises(CoffreError):
        await client.put("b", "k", b"new")  # two of six are of no use
    cluster.network.heal()

    async def bad_newest(node: int, reply: Traffic) -> None:
        if node == 1 and isinstance(reply, pb.BatchReply):
            for outcome in reply.outcomes:
                outcome.code, outcome.newest_stamp = 10, b"x"

    cluster.network.after = bad_newest
    await client.put("b", "k", b"newer")
    cluster.network.heal()
    assert await cluster.client().get("b", "k") == b"newer"


async def test_a_crash_of_the_transport_hangs_nobody(cluster: InProcessCluster) -> None:
    """A bug below raises what is no CoffreError: the operation ends with an error, not never."""
    client = cluster.client()
    batch = client._transport.batch
    failures: list[BaseException] = []

    async def broken(node: int, request: Batch, timeout: float) -> pb.BatchReply:
        if node <= 2:
            raise ZeroDivisionError
        return await batch(node, request, timeout)

    import asyncio

    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    client._transport.batch = broken  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        with pytest.raises(CoffreError):
            await client.put("b", "k", b"x")
    client._transport.batch = batch  # type: ignore[method-assign]
    await client.flush()


async def test_damaged_cells_are_decoded_around_and_reported(cluster: InProcessCluster) -> None:
    client = cluster.client()
    for size in (500, 3 * MIB):
        key = f"k{size}"
        data = random.Random(size).randbytes(size)
        info = await client.put("b", key, data)
        await client.flush()
        name, stamp = ObjectName("clinic", "b", key), bytes.fromhex(info.version)
        damaged = primaries(cluster, key)[:2]
        for node in damaged:
            cluster.stores[node].flip_cell(name, stamp, offset=1)
        assert await cluster.client().get("b", key) == data
        reader = cluster.client()
        assert await reader.get("b", key) == data
        await reader.flush()
        reported = {
            (repair.name, repair.shard_index)
            for node, store in cluster.stores.items()
            if node not in damaged
            async for repair in store.repair_queue()
        }
        if size > MIB:  # of small ones the damaged nodes themselves note it as they answer
            assert {(name, 0), (name, 1)} <= reported
        own = [repair.shard_index async for repair in cluster.stores[damaged[0]].repair_queue()]
        assert 0 in own


async def test_more_than_m_damaged_cells_are_an_integrity_error(cluster: InProcessCluster) -> None:
    client = cluster.client()
    for size in (500, 2 * MIB):
        key = f"k{size}"
        info = await client.put("b", key, random.Random(size).randbytes(size))
        await client.flush()
        for node in primaries(cluster, key)[:3]:
            cluster.stores[node].flip_cell(
                ObjectName("clinic", "b", key), bytes.fromhex(info.version), offset=1
            )
        with pytest.raises(IntegrityError):
            await cluster.client().get("b", key)
        assert (await cluster.client().head("b", key)).size_bytes == size


# -------------------------------------------------------------------- votes


async def test_a_version_that_a_reader_locked_counts_only_with_enough_shards(
    cluster: InProcessCluster,
) -> None:
    """Three shards of 4+2 and a fourth manifest are a majority of votes, and unreadable: the put must not return."""
    writer = cluster.client()
    nodes = primaries(cluster, "k")
    await writer.put("b", "k", b"before")
    await writer.flush()

    # The writer reaches three nodes; before it gives up, somebody locks the version on four.
    async def cut(node: int, request: Traffic) -> None:
        accepts = isinstance(request, pb.BatchRequest) and any(
            operation.HasField("accept") for operation in request.operations
        )
        if not accepts or node in nodes[:3]:
            return
        raise Unavailable("lost")

    locked: list[int] = []

    async def lock_by_hand(node: int, request: Traffic) -> None:
        await cut(node, request)
        aborts = isinstance(request, pb.BatchRequest) and [
            operation.abort for operation in request.operations if operation.HasField("abort")
        ]
        if aborts and not locked:
            name = ObjectName("clinic", "b", "k")
            stamp = aborts[0].stamp
            versions = await cluster.stores[nodes[0]].read(name, stamp=stamp)
            sealed = pb.SealedManifest(
                manifest=versions[0].manifest, mac=versions[0].mac, placement=versions[0].placement
            )
            identity = Identity(cluster.cluster_map.cluster_id, Role.TENANT, "clinic")
            for locker in nodes[:4]:
                accept = pb.Accept(bucket="b", key="k", sealed=sealed, lock=True)
                reply = await cluster.handlers[locker].batch(
                    identity,
                    pb.BatchRequest(
                        epoch=1,
                        tenant="clinic",
                        operations=[pb.Operation(accept=accept)],
                        sent_unixtime_ms=SystemClock().unixtime_ms(),
                    ),
                )
                assert expanded(reply).outcomes[0].state == pb.STATE_LOCKED
                locked.append(locker)

    cluster.network.before = lock_by_hand
    acknowledged = True
    try:
        await writer.put("b", "k", b"after")
    except Unavailable:
        acknowledged = False
    assert len(locked) == 4
    cluster.network.heal()
    answers = {await cluster.client().get("b", "k") for _ in range(3)}
    assert len(answers) == 1
    if acknowledged:
        assert answers == {b"after"}
    for down in nodes:
        cluster.network.down = {down}
        try:
            value = await cluster.client().get("b", "k")
        except Unavailable:
            continue
        assert not (acknowledged and value != b"after")
    cluster.network.heal()
    await writer.flush()


@pytest.mark.parametrize("aborted", [1, 2, 3])
@pytest.mark.parametrize("locked", [0, 1, 2, 3, 4])
async def test_split_votes_are_decided_the_same_by_everyone(
    cluster: InProcessCluster, locked: int, aborted: int
) -> None:
    """All six took the version, its writer is gone; some nodes voted to abort, some are locked."""
    writer = cluster.client()
    nodes = primaries(cluster, "k")
    await writer.put("b", "k", b"before")
    await writer.flush()

    async def no_settles(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest) and tells_what_stands(request):
            raise Unavailable("lost")

    cluster.network.before = no_settles
    info = await writer.put("b", "k", b"after")
    await writer.flush()
    cluster.network.heal()
    name, stamp = ObjectName("clinic", "b", "k"), bytes.fromhex(info.version)
    partition = partition_of(name, cluster.cluster_map.partitions)
    identity = Identity(cluster.cluster_map.cluster_id, Role.TENANT, "clinic")
    if locked + aborted > 6:
        return
    for node in nodes[:locked]:
        versions = await cluster.stores[node].read(name, stamp=stamp)
        sealed = pb.SealedManifest(
            manifest=versions[0].manifest, mac=versions[0].mac, placement=versions[0].placement
        )
        accept = pb.Accept(bucket="b", key="k", sealed=sealed, lock=True)
        await cluster.handlers[node].batch(
            identity,
            pb.BatchRequest(
                epoch=1,
                tenant="clinic",
                operations=[pb.Operation(accept=accept)],
                sent_unixtime_ms=SystemClock().unixtime_ms(),
            ),
        )
    for node in nodes[6 - aborted :]:
        outcomes = await cluster.stores[node].apply([Abort(name, partition, stamp)])
        assert outcomes[0].state == State.ABORTED
    answers: list[bytes] = []
    for down in (*nodes, None):
        cluster.network.down = set() if down is None else {down}
        try:
            answers.append(await cluster.client().get("b", "k"))
        except Unavailable:
            assert down is not None
    assert len(set(answers)) == 1, answers


# -------------------------------------------------------------------- substitutes


@pytest.mark.parametrize("size", [300, 2 * MIB + 1])
@pytest.mark.parametrize("settles", [True, False])
async def test_substitutes_take_shards_and_are_found(
    make_cluster: MakeCluster, size: int, settles: bool
) -> None:
    cluster = make_cluster(4, 2, nodes=9)
    client = cluster.client()
    data = random.Random(size).randbytes(size)
    nodes = primaries(cluster, "k")

    async def lose_settles(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest) and tells_what_stands(request) and not settles:
            raise Unavailable("lost")

    cluster.network.before = lose_settles
    cluster.network.down = set(nodes[:2])
    await client.put("b", "k", data)
    await client.flush()
    cluster.network.heal()
    places = await cluster.client().locate("b", "k")
    assert sum(place.state == "ok" for place in places) == 6
    assert len({place.node_id for place in places}) == 6
    # Now lose two others that hold shards: four are left, two of them on substitutes.
    for lost in (nodes[2:4], nodes[4:6], (nodes[2], nodes[5])):
        cluster.network.down = set(lost)
        for reader in (cluster.client(), client):
            assert await reader.get("b", "k") == data, (lost, reader is client)
    cluster.network.heal()
    await client.delete("b", "k")
    with pytest.raises(NotFound):
        await cluster.client().get("b", "k")


async def test_caps_leave_no_substitute_and_then_the_put_is_refused(cluster: InProcessCluster) -> None:
    client = cluster.client()
    cluster.network.down = {1, 2}
    with pytest.raises(Unavailable, match="5 shards and 4 manifests are needed"):
        await client.put("b", "k", b"x")


# -------------------------------------------------------------------- tenants and keys


async def test_a_tenant_reaches_nothing_of_another(cluster: InProcessCluster) -> None:
    clinic, lab = cluster.client("clinic"), cluster.client("lab")
    info = await clinic.put("b", "k", b"secret")
    await clinic.put("b", "big", bytes(2 * MIB))
    for call in (lab.get("b", "k"), lab.head("b", "k"), lab.get("b", "k", version=info.version)):
        with pytest.raises(NotFound):
            await call
    assert [entry async for entry in lab.list("b")] == []
    await lab.put("b", "k", b"lab's own")
    await lab.delete("b", "big")
    assert await clinic.get("b", "k") == b"secret"
    assert len(await clinic.get("b", "big")) == 2 * MIB
    # A certificate of one tenant with the name of another in the request: refused by the node.
    imposter = AsyncClient(cluster.cluster_map, lab._transport, cluster.keys, "clinic", options=QUICK)
    refused: list[Awaitable[object]] = [
        imposter.get("b", "k"),
        imposter.put("b", "k", b"x"),
        imposter.put("b", "k", bytes(2 * MIB)),
        imposter.delete("b", "k"),
        imposter.list_page("b"),
        imposter.versions("b", "k"),
    ]
    for attempt in refused:
        with pytest.raises(PermissionDenied):
            await attempt
    with pytest.raises(PermissionDenied):
        await lab._transport.drop_shard(
            1, pb.DropShardRequest(tenant="clinic", data_id=bytes(16), shard_index=0), 1.0
        )
    request = pb.ReadShardRequest(
        epoch=1, tenant="clinic", bucket="b", key="big", stamp=bytes.fromhex(info.version)
    )
    shards = lab._transport.read_shard(1, request, 1.0)
    with pytest.raises(PermissionDenied):
        await anext(shards)
    assert await clinic.get("b", "k") == b"secret"


async def test_without_the_key_nothing_opens(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", b"secret")
    await client.flush()
    stranger = AsyncClient(
        cluster.cluster_map, client._transport, KeyRing.generate(), "clinic", options=QUICK
    )
    for call in (stranger.get("b", "k"), stranger.head("b", "k")):
        with pytest.raises(KeyUnavailable):
            await call
    (entry,) = (await stranger.list_page("b")).objects
    assert "b/k" in entry.unreadable


async def test_no_plaintext_reaches_a_node(cluster: InProcessCluster) -> None:
    seen = bytearray()

    async def listen(node: int, message: Traffic) -> None:
        raw = encode_write(message) if isinstance(message, ShardChunk) else message.SerializeToString()
        seen.extend(raw)

    cluster.network.before = listen
    client = cluster.client()
    words = b"Mme Durand, diagnostic confirme. "
    await client.put("b", "k", words, content_type="text/secret", metadata={"ward": "cardiology"})
    await client.put("b", "big", words * 60_000)
    for secret in (b"Durand", b"text/secret", b"ward", b"cardiology"):
        assert secret not in seen


# -------------------------------------------------------------------- names, lists


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.put("b", "", b""),
        lambda c: c.put("b", "x" * 1025, b""),
        lambda c: c.put("b", "\ud800", b""),
        lambda c: c.put("B", "k", b""),
        lambda c: c.put("b", "k", b"", metadata={"a": "x" * 9000}),
        lambda c: c.put("b", "k", b"", metadata={"\ud800": "x"}),
        lambda c: c.put("b", "k", b"", content_type="\udcff"),
        lambda c: c.get("b", "k", start=-1),
        lambda c: c.get("b", "k", length=-1),
        lambda c: c.get("b", "k", version="xyz"),
        lambda c: c.get("b", "k", version="00"),
        lambda c: c.list_page("b", limit=0),
        lambda c: c.list_page("b", limit=1001),
        lambda c: c.list_page("b", token="nonsense"),
        lambda c: c.list_page("b", token="k"),
        lambda c: c.list_page("b", prefix="\ud800"),
        lambda c: c.list_page("b", delimiter="\ud800"),
        lambda c: c.list_page("B!"),
    ],
)
async def test_bad_input_is_one_clear_error(
    cluster: InProcessCluster, call: Callable[[AsyncClient], object]
) -> None:
    client = cluster.client()
    await client.put("b", "k", b"x")
    with pytest.raises(InvalidArgument):
        await call(client)  # type: ignore[misc]


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
async def test_pages_prefixes_and_delimiters(cluster: InProcessCluster, page_size: int) -> None:
    client = cluster.client()
    keys = ["a", "a/1", "a/2", "b/x/1", "b/x/2", "b/y", "c", "d/gone", "é/1", "z"]
    for key in keys:
        await client.put("b", key, key.encode())
    await client.delete("b", "d/gone")
    await client.delete("b", "z")
    await client.flush()
    live = [key for key in keys if key not in {"d/gone", "z"}]

    async def listed(prefix: str = "", delimiter: str = "") -> list[str]:
        return [
            entry if isinstance(entry, str) else entry.key
            async for entry in client.list("b", page_size=page_size, prefix=prefix, delimiter=delimiter)
        ]

    for down in (set[int](), {1}, {2, 5}):
        cluster.network.down = down
        assert await listed() == sorted(live, key=str.encode)
        assert await listed(delimiter="/") == ["a", "a/", "b/", "c", "é/"]
        assert await listed(prefix="b/", delimiter="/") == ["b/x/", "b/y"]
        assert await listed(prefix="b/") == ["b/x/1", "b/x/2", "b/y"]
        assert await listed(prefix="nothing") == []
    cluster.network.down = {1, 2, 3, 4}
    with pytest.raises(Unavailable):
        await listed()


async def test_a_deleted_prefix_stays_hidden_when_a_node_missed_the_deletes(
    cluster: InProcessCluster,
) -> None:
    client = cluster.client()
    for key in ("p/1", "p/2", "q/1"):
        await client.put("b", key, b"x")
    await client.flush()
    for missed in cluster.stores:
        cluster.network.down = {missed}
        for key in ("p/1", "p/2"):
            await client.delete("b", key)
        await client.flush()
        cluster.network.heal()
        reader = cluster.client()
        assert [entry async for entry in reader.list("b", delimiter="/")] == ["q/"]
        await client.put("b", "p/1", b"x")
        await client.flush()


async def test_a_node_that_lists_nonsense_is_left_out(cluster: InProcessCluster) -> None:
    client = cluster.client()
    for key in ("p/1", "p/2", "q"):
        await client.put("b", key, b"x")
    await client.flush()

    def outside(reply: pb.ListReply) -> None:
        reply.entries.add(key="q")

    def endless(reply: pb.ListReply) -> None:
        reply.more = True
        del reply.entries[:]

    def backwards(reply: pb.ListReply) -> None:
        reply.more = True
        del reply.entries[:]
        reply.entries.add(key="p/")

    def empty_key(reply: pb.ListReply) -> None:
        reply.entries.add(key="")

    for nonsense in (outside, endless, backwards, empty_key):

        async def after(
            node: int, reply: Traffic, nonsense: Callable[[pb.ListReply], None] = nonsense
        ) -> None:
            if node in {3, 4} and isinstance(reply, pb.ListReply):
                nonsense(reply)

        cluster.network.after = after
        listed = [e.key async for e in client.list("b", prefix="p/", page_size=1) if not isinstance(e, str)]
        assert listed == ["p/1", "p/2"], nonsense.__name__


async def test_kept_versions(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2, versions_kept=3)
    client = cluster.client()
    infos = [await client.put("b", "k", b"%d" % i) for i in range(5)]
    await client.flush()
    assert [v.version for v in await client.versions("b", "k")] == [i.version for i in infos[:1:-1]]
    assert await client.get("b", "k", version=infos[3].version) == b"3"
    with pytest.raises(NotFound):
        await client.get("b", "k", version=infos[0].version)
    await client.delete("b", "k")
    with pytest.raises(NotFound):
        await client.get("b", "k", version=infos[4].version)
    await client.put("b", "k", b"again")
    assert len(await client.versions("b", "k")) == 1


async def test_nobody_listens_on_behind_the_end_of_a_shard(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that never ends would keep a reader waiting, and fill its memory."""
    client = cluster.client()
    data = random.Random(1).randbytes(2 * MIB + 5)
    await client.put("b", "k", data)
    await client.flush()
    liar, asked = primaries(cluster, "k")[0], 0
    read_shard = client._transport.read_shard

    async def endless(node: int, request: pb.ReadShardRequest, timeout: float) -> AsyncIterator[ShardChunk]:
        nonlocal asked
        end = request.first_segment
        async for chunk in read_shard(node, request, timeout):
            end += len(chunk.cells)
            yield chunk
        for asked in range(3 if node == liar else 0):
            yield ShardChunk([WireCell(end + asked, crc32c(b"x"), b"x")])

    monkeypatch.setattr(client._transport, "read_shard", endless)
    found = await client._parts.lookup.found(ObjectName("clinic", "b", "k"), None)
    assert not await client._parts.recoder._is_whole(found.opened, liar, 0)
    assert asked == 0
    assert await client.get("b", "k") == data
    assert asked == 0
