"""The nodes as a client sees them: operations that travel together, and who answers how fast.

Concurrent small operations to one node share messages. While a message is under way the next operations gather, so
the busier the client, the larger its messages; an idle client sends at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    DeadlineExceeded,
    InternalError,
    ResourceExhausted,
    RetryableError,
    Unavailable,
)
from coffre.cluster.health import Health, HealthTracker
from coffre.cluster.transport import Transport
from coffre.cluster.versions import STAMP_BYTES
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import VOTES, outcome_of, outcomes_of

__all__ = ["Lane", "Peer", "Peers", "Sink"]

_log = logging.getLogger("coffre.client")

OPERATIONS_MAX = 256
MESSAGE_BYTES_MAX = 1 << 20
MESSAGES_IN_FLIGHT_MAX = 2
WAITING_BYTES_MAX = (
    64 << 20
)  # twice what puts under way may have in memory, so most of it is of puts that returned
STUCK_BYTES_MAX = 16 << 20  # the same for a node that is stuck
STUCK_SECONDS = 1.0  # so long a message is under way to it
WORTH_A_MESSAGE = 16  # so many operations do not wait for the message under way, but go in one of their own
SETTLE_DELAY_SECONDS = 0.005
SUSPECT_SECONDS_MAX = 10.0
FAILURES_COUNTED = 16  # after so many in a row a suspect has long been one for as long as it gets
JUDGED_SECONDS = 0.25  # how long a judgement of all nodes holds
TRIAL_SECONDS = (
    1.0  # between two reads that a slow node is asked beside the others, to see whether it still is
)
BEHIND_SECONDS = 5.0  # how long a node that lacked a version is asked last
STATUS_CODE_MAX = 16  # of gRPC
_READ_TAG = 0x22  # what a serialized Operation with a Read begins with


class Sink(Protocol):
    """Takes what becomes of one operation; called once."""

    def voted(self, vote: int) -> None:
        """A change that was done (coffre.proto.batches says what the byte means)."""

    def answered(self, outcome: pb.Outcome) -> None:
        """Take the outcome of an operation; called once, in the event loop, and never raises."""

    def failed(self, error: CoffreError) -> None:
        """The node did not answer, or refused the whole message."""


class _Nobody:
    """For operations whose outcome nobody needs."""

    def voted(self, vote: int) -> None: ...

    def answered(self, outcome: pb.Outcome) -> None: ...

    def failed(self, error: CoffreError) -> None: ...


class _Awaited:
    """For operations that one caller waits for."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[pb.Outcome]) -> None:
        self.future = future

    def voted(self, vote: int) -> None:
        self.answered(outcome_of(vote))

    def answered(self, outcome: pb.Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def failed(self, error: CoffreError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # a straggler that nobody waits for any more is no leak


_NOBODY = _Nobody()
_Waiting = tuple[bytes, Sink]  # a serialized Operation, and who wants its outcome


class Lane:
    """One stream of batches to one node. Reads and writes have a lane each, so that no read waits for a sync."""

    def __init__(self, peer: Peer, marks: Callable[[], tuple[bytes, ...]]) -> None:
        self._peer = peer
        self._marks = marks
        self._told: tuple[bytes, ...] = ()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._in_flight = 0
        self._sent: list[float] = []  # when the messages under way were sent, the oldest first
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._peer.loop

    def post(self, operation: bytes, sink: Sink) -> None:
        """Queue a serialized operation; `sink` is told what becomes of it, later."""
        if not self._queue(operation, sink):
            name = self._peer.name
            error = Unavailable(
                f"node {name} does not keep up, and much is waiting for it already", node=name
            )
            self._loop.call_soon(sink.failed, error)
        elif not self._flush_due and self._may_send():
            self._schedule()

    def submit(self, operation: pb.Operation) -> asyncio.Future[pb.Outcome]:
        """Queue an operation. The future gets its outcome, or a `CoffreError` when the node did not answer."""
        done: asyncio.Future[pb.Outcome] = self._loop.create_future()
        self.post(operation.SerializeToString(), _Awaited(done))
        return done

    def submit_lazily(self, operation: pb.Operation) -> None:
        """Queue an operation whose outcome nobody needs; it goes with the next message, or soon on its own."""
        if self._queue(operation.SerializeToString(), _NOBODY):
            self.remind()

    def _queue(self, operation: bytes, sink: Sink) -> bool:
        """False when too much waits for a node that is stuck, or slower than the others for long: writers that are
        durable do not wait for it, so nothing else would bound what it takes in memory."""
        most = STUCK_BYTES_MAX if self.lags(STUCK_SECONDS) else WAITING_BYTES_MAX
        if self._waiting_bytes > most:
            return False
        self._waiting.append((operation, sink))
        self._waiting_bytes += len(operation)
        return True

    def remind(self) -> None:
        """What waits lazily, or a new mark, goes soon on its own when nothing else takes it along."""
        if self._timer is None and not self._flush_due and not self._in_flight:
            self._timer = self._loop.call_later(SETTLE_DELAY_SECONDS, self._flush)

    def lags(self, seconds: float) -> bool:
        """Whether a message has been under way for longer than that."""
        return bool(self._sent) and self._peer.now() - self._sent[0] > seconds

    async def drain(self) -> None:
        """Return when nothing waits or travels any more."""
        while True:
            self._flush()
            if not self._tasks:
                return
            await asyncio.gather(*self._tasks)

    def _may_send(self) -> bool:
        if not self._in_flight:
            return True
        return self._in_flight < MESSAGES_IN_FLIGHT_MAX and len(self._waiting) >= WORTH_A_MESSAGE

    def _schedule(self) -> None:
        """Flush once everybody who is ready to run has queued what it has."""
        self._flush_due = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._may_send():
            marks = self._new_marks()
            batch = self._next_batch()
            if not batch and not marks:
                return
            self._in_flight += 1
            task = self._loop.create_task(self._send(batch, marks))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _new_marks(self) -> list[bytes]:
        marks = self._marks()
        if marks == self._told:
            return []
        new = [mark for mark in marks if mark not in self._told]
        self._told = marks
        return new

    def _next_batch(self) -> list[_Waiting]:
        waiting = self._waiting
        batch: list[_Waiting] = []
        size_bytes = 0
        while waiting and len(batch) < OPERATIONS_MAX:
            size_bytes += len(waiting[0][0])
            if batch and size_bytes > MESSAGE_BYTES_MAX:
                break
            batch.append(waiting.popleft())
            self._waiting_bytes -= len(batch[-1][0])
        return batch

    async def _send(self, batch: list[_Waiting], marks: list[bytes]) -> None:
        sent = self._peer.now()
        self._sent.append(sent)
        try:
            reply = await self._peer.exchange([operation for operation, _ in batch], marks)
            if (
                self is self._peer.reads
            ):  # how long a write takes is the disk's matter, and no reader waits for it
                self._peer.note_answer(self._peer.now() - sent)
            if reply.outcomes:
                self._deliver(batch, reply)
            else:
                for (_, sink), vote in zip(batch, reply.votes, strict=True):
                    sink.voted(vote)
        except CoffreError as error:
            _fail(batch, error)
            if isinstance(error, RetryableError):
                # The node does not answer: what waits behind would only wait as long again, and pile up.
                waiting = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
                _fail(waiting, error)
        except BaseException:
            # A bug, or the end of the loop: nobody may wait for ever.
            _fail(batch, InternalError("the call ended in an unexpected way"))
            raise
        finally:
            self._in_flight -= 1
            self._sent.remove(sent)
            if not self._flush_due and (self._waiting or self._marks() != self._told):
                self._schedule()

    def _deliver(self, batch: list[_Waiting], reply: pb.BatchReply) -> None:
        again: list[_Waiting] = []
        for place, (waiting, outcome) in enumerate(zip(batch, outcomes_of(reply), strict=True)):
            operation, sink = waiting
            if isinstance(outcome, int):
                sink.voted(outcome)
            elif place and outcome.code == ResourceExhausted.code and operation[0] == _READ_TAG:
                again.append(waiting)  # the reply was full; the first read of a message always fits
            else:
                sink.answered(outcome)
        self._waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(len(operation) for operation, _ in again)


def _fail(operations: Iterable[_Waiting], error: CoffreError) -> None:
    for _, sink in operations:
        sink.failed(error)


class Peer:
    """One node: its lanes, and what is known of its health."""

    def __init__(self, number: int, peers: Peers) -> None:
        self.number = number
        self.name = peers.name_of(number)
        self.reads = Lane(self, tuple)
        self.writes = Lane(self, peers.marks)
        self._peers = peers
        self._failures = 0
        self._suspect_until = 0.0
        self._trial_at = 0.0
        self._behind_until = 0.0
        self._left_bytes = 0

    def note_left_behind(self, size_bytes: int) -> None:
        """A stream to it was given up. gRPC keeps what it had taken until the node reads on, or the connection ends."""
        self._left_bytes += size_bytes

    @property
    def takes_streams(self) -> bool:
        """False when so much was left behind since it answered last, or its connection ended, that no more should."""
        return self._left_bytes < STUCK_BYTES_MAX

    @property
    def is_behind(self) -> bool:
        """Whether it lately lacked a version that it should have had, as while it is being rebuilt."""
        return self._behind_until > 0 and self._peers.clock.monotonic() < self._behind_until

    def note_behind(self) -> None:
        """It answered, and lacked an established version that is older than what may be on its way."""
        self._behind_until = self._peers.clock.monotonic() + BEHIND_SECONDS

    @property
    def suspect(self) -> bool:
        """True for a while after failures; suspects are asked last."""
        return self._failures > 0 and self._peers.clock.monotonic() < self._suspect_until

    @property
    def is_set_aside(self) -> bool:
        """Whether reads ask it last: a suspect, or it has been slow beside the others, kept going away or is behind.

        Writes go to it as to any other: what it lacks would have to be repaired.
        """
        return self.number in self._peers.aside or self.suspect or self.is_behind

    def takes_trial(self) -> bool:
        """Whether a slow node should be asked beside the others now, with nobody waiting for it; once in a while."""
        if self.number not in self._peers.aside:
            return False
        now = self.now()
        if now < self._trial_at:
            return False
        self._trial_at = now + TRIAL_SECONDS
        return True

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that its messages travel in."""
        return self._peers.loop

    def now(self) -> float:
        """Monotonic seconds."""
        return self._peers.clock.monotonic()

    def note_failure(self) -> None:
        """Count a failure: this node is asked later than others for a while."""
        if not self._failures:
            _log.warning("node %s does not answer", self.name)
        self._failures = min(self._failures + 1, FAILURES_COUNTED)
        pause = min(0.25 * 2**self._failures, SUSPECT_SECONDS_MAX)
        self._suspect_until = self._peers.clock.monotonic() + pause
        self._peers.note_failure(self.number)

    def note_answer(self, latency_seconds: float) -> None:
        """A read was answered so late."""
        self._peers.note_answer(self.number, latency_seconds)

    async def exchange(self, operations: list[bytes], marks: list[bytes]) -> pb.BatchReply:
        """One round trip with serialized operations. Raises `CoffreError`."""
        peers = self._peers
        request = pb.PackedBatchRequest(
            epoch=peers.epoch,
            tenant=peers.tenant,
            operations=operations,
            settled=marks,
            sent_unixtime_ms=peers.clock.unixtime_ms(),
        )
        try:
            reply = await peers.transport.batch(self.number, request, peers.timeout)
        except RetryableError as error:
            self.note_failure()
            if not isinstance(error, DeadlineExceeded):
                self._left_bytes = 0  # it answered, or the connection ended, and what it held is gone
            raise
        if self._failures:
            _log.info("node %s answers again", self.name)
        self._failures = self._left_bytes = 0
        votes, outcomes = reply.votes, reply.outcomes
        answers = len(votes) if votes else len(outcomes)
        if answers != len(operations) or (votes and votes.count(0) != len(outcomes)):
            raise InternalError(
                f"node {self.name} did not answer {len(operations)} operations one by one", node=self.name
            )
        if votes.translate(None, VOTES) or not all(map(self._is_sound, outcomes)):
            raise InternalError(f"node {self.name} answered with what no node can mean", node=self.name)
        return reply

    def _is_sound(self, outcome: pb.Outcome) -> bool:
        """Whether the rest of the client may rely on codes, stamps and indexes; unknown places are forgotten."""
        if outcome.code > STATUS_CODE_MAX or len(outcome.newest_stamp) not in (0, STAMP_BYTES):
            return False
        peers = self._peers
        for version in outcome.versions:
            if len(version.stamp) != STAMP_BYTES or version.shard_index >= peers.shards:
                return False
            placement = version.sealed.placement
            if not peers.numbers.issuperset(placement):
                del placement[:]
        return True


class Peers:
    """All nodes of the map. `marks` says what this client wants the nodes to know of its versions."""

    def __init__(
        self,
        numbers: Iterable[int],
        transport: Transport,
        clock: Clock,
        *,
        epoch: int,
        tenant: str,
        timeout: float,
        shards: int,
        marks: Callable[[], tuple[bytes, ...]] = tuple,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """`names`: the ids of the nodes, as people are told them."""
        self._names = names or {}
        self.transport = transport
        self.clock = clock
        self.epoch = epoch
        self.tenant = tenant
        self.timeout = timeout  # seconds, of one round trip
        self.shards = shards  # of one object: k + m
        self.marks = marks
        self.numbers = frozenset(numbers)
        self._peers = {number: Peer(number, self) for number in sorted(self.numbers)}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._health = HealthTracker(clock)
        self._judged_until = 0.0
        # Slow or flapping. Who is down is a suspect for a while instead.
        self.aside: frozenset[int] = frozenset()

    def name_of(self, number: int) -> str:
        """The id of a node."""
        return self._names.get(number, str(number))

    def note_answer(self, number: int, latency_seconds: float) -> None:
        """Count an answer, and how many seconds it took."""
        self._health.answered(number, latency_seconds)
        self._judge()

    def note_failure(self, number: int) -> None:
        """Count a failure to answer."""
        self._health.failed(number)
        self._judge()

    def _judge(self) -> None:
        """Look at everybody again, not with each message."""
        now = self.clock.monotonic()
        if now < self._judged_until:
            return
        self._judged_until = now + JUDGED_SECONDS
        self.aside = frozenset(
            number for number in self._peers if self._health.health(number) in (Health.SLOW, Health.FLAPPING)
        )

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the first call, looked up once: asking asyncio costs a system call."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def __getitem__(self, number: int) -> Peer:
        return self._peers[number]

    def __contains__(self, number: object) -> bool:
        return number in self._peers

    def all(self) -> tuple[Peer, ...]:
        """The lanes to all nodes, in no order."""
        return tuple(self._peers.values())

    async def drain(self) -> None:
        """Return when no lane has anything waiting or under way."""
        await asyncio.gather(
            *(lane.drain() for peer in self._peers.values() for lane in (peer.reads, peer.writes))
        )
