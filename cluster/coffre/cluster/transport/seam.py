"""How a client or a repairer talks to a node: the seam, and what both of its twins share.

`GrpcTransport` (coffre.cluster.grpc_transport) is the real one; `LoopbackTransport` hands messages to node
handlers in the same process, for tests and simulation. Both pass tests/contract/test_transport.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

from coffre.cluster.errors import DeadlineExceeded, Unavailable
from coffre.cluster.identity import Identity
from coffre.cluster.map import ClusterMap
from coffre.cluster.transport.exchange import Batch
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

__all__ = ["LoopbackTransport", "NodeHandler", "Transport"]

_Reply = TypeVar("_Reply")


class Transport(Protocol):
    """Calls to nodes by their number in the cluster map.

    Every method raises `CoffreError`: retryable ones when the node cannot be reached or does not answer
    within `timeout` seconds, permanent ones when it refuses.
    """

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        """Send operations in one message; their outcomes come in the same order."""

    async def write_shard(
        self, node: int, requests: AsyncIterator[ShardChunk], timeout: float
    ) -> pb.WriteShardReply:
        """Stream one shard to be staged: invisible until an Accept names it. Returns when it is synced."""

    def read_shard(
        self, node: int, request: pb.ReadShardRequest, timeout: float
    ) -> AsyncIterator[ShardChunk]:
        """Stream cells of one shard, those that the request names, in order, each with its CRC32C."""

    async def drop_shard(self, node: int, request: pb.DropShardRequest, timeout: float) -> None:
        """Give up what was staged. Dropping what is not there is no error."""

    async def list(self, node: int, request: pb.ListRequest, timeout: float) -> pb.ListReply:
        """One page of a bucket's names in key order, as this one node knows them."""

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        """The digests of the node's partitions, to compare with one's own."""

    def partition_rows(
        self, node: int, request: pb.PartitionRowsRequest, timeout: float
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        """Stream the names of a partition with their versions and votes, without shards."""

    async def repair_status(self, node: int, timeout: float) -> pb.RepairStatusReply:
        """How the node's repair and scrub are doing."""

    async def repair_control(
        self, node: int, request: pb.RepairControlRequest, timeout: float
    ) -> pb.RepairStatusReply:
        """Pause or resume the node's repair, or look at what is parked again. For operators."""

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        """What the node says of itself. For operators."""

    async def get_map(self, node: int, request: pb.GetMapRequest, timeout: float) -> pb.GetMapReply:
        """The signed map of the node, when its epoch is above the request's; the caller verifies it."""

    async def update_map(self, cluster_map: ClusterMap) -> None:
        """Reach the nodes of a newer map from now on."""

    async def close(self) -> None:
        """End the calls under way, and the connections."""


class NodeHandler(Protocol):
    """What a node does with a request once its sender is known. The gRPC servicer is a thin coat over it."""

    async def batch(self, peer: Identity, request: pb.BatchRequest) -> pb.BatchReply:
        """As `Transport.batch`, once it is known who calls."""

    async def write_shard(self, peer: Identity, requests: AsyncIterator[ShardChunk]) -> pb.WriteShardReply:
        """As `Transport.write_shard`, once it is known who calls."""

    def read_shard(self, peer: Identity, request: pb.ReadShardRequest) -> AsyncIterator[ShardChunk]:
        """As `Transport.read_shard`, once it is known who calls."""

    async def drop_shard(self, peer: Identity, request: pb.DropShardRequest) -> None:
        """As `Transport.drop_shard`, once it is known who calls."""

    async def list(self, peer: Identity, request: pb.ListRequest) -> pb.ListReply:
        """As `Transport.list`, once it is known who calls."""

    async def digests(self, peer: Identity, request: pb.DigestsRequest) -> pb.DigestsReply:
        """As `Transport.digests`, once it is known who calls."""

    def partition_rows(
        self, peer: Identity, request: pb.PartitionRowsRequest
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        """As `Transport.partition_rows`, once it is known who calls."""

    async def repair_status(self, peer: Identity) -> pb.RepairStatusReply:
        """As `Transport.repair_status`, once it is known who calls."""

    async def repair_control(self, peer: Identity, request: pb.RepairControlRequest) -> pb.RepairStatusReply:
        """As `Transport.repair_control`, once it is known who calls."""

    async def status(self, peer: Identity) -> pb.StatusReply:
        """As `Transport.status`, once it is known who calls."""

    async def get_map(self, peer: Identity, request: pb.GetMapRequest) -> pb.GetMapReply:
        """As `Transport.get_map`, once it is known who calls."""


class LoopbackTransport:
    """Hands requests to handlers in this process, under one identity. Nodes in `down` do not answer."""

    def __init__(self, identity: Identity, handlers: Mapping[int, NodeHandler]) -> None:
        self._identity = identity
        self._handlers = handlers
        self.down: set[int] = set()

    def _handler(self, node: int) -> NodeHandler:
        handler = self._handlers.get(node)
        if handler is None or node in self.down:
            raise Unavailable(f"node {node} does not answer")
        return handler

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        if isinstance(request, pb.PackedBatchRequest):
            request = pb.BatchRequest.FromString(request.SerializeToString())
        return await _within(timeout, node, self._handler(node).batch(self._identity, request))

    async def write_shard(
        self, node: int, requests: AsyncIterator[ShardChunk], timeout: float
    ) -> pb.WriteShardReply:
        return await _within(timeout, node, self._handler(node).write_shard(self._identity, requests))

    async def read_shard(
        self, node: int, request: pb.ReadShardRequest, timeout: float
    ) -> AsyncIterator[ShardChunk]:
        async for reply in _stream_within(
            timeout, node, self._handler(node).read_shard(self._identity, request)
        ):
            yield reply

    async def drop_shard(self, node: int, request: pb.DropShardRequest, timeout: float) -> None:
        await _within(timeout, node, self._handler(node).drop_shard(self._identity, request))

    async def list(self, node: int, request: pb.ListRequest, timeout: float) -> pb.ListReply:
        return await _within(timeout, node, self._handler(node).list(self._identity, request))

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        return await _within(timeout, node, self._handler(node).digests(self._identity, request))

    async def partition_rows(
        self, node: int, request: pb.PartitionRowsRequest, timeout: float
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        async for reply in _stream_within(
            timeout, node, self._handler(node).partition_rows(self._identity, request)
        ):
            yield reply

    async def repair_status(self, node: int, timeout: float) -> pb.RepairStatusReply:
        return await _within(timeout, node, self._handler(node).repair_status(self._identity))

    async def repair_control(
        self, node: int, request: pb.RepairControlRequest, timeout: float
    ) -> pb.RepairStatusReply:
        return await _within(timeout, node, self._handler(node).repair_control(self._identity, request))

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        return await _within(timeout, node, self._handler(node).status(self._identity))

    async def get_map(self, node: int, request: pb.GetMapRequest, timeout: float) -> pb.GetMapReply:
        return await _within(timeout, node, self._handler(node).get_map(self._identity, request))

    async def update_map(self, cluster_map: ClusterMap) -> None:
        """Nothing to do: handlers are reached by their number."""

    async def close(self) -> None:
        """Nothing to close."""


async def _stream_within(timeout: float, node: int, replies: AsyncIterator[_Reply]) -> AsyncIterator[_Reply]:
    deadline = asyncio.get_running_loop().time() + timeout
    async with aclosing(replies) as stream:  # type: ignore[type-var]  # handlers return async generators
        while True:
            left = deadline - asyncio.get_running_loop().time()
            reply = await _within(left, node, anext(stream, None))
            if reply is None:
                return
            yield reply


async def _within(timeout: float, node: int, call: Awaitable[_Reply]) -> _Reply:
    try:
        async with asyncio.timeout(timeout):
            return await call
    except TimeoutError:
        raise DeadlineExceeded(f"node {node}: no answer within the time given") from None
