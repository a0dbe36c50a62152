"""The sync face: the same answers without an event loop, from several threads, and a clean end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from coffre.client import AsyncClient, Client, ObjectInfo
from coffre.cluster.errors import ConfigurationError, InvalidArgument, NotFound
from coffre.dev.in_process import InProcessCluster, in_process_cluster

MIB = 1 << 20


@pytest.fixture
def cluster() -> InProcessCluster:
    return in_process_cluster(4, 2)


@pytest.fixture
def client(cluster: InProcessCluster) -> Iterator[Client]:
    async def connect() -> AsyncClient:
        return cluster.client()

    with Client(connect) as made:
        yield made


def test_every_method_answers(client: Client) -> None:
    info = client.put("b", "k", b"value", content_type="text/plain", metadata={"a": "b"})
    assert client.get("b", "k") == b"value"
    assert client.get("b", "k", start=1, length=2) == b"al"
    assert client.head("b", "k").version == info.version
    assert [v.version for v in client.versions("b", "k")] == [info.version]
    assert [place.state for place in client.locate("b", "k")] == ["ok"] * 6
    assert [entry.key for entry in client.list("b") if isinstance(entry, ObjectInfo)] == ["k"]
    assert [entry.key for entry in client.list_page("b").objects] == ["k"]
    assert all(
        isinstance(outcome, ObjectInfo) for outcome in client.put_many("b", [("x", b"1"), ("y", b"2")])
    )
    assert client.get_many("b", ["x", "y"]) == [b"1", b"2"]
    client.delete("b", "k")
    client.flush()
    with pytest.raises(NotFound):
        client.get("b", "k")


def test_streams_both_ways(client: Client) -> None:
    pieces = [bytes([i]) * 700_000 for i in range(5)]
    client.put("b", "k", iter(pieces))
    assert b"".join(client.get_stream("b", "k")) == b"".join(pieces)

    def broken() -> Iterator[bytes]:
        yield bytes(MIB)
        yield bytes(MIB)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        client.put("b", "broken", broken())
    with pytest.raises(NotFound):
        client.get("b", "broken")


def test_an_abandoned_stream_leaks_nothing(client: Client) -> None:
    client.put("b", "k", bytes(20 * MIB))
    stream = client.get_stream("b", "k")
    next(stream)
    del stream
    gc.collect()
    assert client.get("b", "k", length=3) == bytes(3)


def test_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: client.put("b", f"k{i}", b"%d" % i), range(100)))
        assert list(pool.map(lambda i: client.get("b", f"k{i}"), range(100))) == [
            b"%d" % i for i in range(100)
        ]


def test_a_closed_client_says_so(cluster: InProcessCluster) -> None:
    async def connect() -> AsyncClient:
        return cluster.client()

    client = Client(connect)
    client.put("b", "k", bytes(3 * MIB))
    stream = client.get_stream("b", "k")
    next(stream)
    client.close()
    client.close()
    calls = (lambda: client.get("b", "k"), lambda: client.put("b", "k", b""), lambda: next(stream))
    for call in calls:
        with pytest.raises(InvalidArgument, match="closed"):
            call()
    assert not any(thread.name == "coffre-client" for thread in threading.enumerate())


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    async def connect() -> AsyncClient:
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError):
        Client(connect)
    assert not any(thread.name == "coffre-client" for thread in threading.enumerate())
