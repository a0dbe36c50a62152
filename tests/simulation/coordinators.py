"""A member's way to the coordinators: calls and watches of the `Coordination` service over the simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from coffre.cluster.errors import CoffreError, InternalError, Unavailable, error_of_status
from coffre.cluster.identity import Identity
from coffre.cluster.map import ClusterMap
from coffre.node.serving.coordination import CoordinationHandler
from coffre.proto import coordination_pb2 as pb
from google.protobuf.message import Message

from tests.simulation.agreement import Agreement
from tests.simulation.journal import fingerprint
from tests.simulation.network import KEEPALIVE_SECONDS, Destination, Network, SimulatedTransport

if TYPE_CHECKING:
    from coffre.proto.coordination_pb2_grpc import CoordinationAsyncStub

__all__ = ["MemberTransport"]

CONNECT_PACE_SECONDS = 0.1  # between two attempts to reach a coordinator that is starting again
ORDER_SECONDS = 1e-6  # between two messages of one stream, which never overtake each other
_Reply = TypeVar("_Reply")
_Answer = TypeVar("_Answer", bound=Message)
_Method = Callable[[CoordinationHandler, Identity, Any], Coroutine[Any, Any, _Answer]]


class MemberTransport(SimulatedTransport):
    """One member's way to the nodes, and to coordination (`coffre.cluster.coordination.remote.Coordinators`)."""

    def __init__(
        self, network: Network, identity: Identity, name: str, agreement: Agreement, cluster_map: ClusterMap
    ) -> None:
        super().__init__(network, identity, name)
        self._agreement = agreement
        self._map = cluster_map
        self._lines: dict[int, dict[_Line, None]] = {}

    @property
    def cluster_map(self) -> ClusterMap:
        return self._map

    async def update_map(self, cluster_map: ClusterMap) -> None:
        await super().update_map(cluster_map)
        self._map = cluster_map

    async def coordinate(
        self,
        node: int,
        call: Callable[[CoordinationAsyncStub], Awaitable[_Reply]],
        timeout: float,
        *,
        wait: bool = True,
    ) -> _Reply:
        return await call(cast("CoordinationAsyncStub", _Stub(self, node)))

    async def ask(
        self,
        node: int,
        method: _Method[_Answer],
        request: Message,
        kind: type[_Answer],
        *,
        timeout: float,
        wait_for_ready: bool,
    ) -> _Answer:
        """One call. With `wait_for_ready` it is sent once there is somebody to connect to."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        destination = self._destination(node)
        while wait_for_ready and not destination.up and loop.time() < deadline:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(CONNECT_PACE_SECONDS)
        raw = request.SerializeToString()

        def work(_: object) -> Awaitable[Message | None]:
            handler = self._agreement.handler(node)
            return method(handler, self._identity, type(request).FromString(raw))

        what = f"coordination {method.__name__}"
        reply = await self._call(node, what, raw, work, max(deadline - loop.time(), 0.0))
        return kind.FromString(reply)

    # ---------------------------------------------------------------- watching

    async def watch(self, node: int, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchReply]:
        destination = self._destination(node)
        raw, line = request.SerializeToString(), _Line()
        lines = self._lines.setdefault(node, {})
        lines[line] = None
        self._network.journal.note(self._name, "~>", node, "watch", fingerprint(raw))
        delay = self._network.crossing(self._name, f"node {node}", destination.slowness)
        if delay is None:
            self._later(KEEPALIVE_SECONDS, line.arrive, Unavailable(f"node {node}: the connection broke"))
        else:
            self._later(delay, self._begin, destination, raw, line)
        try:
            while True:
                arrived = await line.inbox.get()
                if isinstance(arrived, CoffreError):
                    raise arrived
                yield pb.WatchReply.FromString(arrived)
        finally:
            lines.pop(line, None)
            line.close()

    def connection_lost(self, node: int) -> None:
        super().connection_lost(node)
        for line in list(self._lines.get(node, ())):
            self._deliver(node, 1.0, line, Unavailable(f"node {node} closed the connection"))

    def _begin(self, at: Destination, raw: bytes, line: _Line) -> None:
        if line.closed:
            return
        if at.up:
            line.serving = at.spawn(self._serve_watch(at, raw, line))
        else:
            self._deliver(at.number, 1.0, line, Unavailable(f"node {at.number} does not answer"))

    async def _serve_watch(self, at: Destination, raw: bytes, line: _Line) -> None:
        """The coordinator's side of a watch, in the process of its node."""
        handler = self._agreement.handler(at.number)
        error: CoffreError = Unavailable("the coordinator ended the watch")
        try:
            async with aclosing(handler.watch(self._identity, pb.WatchRequest.FromString(raw))) as watching:
                async for reply in watching:
                    self._deliver(at.number, at.slowness, line, reply.SerializeToString())
        except CoffreError as refusal:
            error = error_of_status(refusal.code or InternalError.code, str(refusal))
        except Exception as bug:  # noqa: BLE001 - a node answers, whatever happened to it; the run fails for it
            self._network.bugs.append(bug)
            error = InternalError("this node failed")
        self._deliver(at.number, at.slowness, line, error)

    def _deliver(self, node: int, slowness: float, line: _Line, what: bytes | CoffreError) -> None:
        """Send one message of a stream. One that is lost breaks it, which shows after the keepalive."""
        told = fingerprint(what) if isinstance(what, bytes) else str(what)
        self._network.journal.note("node", node, "~>", self._name, "watch", told)
        delay = self._network.crossing(f"node {node}", self._name, slowness)
        if delay is None:
            delay, what = KEEPALIVE_SECONDS, Unavailable(f"node {node}: the connection broke")
        loop = asyncio.get_running_loop()
        line.last = max(line.last + ORDER_SECONDS, loop.time() + delay)
        loop.call_at(line.last, line.arrive, what)


@dataclass(slots=True, eq=False)
class _Line:
    """A member's end of a watch."""

    inbox: asyncio.Queue[bytes | CoffreError] = field(default_factory=asyncio.Queue)
    last: float = 0.0  # when the last message arrives
    serving: object = None  # what runs in the coordinator's process
    closed: bool = False

    def arrive(self, what: bytes | CoffreError) -> None:
        self.inbox.put_nowait(what)

    def close(self) -> None:
        self.closed = True
        if isinstance(self.serving, asyncio.Task):
            self.serving.cancel()


class _Stub:
    """The calls of the service to one coordinator, as gRPC's stub has them."""

    def __init__(self, transport: MemberTransport, node: int) -> None:
        self._transport = transport
        self._node = node

    async def Get(self, request: Message, *, timeout: float, wait_for_ready: bool) -> pb.CoordinationGetReply:
        return await self._ask(
            CoordinationHandler.get, request, pb.CoordinationGetReply, timeout, wait_for_ready
        )

    async def Range(
        self, request: Message, *, timeout: float, wait_for_ready: bool
    ) -> pb.CoordinationRangeReply:
        return await self._ask(
            CoordinationHandler.range, request, pb.CoordinationRangeReply, timeout, wait_for_ready
        )

    async def Commit(
        self, request: Message, *, timeout: float, wait_for_ready: bool
    ) -> pb.CoordinationCommitReply:
        return await self._ask(
            CoordinationHandler.commit, request, pb.CoordinationCommitReply, timeout, wait_for_ready
        )

    async def Grant(self, request: Message, *, timeout: float, wait_for_ready: bool) -> pb.LeaseGrantReply:
        return await self._ask(
            CoordinationHandler.grant, request, pb.LeaseGrantReply, timeout, wait_for_ready
        )

    async def KeepAlive(
        self, request: Message, *, timeout: float, wait_for_ready: bool
    ) -> pb.LeaseKeepAliveReply:
        return await self._ask(
            CoordinationHandler.keep_alive, request, pb.LeaseKeepAliveReply, timeout, wait_for_ready
        )

    async def Revoke(self, request: Message, *, timeout: float, wait_for_ready: bool) -> pb.LeaseRevokeReply:
        return await self._ask(
            CoordinationHandler.revoke, request, pb.LeaseRevokeReply, timeout, wait_for_ready
        )

    async def _ask(
        self,
        method: _Method[_Answer],
        request: Message,
        kind: type[_Answer],
        timeout: float,
        wait_for_ready: bool,
    ) -> _Answer:
        return await self._transport.ask(
            self._node, method, request, kind, timeout=timeout, wait_for_ready=wait_for_ready
        )
