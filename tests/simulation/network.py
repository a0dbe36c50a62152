"""The `Transport` of the simulated world: messages that are late, lost, doubled, overtaken, or cut off one way.

It keeps the contract of the real one (tests/contract/test_transport.py), batches over an exchange per node included:
when one message gets no answer in time, every other one under way to that node fails too. What fails may have been
done, and may still be done much later: a message into a partition is lost, or arrives when the partition ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from coffre.cluster.errors import (
    CoffreError,
    DeadlineExceeded,
    InternalError,
    Unavailable,
    error_of_status,
)
from coffre.cluster.identity import Identity
from coffre.cluster.map import ClusterMap
from coffre.cluster.transport import Batch, NodeHandler
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, decode_read, decode_write, encode_read, encode_write
from google.protobuf.message import Message

from tests.simulation.journal import Journal, fingerprint

__all__ = ["Destination", "Network", "Quality", "SimulatedTransport"]

KEEPALIVE_SECONDS = 40.0  # after which a stream into a partition breaks, as gRPC's keepalive would let it
_Reply = TypeVar("_Reply")
HEALED_SPREAD_SECONDS = 0.02

_Work = Callable[[NodeHandler], Awaitable[Message | None]]


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the network is. Seconds, and probabilities per message."""

    delay: float = 0.0  # at least; some messages take several times as long, so they overtake each other
    spread: float = 0.0  # mean of what comes on top
    loss: float = 0.0
    breaks: float = 0.0  # a message breaks the connection: all that is under way fails
    duplication: float = 0.0
    stay_behind: float = 0.5  # of the messages into a partition: lost, not late


class Destination(Protocol):
    """A node as the network sees it."""

    @property
    def number(self) -> int: ...

    @property
    def handler(self) -> NodeHandler: ...

    @property
    def up(self) -> bool: ...

    @property
    def incarnation(self) -> int:
        """Goes up with every restart."""

    @property
    def slowness(self) -> float: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run something in the process of the node: it dies with it."""


class Network:
    """The wires between members. Names of members are text; nodes are "node N"."""

    def __init__(self, rng: random.Random, journal: Journal, quality: Quality | None = None) -> None:
        self._rng = rng
        self._cut_until: dict[tuple[str, str], float] = {}
        self._held_until: dict[str, float] = {}
        self._transports: dict[SimulatedTransport, None] = {}
        self.journal = journal
        self.quality = quality or Quality()
        self.nodes: dict[int, Destination] = {}
        self.bugs: list[Exception] = []  # what nodes raised that is no `CoffreError`

    def attach(self, transport: SimulatedTransport) -> None:
        self._transports[transport] = None

    def detach(self, transport: SimulatedTransport) -> None:
        """Its member is gone for good."""
        self._transports.pop(transport, None)

    def cut(self, sender: str, receiver: str, until: float) -> None:
        """Let nothing pass in one direction until then."""
        self._cut_until[sender, receiver] = max(until, self._cut_until.get((sender, receiver), 0.0))

    def hold(self, sender: str, until: float) -> None:
        """Let nothing that a member sends leave before then, as if it were paused."""
        self._held_until[sender] = max(until, self._held_until.get(sender, 0.0))

    def heal(self) -> None:
        """No partitions any more; nothing is lost or doubled, nor takes longer than anybody waits."""
        self._cut_until.clear()
        self._held_until.clear()
        self.quality = Quality(self.quality.delay, min(self.quality.spread, HEALED_SPREAD_SECONDS))

    def reset(self, node: int) -> None:
        """The node is gone: whoever waits for it learns so, unless it is cut off."""
        for transport in self._transports:
            transport.connection_lost(node)

    def crossing(self, sender: str, receiver: str, slowness: float = 1.0) -> float | None:
        """Seconds that a message takes; None when it is lost."""
        quality, rng = self.quality, self._rng
        if quality.loss and rng.random() < quality.loss:
            return None
        delay = quality.delay
        if quality.spread:
            delay += rng.expovariate(1 / quality.spread)
        delay *= slowness
        now = asyncio.get_running_loop().time()
        if sender in self._held_until:
            delay += max(0.0, self._held_until[sender] - now)
        wait = self._cut_until.get((sender, receiver), 0.0) - now
        if wait > 0:
            return None if rng.random() < quality.stay_behind else wait + delay
        return delay

    def is_broken(self) -> bool:
        return bool(self.quality.breaks) and self._rng.random() < self.quality.breaks

    def copies(self) -> int:
        """How often a message arrives."""
        return 2 if self.quality.duplication and self._rng.random() < self.quality.duplication else 1


class _Answer:
    """What comes back, or not. The first one counts."""

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future

    def succeed(self, raw: bytes) -> None:
        if not self.future.done():
            self.future.set_result(raw)

    def fail(self, error: CoffreError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # its caller may have gone


class SimulatedTransport:
    """One member's way to the nodes."""

    def __init__(self, network: Network, identity: Identity, name: str) -> None:
        self._network = network
        self._identity = identity
        self._name = name
        self._open: dict[int, dict[_Answer, None]] = {}  # answers that are waited for, by node
        self.dead = False
        network.attach(self)

    def die(self) -> None:
        """Nothing is sent any more, whatever the rest of this member still tries."""
        self.dead = True

    async def update_map(self, cluster_map: ClusterMap) -> None:
        """Nothing to do: hosts are reached by their number."""

    # ---------------------------------------------------------------- one request, one reply

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        raw = request.SerializeToString()
        reply = await self._call(
            node,
            "batch",
            raw,
            lambda handler: handler.batch(self._identity, pb.BatchRequest.FromString(raw)),
            timeout,
            exchange=True,
        )
        return pb.BatchReply.FromString(reply)

    async def drop_shard(self, node: int, request: pb.DropShardRequest, timeout: float) -> None:
        raw = request.SerializeToString()
        await self._call(
            node,
            "drop_shard",
            raw,
            lambda handler: handler.drop_shard(self._identity, pb.DropShardRequest.FromString(raw)),
            timeout,
        )

    async def list(self, node: int, request: pb.ListRequest, timeout: float) -> pb.ListReply:
        raw = request.SerializeToString()
        reply = await self._call(
            node,
            "list",
            raw,
            lambda handler: handler.list(self._identity, pb.ListRequest.FromString(raw)),
            timeout,
        )
        return pb.ListReply.FromString(reply)

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        reply = await self._call(node, "status", b"", lambda handler: handler.status(self._identity), timeout)
        return pb.StatusReply.FromString(reply)

    async def get_map(self, node: int, request: pb.GetMapRequest, timeout: float) -> pb.GetMapReply:
        raw = request.SerializeToString()
        reply = await self._call(
            node,
            "get_map",
            raw,
            lambda handler: handler.get_map(self._identity, pb.GetMapRequest.FromString(raw)),
            timeout,
        )
        return pb.GetMapReply.FromString(reply)

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        raw = request.SerializeToString()
        reply = await self._call(
            node,
            "digests",
            raw,
            lambda handler: handler.digests(self._identity, pb.DigestsRequest.FromString(raw)),
            timeout,
        )
        return pb.DigestsReply.FromString(reply)

    async def repair_status(self, node: int, timeout: float) -> pb.RepairStatusReply:
        reply = await self._call(
            node, "repair_status", b"", lambda handler: handler.repair_status(self._identity), timeout
        )
        return pb.RepairStatusReply.FromString(reply)

    async def repair_control(
        self, node: int, request: pb.RepairControlRequest, timeout: float
    ) -> pb.RepairStatusReply:
        raw = request.SerializeToString()
        reply = await self._call(
            node,
            "repair_control",
            raw,
            lambda handler: handler.repair_control(self._identity, pb.RepairControlRequest.FromString(raw)),
            timeout,
        )
        return pb.RepairStatusReply.FromString(reply)

    async def close(self) -> None:
        """Nothing to close."""

    async def _call(
        self, node: int, what: str, raw: bytes, work: _Work, timeout: float, *, exchange: bool = False
    ) -> bytes:
        destination = self._destination(node)
        loop = asyncio.get_running_loop()
        answer = _Answer(loop.create_future())
        waiting = self._open.setdefault(node, {})
        waiting[answer] = None
        timer = loop.call_later(timeout, self._expire, node, answer, timeout, exchange)
        try:
            self._send(destination, what, raw, work, answer)
            return await answer.future
        finally:
            timer.cancel()
            waiting.pop(answer, None)

    def _destination(self, node: int) -> Destination:
        if self.dead:
            raise Unavailable("this member is dead")
        destination = self._network.nodes.get(node)
        if destination is None:
            raise Unavailable(f"node {node} is not there")
        return destination

    def _expire(self, node: int, answer: _Answer, timeout: float, exchange: bool) -> None:
        answer.fail(DeadlineExceeded(f"node {node}: no answer within {timeout:g} s"))
        if exchange:  # it ends with the first message that gets no answer
            self._break(node, "did not answer an earlier message in time")

    def _break(self, node: int, why: str) -> None:
        for answer in list(self._open.get(node, ())):
            answer.fail(Unavailable(f"node {node} {why}"))

    def connection_lost(self, node: int) -> None:
        """The other end is gone; word of that travels like any other message."""
        delay = self._network.crossing(f"node {node}", self._name)
        if delay is not None:
            for answer in list(self._open.get(node, ())):
                self._later(delay, answer.fail, Unavailable(f"node {node} closed the connection"))

    def _send(self, to: Destination, what: str, raw: bytes, work: _Work, answer: _Answer) -> None:
        network = self._network
        network.journal.note(self._name, "->", to.number, what, fingerprint(raw))
        if network.is_broken():
            self._break(to.number, "closed the connection")
        for _ in range(network.copies()):
            delay = network.crossing(self._name, f"node {to.number}", to.slowness)
            if delay is None:
                network.journal.note("lost")
            else:
                self._later(delay, self._arrive, to, what, work, answer)

    def _later(self, delay: float, function: Callable[..., None], *args: object) -> None:
        # Wires are nobody's: what is under way arrives, whoever stands still.
        asyncio.get_running_loop().call_later(delay, function, *args, context=contextvars.Context())

    def _arrive(self, at: Destination, what: str, work: _Work, answer: _Answer) -> None:
        if not at.up:
            delay = self._network.crossing(f"node {at.number}", self._name)
            if delay is not None:
                self._later(delay, answer.fail, Unavailable(f"node {at.number} does not answer"))
            return
        at.spawn(self._serve(at, what, work, answer))

    async def _serve(self, at: Destination, what: str, work: _Work, answer: _Answer) -> None:
        """The node's side of a call, in the process of the node."""
        error: CoffreError | None = None
        raw = b""
        try:
            reply = await work(at.handler)
            raw = b"" if reply is None else reply.SerializeToString()
        except CoffreError as refusal:
            error = error_of_status(refusal.code or InternalError.code, str(refusal))
        except Exception as bug:  # noqa: BLE001 - a node answers, whatever happened to it; the run fails for it
            self._network.bugs.append(bug)
            error = InternalError("this node failed")
        self._network.journal.note(
            "node", at.number, "->", self._name, what, fingerprint(raw) if error is None else str(error)
        )
        delay = self._network.crossing(f"node {at.number}", self._name, at.slowness)
        if delay is None:
            self._network.journal.note("lost")
        elif error is None:
            self._later(delay, answer.succeed, raw)
        else:
            self._later(delay, answer.fail, error)

    # ---------------------------------------------------------------- streams

    async def write_shard(
        self, node: int, requests: AsyncIterator[ShardChunk], timeout: float
    ) -> pb.WriteShardReply:
        stream = _Stream(self._network, self._name, self._destination(node))

        async def sent() -> AsyncIterator[ShardChunk]:
            async for request in requests:
                yield decode_write(await self._pass(stream.send(encode_write(request))))

        reply = await _within(timeout, node, stream.handler.write_shard(self._identity, sent()))
        raw = await stream.receive(reply.SerializeToString())
        return pb.WriteShardReply.FromString(raw)

    async def _pass(self, crossing: Awaitable[bytes]) -> bytes:
        if self.dead:
            raise Unavailable("this member is dead")
        return await crossing

    async def read_shard(
        self, node: int, request: pb.ReadShardRequest, timeout: float
    ) -> AsyncIterator[ShardChunk]:
        deadline = asyncio.get_running_loop().time() + timeout
        stream = _Stream(self._network, self._name, self._destination(node))
        raw = await stream.send(request.SerializeToString())
        replies = stream.handler.read_shard(self._identity, pb.ReadShardRequest.FromString(raw))
        async with aclosing(replies) as chunks:  # type: ignore[type-var]  # handlers return async generators
            while True:
                left = deadline - asyncio.get_running_loop().time()
                chunk = await _within(left, node, anext(chunks, None))
                if chunk is None:
                    return
                yield decode_read(await stream.receive(encode_read(chunk)))

    async def partition_rows(
        self, node: int, request: pb.PartitionRowsRequest, timeout: float
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        deadline = asyncio.get_running_loop().time() + timeout
        stream = _Stream(self._network, self._name, self._destination(node))
        raw = await stream.send(request.SerializeToString())
        replies = stream.handler.partition_rows(self._identity, pb.PartitionRowsRequest.FromString(raw))
        async with aclosing(replies) as rows:  # type: ignore[type-var]  # handlers return async generators
            while True:
                left = deadline - asyncio.get_running_loop().time()
                reply = await _within(left, node, anext(rows, None))
                if reply is None:
                    return
                yield pb.PartitionRowsReply.FromString(await stream.receive(reply.SerializeToString()))


class _Stream:
    """A call of many messages, in order. It breaks when one is lost, or when the node is not the same any more."""

    def __init__(self, network: Network, name: str, node: Destination) -> None:
        self._network = network
        self._name = name
        self._node = node
        self._incarnation = node.incarnation
        self.handler = node.handler

    async def send(self, raw: bytes) -> bytes:
        self._network.journal.note(self._name, "~>", self._node.number, fingerprint(raw))
        return await self._cross(raw, self._name, f"node {self._node.number}")

    async def receive(self, raw: bytes) -> bytes:
        self._network.journal.note("node", self._node.number, "~>", self._name, fingerprint(raw))
        return await self._cross(raw, f"node {self._node.number}", self._name)

    async def _cross(self, raw: bytes, sender: str, receiver: str) -> bytes:
        delay = self._network.crossing(sender, receiver, self._node.slowness)
        broken = delay is None or self._network.is_broken()
        pace = KEEPALIVE_SECONDS if delay is None else min(delay, KEEPALIVE_SECONDS)
        await asyncio.sleep(pace)
        if broken or not self._node.up or self._node.incarnation != self._incarnation:
            raise Unavailable(f"node {self._node.number}: the connection broke")
        return raw


async def _within(timeout: float, node: int, call: Awaitable[_Reply]) -> _Reply:
    try:
        async with asyncio.timeout(timeout):
            return await call
    except TimeoutError:
        raise DeadlineExceeded(f"node {node}: no answer within the time given") from None
