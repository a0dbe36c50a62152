"""The nodes as a client sees them: operations that travel together, and who answers how fast.

Concurrent small operations to one node share messages. While a message is under way the next operations gather, so
the busier the client, the larger its messages; an idle client sends at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, InternalError, ResourceExhausted, RetryableError
from coffre.cluster.transport import Transport
from coffre.cluster.versions import STAMP_BYTES
from coffre.proto import coffre_pb2 as pb

__all__ = ["Lane", "Peer", "Peers"]

OPERATIONS_MAX = 128
MESSAGE_BYTES_MAX = 1 << 20
MESSAGES_IN_FLIGHT_MAX = 2
SETTLE_DELAY_SECONDS = 0.005
SUSPECT_SECONDS_MAX = 10.0
STATUS_CODE_MAX = 16  # of gRPC


@dataclass(slots=True)
class _Waiting:
    operation: pb.Operation
    size_bytes: int
    done: asyncio.Future[pb.Outcome] | None  # None: nobody waits


class Lane:
    """One stream of batches to one node. Reads and writes have a lane each, so that no read waits for a sync."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._waiting: deque[_Waiting] = deque()
        self._in_flight = 0
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, operation: pb.Operation) -> asyncio.Future[pb.Outcome]:
        """Queue an operation. The future gets its outcome, or a `CoffreError` when the node did not answer."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(operation, operation.ByteSize(), done))
        self._schedule()
        return done

    def submit_lazily(self, operation: pb.Operation) -> None:
        """Queue an operation whose outcome nobody needs; it goes with the next message, or soon on its own."""
        self._waiting.append(_Waiting(operation, operation.ByteSize(), None))
        if self._timer is None and not self._flush_due and self._in_flight < MESSAGES_IN_FLIGHT_MAX:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_DELAY_SECONDS, self._flush)

    async def drain(self) -> None:
        """Return when nothing waits or travels any more."""
        while self._waiting or self._tasks:
            self._flush()
            await asyncio.gather(*self._tasks)

    def _schedule(self) -> None:
        """Flush once everybody who is ready to run has queued what it has."""
        if not self._flush_due and self._in_flight < MESSAGES_IN_FLIGHT_MAX:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._in_flight < MESSAGES_IN_FLIGHT_MAX:
            batch = [self._waiting.popleft()]
            size_bytes = batch[0].size_bytes
            while self._waiting and len(batch) < OPERATIONS_MAX:
                size_bytes += self._waiting[0].size_bytes
                if size_bytes > MESSAGE_BYTES_MAX:
                    break
                batch.append(self._waiting.popleft())
            self._in_flight += 1
            task = asyncio.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await self._peer.batch([waiting.operation for waiting in batch])
            again: list[_Waiting] = []
            for place, (waiting, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                if place and outcome.code == ResourceExhausted.code and waiting.operation.HasField("read"):
                    again.append(waiting)  # the reply was full; the first read of a message always fits
                elif waiting.done is not None and not waiting.done.done():
                    waiting.done.set_result(outcome)
            self._waiting.extendleft(reversed(again))
        except CoffreError as error:
            _fail(batch, error)
            if isinstance(error, RetryableError):
                # The node does not answer: what waits behind would only wait as long again, and pile up.
                _fail(self._waiting, error)
                self._waiting.clear()
        except BaseException:
            # A bug, or the end of the loop: nobody may wait for ever.
            _fail(batch, InternalError("the call ended in an unexpected way"))
            raise
        finally:
            self._in_flight -= 1
            if self._waiting:
                self._schedule()


def _fail(operations: Iterable[_Waiting], error: CoffreError) -> None:
    for waiting in operations:
        if waiting.done is not None and not waiting.done.done():
            waiting.done.set_exception(error)
            waiting.done.exception()  # a straggler that nobody waits for any more is no leak


class Peer:
    """One node: its lanes, and what is known of its health."""

    def __init__(self, number: int, peers: Peers) -> None:
        self.number = number
        self.reads = Lane(self)
        self.writes = Lane(self)
        self._peers = peers
        self._failures = 0
        self._suspect_until = 0.0
        self.latency = 0.0  # seconds, moving average of read batches

    @property
    def suspect(self) -> bool:
        """True for a while after failures; suspects are asked last."""
        return self._failures > 0 and self._peers.clock.monotonic() < self._suspect_until

    def note_failure(self) -> None:
        self._failures += 1
        pause = min(0.25 * 2**self._failures, SUSPECT_SECONDS_MAX)
        self._suspect_until = self._peers.clock.monotonic() + pause

    def note_success(self) -> None:
        self._failures = 0

    async def batch(self, operations: Iterable[pb.Operation]) -> list[pb.Outcome]:
        """One round trip. Raises `CoffreError`."""
        peers = self._peers
        request = pb.BatchRequest(epoch=peers.epoch, tenant=peers.tenant, operations=operations)
        begun = peers.clock.monotonic()
        try:
            reply = await peers.transport.batch(self.number, request, peers.timeout)
        except RetryableError:
            self.note_failure()
            raise
        self.note_success()
        self.latency += 0.2 * (peers.clock.monotonic() - begun - self.latency)
        if len(reply.outcomes) != len(request.operations):
            raise InternalError(
                f"node {self.number} answered {len(reply.outcomes)} of {len(request.operations)}"
            )
        if not all(map(self._is_sound, reply.outcomes)):
            raise InternalError(f"node {self.number} answered with what no node can mean")
        return list(reply.outcomes)

    def _is_sound(self, outcome: pb.Outcome) -> bool:
        """Whether the rest of the client may rely on codes, stamps and indexes; unknown places are forgotten."""
        if outcome.code > STATUS_CODE_MAX or len(outcome.newest_stamp) not in (0, STAMP_BYTES):
            return False
        for version in outcome.versions:
            if len(version.stamp) != STAMP_BYTES or version.shard_index >= self._peers.shards:
                return False
            if any(node not in self._peers for node in version.sealed.placement):
                del version.sealed.placement[:]
        return True


class Peers:
    """All nodes of the map."""

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
    ) -> None:
        self.transport = transport
        self.clock = clock
        self.epoch = epoch
        self.tenant = tenant
        self.timeout = timeout  # seconds, of one round trip
        self.shards = shards  # of one object: k + m
        self._peers = {number: Peer(number, self) for number in numbers}

    def __getitem__(self, number: int) -> Peer:
        return self._peers[number]

    def __contains__(self, number: object) -> bool:
        return number in self._peers

    def all(self) -> tuple[Peer, ...]:
        return tuple(self._peers.values())

    async def drain(self) -> None:
        """Return when no lane has anything waiting or under way."""
        await asyncio.gather(
            *(lane.drain() for peer in self._peers.values() for lane in (peer.reads, peer.writes))
        )
