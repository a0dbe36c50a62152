"""The gRPC coat over `Handler`: who calls, and how errors travel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc
from coffre.cluster.errors import CoffreError, InternalError, OutcomeUnknown, Unavailable
from coffre.cluster.identity import Identity, Role, peer_certificate_end_ms, peer_identity
from coffre.node.serving.coordination import CoordinationHandler
from coffre.node.serving.handler import Handler
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coordination_pb2 as cpb
from coffre.proto.shard_stream import ShardChunk, decode_write, encode_read

__all__ = ["COORDINATION", "SERVICE", "CoordinationServicer", "Servicer", "add_servicer"]

_log = logging.getLogger("coffre.node")
BATCHES_AT_ONCE = (
    64  # of all callers; what is beyond waits in its caller's exchange, which is then not read on
)
BATCHES_PER_EXCHANGE = 8
SERVICE = pb.DESCRIPTOR.services_by_name["Node"].full_name
COORDINATION = cpb.DESCRIPTOR.services_by_name["Coordination"].full_name
_Reply = TypeVar("_Reply")
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_BUG = "the node failed; its log says where"
_Context = grpc.aio.ServicerContext  # generic in request and reply, which every method here knows already


class Servicer:
    """Implements the `Node` service for one node."""

    def __init__(self, handler: Handler, cluster_id: str) -> None:
        self._handler = handler
        self._cluster_id = cluster_id
        self._places = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._exchanges: set[_Exchange] = set()

    async def Exchange(self, requests: AsyncIterator[pb.BatchRequest], context: _Context) -> None:  # type: ignore[type-arg]
        peer = self._peer(context)
        exchange = _Exchange(self._handler, peer, context, self._places, self._meet(peer, context))
        self._exchanges.add(exchange)
        try:
            await exchange.run()
        finally:
            self._exchanges.discard(exchange)

    def end_exchanges(self) -> None:
        """Take no further batch; every exchange ends when those that came are answered."""
        for exchange in self._exchanges:
            exchange.stop()

    async def WriteShard(
        self,
        request: AsyncIterator[ShardChunk],
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.WriteShardReply:
        return await _answer("write_shard", self._handler.write_shard(self._peer(context), request), context)

    async def ReadShard(
        self,
        request: pb.ReadShardRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[ShardChunk]:
        try:
            async for reply in self._handler.read_shard(self._peer(context), request):
                yield reply
        except CoffreError as error:
            await _refuse(context, error)

    async def DropShard(self, request: pb.DropShardRequest, context: _Context) -> pb.DropShardReply:  # type: ignore[type-arg]
        await _answer("drop_shard", self._handler.drop_shard(self._peer(context), request), context)
        return pb.DropShardReply()

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListReply:  # type: ignore[type-arg]
        return await _answer("list", self._handler.list(self._peer(context), request), context)

    async def Digests(self, request: pb.DigestsRequest, context: _Context) -> pb.DigestsReply:  # type: ignore[type-arg]
        return await _answer("digests", self._handler.digests(self._peer(context), request), context)

    async def PartitionRows(
        self,
        request: pb.PartitionRowsRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        try:
            async for reply in self._handler.partition_rows(self._peer(context), request):
                yield reply
        except CoffreError as error:
            await _refuse(context, error)

    async def RepairStatus(
        self,
        request: pb.RepairStatusRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.RepairStatusReply:
        return await _answer("repair_status", self._handler.repair_status(self._peer(context)), context)

    async def RepairControl(
        self,
        request: pb.RepairControlRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.RepairStatusReply:
        call = self._handler.repair_control(self._peer(context), request)
        return await _answer("repair_control", call, context)

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:  # type: ignore[type-arg]
        return await _answer("status", self._handler.status(self._peer(context)), context)

    async def GetMap(self, request: pb.GetMapRequest, context: _Context) -> pb.GetMapReply:  # type: ignore[type-arg]
        return await _answer("get_map", self._handler.get_map(self._peer(context), request), context)

    def _peer(self, context: _Context) -> Identity:  # type: ignore[type-arg]
        peer = _peer_of(context, self._cluster_id)
        self._meet(peer, context)()
        return peer

    def _meet(self, peer: Identity, context: _Context) -> Callable[[], None]:  # type: ignore[type-arg]
        """What to call whenever this peer sends something: calls may stay open for weeks."""
        if peer.role is not Role.TENANT:
            return lambda: None
        return partial(self._handler.tenants_met.note, peer.name, peer_certificate_end_ms(_auth_of(context)))


class CoordinationServicer:
    """Implements the `Coordination` service for one node."""

    def __init__(self, handler: CoordinationHandler, cluster_id: str) -> None:
        self._handler = handler
        self._cluster_id = cluster_id
        self._watching: set[asyncio.Task[Any]] = set()  # of whatever gRPC makes of a call
        self._ended: set[asyncio.Task[Any]] = set()  # of these, those that this node ends

    async def Get(self, request: cpb.CoordinationGetRequest, context: _Context) -> cpb.CoordinationGetReply:  # type: ignore[type-arg]
        return await _answer("get", self._handler.get(self._peer(context), request), context)

    async def Range(
        self,
        request: cpb.CoordinationRangeRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> cpb.CoordinationRangeReply:
        return await _answer("range", self._handler.range(self._peer(context), request), context)

    async def Commit(
        self,
        request: cpb.CoordinationCommitRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> cpb.CoordinationCommitReply:
        return await _answer("commit", self._commit(self._peer(context), request), context)

    async def _commit(
        self, peer: Identity, request: cpb.CoordinationCommitRequest
    ) -> cpb.CoordinationCommitReply:
        """That a store is not at hand, and has done nothing, is an answer: the status would leave a doubt."""
        try:
            return await self._handler.commit(peer, request)
        except OutcomeUnknown:
            raise
        except Unavailable as error:
            return cpb.CoordinationCommitReply(refused=str(error))

    async def Grant(self, request: cpb.LeaseGrantRequest, context: _Context) -> cpb.LeaseGrantReply:  # type: ignore[type-arg]
        return await _answer("grant", self._handler.grant(self._peer(context), request), context)

    async def KeepAlive(
        self,
        request: cpb.LeaseKeepAliveRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> cpb.LeaseKeepAliveReply:
        return await _answer("keep_alive", self._handler.keep_alive(self._peer(context), request), context)

    async def Revoke(self, request: cpb.LeaseRevokeRequest, context: _Context) -> cpb.LeaseRevokeReply:  # type: ignore[type-arg]
        return await _answer("revoke", self._handler.revoke(self._peer(context), request), context)

    async def Watch(self, request: cpb.WatchRequest, context: _Context) -> None:  # type: ignore[type-arg]
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            async with aclosing(self._handler.watch(self._peer(context), request)) as watching:
                async for reply in watching:
                    await context.write(reply)
        except CoffreError as error:
            await _refuse(context, error)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            await _refuse(context, Unavailable("this node stops, or is no coordinator any more"))
        finally:
            self._watching.discard(task)
            self._ended.discard(task)

    def end_watches(self) -> None:
        """End every watch: a node that stops waits for none, and what it would tell is not the newest any more when
        others are the coordinators."""
        for task in self._watching - self._ended:
            self._ended.add(task)
            task.cancel()

    def _peer(self, context: _Context) -> Identity:  # type: ignore[type-arg]
        return _peer_of(context, self._cluster_id)


class _Exchange:
    """One caller's open call: batches are worked on side by side, each is answered when it is done."""

    def __init__(
        self,
        handler: Handler,
        peer: Identity,
        context: _Context,  # type: ignore[type-arg]
        places: asyncio.Semaphore,
        meet: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._meet = meet
        self._peer = peer
        self._context = context
        self._places = places
        self._own_places = asyncio.Semaphore(BATCHES_PER_EXCHANGE)
        self._writing = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        self._task = asyncio.current_task()
        self._reads = False
        self._stopped = False

    async def run(self) -> None:
        try:
            while not self._stopped:
                await self._own_places.acquire()
                request = None if self._stopped else await self._next()
                if request is None:
                    break
                await self._places.acquire()
                task = asyncio.create_task(self._answer(request))
                self._answering.add(task)
                task.add_done_callback(self._answered)
            await asyncio.gather(*self._answering)
        finally:
            for task in self._answering:
                task.cancel()

    def stop(self) -> None:
        self._stopped = True
        if self._reads and self._task is not None:
            self._task.cancel()

    async def _next(self) -> pb.BatchRequest | None:
        """The next batch; None when the caller is done, or this node stops."""
        self._reads = True
        try:
            request = await self._context.read()
        except asyncio.CancelledError:
            if not self._stopped or self._task is None:
                raise
            self._task.uncancel()  # that was `stop`
            return None
        finally:
            self._reads = False
        return request if isinstance(request, pb.BatchRequest) else None

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._places.release()
        self._own_places.release()
        if not task.cancelled() and task.exception() is not None and self._task is not None:
            self._task.cancel()  # the caller is gone

    async def _answer(self, request: pb.BatchRequest) -> None:
        self._meet()
        try:
            reply = await self._handler.batch(self._peer, request)
        except CoffreError as error:
            reply = pb.BatchReply(code=error.code or InternalError.code, detail=str(error))
        except Exception as error:  # noqa: BLE001 - its caller must hear of it, and the others are not to blame
            _log_bug("batch", error)
            reply = pb.BatchReply(code=InternalError.code, detail=_BUG)
        reply.number = request.number
        async with self._writing:
            await self._context.write(reply)


def _log_bug(method: str, error: Exception) -> None:
    # The text may hold a name or bytes of a record: only the class and the place are logged.
    _log.error("internal error", extra={"method": method, "error": type(error).__name__}, exc_info=True)


def _peer_of(context: _Context, cluster_id: str) -> Identity:  # type: ignore[type-arg]
    return peer_identity(_auth_of(context), cluster_id)


def _auth_of(context: _Context) -> dict[str, list[bytes]]:  # type: ignore[type-arg]
    return {name: list(values) for name, values in context.auth_context().items()}


async def _answer(method: str, call: Awaitable[_Reply], context: _Context) -> _Reply:  # type: ignore[type-arg]
    try:
        return await call
    except OutcomeUnknown as error:
        await _refuse(context, Unavailable(str(error)))  # the caller cannot tell either
    except CoffreError as error:
        await _refuse(context, error)
    except Exception as error:
        _log_bug(method, error)
        await _refuse(context, InternalError(_BUG))
        raise


def add_servicer(server: grpc.aio.Server, servicer: Servicer) -> None:
    """Let `server` serve the `Node` service, with the hand-written codecs for messages that carry cells."""
    unary = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {  # each has types of its own
        "Exchange": grpc.stream_stream_rpc_method_handler(
            servicer.Exchange, pb.BatchRequest.FromString, pb.BatchReply.SerializeToString
        ),
        "DropShard": unary(
            servicer.DropShard, pb.DropShardRequest.FromString, pb.DropShardReply.SerializeToString
        ),
        "List": unary(servicer.List, pb.ListRequest.FromString, pb.ListReply.SerializeToString),
        "Digests": unary(servicer.Digests, pb.DigestsRequest.FromString, pb.DigestsReply.SerializeToString),
        "PartitionRows": grpc.unary_stream_rpc_method_handler(
            servicer.PartitionRows,
            pb.PartitionRowsRequest.FromString,
            pb.PartitionRowsReply.SerializeToString,
        ),
        "RepairStatus": unary(
            servicer.RepairStatus,
            pb.RepairStatusRequest.FromString,
            pb.RepairStatusReply.SerializeToString,
        ),
        "RepairControl": unary(
            servicer.RepairControl,
            pb.RepairControlRequest.FromString,
            pb.RepairStatusReply.SerializeToString,
        ),
        "Status": unary(servicer.Status, pb.StatusRequest.FromString, pb.StatusReply.SerializeToString),
        "GetMap": unary(servicer.GetMap, pb.GetMapRequest.FromString, pb.GetMapReply.SerializeToString),
        "WriteShard": grpc.stream_unary_rpc_method_handler(
            servicer.WriteShard, decode_write, pb.WriteShardReply.SerializeToString
        ),
        "ReadShard": grpc.unary_stream_rpc_method_handler(
            servicer.ReadShard, pb.ReadShardRequest.FromString, encode_read
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def _refuse(context: _Context, error: CoffreError) -> NoReturn:  # type: ignore[type-arg]
    await context.abort(_STATUS[error.code or InternalError.code], str(error))
