"""A whole cluster in this process, for tests and simulation: real handlers over memory stores, and a network that can
be cut, delayed and lied on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from coffre.client import AsyncClient, ClientOptions, KeyRing
from coffre.client.nodes import MapSource
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.coordination import MemoryCoordination
from coffre.cluster.errors import Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.transport import Batch, LoopbackTransport
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.serving import Handler
from coffre.node.store import StoreOptions
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded
from coffre.proto.shard_stream import ShardChunk, decode_read, decode_write, encode_read, encode_write
from google.protobuf.message import Message

__all__ = ["QUICK", "InProcessCluster", "Network", "Traffic", "in_process_cluster"]

CLUSTER_ID = "00112233445566aa"
PARTITIONS = 64
QUICK = ClientOptions(
    timeout=0.5, patience=0.05, hedge_delay=0.01, straggler_grace=0.02, stall_timeout=0.2, compress_level=1
)
Traffic = Message | ShardChunk
_Message = TypeVar("_Message", bound=Message)


def _copy(message: _Message) -> _Message:
    """What arrives on the other side of a wire: never the sender's own object."""
    return type(message).FromString(message.SerializeToString())


async def _pass(node: int, message: Traffic) -> None:
    return None


@dataclass(slots=True)
class Network:
    """The state of a network that all clients of a cluster share.

    `before` sees each request ahead of delivery and may raise or wait; `after` sees each reply and may change it, raise
    (the request was carried out, its answer is lost) or wait.
    """

    down: set[int] = field(default_factory=set)
    before: Callable[[int, Traffic], Awaitable[None]] = _pass
    after: Callable[[int, Traffic], Awaitable[None]] = _pass
    messages: int = 0

    def heal(self) -> None:
        """Everything answers again, truthfully."""
        self.down.clear()
        self.before = self.after = _pass

    async def send(self, node: int, request: Traffic) -> None:
        """Let a request through, or raise what keeps it from arriving."""
        self.messages += 1
        await self.before(node, request)
        if node in self.down:
            raise Unavailable(f"node {node} does not answer")


class _NetworkTransport(LoopbackTransport):
    """A loopback by way of a `Network`, for what moves or lists objects."""

    def __init__(self, identity: Identity, handlers: dict[int, Handler], network: Network) -> None:
        super().__init__(identity, handlers)
        self._network = network

    async def batch(self, node: int, request: Batch, timeout: float) -> pb.BatchReply:
        sent = pb.BatchRequest.FromString(request.SerializeToString())
        await self._network.send(node, sent)
        reply = expanded(_copy(await super().batch(node, _copy(sent), timeout)))
        await self._network.after(node, reply)
        return reply

    async def write_shard(
        self, node: int, requests: AsyncIterator[ShardChunk], timeout: float
    ) -> pb.WriteShardReply:
        async def sent() -> AsyncIterator[ShardChunk]:
            async for request in requests:
                await self._network.send(node, request)
                yield decode_write(encode_write(request))

        return await self._heard(node, await super().write_shard(node, sent(), timeout))

    async def read_shard(
        self, node: int, request: pb.ReadShardRequest, timeout: float
    ) -> AsyncIterator[ShardChunk]:
        await self._network.send(node, request)
        replies = super().read_shard(node, _copy(request), timeout)
        async with aclosing(replies) as stream:  # type: ignore[type-var]  # an async generator
            async for reply in stream:
                copied = decode_read(encode_read(reply))
                await self._network.after(node, copied)
                if node in self._network.down:
                    raise Unavailable(f"node {node} does not answer")
                yield copied

    async def drop_shard(self, node: int, request: pb.DropShardRequest, timeout: float) -> None:
        await self._network.send(node, request)
        await super().drop_shard(node, request, timeout)

    async def _heard(self, node: int, reply: _Message) -> _Message:
        copied = _copy(reply)
        await self._network.after(node, copied)
        return copied

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        await self._network.send(node, request)
        return await self._heard(node, await super().digests(node, request, timeout))

    async def partition_rows(
        self, node: int, request: pb.PartitionRowsRequest, timeout: float
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        await self._network.send(node, request)
        replies = super().partition_rows(node, _copy(request), timeout)
        async with aclosing(replies) as stream:  # type: ignore[type-var]  # an async generator
            async for reply in stream:
                yield await self._heard(node, reply)

    async def list(self, node: int, request: pb.ListRequest, timeout: float) -> pb.ListReply:
        await self._network.send(node, request)
        return await self._heard(node, await super().list(node, request, timeout))


@dataclass(frozen=True, slots=True)
class InProcessCluster:
    """Nodes by number; clients are made at will and share the network."""

    cluster_map: ClusterMap
    stores: dict[int, MemoryStore]
    handlers: dict[int, Handler]
    keys: KeyRing
    network: Network
    clients: list[AsyncClient]
    coordination: MemoryCoordination

    def adopt(self, cluster_map: ClusterMap, clock: Clock | None = None) -> None:
        """Let all nodes of a map work on it, as if it had been published and they had started again."""
        for node in cluster_map.nodes:
            store, holder = self.stores[node.number], MapHolder(cluster_map, b"")
            handler = Handler(node.number, node.node_id, store, holder, clock or SystemClock())
            self.handlers[node.number] = handler

    def client(
        self,
        tenant: str = "clinic",
        *,
        options: ClientOptions = QUICK,
        clock: Clock | None = None,
        network: Network | None = None,
        cluster_map: ClusterMap | None = None,
        keys: KeyRing | None = None,
        maps: MapSource | None = None,
    ) -> AsyncClient:
        """A client with the cluster's key ring unless another is given; on a network of its own when one is given."""
        identity = Identity(self.cluster_map.cluster_id, Role.TENANT, tenant)
        transport = _NetworkTransport(identity, self.handlers, network or self.network)
        client = AsyncClient(
            cluster_map or self.cluster_map,
            transport,
            keys or self.keys,
            tenant,
            options=options,
            clock=clock,
            coordination=self.coordination,
            maps=maps,
        )
        self.clients.append(client)
        return client

    def repairer(
        self, number: int, options: RepairOptions | None = None, *, clock: Clock | None = None
    ) -> Repairer:
        """The repair of a node, to be driven step by step."""
        node = self.cluster_map.node(number)
        identity = Identity(self.cluster_map.cluster_id, Role.NODE, node.node_id, node.attributes)
        transport = _NetworkTransport(identity, self.handlers, self.network)
        handler = self.handlers[number]
        repairer = Repairer(
            number, self.stores[number], handler.maps, transport, clock or SystemClock(), options
        )
        handler.repairs = repairer
        return repairer

    async def aclose(self) -> None:
        """Heal the network and close every client that was made."""
        self.network.heal()
        for client in self.clients:
            await client.aclose()
        await self.coordination.close()


def in_process_cluster(
    k: int, m: int, *, nodes: int | None = None, versions_kept: int = 1, clock: Clock | None = None
) -> InProcessCluster:
    """A cluster of `nodes` (default k + m) nodes, each at a site and with an operator of its own."""
    clock = clock or SystemClock()
    entries = []
    for n in range(1, (nodes or k + m) + 1):
        where = f"127.0.0.1:{7000 + n}", f"s{n}", f"site{n}", f"op{n}", "FR"
        entries.append(MapNode(n, f"n{n}", *where, 1 << 40))
    policy = Policy(f"{k}+{m}", k, m, ("FR",), Domain.NODE, versions_kept=versions_kept)
    cluster_map = ClusterMap(CLUSTER_ID, 1, PARTITIONS, tuple(entries), (policy,), policy.name)
    stores = {node.number: MemoryStore(clock, StoreOptions(versions_kept=versions_kept)) for node in entries}
    coordination = MemoryCoordination(clock, os.urandom)
    cluster = InProcessCluster(cluster_map, stores, {}, KeyRing.generate(), Network(), [], coordination)
    cluster.adopt(cluster_map, clock)
    return cluster
