"""The register protocol over real handlers: what is written is seen, and stays seen, whatever fails."""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable

import pytest
from coffre.client.writing._rounds import Round
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    ClockSkew,
    NotFound,
    OutcomeUnknown,
    StaleMap,
    Unavailable,
)
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import QUICK, InProcessCluster, Network, Traffic
from coffre.proto import coffre_pb2 as pb

MIB = 1 << 20
SIZES = (0, 1, 63, 64, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB + 17)
MakeCluster = Callable[..., InProcessCluster]


def body(seed: int, size_bytes: int) -> bytes:
    """Half of it compresses, half does not."""
    half = size_bytes // 2
    return random.Random(seed).randbytes(half) + bytes(size_bytes - half)


def primaries(
    cluster: InProcessCluster, key: str, bucket: str = "b", tenant: str = "clinic"
) -> tuple[int, ...]:
    name = ObjectName(tenant, bucket, key)
    placement = Placement(cluster.cluster_map, cluster.cluster_map.policy())
    return placement.primaries(partition_of(name, cluster.cluster_map.partitions))


# -------------------------------------------------------------------- the plain life of objects


async def test_a_put_leaves_nothing_in_memory_for_the_collector_of_cycles(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "first", body(1, 4096))
    await client.flush()
    gc.collect()
    gc.disable()
    others = [found for found in gc.get_objects() if isinstance(found, Round)]  # of clients elsewhere
    try:
        for number in range(10):
            await client.put("b", f"k{number}", body(number, 4096))
        await client.delete("b", "k1")
        await client.flush()
        assert not [found for found in gc.get_objects() if isinstance(found, Round) and found not in others]
    finally:
        gc.enable()


async def test_what_is_put_is_got_at_every_size_and_range(any_cluster: InProcessCluster) -> None:
    client = any_cluster.client()
    for seed, size_bytes in enumerate(SIZES):
        data = body(seed, size_bytes)
        info = await client.put("b", f"k{size_bytes}", data, content_type="x/y", metadata={"a": "é"})
        assert info.size_bytes == size_bytes
        assert await client.get("b", f"k{size_bytes}") == data
        head = await client.head("b", f"k{size_bytes}")
        assert (head.version, head.size_bytes, head.content_type, head.metadata) == (
            info.version,
            size_bytes,
            "x/y",
            {"a": "é"},
        )
        for start, length in (
            (0, 1),
            (size_bytes // 3, 1000),
            (MIB - 1, 2),
            (size_bytes, 5),
            (size_bytes + 9, 1),
        ):
            got = await client.get("b", f"k{size_bytes}", start=start, length=length)
            assert got == data[start : start + length], (size_bytes, start, length)
        pieces = [bytes(piece) async for piece in client.get_stream("b", f"k{size_bytes}", start=3)]
        assert b"".join(pieces) == data[3:]
    listed = [entry.key async for entry in client.list("b") if not isinstance(entry, str)]
    assert listed == sorted((f"k{size}" for size in SIZES), key=str.encode)
    await client.delete("b", "k64")
    with pytest.raises(NotFound):
        await client.get("b", "k64")
    assert [v.deleted for v in await client.versions("b", "k64")] == [True]


async def test_any_m_nodes_may_be_down_for_reads(any_cluster: InProcessCluster) -> None:
    writer = any_cluster.client()
    m = any_cluster.cluster_map.policy().m
    objects = {f"k{size}": body(size, size) for size in (0, 4096, MIB + 5)}
    for key, data in objects.items():
        await writer.put("b", key, data)
    await writer.delete("b", "gone")
    await writer.flush()
    subsets = list(itertools.combinations(any_cluster.stores, m))
    rng = random.Random(1)
    for down in rng.sample(subsets, min(len(subsets), 20)):
        any_cluster.network.down = set(down)
        reader = any_cluster.client()
        for key, data in objects.items():
            assert await reader.get("b", key) == data, down
        with pytest.raises(NotFound):
            await reader.head("b", "gone")
        assert [e.key async for e in reader.list("b") if not isinstance(e, str)] == sorted(objects)


@pytest.mark.parametrize(("k", "m", "nodes"), [(4, 2, 6), (8, 3, 11), (2, 1, 4)])
async def test_one_node_may_be_down_for_writes(make_cluster: MakeCluster, k: int, m: int, nodes: int) -> None:
    """With m = 1 the bar of k + 1 shards needs every primary, or a substitute."""
    cluster = make_cluster(k, m, nodes=nodes)
    client = cluster.client()
    tried = list(cluster.stores)[:4]
    for node in tried:
        cluster.network.down = {node}
        for size in (10, MIB + 5):
            await client.put("b", f"{node}-{size}", body(node, size))
        await client.delete("b", f"{node}-10")
    cluster.network.heal()
    reader = cluster.client()
    for node in tried:
        assert await reader.get("b", f"{node}-{MIB + 5}") == body(node, MIB + 5)
        with pytest.raises(NotFound):
            await reader.get("b", f"{node}-10")


@pytest.mark.parametrize("size", [100, MIB + 5])
async def test_a_refused_put_leaves_nothing_even_when_nodes_come_back(
    any_cluster: InProcessCluster, size: int
) -> None:
    """m nodes are down, or (worse) carry out what they are told and their answers are lost."""
    policy = any_cluster.cluster_map.policy()
    down = set(list(any_cluster.stores)[: max(policy.m, 2)])
    client = any_cluster.client()
    await client.put("b", "old", b"before")
    await client.flush()

    async def lose_answers(node: int, reply: Traffic) -> None:
        if node in down and isinstance(reply, pb.BatchReply | pb.WriteShardReply):
            raise Unavailable("the answer is lost")

    for case in ("down", "answers lost", "aborts lost"):
        if case == "down":
            any_cluster.network.down = set(down)
        elif case == "answers lost":
            any_cluster.network.after = lose_answers
        else:

            async def lose_aborts(node: int, request: Traffic) -> None:
                aborts = isinstance(request, pb.BatchRequest) and any(
                    op.HasField("abort") for op in request.operations
                )
                if node in down and aborts:
                    raise Unavailable("the abort is lost")

            any_cluster.network.before, any_cluster.network.after = lose_aborts, lose_answers
        for key in ("new", "old"):
            with pytest.raises(Unavailable) as caught:
                await client.put("b", key, body(3, size))
            if isinstance(caught.value, OutcomeUnknown):
                # 2+1 with two of three nodes deaf: two generals. Then the promise is only that readers agree.
                assert policy.k == 2
        any_cluster.network.heal()
        await client.flush()
        if policy.k == 2:
            continue
        for reader in (any_cluster.client(), any_cluster.client()):
            assert await reader.get("b", "old") == b"before", case
            with pytest.raises(NotFound):
                await reader.get("b", "new")
            assert [e.key async for e in reader.list("b") if not isinstance(e, str)] == ["old"]
        for gone in any_cluster.stores:
            any_cluster.network.down = {gone}
            reader = any_cluster.client()
            assert await reader.get("b", "old") == b"before", (case, gone)
            with pytest.raises(NotFound):
                await reader.get("b", "new")
            any_cluster.network.heal()


async def test_nodes_that_refuse_at_first_and_accept_later_are_told_to_give_up(
    cluster: InProcessCluster,
) -> None:
    """A refused put must not come to life: a node that was full when first asked took the shard when asked again."""
    options = QUICK
    client = cluster.client(options=options)
    nodes = primaries(cluster, "k")
    for node in nodes:
        cluster.stores[node].set_capacity(0)
    accepts = 0

    async def make_room(node: int, request: Traffic) -> None:
        nonlocal accepts
        if isinstance(request, pb.BatchRequest) and any(op.HasField("accept") for op in request.operations):
            accepts += 1
            if accepts > len(nodes):  # the second round of questions
                for roomy in nodes[:4]:
                    cluster.stores[roomy].set_capacity(None)

    cluster.network.before = make_room
    slow = cluster.client(options=options)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is checked below
        await slow.put("b", "k", b"x" * 100)
    assert type(caught.value).__name__ in {"ResourceExhausted", "Unavailable"}
    cluster.network.heal()
    for node in nodes:
        cluster.stores[node].set_capacity(None)
    await slow.flush()
    for silent in nodes[4:]:
        cluster.network.down = {silent}
        with pytest.raises(NotFound):
            await cluster.client().get("b", "k")
    await client.flush()


# -------------------------------------------------------------------- clocks and maps


async def test_a_slow_clock_writes_above_a_fast_one(cluster: InProcessCluster) -> None:
    now_ms = 1_700_000_000_000
    shared = ManualClock(now_ms)
    late, early = ManualClock(now_ms - 600_000), ManualClock(now_ms + 50_000)
    for handler in cluster.handlers.values():
        handler._clock = shared
    fast, slow = cluster.client(clock=early), cluster.client(clock=late)
    first = await fast.put("b", "k", b"fast")
    second = await slow.put("b", "k", b"slow")
    assert second.version > first.version
    assert await fast.get("b", "k") == b"slow"
    await slow.delete("b", "k")
    with pytest.raises(NotFound):
        await fast.get("b", "k")


async def test_a_clock_far_behind_is_refused(cluster: InProcessCluster) -> None:
    """What it says may have been under way since before a deletion that nobody remembers any more."""
    now_ms = 1_700_000_000_000
    for handler in cluster.handlers.values():
        handler._clock = ManualClock(now_ms)
    on_time = cluster.client(clock=ManualClock(now_ms))
    await on_time.put("b", "k", b"x")
    behind = cluster.client(clock=ManualClock(now_ms - 3_600_000), options=QUICK)
    behind._parts.writer._patience = 0.0
    with pytest.raises(ClockSkew):
        await behind.put("b", "k", b"y")
    assert await on_time.get("b", "k") == b"x"


async def test_a_clock_far_ahead_is_refused_and_nothing_stays(cluster: InProcessCluster) -> None:
    ahead = cluster.client(clock=ManualClock(4_000_000_000_000), options=QUICK)
    ahead._parts.writer._patience = 0.0
    with pytest.raises(ClockSkew):
        await ahead.put("b", "k", b"x")
    with pytest.raises(ClockSkew):
        await ahead.put("b", "big", bytes(MIB + 1))
    for store in cluster.stores.values():
        status = await store.status()
        assert (status.objects, status.shards, status.live_bytes) == (0, 0, 0)


async def test_another_epoch_is_stale_for_every_call(cluster: InProcessCluster) -> None:
    import dataclasses

    stale = cluster.client(cluster_map=dataclasses.replace(cluster.cluster_map, epoch=7))
    for call in (
        stale.put("b", "k", b"x"),
        stale.put("b", "k", bytes(MIB + 1)),
        stale.get("b", "k"),
        stale.head("b", "k"),
        stale.delete("b", "k"),
        stale.list_page("b"),
        stale.versions("b", "k"),
    ):
        with pytest.raises(StaleMap):
            await call


_ = Network


async def test_a_list_shows_what_was_acknowledged_whoever_missed_it(cluster: InProcessCluster) -> None:
    """A delete stands on four of six nodes. A list asks few nodes; whichever two of them missed it, it is seen."""
    for number, missed in enumerate(itertools.combinations(sorted(cluster.stores), 2)):
        writer, bucket = cluster.client(), f"b{number}"
        for key in ("gone", "kept"):
            await writer.put(bucket, key, b"value")
        await writer.flush()
        cluster.network.down = set(missed)
        await writer.delete(bucket, "gone")
        await writer.flush()
        cluster.network.heal()
        keys = [entry.key async for entry in cluster.client().list(bucket) if not isinstance(entry, str)]
        assert keys == ["kept"], missed
