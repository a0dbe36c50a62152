"""A node that takes messages and answers none, as one that hangs: writers go on, fast and in bounded memory."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from coffre.client.nodes import STUCK_SECONDS, Peers
from coffre.client.nodes._peers import FAILURES_COUNTED, STUCK_BYTES_MAX, WAITING_BYTES_MAX
from coffre.client.writing import Shards
from coffre.client.writing._upload import MESSAGE_BYTES, MESSAGES_KEPT
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import CoffreError, DeadlineExceeded, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.transport import Batch, LoopbackTransport
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

_GRACE_SECONDS = 1.0
PATIENT = dataclasses.replace(QUICK, timeout=60.0, straggler_grace=_GRACE_SECONDS)


@contextmanager
def hanging(cluster: InProcessCluster, node: int) -> Iterator[list[int]]:
    """A node answers nothing meanwhile. Gives the nodes to which streams of shards are begun, now and afterwards."""
    healed = asyncio.Event()
    begun: list[int] = []

    async def before(receiver: int, request: Traffic) -> None:
        if isinstance(request, ShardChunk) and request.header is not None:
            begun.append(receiver)
        if receiver == node:
            await healed.wait()

    cluster.network.before = before
    try:
        yield begun
    finally:
        healed.set()


class Hanging(LoopbackTransport):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__(Identity("00112233445566aa", Role.TENANT, "t"), {})
        self.gate = asyncio.Event()

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        count = len(pb.PackedBatchRequest.FromString(request.SerializeToString()).operations)
        await self.gate.wait()
        return pb.BatchReply(outcomes=[pb.Outcome()] * count)


async def test_what_waits_for_a_stuck_node_is_bounded() -> None:
    clock, transport = ManualClock(), Hanging()
    peers = Peers([1], transport, clock, epoch=1, tenant="t", timeout=60.0, shards=6, names={1: "a1"})
    lane = peers[1].writes
    size_bytes = 1 << 19
    operation = pb.Operation(accept=pb.Accept(bucket="b", key="k", cell=bytes(size_bytes)))
    taken = [lane.submit(operation)]
    await asyncio.sleep(0)
    taken += [lane.submit(operation) for _ in range(2 * STUCK_BYTES_MAX // size_bytes)]
    await asyncio.sleep(0)
    assert not any(future.done() for future in taken), "a busy node is not a stuck one"
    clock.advance(STUCK_SECONDS + 0.1)
    with pytest.raises(Unavailable, match="node a1 does not keep up") as stuck:
        async with asyncio.timeout(5):
            await lane.submit(operation)
    assert stuck.value.node == "a1"
    transport.gate.set()
    await asyncio.gather(*taken)
    await lane.submit(operation)  # it is well again


async def test_what_waits_for_a_slow_node_is_bounded() -> None:
    transport = Hanging()
    lane = Peers([1], transport, ManualClock(), epoch=1, tenant="t", timeout=60.0, shards=6)[1].writes
    operation = pb.Operation(accept=pb.Accept(bucket="b", key="k", cell=bytes(1 << 20)))
    taken = [lane.submit(operation) for _ in range(WAITING_BYTES_MAX // (1 << 20))]
    with pytest.raises(Unavailable, match="does not keep up"):
        await lane.submit(operation)
    assert not any(future.done() for future in taken)
    transport.gate.set()
    await asyncio.gather(*taken)


async def test_a_put_that_has_returned_keeps_no_cells_for_a_stuck_node(cluster: InProcessCluster) -> None:
    client = cluster.client(options=dataclasses.replace(PATIENT, straggler_grace=0.0))
    with hanging(cluster, 6):
        for number in range(5):
            await client.put("b", f"k{number}", bytes(1000))
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, Shards)]


async def test_a_stuck_node_is_waited_for_once(cluster: InProcessCluster) -> None:
    client = cluster.client(options=PATIENT)
    await client.put("b", "before", b"value")
    seconds = []
    with hanging(cluster, 6):
        for number in range(3):
            begun = time.monotonic()
            await client.put("b", f"k{number}", b"value")
            seconds.append(time.monotonic() - begun)
    assert seconds[0] >= _GRACE_SECONDS
    assert max(seconds[1:]) < _GRACE_SECONDS


async def test_a_stream_waits_out_the_whole_patience_for_a_stuck_node_once(cluster: InProcessCluster) -> None:
    patience_seconds = 4 * STUCK_SECONDS
    client = cluster.client(options=dataclasses.replace(PATIENT, stall_timeout=patience_seconds))
    plain, seconds = bytes(range(256)) * (40 << 12), []
    with hanging(cluster, 6):
        for number in range(2):
            begun = time.monotonic()
            await client.put("b", f"k{number}", plain)
            seconds.append(time.monotonic() - begun)
    assert seconds[0] >= patience_seconds
    assert seconds[1] < patience_seconds
    assert await client.get("b", "k1") == plain


async def test_a_stream_has_the_whole_patience_with_nodes_that_it_needs(cluster: InProcessCluster) -> None:
    client = cluster.client(options=dataclasses.replace(PATIENT, stall_timeout=4 * STUCK_SECONDS))
    plain, healed = bytes(range(256)) * (40 << 12), asyncio.Event()

    async def before(receiver: int, request: Traffic) -> None:
        if receiver in (5, 6):
            await healed.wait()

    cluster.network.before = before
    for _ in range(FAILURES_COUNTED):
        for number in (5, 6):
            client._views.current.peers[number].note_failure()
    asyncio.get_running_loop().call_later(2 * STUCK_SECONDS, healed.set)
    await client.put("b", "k", plain)
    assert await client.get("b", "k") == plain


SEVERAL_MESSAGES = bytes(range(256)) * (6 * MESSAGE_BYTES * 4 // 256)  # six to each node of 4+2
HASTY = dataclasses.replace(PATIENT, stall_timeout=0.2)
STREAMS_LEFT_MAX = STUCK_BYTES_MAX // (MESSAGES_KEPT * MESSAGE_BYTES)


async def test_few_streams_are_begun_with_a_node_that_hangs(cluster: InProcessCluster) -> None:
    """Of each that was left behind gRPC keeps some megabytes, until the node reads on or the connection ends."""
    client = cluster.client(options=HASTY)
    with hanging(cluster, 6) as begun:
        for number in range(STREAMS_LEFT_MAX + 2):
            await client.put("b", f"k{number}", SEVERAL_MESSAGES)
        assert begun.count(6) == STREAMS_LEFT_MAX
        assert begun.count(5) == STREAMS_LEFT_MAX + 2
    await client.flush()
    begun.clear()
    await client.put("b", "well again", SEVERAL_MESSAGES)
    assert sorted(begun) == [1, 2, 3, 4, 5, 6]


async def test_another_node_takes_the_shards_of_one_that_hangs(
    make_cluster: Callable[..., InProcessCluster],
) -> None:
    cluster = make_cluster(4, 2, nodes=9)
    client = cluster.client(options=HASTY)
    name = ObjectName("clinic", "b", "k")
    partition = partition_of(name, cluster.cluster_map.partitions)
    node = Placement(cluster.cluster_map, cluster.cluster_map.policy()).primaries(partition)[0]
    with hanging(cluster, node) as begun:
        for _ in range(STREAMS_LEFT_MAX):
            await client.put("b", "k", SEVERAL_MESSAGES)
        begun.clear()
        await client.put("b", "k", SEVERAL_MESSAGES)
        assert len(set(begun)) == 6
        assert node not in begun
    assert await client.get("b", "k") == SEVERAL_MESSAGES


async def test_nodes_that_may_hang_are_asked_where_they_are_needed(cluster: InProcessCluster) -> None:
    client = cluster.client(options=dataclasses.replace(HASTY, patience=0.2))
    for number in (5, 6):
        client._views.current.peers[number].note_left_behind(STUCK_BYTES_MAX)
    with hanging(cluster, 1) as begun:
        async with asyncio.timeout(10):
            await client.put("b", "k", SEVERAL_MESSAGES)
    assert sorted(begun) == [1, 2, 3, 4, 5, 6]


class Failing(LoopbackTransport):
    """Every message fails."""

    def __init__(self, error: CoffreError) -> None:
        super().__init__(Identity("00112233445566aa", Role.TENANT, "t"), {})
        self._error = error

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        raise self._error


@pytest.mark.parametrize(("error", "takes"), [(DeadlineExceeded("late"), False), (Unavailable("gone"), True)])
async def test_what_was_left_behind_goes_with_the_connection_not_with_a_deadline(
    error: CoffreError, takes: bool
) -> None:
    peer = Peers([1], Failing(error), ManualClock(), epoch=1, tenant="t", timeout=60.0, shards=6)[1]
    peer.note_left_behind(STUCK_BYTES_MAX)
    with pytest.raises(type(error)):
        await peer.writes.submit(pb.Operation(read=pb.Read(bucket="b", key="k")))
    assert peer.takes_streams is takes
