"""Large objects in constant memory: odd sources, nodes that die or stall, readers that walk away, substitutes."""

from __future__ import annotations

import asyncio
import random
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.client.sealing import Parts
from coffre.client.writing import CellCoder, _upload
from coffre.cluster.errors import CoffreError, InvalidArgument, NotFound, Unavailable
from coffre.codec import Tier
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, encode_write
from google.protobuf.message import Message

MIB = 1 << 20
MakeCluster = Callable[..., InProcessCluster]


async def chunks(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    position = 0
    while position < len(data):
        size = sizes[position % len(sizes)]
        yield data[position : position + size]
        position += size


async def used_bytes(cluster: InProcessCluster) -> int:
    return sum([(await store.status()).live_bytes for store in cluster.stores.values()])


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 11])
async def test_streams_of_unknown_size_in_odd_chunks(cluster: InProcessCluster, size: int) -> None:
    client = cluster.client()
    data = random.Random(size).randbytes(size)
    for sizes in ([7777, 1, 300_001], [MIB], [2 * MIB + 3], [MIB - 1, 2]):
        info = await client.put("b", "k", chunks(data, sizes))
        assert info.size_bytes == size
        assert await client.get("b", "k") == data
    assert await client.get("b", "k", start=size // 2, length=MIB) == data[size // 2 :][:MIB]


@pytest.mark.parametrize("compresses", [False, True])
async def test_slow_tiers_code_in_worker_threads(
    cluster: InProcessCluster, compresses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment after segment all the same: messages are filled in order."""
    monkeypatch.setattr(_upload, "_SLOW_TIERS", tuple(Tier))
    threads: set[str] = set()
    add = CellCoder.add

    def noting(self: CellCoder, segment: int, parts: Parts) -> bytes:
        threads.add(threading.current_thread().name)
        return add(self, segment, parts)

    monkeypatch.setattr(CellCoder, "add", noting)
    data = (
        b"".join(b"%09d, " % i for i in range(MIB)) if compresses else random.Random(9).randbytes(9 * MIB + 1)
    )
    client = cluster.client()
    await client.put("b", "k", data)
    assert await cluster.client().get("b", "k") == data
    assert threads
    assert all(name.startswith("coffre-coding") for name in threads)


async def test_a_source_that_raises_leaves_nothing(cluster: InProcessCluster) -> None:
    client = cluster.client()

    async def broken(good: int) -> AsyncIterator[bytes]:
        for _ in range(good):
            yield bytes(MIB)
        raise ValueError("the source broke")

    for good in (0, 1, 2, 6):
        with pytest.raises(ValueError, match="the source broke"):
            await client.put("b", "k", broken(good))
    await client.flush()
    assert await used_bytes(cluster) == 0
    with pytest.raises(NotFound):
        await client.get("b", "k")


@pytest.mark.parametrize("nodes", [6, 9])
@pytest.mark.parametrize("dies_at", [0, 1, 3, 5, 8])
async def test_a_node_that_dies_in_mid_stream(make_cluster: MakeCluster, nodes: int, dies_at: int) -> None:
    """Message 0 is the header, 1 to 6 the cells; 8 is after the end, when the node should sync and answer."""
    cluster = make_cluster(4, 2, nodes=nodes)
    client = cluster.client()
    data = random.Random(1).randbytes(5 * MIB + 9)
    victim = 2
    sent = 0

    async def die(node: int, message: Traffic) -> None:
        nonlocal sent
        if node == victim and isinstance(message, ShardChunk):
            if sent == dies_at:
                raise Unavailable("the node died")
            sent += 1

    async def die_late(node: int, message: Traffic) -> None:
        if node == victim and dies_at == 8 and isinstance(message, pb.WriteShardReply):
            raise Unavailable("the node died")

    cluster.network.before, cluster.network.after = die, die_late
    async with asyncio.timeout(5):
        await client.put("b", "k", data)
    cluster.network.heal()
    cluster.network.down = {victim}
    assert await cluster.client().get("b", "k") == data


@pytest.mark.parametrize("size", [MIB + 1, 2 * MIB + 1])
async def test_a_short_stream_moves_to_a_substitute_even_at_its_end(
    make_cluster: MakeCluster, size: int
) -> None:
    """All segments and the end are gone when the node fails: the substitute gets them again, and the end."""
    cluster = make_cluster(4, 2, nodes=9)
    client = cluster.client()
    failed: set[int] = set()

    async def refuse_sync(node: int, message: Traffic) -> None:
        if isinstance(message, pb.WriteShardReply) and len(failed) < 2 and node not in failed:
            failed.add(node)
            raise Unavailable("the node died at its sync")

    cluster.network.after = refuse_sync
    async with asyncio.timeout(5):
        await client.put("b", "k", bytes(size))
    cluster.network.heal()
    assert len(failed) == 2
    cluster.network.down = set(failed)
    assert await cluster.client().get("b", "k") == bytes(size)


@pytest.mark.parametrize("where", ["cells", "end"])
async def test_a_stalled_node_is_left_behind(cluster: InProcessCluster, where: str) -> None:
    client = cluster.client()
    data = random.Random(2).randbytes(9 * MIB)
    never = asyncio.Event()

    async def stall(node: int, message: Traffic) -> None:
        if node == 3 and isinstance(message, ShardChunk if where == "cells" else pb.WriteShardReply):
            await never.wait()

    cluster.network.before = cluster.network.after = stall
    async with asyncio.timeout(5):
        await client.put("b", "k", data)
    cluster.network.heal()
    cluster.network.down = {3}
    assert await cluster.client().get("b", "k") == data


async def test_too_many_stalled_or_dead_nodes_are_an_error(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", b"old")
    never = asyncio.Event()

    async def stall(node: int, message: Traffic) -> None:
        if node <= 2 and isinstance(message, ShardChunk):
            await never.wait()

    cluster.network.before = stall
    with pytest.raises(CoffreError) as caught:
        await client.put("b", "k", bytes(9 * MIB))
    assert "nothing was written" in str(caught.value)
    cluster.network.heal()
    cluster.network.down = set(cluster.stores)
    with pytest.raises(Unavailable):
        await client.put("b", "k", bytes(9 * MIB))
    cluster.network.heal()
    assert await client.get("b", "k") == b"old"
    await client.delete("b", "k")
    await client.flush()
    assert not any(store._staging for store in cluster.stores.values())


async def test_a_refused_large_put_frees_what_was_staged(cluster: InProcessCluster) -> None:
    """Shards are staged, then the Accepts fail: nothing of the data stays on the nodes that answer."""
    client = cluster.client()

    async def no_accepts(node: int, message: Traffic) -> None:
        if node <= 2 and isinstance(message, pb.BatchRequest):
            raise Unavailable("no")

    cluster.network.before = no_accepts
    with pytest.raises(Unavailable):
        await client.put("b", "k", bytes(3 * MIB))
    cluster.network.heal()
    assert await used_bytes(cluster) == 0


async def test_a_cancelled_large_put_frees_what_was_staged(cluster: InProcessCluster) -> None:
    client = cluster.client()
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            begun.set()

    put = asyncio.create_task(client.put("b", "k", endless()))
    await begun.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await used_bytes(cluster) == 0


async def test_walking_away_from_a_stream_leaks_nothing(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", random.Random(3).randbytes(20 * MIB))
    await client.flush()
    tasks = asyncio.all_tasks()
    pieces = client.get_stream("b", "k")
    await anext(pieces)
    assert len(asyncio.all_tasks()) > len(tasks)
    await pieces.aclose()
    assert asyncio.all_tasks() == tasks
    async for _ in client.get_stream("b", "k"):
        break  # closed by the event loop's hooks, later
    await asyncio.sleep(0)
    reader = asyncio.create_task(client.get("b", "k"))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_nodes_that_die_while_a_stream_is_read(cluster: InProcessCluster) -> None:
    client = cluster.client()
    data = random.Random(4).randbytes(20 * MIB)
    await client.put("b", "k", data)
    got = bytearray()
    async for piece in client.get_stream("b", "k"):
        got += piece
        if len(got) == 3 * MIB:
            cluster.network.down = {1, 2}
        if len(got) == 10 * MIB:
            cluster.network.down = {5, 6}
    assert got == data


async def test_memory_stays_bounded(cluster: InProcessCluster) -> None:
    """64 MiB in and out, compressible so that the stores themselves (this process) stay small."""

    async def source() -> AsyncIterator[bytes]:
        for number in range(64):
            yield number.to_bytes(1, "big") * MIB

    client = cluster.client()
    tracemalloc.start()
    try:
        await client.put("b", "k", source())
        size = 0
        async for piece in client.get_stream("b", "k"):
            size += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 64 * MIB
    assert peak < 24 * MIB


async def test_cells_of_several_segments_travel_in_one_message(cluster: InProcessCluster) -> None:
    """A message per cell costs each node several switches of threads; one above 4 MiB is refused by a real node."""
    sent: dict[int, list[ShardChunk]] = {}

    async def note(node: int, message: Traffic) -> None:
        if isinstance(message, ShardChunk) and message.cells:
            sent.setdefault(node, []).append(message)

    cluster.network.before = note
    data = random.Random(1).randbytes(10 * MIB)
    await cluster.client().put("b", "k", data)
    assert len(sent) == 6
    for messages in sent.values():
        assert [cell.segment for message in messages for cell in message.cells] == list(range(10))
        assert len(messages) <= 3
        assert max(len(encode_write(message)) for message in messages) < 2 * MIB
    assert await cluster.client().get("b", "k") == data


async def test_a_slow_reader_holds_the_nodes_back(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", random.Random(5).randbytes(30 * MIB))
    replies = 0

    async def count(node: int, reply: Traffic) -> None:
        nonlocal replies
        if isinstance(reply, ShardChunk):
            replies += 1

    cluster.network.after = count
    pieces = client.get_stream("b", "k")
    await anext(pieces)
    for _ in range(200):
        await asyncio.sleep(0)
    # A reply carries up to 1 MiB of 256 KiB cells: far fewer than the 30 segments may be under way.
    assert replies <= 4 * 4
    await pieces.aclose()


async def test_a_file_appears_only_when_whole(cluster: InProcessCluster, tmp_path: Path) -> None:
    client = cluster.client()
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(random.Random(6).randbytes(3 * MIB + 1))
    seen: list[int] = []
    await client.put_file("b", "k", source, progress=seen.append)
    assert sum(seen) == 3 * MIB + 1
    assert await client.get_file("b", "k", target) == 3 * MIB + 1
    assert target.read_bytes() == source.read_bytes()
    target.write_bytes(b"precious")
    cluster.network.down = {1, 2, 3}
    with pytest.raises(Unavailable):
        await client.get_file("b", "k", target)
    assert target.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    cluster.network.heal()
    with pytest.raises(InvalidArgument):
        await client.put_file("b", "k", tmp_path / "absent")
    with pytest.raises(InvalidArgument):
        await client.get_file("b", "k", tmp_path / "no" / "folder")


async def test_many_with_mixed_outcomes(cluster: InProcessCluster) -> None:
    client = cluster.client()
    items = [(f"k{i}" if i % 7 else "", b"%d" % i) for i in range(200)]
    outcomes = await client.put_many("b", items)
    for i, outcome in enumerate(outcomes):
        assert isinstance(outcome, InvalidArgument) == (i % 7 == 0)
    got = await client.get_many("b", [f"k{i}" for i in range(205)])
    for i, value in enumerate(got):
        if i % 7 == 0 or i >= 200:
            assert isinstance(value, NotFound)
        else:
            assert value == b"%d" % i


async def test_many_gets_of_large_cells_fit_in_messages(cluster: InProcessCluster) -> None:
    """128 cells of 256 KiB are more than a message may carry: the node says so, and they are asked for again."""
    client = cluster.client()
    data = random.Random(8).randbytes(MIB)
    await client.put_many("b", [(f"k{i}", data) for i in range(64)])
    await client.flush()
    largest = 0

    async def measure(node: int, reply: Traffic) -> None:
        nonlocal largest
        assert isinstance(reply, Message)
        largest = max(largest, reply.ByteSize())

    cluster.network.after = measure
    got = await asyncio.gather(*(client.get("b", f"k{i}") for i in range(64)))
    assert all(value == data for value in got)
    assert largest < 5 * MIB


async def test_a_node_that_hangs_is_asked_last_until_it_answers(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    hanging, resumed = 0, asyncio.Event()
    asked: list[int] = []

    async def hang(node: int, message: Traffic) -> None:
        asked.append(node)
        if node == hanging:
            await resumed.wait()

    cluster.network.before = hang
    reader = cluster.client(options=replace(QUICK, timeout=60.0))
    assert await reader.get("b", "k") == b"value"
    hanging = asked[0]
    asked.clear()
    assert await reader.get("b", "k") == b"value"  # by a hedge
    assert hanging in asked
    asked.clear()
    for _ in range(20):
        assert await reader.get("b", "k") == b"value"
    assert hanging not in asked
    resumed.set()
    await reader.flush()
    assert await reader.get("b", "k") == b"value"
    assert hanging in asked


async def test_a_shard_that_is_not_staged_any_more_is_not_an_object_that_is_missing(
    cluster: InProcessCluster,
) -> None:
    """Two nodes lost what they had synced, between the upload and the Accept: D is missed, and nothing is said of the
    object. The next put is as any other."""
    data = random.Random(3).randbytes(2 * MIB)
    lost = set[int]()

    async def lose(node: int, request: Traffic) -> None:
        if not isinstance(request, pb.BatchRequest):
            return
        for operation in request.operations:
            accept = operation.accept
            if operation.HasField("accept") and accept.staged and (node in lost or len(lost) < 2):
                lost.add(node)
                manifest = pb.Manifest.FromString(accept.sealed.manifest)
                await cluster.stores[node].drop_staged("clinic", manifest.data_id, accept.shard_index)

    cluster.network.before = lose
    client = cluster.client()
    with pytest.raises(Unavailable, match="nothing was written: 5 shards"):
        await client.put("b", "k", data)
    cluster.network.heal()
    with pytest.raises(NotFound):
        await client.get("b", "k")
    await client.put("b", "k", data)
    assert await client.get("b", "k") == data
