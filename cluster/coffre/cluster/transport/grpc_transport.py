"""The real `Transport`: gRPC over mutual TLS, to nodes that prove what the map says of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    Cancelled,
    CoffreError,
    InvalidArgument,
    NotFound,
    NotSent,
    Unavailable,
)
from coffre.cluster.identity import TlsFiles, channel_credentials, load_tls, tls_name
from coffre.cluster.map import ClusterMap, MapNode, NodeState, newer_map
from coffre.cluster.transport.endings import Ending, Endings, called, connect, ending_of, told, translate
from coffre.cluster.transport.exchange import Batch, Exchange
from coffre.cluster.transport.process import OwnProcess, begin_use, check_fork
from coffre.cluster.transport.reading import answer_of, replies_of
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coffre_pb2_grpc as pb_grpc
from coffre.proto import coordination_pb2 as cpb
from coffre.proto import coordination_pb2_grpc as cpb_grpc
from coffre.proto.shard_stream import ShardChunk, decode_read, encode_write
from grpc import aio

if TYPE_CHECKING:
    from coffre.proto.coffre_pb2_grpc import NodeAsyncStub
    from coffre.proto.coordination_pb2_grpc import CoordinationAsyncStub

__all__ = ["KEEPALIVE_MS", "MESSAGE_BYTES_MAX", "GrpcTransport"]

MESSAGE_BYTES_MAX = 16 << 20
KEEPALIVE_MS = 30_000
# What a node may send ahead of the reader, per stream. It bounds the client's memory, and its speed over a long
# way: 100 MB/s from each node at 20 ms.
WINDOW_BYTES = 2 << 20
_KEEPALIVE_TIMEOUT_MS = 10_000
_BACKOFF_MS_MIN = 50
_BACKOFF_MS_MAX = 1_000
_CONNECT_MS_MAX = 5_000  # gRPC calls it the minimum backoff; it bounds one attempt to connect
_CLOSE_GRACE_SECONDS = 5.0
_EPOCH_MAX = (1 << 64) - 1
_Reply = TypeVar("_Reply")
_Request = TypeVar("_Request")


@dataclass(frozen=True, slots=True)
class _Stub:
    """The calls over one channel. Messages that carry cells have codecs of their own, which copy less."""

    channel: aio.Channel
    exchange: aio.StreamStreamMultiCallable[Batch, pb.BatchReply]
    write_shard: aio.StreamUnaryMultiCallable[ShardChunk, pb.WriteShardReply]
    read_shard: aio.UnaryStreamMultiCallable[pb.ReadShardRequest, ShardChunk]
    others: NodeAsyncStub
    coordination: CoordinationAsyncStub


@dataclass(slots=True)
class _Line:
    """Open channels to one node, used in turn, and the exchange that its batches share."""

    node: MapNode
    channels: tuple[aio.Channel, ...]
    stubs: Iterator[_Stub]
    exchange: Exchange | None = None


class GrpcTransport:
    """Calls to the nodes of a map; each connection opens with its first call.

    The name that TLS must find in a node's certificate is computed from the map entry, so a node whose
    certificate says another server, site, operator or jurisdiction than the map is never talked to.
    """

    def __init__(
        self,
        cluster_map: ClusterMap,
        credentials: TlsFiles | grpc.ChannelCredentials,
        *,
        channels_per_node: int = 1,
        clock: Clock | None = None,
    ) -> None:
        """Raises `ConfigurationError` when the files are not in order (they are read now, once). With a clock, errors
        say when this member's own certificate has expired meanwhile."""
        if channels_per_node < 1:
            raise InvalidArgument("a transport needs at least one channel per node")
        check_fork()
        self._process = OwnProcess("this transport", self)
        self._map = cluster_map
        self._credentials = (
            channel_credentials(credentials) if isinstance(credentials, TlsFiles) else credentials
        )
        self._own = (credentials, load_tls(credentials)) if isinstance(credentials, TlsFiles) else None
        self._clock = clock
        self._channels_per_node = channels_per_node
        self._lines: dict[int, _Line] = {}
        self._closed = False

    @property
    def cluster_map(self) -> ClusterMap:
        return self._map

    async def update_map(self, cluster_map: ClusterMap) -> None:
        """Work on a newer map from now on. Raises as `newer_map`, and then nothing has changed.

        Channels to nodes that left, moved or changed are closed when their calls have ended, or after 5 s.
        """
        self._process.check()
        self._map = newer_map(self._map, cluster_map)
        entries = {node.number: node for node in self._map.nodes}
        retired = [
            self._lines.pop(number)
            for number, line in list(self._lines.items())
            if number not in entries or not _same_line(entries[number], line.node)
        ]
        await _close(retired, _CLOSE_GRACE_SECONDS)

    async def close(self) -> None:
        """Close every channel; calls under way end with `Cancelled`. In a forked process nothing is done."""
        if not self._process.is_this:
            return
        self._closed = True
        lines = list(self._lines.values())
        self._lines.clear()
        await _close(lines, None)

    # ---------------------------------------------------------------- calls

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        line = self._line(node)
        exchange = line.exchange
        if exchange is None or exchange.error is not None:
            exchange = await self._opened(line, timeout)
        reply = await exchange.send(request, timeout)
        if reply.code:
            raise told(line.node, reply.code, reply.detail)
        return reply

    async def _opened(self, line: _Line, timeout: float) -> Exchange:
        """The line's exchange, on a connection that is there: so who raises `NotSent` knows that nothing left."""
        stub = next(line.stubs)
        await self._connect(line, stub, timeout)
        if self._lines.get(line.node.number) is not line:
            raise NotSent(f"the connection to {called(line.node)} was closed")
        if line.exchange is None or line.exchange.error is not None:
            line.exchange = self._begin_exchange(line, stub)
        return line.exchange

    def _begin_exchange(self, line: _Line, stub: _Stub) -> Exchange:
        def in_words(error: aio.AioRpcError) -> CoffreError:
            ending = ending_of(error)
            if ending.status is grpc.StatusCode.INTERNAL:
                # A node's own failure travels in its reply. This is grpc.aio's word for a message that was being
                # sent when the connection broke, and it hides the true status.
                ending = Ending(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            return translate(line.node, ending, 0.0)

        return Exchange(stub.exchange(), in_words, called(line.node))

    async def write_shard(
        self, node: int, requests: AsyncIterator[ShardChunk], timeout: float
    ) -> pb.WriteShardReply:
        line = self._line(node)
        call = next(line.stubs).write_shard(timeout=timeout)
        endings = Endings(call)
        try:
            # Not handed to gRPC as an iterator: it would turn an error of the iterator into a cancellation.
            async for request in requests:
                if call.done():
                    break
                await call.write(request)
            await call.done_writing()
        except (asyncio.InvalidStateError, aio.InternalError):
            pass  # the call ended before the node had everything, or with the last message; the answer below says why
        except aio.AioRpcError as error:
            raise translate(line.node, await endings.of_node(error), timeout) from None
        except asyncio.CancelledError:
            call.cancel()
            _check_cancelled(line)
            raise
        except BaseException:
            call.cancel()
            raise
        return await _answer(line, timeout, call)

    async def read_shard(
        self, node: int, request: pb.ReadShardRequest, timeout: float
    ) -> AsyncIterator[ShardChunk]:
        line = self._line(node)
        call = next(line.stubs).read_shard(request, timeout=timeout)
        async with aclosing(_replies(line, timeout, call)) as replies:
            async for reply in replies:
                yield reply

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        line = self._line(node)
        return await _answer_soon(line, timeout, next(line.stubs).others.Digests(request, timeout=timeout))

    async def partition_rows(
        self, node: int, request: pb.PartitionRowsRequest, timeout: float
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        line = self._line(node)
        call = next(line.stubs).others.PartitionRows(request, timeout=timeout)
        async with aclosing(_replies(line, timeout, call)) as replies:
            async for reply in replies:
                yield reply

    async def drop_shard(self, node: int, request: pb.DropShardRequest, timeout: float) -> None:
        line = self._line(node)
        await _answer_soon(line, timeout, next(line.stubs).others.DropShard(request, timeout=timeout))

    async def list(self, node: int, request: pb.ListRequest, timeout: float) -> pb.ListReply:
        line = self._line(node)
        return await _answer_soon(line, timeout, next(line.stubs).others.List(request, timeout=timeout))

    async def repair_status(self, node: int, timeout: float) -> pb.RepairStatusReply:
        line = self._line(node)
        call = next(line.stubs).others.RepairStatus(pb.RepairStatusRequest(), timeout=timeout)
        return await _answer(line, timeout, call)

    async def repair_control(
        self, node: int, request: pb.RepairControlRequest, timeout: float
    ) -> pb.RepairStatusReply:
        line = self._line(node)
        return await _answer_soon(
            line, timeout, next(line.stubs).others.RepairControl(request, timeout=timeout)
        )

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        line = self._line(node)
        return await _answer(
            line, timeout, next(line.stubs).others.Status(pb.StatusRequest(), timeout=timeout)
        )

    async def get_map(self, node: int, request: pb.GetMapRequest, timeout: float) -> pb.GetMapReply:
        line = self._line(node)
        return await _answer_soon(line, timeout, next(line.stubs).others.GetMap(request, timeout=timeout))

    # ---------------------------------------------------------------- coordination

    async def coordinate(
        self,
        node: int,
        call: Callable[[CoordinationAsyncStub], Awaitable[_Reply]],
        timeout: float,
        *,
        wait: bool = True,
    ) -> _Reply:
        """One call to the coordination service of a node; `timeout` is what `call` has set, and what a connection may
        take before it. Without `wait` a connection that is refused ends it. Raises `NotSent` when there is none."""
        line = self._line(node)
        stub = next(line.stubs)
        await self._connect(line, stub, timeout, wait=wait)
        return await _answer(line, timeout, call(stub.coordination))

    async def watch(self, node: int, request: cpb.WatchRequest) -> AsyncGenerator[cpb.WatchReply]:
        """What a node's coordination service tells, for as long as the connection lasts."""
        line = self._line(node)
        call = next(line.stubs).coordination.Watch(request)
        async with aclosing(_replies(line, 0.0, call)) as replies:
            async for reply in replies:
                yield reply

    # ---------------------------------------------------------------- channels

    async def _connect(self, line: _Line, stub: _Stub, timeout: float, *, wait: bool = False) -> None:
        """Raises `NotSent` as `_connect` below does; one's own expired certificate is named first."""

        async def why_not(seconds: float) -> object:
            request = pb.GetMapRequest(known_epoch=_EPOCH_MAX)
            return await answer_of(stub.others.GetMap(request, timeout=seconds))

        try:
            await connect(line.node, stub.channel, why_not, timeout, wait=wait)
        except NotSent as error:
            if self._own is None or self._clock is None:
                raise
            files, own = self._own
            if self._clock.unixtime_ms() <= own.expires_unixtime_ms:
                raise
            raise NotSent(
                f"your own certificate, {files.certificate}, has expired: {error}",
                node=error.node,
                details=error.details,
            ) from None

    def _line(self, number: int) -> _Line:
        self._process.check()
        line = self._lines.get(number)
        if line is not None:
            return line
        if self._closed:
            raise Unavailable("this transport is closed")
        try:
            node = self._map.node(number)
        except NotFound as error:
            raise Unavailable(str(error)) from None
        if node.state is NodeState.REMOVED:
            raise Unavailable(f"node {node.node_id} was removed from the cluster")
        begin_use()
        channels = tuple(self._open(node) for _ in range(self._channels_per_node))
        line = _Line(node, channels, itertools.cycle([_stub(channel) for channel in channels]))
        self._lines[number] = line
        return line

    def _open(self, node: MapNode) -> aio.Channel:
        name = tls_name(self._map.cluster_id, node.attributes)
        return aio.secure_channel(
            f"dns:///{node.address}",
            self._credentials,
            options=[
                ("grpc.ssl_target_name_override", name),
                ("grpc.default_authority", name),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.http2.bdp_probe", 0),  # its estimate grows on a busy client, to tens of MiB per node
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                ("grpc.initial_reconnect_backoff_ms", _BACKOFF_MS_MIN),
                ("grpc.min_reconnect_backoff_ms", _CONNECT_MS_MAX),
                ("grpc.max_reconnect_backoff_ms", _BACKOFF_MS_MAX),
                ("grpc.use_local_subchannel_pool", 1),
                (
                    "grpc.enable_http_proxy",
                    0,
                ),  # records do not travel by way of a proxy that happens to be set
                ("grpc.enable_retries", 0),  # the protocol above decides what is sent again
            ],
        )


def _stub(channel: aio.Channel) -> _Stub:
    service = pb.DESCRIPTOR.services_by_name["Node"].full_name
    # One class serves both kinds of channel; the generated types call it by two names.
    others: NodeAsyncStub = pb_grpc.NodeStub(channel)
    coordination: CoordinationAsyncStub = cpb_grpc.CoordinationStub(channel)
    return _Stub(
        channel,
        channel.stream_stream(f"/{service}/Exchange", _serialize, pb.BatchReply.FromString),
        channel.stream_unary(f"/{service}/WriteShard", encode_write, pb.WriteShardReply.FromString),
        channel.unary_stream(f"/{service}/ReadShard", pb.ReadShardRequest.SerializeToString, decode_read),
        others,
        coordination,
    )


def _same_line(one: MapNode, other: MapNode) -> bool:
    return (
        one.address == other.address
        and one.attributes == other.attributes
        and one.state is not NodeState.REMOVED
    )


def _serialize(batch: Batch) -> bytes:
    return batch.SerializeToString()


async def _close(lines: list[_Line], grace: float | None) -> None:
    await asyncio.gather(*(line.exchange.finish(grace) for line in lines if line.exchange is not None))
    await asyncio.gather(*(channel.close(grace) for line in lines for channel in line.channels))


async def _answer(line: _Line, timeout: float, call: Awaitable[_Reply]) -> _Reply:
    try:
        return await call
    except aio.AioRpcError as error:
        raise translate(line.node, ending_of(error), timeout) from None
    except asyncio.CancelledError:
        _check_cancelled(line)
        raise


async def _answer_soon(line: _Line, timeout: float, call: Awaitable[_Reply]) -> _Reply:
    """The answer of a call with a short deadline: who is cancelled meanwhile does not end it."""
    return await _answer(line, timeout, answer_of(call))


async def _replies(
    line: _Line, timeout: float, call: aio.UnaryStreamCall[_Request, _Reply]
) -> AsyncGenerator[_Reply]:
    try:
        async with aclosing(replies_of(call)) as replies:
            async for reply in replies:
                yield reply
    except aio.AioRpcError as error:
        raise translate(line.node, ending_of(error), timeout) from None
    except asyncio.CancelledError:
        _check_cancelled(line)
        raise


def _check_cancelled(line: _Line) -> None:
    """gRPC ends the calls of a closing channel as if the caller had been cancelled: tell them apart."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Cancelled(f"the connection to node {line.node.node_id} was closed during the call") from None
