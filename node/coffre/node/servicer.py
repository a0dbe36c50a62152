"""The gRPC coat over `Handler`: who calls, and how errors travel."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from typing import NoReturn, TypeVar

import grpc
from coffre.cluster.errors import CoffreError, InternalError
from coffre.cluster.identity import Identity
from coffre.cluster.tls import peer_identity
from coffre.node.handler import Handler
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coffre_pb2_grpc as pb_grpc

__all__ = ["Servicer"]

_log = logging.getLogger("coffre.node")
_Reply = TypeVar("_Reply")
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_Context = grpc.aio.ServicerContext  # generic in request and reply, which every method here knows already


class Servicer(pb_grpc.NodeServicer):
    """Implements the `Node` service for one node."""

    def __init__(self, handler: Handler, cluster_id: str) -> None:
        self._handler = handler
        self._cluster_id = cluster_id

    async def Batch(self, request: pb.BatchRequest, context: _Context) -> pb.BatchReply:  # type: ignore[type-arg]
        return await self._run("batch", self._handler.batch(self._peer(context), request), context)

    async def WriteShard(
        self,
        request: AsyncIterator[pb.WriteShardRequest],
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.WriteShardReply:
        return await self._run(
            "write_shard", self._handler.write_shard(self._peer(context), request), context
        )

    async def ReadShard(
        self,
        request: pb.ReadShardRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[pb.ReadShardReply]:
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


async def _refuse(context: _Context, error: CoffreError) -> NoReturn:  # type: ignore[type-arg]
    await context.abort(_STATUS[error.code or InternalError.code], str(error))
