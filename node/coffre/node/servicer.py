"""The gRPC coat over `Handler`: who calls, and how errors travel."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn, TypeVar

import grpc
from coffre.cluster.errors import CoffreError, InternalError
from coffre.cluster.identity import Identity
from coffre.cluster.tls import peer_identity
from coffre.node.handler import Handler
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, decode_write, encode_read

__all__ = ["SERVICE", "Servicer", "add_servicer"]

_log = logging.getLogger("coffre.node")
SERVICE = pb.DESCRIPTOR.services_by_name["Node"].full_name
_Reply = TypeVar("_Reply")
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_Context = grpc.aio.ServicerContext  # generic in request and reply, which every method here knows already


class Servicer:
    """Implements the `Node` service for one node."""

    def __init__(self, handler: Handler, cluster_id: str) -> None:
        self._handler = handler
        self._cluster_id = cluster_id

    async def Batch(self, request: pb.BatchRequest, context: _Context) -> pb.BatchReply:  # type: ignore[type-arg]
        return await self._run("batch", self._handler.batch(self._peer(context), request), context)

    async def WriteShard(
        self,
        request: AsyncIterator[ShardChunk],
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.WriteShardReply:
        return await self._run(
            "write_shard", self._handler.write_shard(self._peer(context), request), context
        )

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
        await self._run("drop_shard", self._handler.drop_shard(self._peer(context), request), context)
        return pb.DropShardReply()

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListReply:  # type: ignore[type-arg]
        return await self._run("list", self._handler.list(self._peer(context), request), context)

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:  # type: ignore[type-arg]
        return await self._run("status", self._handler.status(self._peer(context)), context)

    async def GetMap(self, request: pb.GetMapRequest, context: _Context) -> pb.GetMapReply:  # type: ignore[type-arg]
        return await self._run("get_map", self._handler.get_map(self._peer(context), request), context)

    def _peer(self, context: _Context) -> Identity:  # type: ignore[type-arg]
        auth = {name: list(values) for name, values in context.auth_context().items()}
        return peer_identity(auth, self._cluster_id)

    async def _run(self, method: str, call: Awaitable[_Reply], context: _Context) -> _Reply:  # type: ignore[type-arg]
        try:
            return await call
        except CoffreError as error:
            await _refuse(context, error)
        except Exception as error:
            # The text may hold a name or bytes of a record: only the class and the place are logged.
            _log.error(
                "internal error", extra={"method": method, "error": type(error).__name__}, exc_info=True
            )
            await _refuse(context, InternalError("the node failed; its log says where"))
            raise


def add_servicer(server: grpc.aio.Server, servicer: Servicer) -> None:
    """Let `server` serve the `Node` service, with the hand-written codecs for messages that carry cells."""
    unary = grpc.unary_unary_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {  # each has types of its own
        "Batch": unary(servicer.Batch, pb.BatchRequest.FromString, pb.BatchReply.SerializeToString),
        "DropShard": unary(
            servicer.DropShard, pb.DropShardRequest.FromString, pb.DropShardReply.SerializeToString
        ),
        "List": unary(servicer.List, pb.ListRequest.FromString, pb.ListReply.SerializeToString),
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
