"""The buckets in use: those that hold live objects, whoever is down, and whatever a node makes up."""

from __future__ import annotations

import pytest
from coffre.client import CoffreError
from coffre.client.reading import _listing
from coffre.dev.in_process import InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb


async def test_the_buckets_that_hold_objects(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client()
    assert await client.used_buckets() == []
    for bucket in ("scans", "records", "a.b", "gone"):
        await client.put_many(bucket, [(f"k{number}", b"x") for number in range(3)])
    for number in range(3):
        await client.delete("gone", f"k{number}")
    await client.create_bucket("empty")
    await cluster.client("other").put("theirs", "k", b"x")
    for page in (1000, 1, 2):
        monkeypatch.setattr(_listing, "LIMIT_MAX", page)
        for down in (set[int](), {1}, {2, 5}):
            cluster.network.down = down
            assert await client.used_buckets() == ["a.b", "records", "scans"]
    cluster.network.down = {1, 2, 3, 4}
    with pytest.raises(CoffreError):
        await client.used_buckets()


@pytest.mark.parametrize("claim", [["UPPER"], ["b", "a"], ["a", "a"], [""], ["never-was"]])
async def test_what_a_node_makes_up(cluster: InProcessCluster, claim: list[str]) -> None:
    client = cluster.client()
    await client.put("records", "k", b"x")
    await client.flush()

    async def lie(node: int, reply: Traffic) -> None:
        if node == 3 and isinstance(reply, pb.ListReply) and any(e.common_prefix for e in reply.entries):
            reply.ClearField("entries")
            reply.entries.extend([pb.ListEntry(common_prefix=name) for name in claim])

    cluster.network.after = lie
    assert await client.used_buckets() == ["records"]
