"""Objects of all kinds through a real cluster: sizes, keys, ranges, versions, lists, races."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ObjectInfo, connect, connect_sync
from coffre.cluster.errors import CoffreError, InvalidArgument, NotFound
from coffre.dev.local_cluster import LocalCluster

from tests.amounts import amount
from tests.integration.conftest import QUICK

RACES = amount(60, 250)
SEGMENT = 1 << 20
SIZES = (0, 1, 63, 64, 4096, 65_537, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 5 * SEGMENT + 12_345)


def content(size_bytes: int, seed: int) -> bytes:
    """Half text that compresses, half noise that does not."""
    chance = random.Random(seed)
    noise = chance.randbytes(size_bytes // 2)
    return noise + (b"Patient/%d " % seed * (size_bytes // 8 + 1))[: size_bytes - len(noise)]


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_every_size_comes_back(client: AsyncClient, size_bytes: int) -> None:
    data = content(size_bytes, size_bytes)
    info = await client.put("sizes", f"object-{size_bytes}", data)
    assert info.size_bytes == size_bytes
    assert await client.get("sizes", f"object-{size_bytes}") == data
    assert (await client.head("sizes", f"object-{size_bytes}")).size_bytes == size_bytes


@pytest.mark.parametrize("size_bytes", [1, 4096, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5])
async def test_ranges(client: AsyncClient, size_bytes: int) -> None:
    data = content(size_bytes, 7)
    await client.put("ranges", f"object-{size_bytes}", data)
    chance = random.Random(size_bytes)
    cuts = [(0, 1), (size_bytes - 1, 1), (0, size_bytes), (size_bytes, 5), (size_bytes + 5, 5), (0, 0)]
    cuts += [(SEGMENT - 1, 2), (SEGMENT, 1)]
    cuts += [(chance.randrange(size_bytes), chance.randrange(size_bytes + 1)) for _ in range(8)]
    for start, length in cuts:
        assert (
            await client.get("ranges", f"object-{size_bytes}", start=start, length=length)
            == data[start : start + length]
        )


KEYS = (
    "..",
    "../../etc/passwd",
    "/",
    "//double//",
    ".",
    "nul\0inside",
    "\0",
    "line\nbreak",
    "tab\t",
    " ",
    "é" * 512,
    "🫀/🧠/fhir",
    "k" * 1024,
    "k" * 1023 + "x",
    "%2e%2e",
    "\u202eright-to-left",
    "\U0010ffff",
)


async def test_strange_keys(client: AsyncClient) -> None:
    for key in KEYS:
        await client.put("keys", key, key.encode())
    for key in KEYS:
        assert await client.get("keys", key) == key.encode()
    listed = [entry.key async for entry in client.list("keys", page_size=3) if isinstance(entry, ObjectInfo)]
    assert listed == sorted(KEYS, key=str.encode)


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "lone \ud800 surrogate"])
async def test_impossible_keys(client: AsyncClient, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await client.put("keys", key, b"")


async def test_overwrite_delete_versions(client: AsyncClient) -> None:
    infos = [await client.put("versions", "key", b"%d" % i) for i in range(5)]
    kept = await client.versions("versions", "key")
    assert [info.version for info in kept] == [info.version for info in reversed(infos)][:3]
    assert await client.get("versions", "key", version=infos[3].version) == b"3"
    with pytest.raises(NotFound):
        await client.get("versions", "key", version=infos[0].version)
    await client.delete("versions", "key")
    with pytest.raises(NotFound):
        await client.get("versions", "key")
    with pytest.raises(NotFound):
        await client.get("versions", "key", version=infos[4].version)
    assert [info.deleted for info in await client.versions("versions", "key")] == [True]
    await client.put("versions", "key", b"again")
    assert await client.get("versions", "key") == b"again"


async def test_metadata_is_kept(client: AsyncClient) -> None:
    await client.put("meta", "key", b"x", content_type="application/fhir+json", metadata={"ward": "é3"})
    info = await client.head("meta", "key")
    assert (info.content_type, dict(info.metadata)) == ("application/fhir+json", {"ward": "é3"})


async def test_delimiter_and_pages(client: AsyncClient) -> None:
    keys = [f"a/{i:03}/x" for i in range(40)] + [f"b{i:03}" for i in range(40)] + ["c/gone"]
    for outcome in await client.put_many("tree", [(key, b"1") for key in keys]):
        assert isinstance(outcome, ObjectInfo)
    await client.delete("tree", "c/gone")
    top = [
        entry if isinstance(entry, str) else entry.key
        async for entry in client.list("tree", delimiter="/", page_size=7)
    ]
    assert top == ["a/", *(f"b{i:03}" for i in range(40))]
    below = [entry async for entry in client.list("tree", prefix="a/", delimiter="/", page_size=7)]
    assert below == [f"a/{i:03}/" for i in range(40)]


async def test_streams_and_files(client: AsyncClient, tmp_path: Path) -> None:
    data = content(6 * SEGMENT + 99, 3)

    async def source() -> AsyncIterator[bytes]:
        chance = random.Random(5)
        position = 0
        while position < len(data):
            step = chance.choice([0, 1, 1000, SEGMENT - 1, SEGMENT + 1])
            yield data[position : position + step]
            position += step

    await client.put("streams", "unknown-size", source())
    digest = sha256()
    async for piece in client.get_stream("streams", "unknown-size"):
        digest.update(piece)
    assert digest.digest() == sha256(data).digest()
    (tmp_path / "in").write_bytes(data)
    await client.put_file("streams", "file", tmp_path / "in")
    assert await client.get_file("streams", "file", tmp_path / "out") == len(data)
    assert (tmp_path / "out").read_bytes() == data
    assert not list(tmp_path.glob("*.part"))


async def test_two_writers_race_again_and_again(running_cluster: LocalCluster) -> None:
    """Each round both write at once; afterwards both read the same value, one of the two."""
    async with (
        await connect(running_cluster.client_config(), options=QUICK) as one,
        await connect(running_cluster.client_config(), options=QUICK) as other,
    ):
        for number in range(RACES):
            values = (b"one %d" % number, b"other %d" % number)
            await asyncio.gather(one.put("races", "key", values[0]), other.put("races", "key", values[1]))
            seen = await asyncio.gather(one.get("races", "key"), other.get("races", "key"))
            assert seen[0] == seen[1]
            assert seen[0] in values


async def test_list_during_writes(running_cluster: LocalCluster, client: AsyncClient) -> None:
    """A list that starts after a put returned shows it; one that starts after a delete returned does not."""
    written: set[str] = set()
    leaving: set[str] = set()  # may be seen or not, until the delete has returned
    deleted: set[str] = set()
    stop = asyncio.Event()

    async def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            key = f"{worker:02}/{number:05}"
            await client.put("busy", key, b"x")
            written.add(key)
            if number % 3 == 0:
                leaving.add(key)
                await client.delete("busy", key)
                deleted.add(key)
            number += 1

    writers = [asyncio.create_task(write(worker)) for worker in range(8)]
    try:
        async with await connect(running_cluster.client_config(), options=QUICK) as reader:
            for _ in range(8):
                must, must_not = written - deleted, set(deleted)
                listed = [e.key async for e in reader.list("busy", page_size=50) if isinstance(e, ObjectInfo)]
                assert listed == sorted(set(listed))
                assert must - set(listed) <= leaving
                assert not must_not & set(listed)
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert written


def test_sync_client(running_cluster: LocalCluster, tmp_path: Path) -> None:
    with connect_sync(running_cluster.client_config(), options=QUICK) as client:
        client.put("sync", "small", b"1234")
        client.put("sync", "chunks", [b"ab", b"cd"])
        assert client.get("sync", "small", start=1, length=2) == b"23"
        assert b"".join(client.get_stream("sync", "chunks")) == b"abcd"
        assert [e.key for e in client.list("sync") if isinstance(e, ObjectInfo)] == ["chunks", "small"]
        results = client.get_many("sync", ["small", "none"])
        assert results[0] == b"1234"
        assert isinstance(results[1], NotFound)
        assert len(client.locate("sync", "small")) == 6
        client.delete("sync", "small")
        with pytest.raises(NotFound):
            client.head("sync", "small")


async def test_many(client: AsyncClient) -> None:
    items = [(f"key-{i:04}", content(1300, i)) for i in range(500)]
    assert all(not isinstance(outcome, CoffreError) for outcome in await client.put_many("many", items))
    assert await client.get_many("many", [key for key, _ in items]) == [data for _, data in items]
