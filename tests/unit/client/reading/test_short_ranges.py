"""Short ranges of large objects: few cells travel, with the version where possible, and none is believed unverified."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from coffre.cluster.errors import NotFound
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.versions import Stamp
from coffre.codec import crc32c
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk
from google.protobuf.message import Message

MIB = 1 << 20
PART = MIB // 4
TEXT = b"a text that compresses well, %09d; "


def text(size: int) -> bytes:
    return b"".join(TEXT % i for i in range(size // 36 + 1))[:size]


def primaries(cluster: InProcessCluster, key: str) -> tuple[int, ...]:
    placement = Placement(cluster.cluster_map, cluster.cluster_map.policy())
    return placement.primaries(partition_of(ObjectName("clinic", "b", key), cluster.cluster_map.partitions))


def names_of(traffic: list[Traffic]) -> list[str]:
    return [type(message).__name__ for message in traffic]


async def test_a_short_range_comes_with_the_version_and_is_never_stale(cluster: InProcessCluster) -> None:
    """One message to each of the nodes that the version takes, from the first range on."""
    writer, reader = cluster.client(), cluster.client()
    old, new = (random.Random(seed).randbytes(3 * MIB + 9) for seed in (1, 2))
    messages: list[Traffic] = []

    async def note(node: int, message: Traffic) -> None:
        messages.append(message)

    await writer.put("b", "k", old)
    await writer.flush()
    cluster.network.before = note
    for start, asked in ((0, 4), (MIB - 5, 4), (MIB + 1, 3), (2 * MIB - 20, 3), (2 * MIB + PART - 5, 3)):
        messages.clear()
        assert await reader.get("b", "k", start=start, length=11) == old[start : start + 11]
        assert names_of(messages) == ["BatchRequest"] * asked, start
    for start in (3 * MIB - 4, 3 * MIB, 3 * MIB + 8):  # cells of the last segment are smaller than expected
        messages.clear()
        assert await reader.get("b", "k", start=start, length=11) == old[start : start + 11]
        assert names_of(messages).count("BatchRequest") == 3
    for start in (3 * MIB + 9, 4 * MIB, 1 << 70):
        assert await reader.get("b", "k", start=start, length=11) == b""
    messages.clear()
    assert await reader.get("b", "k", start=5, length=MIB + 1) == old[5 : MIB + 6]
    assert names_of(messages).count("ReadShardRequest") == 4  # too long to come along
    await writer.put("b", "k", new)
    assert await reader.get("b", "k", start=2 * MIB, length=100) == new[2 * MIB :][:100]
    await writer.put("b", "k", b"short")
    assert await reader.get("b", "k", start=1, length=100) == b"hort"
    assert await reader.get("b", "k", start=MIB, length=100) == b""
    await writer.delete("b", "k")
    with pytest.raises(NotFound):
        await reader.get("b", "k", start=1, length=100)


@pytest.mark.parametrize("version", [False, True])
async def test_only_the_cells_that_are_wanted_travel(cluster: InProcessCluster, version: bool) -> None:
    """Also when they could not come along, because one old version is asked for."""
    client = cluster.client()
    data = random.Random(5).randbytes(3 * MIB)
    info = await client.put("b", "k", data)
    await client.flush()
    received = 0

    async def count(node: int, reply: Traffic) -> None:
        nonlocal received
        received += (
            sum(len(cell.data) for cell in reply.cells) if isinstance(reply, ShardChunk) else reply.ByteSize()
        )

    cluster.network.after = count
    for start, length, cells in (
        (MIB + 7, 1, 1),
        (MIB + 7, 64 << 10, 1),
        (2 * MIB - (64 << 10), 64 << 10, 1),
        (MIB + PART - 1, 2, 2),
        (2 * MIB - 1, 2, 2),
        (MIB, MIB, 4),
    ):
        received = 0
        reader = cluster.client()
        got = await reader.get(
            "b", "k", start=start, length=length, version=info.version if version else None
        )
        assert got == data[start : start + length]
        assert cells * PART <= received <= cells * PART + 4096, (start, length)


@pytest.mark.parametrize("kind", ["random", "text"])
async def test_ranges_anywhere(any_cluster: InProcessCluster, kind: str) -> None:
    client = any_cluster.client()
    rng = random.Random(kind)
    size = 3 * MIB + 5001
    data = text(size) if kind == "text" else rng.randbytes(size)
    await client.put("b", "k", data)
    await client.flush()
    lengths = (0, 1, 100, 64 << 10, PART, MIB - 1, MIB, MIB + 1)
    for _ in range(60):
        edge = rng.choice((0, PART, MIB, 2 * MIB - PART, 3 * MIB, size))
        start = max(edge + rng.randrange(-300, 300), 0)
        length = rng.choice(lengths)
        assert await client.get("b", "k", start=start, length=length) == data[start : start + length]
        streamed = [piece async for piece in client.get_stream("b", "k", start=start, length=length)]
        assert b"".join(streamed) == data[start : start + length]


LIES = [
    "another byte",
    "another byte under its checksum",
    "left out",
    "another segment",
    "nothing",
    "shorter",
    "another's index",
]


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("kind", ["random", "text"])
async def test_cells_that_came_along_are_not_believed(
    cluster: InProcessCluster, what: str, kind: str
) -> None:
    writer = cluster.client()
    data = random.Random(3).randbytes(3 * MIB) if kind == "random" else text(3 * MIB)
    await writer.put("b", "k", data)
    await writer.flush()
    lies = 0

    async def lie(node: int, reply: Traffic) -> None:
        nonlocal lies
        if not isinstance(reply, pb.BatchReply):
            return
        for outcome in reply.outcomes:
            for version in outcome.versions:
                lies += len(version.cells)
                if what == "another's index" and version.cells:
                    version.shard_index = 2
                elif what == "left out":
                    del version.cells[:]
                for cell in version.cells:
                    _change(cell, what)

    cluster.network.after = lie
    reader = cluster.client()
    for start in (0, PART - 5, MIB - 5, 2 * MIB + 7):
        assert await reader.get("b", "k", start=start, length=11) == data[start : start + 11]
    assert lies


def _change(cell: pb.Cell, what: str) -> None:
    if what == "another's index":
        return
    if what == "another segment":
        cell.segment += 1
        return
    if what in ("nothing", "shorter"):
        cell.data = b"" if what == "nothing" else cell.data[:-1]
    else:
        cell.data = bytes(len(cell.data))
    if what != "another byte":
        cell.crc = crc32c(cell.data)


@pytest.mark.parametrize("what", ["silent", "down", "lying stream", "damaged"])
async def test_the_node_that_has_the_cell_is_not_needed(cluster: InProcessCluster, what: str) -> None:
    writer = cluster.client()
    data = random.Random(6).randbytes(3 * MIB)
    info = await writer.put("b", "k", data)
    await writer.flush()
    holder = primaries(cluster, "k")[1]
    resumed = asyncio.Event()

    async def before(node: int, message: Traffic) -> None:
        if node == holder and what == "silent":
            await resumed.wait()

    async def after(node: int, reply: Traffic) -> None:
        if node != holder or what != "lying stream":
            return
        if isinstance(reply, ShardChunk):
            for cell in reply.cells:
                cell.data = bytes(len(cell.data))
                cell.crc = crc32c(cell.data)
        elif isinstance(reply, pb.BatchReply):
            for outcome in reply.outcomes:
                for version in outcome.versions:
                    del version.cells[:]

    if what == "down":
        cluster.network.down.add(holder)
    elif what == "damaged":
        name = ObjectName("clinic", "b", "k")
        for segment in range(3):
            cluster.stores[holder].flip_cell(name, Stamp.parse(info.version).to_bytes(), segment=segment)
    cluster.network.before, cluster.network.after = before, after
    reader = cluster.client(options=replace(QUICK, timeout=60.0))
    for start in (PART, MIB + PART + 7, 2 * MIB + 2 * PART - 3):
        assert await reader.get("b", "k", start=start, length=11) == data[start : start + 11]
    resumed.set()


async def test_ranges_of_what_compresses_come_whole_from_k_cells(cluster: InProcessCluster) -> None:
    client = cluster.client()
    data = text(3 * MIB)
    await client.put("b", "k", data)
    await client.flush()
    received: list[Traffic] = []

    async def note(node: int, reply: Traffic) -> None:
        received.append(reply)

    cluster.network.after = note
    assert await client.get("b", "k", start=MIB + 5, length=100) == data[MIB + 5 : MIB + 105]
    messages = [reply for reply in received if isinstance(reply, Message)]
    assert sum(message.ByteSize() for message in messages) < MIB // 4
