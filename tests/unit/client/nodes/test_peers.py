"""Lanes: many operations in few messages, and a failure that stays where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from coffre.client.nodes import Peers
from coffre.client.nodes._peers import (
    BEHIND_SECONDS,
    MESSAGE_BYTES_MAX,
    OPERATIONS_MAX,
    SUSPECT_SECONDS_MAX,
    WORTH_A_MESSAGE,
)
from coffre.client.reading._reads import YOUNG_MS
from coffre.cluster.clock import ManualClock, SystemClock
from coffre.cluster.errors import CoffreError, InternalError, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.transport import Batch, LoopbackTransport
from coffre.dev.in_process import InProcessCluster
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import vote_of


class Recorder(LoopbackTransport):
    """Answers every operation with its own key as detail, when the gate is open."""

    def __init__(self) -> None:
        super().__init__(Identity("00112233445566aa", Role.TENANT, "t"), {})
        self.requests: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[CoffreError] = []
        self.marks: list[list[bytes]] = []
        self.under_way = self.under_way_max = 0

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        request = pb.BatchRequest.FromString(request.SerializeToString())
        self.marks.append(list(request.settled))
        self.requests.append([operation.read.key or operation.settle.key for operation in request.operations])
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if self.failures:
            raise self.failures.pop(0)
        return pb.BatchReply(
            outcomes=[pb.Outcome(detail=operation.read.key) for operation in request.operations]
        )


@pytest.fixture
def transport() -> Recorder:
    return Recorder()


@pytest.fixture
def peers(transport: Recorder) -> Peers:
    return Peers([1], transport, ManualClock(), epoch=1, tenant="t", timeout=1.0, shards=6)


def read(key: str) -> pb.Operation:
    return pb.Operation(read=pb.Read(bucket="b", key=key))


async def test_concurrent_operations_travel_together_and_in_order(peers: Peers, transport: Recorder) -> None:
    futures = [peers[1].reads.submit(read(f"{i}")) for i in range(64)]
    outcomes = await asyncio.gather(*futures)
    assert [outcome.detail for outcome in outcomes] == [f"{i}" for i in range(64)]
    assert len(transport.requests) == 1
    assert transport.requests[0] == [f"{i}" for i in range(64)]


async def test_while_messages_are_under_way_the_next_gather(peers: Peers, transport: Recorder) -> None:
    transport.gate.clear()
    futures = []
    for i in range(64):
        futures.append(peers[1].reads.submit(read(f"{i}")))
        await asyncio.sleep(0)
    transport.gate.set()
    await asyncio.gather(*futures)
    assert len(transport.requests) <= 4
    assert transport.under_way_max == 2
    assert sorted((key for request in transport.requests for key in request), key=int) == [
        f"{i}" for i in range(64)
    ]


async def test_a_few_operations_wait_for_the_message_under_way(peers: Peers, transport: Recorder) -> None:
    transport.gate.clear()
    first = peers[1].reads.submit(read("a"))
    await asyncio.sleep(0)
    others = [peers[1].reads.submit(read(f"{i}")) for i in range(WORTH_A_MESSAGE - 1)]
    await asyncio.sleep(0)
    assert len(transport.requests) == 1
    transport.gate.set()
    await asyncio.gather(first, *others)
    assert len(transport.requests) == 2


async def test_messages_are_bounded(peers: Peers, transport: Recorder) -> None:
    await asyncio.gather(*(peers[1].reads.submit(read(f"{i}")) for i in range(2 * OPERATIONS_MAX + 44)))
    assert [len(request) for request in transport.requests] == [OPERATIONS_MAX, OPERATIONS_MAX, 44]
    transport.requests.clear()
    big = pb.Operation(read=pb.Read(bucket="b", key="k", stamp=bytes(MESSAGE_BYTES_MAX // 2)))
    await asyncio.gather(*(peers[1].reads.submit(big) for _ in range(4)))
    assert [len(request) for request in transport.requests] == [1, 1, 1, 1]


async def test_an_unanswered_message_fails_its_own_operations_alone(
    peers: Peers, transport: Recorder
) -> None:
    transport.gate.clear()
    first = peers[1].reads.submit(read("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = [peers[1].reads.submit(read(f"b{i}")) for i in range(WORTH_A_MESSAGE)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(transport.requests) == 2
    transport.failures.append(Unavailable("lost"))
    transport.gate.set()
    with pytest.raises(Unavailable):
        await first
    assert (await second[0]).detail == "b0"
    assert peers[1].suspect is False  # the second answered
    transport.failures.append(Unavailable("lost"))
    with pytest.raises(Unavailable):
        await peers[1].reads.submit(read("c"))
    assert peers[1].suspect


async def test_an_abandoned_operation_harms_nobody(peers: Peers, transport: Recorder) -> None:
    transport.gate.clear()
    first, second = (peers[1].reads.submit(read(key)) for key in "ab")
    await asyncio.sleep(0)
    first.cancel()
    transport.gate.set()
    assert (await second).detail == "b"
    transport.failures.append(Unavailable("lost"))
    peers[1].reads.submit(read("nobody waits"))
    await peers.drain()


async def test_lazy_operations_ride_along_and_drain_waits_for_them(peers: Peers, transport: Recorder) -> None:
    settle = pb.Operation(settle=pb.Settle(bucket="b", key="lazy", stamp=bytes(16)))
    peers[1].writes.submit_lazily(settle)
    await asyncio.sleep(0)
    assert transport.requests == []
    await peers[1].writes.submit(read("eager"))
    assert transport.requests == [["lazy", "eager"]]
    peers[1].writes.submit_lazily(settle)
    await peers.drain()
    assert transport.requests[1:] == [["lazy"]]


async def test_marks_ride_along_once_and_go_alone_when_nothing_else_does(transport: Recorder) -> None:
    marks = [b"1" * 16]
    peers = Peers(
        [1],
        transport,
        ManualClock(),
        epoch=1,
        tenant="t",
        timeout=1.0,
        shards=6,
        marks=lambda: tuple(marks),
    )
    await peers[1].writes.submit(read("a"))
    await peers[1].writes.submit(read("b"))
    assert transport.marks == [[b"1" * 16], []]
    marks[0] = b"2" * 16
    peers[1].writes.remind()
    await peers[1].reads.submit(read("c"))
    assert transport.marks[2:] == [[]]  # reads carry none
    await peers.drain()
    assert transport.requests[3:] == [[]]
    assert transport.marks[3:] == [[b"2" * 16]]
    await peers.drain()
    assert len(transport.requests) == 4


async def test_votes_are_told_in_order_and_must_fit(peers: Peers, transport: Recorder) -> None:
    replies: list[pb.BatchReply] = []

    async def batch(node: int, request: Batch, timeout: float) -> pb.BatchReply:
        return replies.pop(0)

    transport.batch = batch  # type: ignore[method-assign]
    vote = vote_of(pb.STATE_ACCEPTED, True, True)
    replies.append(pb.BatchReply(votes=bytes((vote, 0, vote)), outcomes=[pb.Outcome(code=5)]))
    outcomes = await asyncio.gather(*(peers[1].writes.submit(read(key)) for key in "abc"))
    assert [outcome.code for outcome in outcomes] == [0, 5, 0]
    assert outcomes[2].state == pb.STATE_ACCEPTED
    assert outcomes[2].has_shard
    assert outcomes[2].replaces
    for wrong in (
        pb.BatchReply(votes=bytes((vote,))),
        pb.BatchReply(votes=bytes((vote, 0, vote))),
        pb.BatchReply(votes=bytes((vote, vote, vote)), outcomes=[pb.Outcome()]),
        pb.BatchReply(votes=bytes((vote, vote, 0x87))),
        pb.BatchReply(votes=bytes((vote, vote, 1))),
    ):
        replies.append(wrong)
        futures = [peers[1].writes.submit(read(key)) for key in "abc"]
        for future in futures:
            with pytest.raises(InternalError):
                await future


async def test_reads_do_not_wait_for_writes(peers: Peers, transport: Recorder) -> None:
    transport.gate.clear()
    writes = [peers[1].writes.submit(read(f"w{i}")) for i in range(3)]
    reading = peers[1].reads.submit(read("r"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ["r"] in transport.requests
    transport.gate.set()
    await asyncio.gather(*writes, reading)


async def test_suspicion_passes_with_time(transport: Recorder) -> None:
    clock = ManualClock()
    peers = Peers([1], transport, clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    peers[1].note_failure()
    assert peers[1].suspect
    clock.advance(11)
    assert not peers[1].suspect


async def test_a_node_that_fails_for_days_stays_a_suspect() -> None:
    clock = ManualClock()
    peers = Peers([1], Recorder(), clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    for _ in range(2000):
        peers[1].note_failure()
    assert peers[1].suspect
    clock.advance(SUSPECT_SECONDS_MAX)
    assert not peers[1].suspect


class Latencies(LoopbackTransport):
    """Answers each read so late as `seconds` says of the node, by the clock of the test."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(Identity("00112233445566aa", Role.TENANT, "t"), {})
        self._clock = clock
        self.seconds: dict[int, float] = {}

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        self._clock.advance(self.seconds.get(node, 0.002))
        operations = pb.BatchRequest.FromString(request.SerializeToString()).operations
        return pb.BatchReply(outcomes=[pb.Outcome() for _ in operations])


async def test_a_slow_node_is_set_aside_for_reads_and_comes_back_by_itself() -> None:
    clock = ManualClock()
    transport = Latencies(clock)
    peers = Peers(range(1, 7), transport, clock, epoch=1, tenant="t", timeout=1.0, shards=6)

    async def ask(nodes: range, times: int) -> None:
        for _ in range(times):
            for node in nodes:
                await peers[node].reads.submit(read("k"))

    await ask(range(1, 7), 5)
    assert not peers.aside
    transport.seconds[3] = 0.2
    await ask(range(1, 7), 20)
    assert {peer.number for peer in peers.all() if peer.is_set_aside} == {3}
    assert not peers[3].suspect, "writes go on"
    assert peers[3].takes_trial()
    assert not peers[3].takes_trial(), "one at a time"
    assert not peers[2].takes_trial(), "who is trusted needs none"
    transport.seconds[3] = 0.002
    trials = 0
    while peers[3].is_set_aside:
        clock.advance(1.0)
        await ask(range(1, 3), 1)
        if peers[3].takes_trial():
            trials += 1
            await peers[3].reads.submit(read("k"))
    assert 1 < trials < 40


async def test_a_slow_node_that_nobody_asks_any_more_is_forgiven() -> None:
    clock = ManualClock()
    transport = Latencies(clock)
    transport.seconds[3] = 0.2
    peers = Peers(range(1, 4), transport, clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    for _ in range(10):
        for peer in peers.all():
            await peer.reads.submit(read("k"))
    assert peers[3].is_set_aside
    clock.advance(61)
    await peers[1].reads.submit(read("k"))
    assert not peers[3].is_set_aside


async def test_writes_say_nothing_of_how_late_a_node_is() -> None:
    clock = ManualClock()
    transport = Latencies(clock)
    transport.seconds[3] = 0.2
    peers = Peers(range(1, 4), transport, clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    for _ in range(10):
        for peer in peers.all():
            await peer.writes.submit(read("k"))
    assert not peers.aside


async def test_a_node_that_keeps_going_away_is_set_aside_though_it_answers_now() -> None:
    clock = ManualClock()
    peers = Peers(range(1, 4), Latencies(clock), clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    for _ in range(3):
        assert not peers[2].is_set_aside
        peers[2].note_failure()
        peers[2].note_failure()
        for _ in range(2):  # nodes are judged now and then, not with each message
            clock.advance(20)
            for peer in peers.all():
                await peer.reads.submit(read("k"))
    assert peers[2].is_set_aside
    assert not peers[2].suspect
    clock.advance(600)
    await peers[2].reads.submit(read("k"))
    assert not peers[2].is_set_aside


async def test_a_node_that_is_behind_is_asked_last_for_a_while(transport: Recorder) -> None:
    clock = ManualClock()
    peers = Peers([1], transport, clock, epoch=1, tenant="t", timeout=1.0, shards=6)
    assert not peers[1].is_set_aside
    peers[1].note_behind()
    assert peers[1].is_set_aside
    assert not peers[1].suspect  # writes go to it as to any other
    clock.advance(BEHIND_SECONDS)
    assert not peers[1].is_set_aside


class Ahead(SystemClock):
    """A wall clock that can be moved."""

    ahead_ms = 0

    def unixtime_ms(self) -> int:
        return super().unixtime_ms() + self.ahead_ms


async def test_reads_avoid_a_node_that_lacks_what_is_old(
    make_cluster: Callable[..., InProcessCluster],
) -> None:
    """As while it is rebuilt: its answers would cost a second round trip each. What is young may be on its way."""
    cluster = make_cluster(4, 2)
    placement = Placement(cluster.cluster_map, cluster.cluster_map.policy())
    partition = partition_of(ObjectName("clinic", "b", "k"), cluster.cluster_map.partitions)
    lacking = placement.primaries(partition)[0]  # who is asked first
    cluster.network.down.add(lacking)
    writer = cluster.client()
    await writer.put("b", "k", b"x")
    await writer.flush()
    cluster.network.heal()
    asked: list[int] = []

    async def note(node: int, request: object) -> None:
        asked.append(node)

    cluster.network.before = note
    clock = Ahead()
    reader = cluster.client(clock=clock)
    for _ in range(2):
        asked.clear()
        await reader.get("b", "k")
        assert lacking in asked
    clock.ahead_ms = YOUNG_MS + 1000
    await reader.get("b", "k")
    for _ in range(6):
        asked.clear()
        await reader.get("b", "k")
        assert lacking not in asked
