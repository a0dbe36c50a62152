"""Clients that begin with an old map: they take the new one, and go on with the same data."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest
from coffre.client import AsyncClient
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import StaleMap
from coffre.cluster.map import ClusterMap, Policy
from coffre.cluster.membership import VerifiedMap, remove_node, set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.dev.in_process import InProcessCluster, Traffic, in_process_cluster
from coffre.proto import coffre_pb2 as pb

SMALL, LARGE = os.urandom(10_000), os.urandom(2_500_000)


class Maps:
    """Where maps come from: nobody tells, the nodes are asked."""

    def __init__(self) -> None:
        self.newest: ClusterMap | None = None
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def newer(self, than: ClusterMap) -> VerifiedMap | None:
        self.asked += 1
        await self.answers.wait()
        newest = self.newest
        return VerifiedMap(newest, b"") if newest is not None and newest.epoch > than.epoch else None

    async def watch(self) -> AsyncGenerator[VerifiedMap]:
        await asyncio.Event().wait()
        yield VerifiedMap(self.newest, b"")  # type: ignore[arg-type]  # never reached


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(3, 1, nodes=6)
    yield made
    await made.aclose()


def without_a_node(cluster: InProcessCluster) -> ClusterMap:
    """Two epochs later: a node is gone, and everything has moved."""
    return finish_move(remove_node(cluster.cluster_map, "n1", shards_held=None, lost=True))


def coded_otherwise(cluster: InProcessCluster) -> ClusterMap:
    return finish_move(set_policy(cluster.cluster_map, "clinic", "b", "4+2", Policy("4+2", 4, 2, ("FR",))))


CHANGES = [without_a_node, coded_otherwise]


def change(cluster: InProcessCluster, maps: Maps, to: Callable[[InProcessCluster], ClusterMap]) -> None:
    maps.newest = to(cluster)
    cluster.adopt(maps.newest)
    cluster.network.down.update({1} if to is without_a_node else ())


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 300_000):
        yield data[start : start + 300_000]


async def check(client: AsyncClient, keys: int, value: bytes) -> None:
    for number in range(keys):
        assert await client.get("b", str(number)) == value
        places = await client.locate("b", str(number))
        assert [place.state for place in places] == ["ok"] * len(places)


@pytest.mark.parametrize("to", CHANGES)
@pytest.mark.parametrize("value", [SMALL, LARGE], ids=["small", "large"])
async def test_an_old_map_keeps_nobody_from_putting(
    cluster: InProcessCluster, to: Callable[[InProcessCluster], ClusterMap], value: bytes, tmp_path: Path
) -> None:
    """Each client is new and begins with the old map, as processes do whose file is old."""
    maps = Maps()
    change(cluster, maps, to)
    (tmp_path / "file").write_bytes(value)
    for number in range(6):
        client = cluster.client(maps=maps)
        if number % 3 == 0:
            await client.put("b", str(number), value)
        elif number % 3 == 1:
            await client.put("b", str(number), stream(value))
        else:
            await client.put_file("b", str(number), tmp_path / "file")
        await client.flush()
        assert client.cluster_map.epoch == maps.newest.epoch  # type: ignore[union-attr]
    await check(cluster.client(maps=maps), 6, value)


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("to", CHANGES)
async def test_a_map_that_comes_during_an_upload_ends_no_put_of_bytes_or_of_a_file(
    cluster: InProcessCluster, to: Callable[[InProcessCluster], ClusterMap], file: bool, tmp_path: Path
) -> None:
    maps = Maps()
    client = cluster.client(maps=maps)

    async def then(node: int, reply: Traffic) -> None:
        if isinstance(reply, pb.WriteShardReply) and maps.newest is None:
            change(cluster, maps, to)

    cluster.network.after = then
    (tmp_path / "file").write_bytes(LARGE)
    read: list[int] = []
    if file:
        path = tmp_path / "file"
        await client.put_file(
            "b", "0", path, metadata={"ward": "3"}, content_type="x/y", progress=read.append
        )
        assert sum(read) == len(LARGE)
    else:
        await client.put("b", "0", LARGE, metadata={"ward": "3"}, content_type="x/y")
    await check(client, 1, LARGE)
    info = await client.head("b", "0")
    assert (info.content_type, dict(info.metadata), info.size_bytes) == ("x/y", {"ward": "3"}, len(LARGE))


class Upload:
    """A file of a framework: all that it does is a coroutine."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, size: int) -> bytes:
        return self._file.read(size)

    async def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    async def tell(self) -> int:
        return self._file.tell()


class Once(io.RawIOBase):
    """A pipe, say: it has all that a file has, and no way back. `seekable`: what it says of that itself."""

    def __init__(self, content: bytes, says: bool) -> None:
        self._file = io.BytesIO(content)
        self._says = says

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)

    def seekable(self) -> bool:
        return self._says


@pytest.mark.parametrize("to", CHANGES)
@pytest.mark.parametrize("source", ["file", "upload"])
async def test_a_file_object_is_read_again_from_where_it_began(
    cluster: InProcessCluster, to: Callable[[InProcessCluster], ClusterMap], source: str
) -> None:
    maps = Maps()
    client = cluster.client(maps=maps)

    async def then(node: int, reply: Traffic) -> None:
        if isinstance(reply, pb.WriteShardReply) and maps.newest is None:
            change(cluster, maps, to)

    cluster.network.after = then
    content = b"heading" + LARGE
    if source == "file":
        file = io.BytesIO(content)
        file.seek(7)
        await client.put("b", "0", file)
        assert file.tell() == len(content)
        assert not file.closed
    else:
        upload = Upload(content)
        await upload.seek(7)
        await client.put("b", "0", upload)
    assert maps.newest is not None
    await check(client, 1, LARGE)


@pytest.mark.parametrize("says", [False, True])
async def test_a_file_object_without_a_way_back_is_a_stream(cluster: InProcessCluster, says: bool) -> None:
    maps = Maps()
    client = cluster.client(maps=maps)

    async def then(node: int, reply: Traffic) -> None:
        if isinstance(reply, pb.WriteShardReply) and maps.newest is None:
            change(cluster, maps, coded_otherwise)

    cluster.network.after = then
    with pytest.raises(StaleMap, match="put the object again"):
        await client.put("b", "0", Once(LARGE, says))
    await client.put("b", "0", Once(LARGE, says))
    await check(client, 1, LARGE)


async def test_a_map_that_comes_during_an_upload_ends_a_stream_with_a_word(cluster: InProcessCluster) -> None:
    maps = Maps()
    client = cluster.client(maps=maps)

    async def then(node: int, reply: Traffic) -> None:
        if isinstance(reply, pb.WriteShardReply) and maps.newest is None:
            change(cluster, maps, coded_otherwise)

    cluster.network.after = then
    with pytest.raises(StaleMap, match="put the object again"):
        await client.put("b", "0", stream(LARGE))
    await client.put("b", "0", stream(LARGE))
    await check(client, 1, LARGE)


async def test_uploads_ask_for_a_map_once_in_a_while_and_wait_for_nobody(cluster: InProcessCluster) -> None:
    maps = Maps()
    maps.answers.clear()  # nodes that hang
    client = cluster.client(maps=maps)
    clock = SystemClock()
    began = clock.monotonic()
    await asyncio.gather(*(client.put("b", str(number), LARGE) for number in range(4)))
    assert clock.monotonic() - began < 20.0
    assert maps.asked == 1
    maps.answers.set()
