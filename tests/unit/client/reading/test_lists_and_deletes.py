"""Lists among deleted keys: what nodes leave out costs nothing, and is never taken for what an older version says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from coffre.client import AsyncClient, ObjectInfo
from coffre.dev.in_process import InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb

DELETED = 150


async def keys_of(client: AsyncClient, **options: str | int) -> list[str]:
    entries = [entry async for entry in client.list("b", **options)]  # type: ignore[arg-type]
    return [entry.key if isinstance(entry, ObjectInfo) else entry for entry in entries]


async def delete_all(client: AsyncClient, keys: Iterable[str]) -> None:
    await asyncio.gather(*(client.delete("b", key) for key in keys))


class Counted:
    """What a cluster's nodes are asked for."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.lists = self.reads = 0
        cluster.network.before = self._note

    async def _note(self, node: int, request: Traffic) -> None:
        self.lists += isinstance(request, pb.ListRequest)
        if isinstance(request, pb.BatchRequest):
            self.reads += sum(operation.HasField("read") for operation in request.operations)


@pytest.mark.parametrize(("page_size", "delimiter"), [(1, ""), (1, "/"), (7, ""), (1000, "/")])
async def test_deleted_keys_cost_a_list_nothing(
    cluster: InProcessCluster, page_size: int, delimiter: str
) -> None:
    client = cluster.client()
    keys = [f"d/{number:04}" for number in range(DELETED)]
    await client.put_many("b", [(key, b"x") for key in keys])
    await delete_all(client, keys)
    await delete_all(client, (f"d/{number:04}x" for number in range(DELETED)))  # that never were
    await client.put("b", "d/zz", b"1")
    await client.put("b", "e", b"1")
    await client.flush()
    counted = Counted(cluster)
    page = await client.list_page("b", delimiter=delimiter, limit=page_size)
    assert len(page.objects) + len(page.prefixes) == min(page_size, 2)
    assert counted.lists <= len(cluster.stores)
    assert counted.reads <= 10
    assert await keys_of(client, page_size=page_size, delimiter=delimiter) == [
        "d/" if delimiter else "d/zz",
        "e",
    ]


@pytest.mark.parametrize("page_size", [1, 1000])
async def test_undecided_deletes_are_decided_within_few_pages(
    cluster: InProcessCluster, page_size: int
) -> None:
    """Their client ended before it could say that they stand."""
    client = cluster.client()
    keys = [f"{number:04}" for number in range(DELETED)]
    await client.put_many("b", [(key, b"x") for key in keys])
    await client.flush()

    async def without_settles(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest):
            del request.settled[:]
            for operation in request.operations:
                if operation.HasField("settle"):
                    operation.settle.stamp = bytes(16)

    cluster.network.before = without_settles
    await delete_all(client, keys)
    await client.put("b", "zz", b"1")
    await client.flush()
    counted = Counted(cluster)
    reader = cluster.client()
    assert [info.key for info in (await reader.list_page("b", limit=page_size)).objects] == ["zz"]
    assert counted.lists <= 5 * len(cluster.stores)


@pytest.mark.parametrize("node", [1, 4, 6])
@pytest.mark.parametrize("page_size", [1, 1000])
async def test_a_node_that_missed_deletes_shows_nobody_what_is_gone(
    cluster: InProcessCluster, node: int, page_size: int
) -> None:
    """It has the old versions, and knows them as established; the others leave the keys out."""
    client = cluster.client()
    keys = [f"{number:03}" for number in range(60)]
    await client.put_many("b", [(key, b"x") for key in keys])
    await client.flush()
    cluster.network.down.add(node)
    await delete_all(client, keys[:50])
    await client.put("b", keys[55], b"newer")
    await client.flush()
    cluster.network.heal()
    reader = cluster.client()
    for others in ((), [n for n in cluster.stores if n != node][:3]):
        cluster.network.down = set(others)  # so that it is among those that must be asked
        entries = [entry async for entry in reader.list("b", page_size=page_size)]
        assert [(e.key, e.size_bytes) for e in entries if isinstance(e, ObjectInfo)] == [
            (key, 5 if key == keys[55] else 1) for key in keys[50:]
        ]


async def test_what_a_node_claims_that_missed_deletes_costs_few_pages(cluster: InProcessCluster) -> None:
    writer = cluster.client()
    keys = [f"{number:03}" for number in range(150)]
    await writer.put_many("b", [(key, b"x") for key in keys])
    await writer.flush()
    cluster.network.down.add(2)
    await delete_all(writer, keys)
    await writer.put("b", "zz", b"1")
    await writer.flush()
    cluster.network.heal()
    counted = Counted(cluster)
    assert await keys_of(cluster.client(), page_size=1) == ["zz"]
    assert counted.lists <= 8 * len(cluster.stores)


async def test_a_node_that_lacks_what_was_put_hides_nothing(cluster: InProcessCluster) -> None:
    client = cluster.client()
    cluster.network.down.add(3)
    keys = [f"{number:03}" for number in range(40)]
    await client.put_many("b", [(key, b"x") for key in keys])
    await client.flush()
    cluster.network.heal()
    for page_size in (1, 7, 1000):
        assert await keys_of(cluster.client(), page_size=page_size) == keys


async def test_a_node_that_leaves_out_what_it_holds_hides_nothing(cluster: InProcessCluster) -> None:
    client = cluster.client()
    keys = [f"{number:03}" for number in range(40)]
    await client.put_many("b", [(key, b"x") for key in keys])
    await client.flush()

    async def leave_out(node: int, reply: Traffic) -> None:
        if node == 5 and isinstance(reply, pb.ListReply):
            kept = [entry for entry in reply.entries if int(entry.key) % 2]
            del reply.entries[:]
            reply.entries.extend(kept)

    cluster.network.after = leave_out
    assert await keys_of(cluster.client(), page_size=1000) == keys
