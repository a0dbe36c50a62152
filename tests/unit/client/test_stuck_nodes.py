"""A node that takes messages and answers none, as one that hangs: writers go on, fast and in bounded memory."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from coffre.bench.in_process import QUICK, InProcessCluster, Traffic
from coffre.client._peers import FAILURES_COUNTED, STUCK_BYTES_MAX, STUCK_SECONDS, WAITING_BYTES_MAX, Peers
from coffre.client._writes import Shards
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import Unavailable
from coffre.cluster.exchange import Batch
from coffre.cluster.identity import Identity, Role
from coffre.cluster.transport import LoopbackTransport
from coffre.proto import coffre_pb2 as pb

_GRACE_SECONDS = 1.0
PATIENT = dataclasses.replace(QUICK, timeout=60.0, straggler_grace=_GRACE_SECONDS)


@contextmanager
def hanging(cluster: InProcessCluster, node: int) -> Iterator[None]:
    """A node answers nothing meanwhile."""
    healed = asyncio.Event()

    async def before(receiver: int, request: Traffic) -> None:
        if receiver == node:
            await healed.wait()

    cluster.network.before = before
    try:
        yield
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
    lane = Peers([1], transport, clock, epoch=1, tenant="t", timeout=60.0, shards=6)[1].writes
    size_bytes = 1 << 19
    operation = pb.Operation(accept=pb.Accept(bucket="b", key="k", cell=bytes(size_bytes)))
    taken = [lane.submit(operation)]
    await asyncio.sleep(0)
    taken += [lane.submit(operation) for _ in range(2 * STUCK_BYTES_MAX // size_bytes)]
    await asyncio.sleep(0)
    assert not any(future.done() for future in taken), "a busy node is not a stuck one"
    clock.advance(STUCK_SECONDS + 0.1)
    with pytest.raises(Unavailable, match="does not keep up"):
        async with asyncio.timeout(5):
            await lane.submit(operation)
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
