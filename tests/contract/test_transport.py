"""One suite for every transport: the loopback, the simulated network, and gRPC over mutual TLS on 127.0.0.1."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from coffre.cluster import errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import CoffreError, DeadlineExceeded, PermissionDenied, Unavailable
from coffre.cluster.identity import Identity, NodeAttributes, server_credentials
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.names import ObjectName
from coffre.cluster.testing import Members, make_members
from coffre.cluster.transport import GrpcTransport, LoopbackTransport, Transport
from coffre.codec import crc32c
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.repair.messages import row_of_message, unpack_digests
from coffre.node.server import MESSAGE_BYTES_MAX
from coffre.node.serving import Handler, Servicer, add_servicer
from coffre.node.store import Accept
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded
from coffre.proto.shard_stream import ShardChunk, WireCell

from tests.patience import PATIENCE_SECONDS
from tests.simulation.journal import Journal
from tests.simulation.network import Network, Quality, SimulatedTransport

CLUSTER_ID = "0123456789abcdef"
NODES = [NodeAttributes(f"n{i}", f"s{i}", f"site{i}", f"op{i}", "FR") for i in range(1, 4)]
MIB = 1 << 20
TRAVELLING = sorted(
    {
        cls
        for name in errors.__all__
        if isinstance(cls := getattr(errors, name), type) and cls.__dict__.get("code")
    },
    key=lambda cls: cls.__name__,
)


class Node(Handler):
    """A real handler that can be told to fail, to wait, or to talk without end."""

    error: CoffreError | Exception | None = None
    gate: asyncio.Event
    reached: asyncio.Event
    cancelled: asyncio.Event
    taken = 0
    sent = 0
    endless = False

    async def batch(self, peer: Identity, request: pb.BatchRequest) -> pb.BatchReply:
        await self._obey()
        return await super().batch(peer, request)

    async def _obey(self) -> None:
        self.reached.set()
        if self.error is not None:
            raise self.error
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def write_shard(self, peer: Identity, requests: AsyncIterator[ShardChunk]) -> pb.WriteShardReply:
        async def counted() -> AsyncIterator[ShardChunk]:
            async for request in requests:
                await self._obey()
                self.taken += 1
                yield request

        return await super().write_shard(peer, counted())

    async def read_shard(self, peer: Identity, request: pb.ReadShardRequest) -> AsyncIterator[ShardChunk]:
        await self._obey()
        try:
            if self.endless:
                while True:
                    self.sent += 1
                    yield ShardChunk(cells=[WireCell(data=bytes(MIB))])
            async for reply in super().read_shard(peer, request):
                yield reply
        finally:
            self.cancelled.set()


@dataclass(slots=True)
class Destination:
    """A node as the simulated network sees it."""

    number: int
    handler: Node
    up: bool = True
    incarnation: int = 0
    slowness: float = 1.0

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return asyncio.create_task(work)


@dataclass(slots=True)
class Bench:
    """Transports of the tenant "clinic", the operator "alice" and node 2 to nodes 1 and 2 (3 is down)."""

    tenant: Transport
    operator: Transport
    node: Transport
    nodes: dict[int, Node]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(
        tmp_path_factory.mktemp("transport") / "pki", CLUSTER_ID, NODES, ["clinic"], ["alice"]
    )


@asynccontextmanager
async def served(nodes: dict[int, Node], members: Members) -> AsyncIterator[dict[int, int]]:
    servers, ports = [], {}
    for number, node in nodes.items():
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", 4 * MESSAGE_BYTES_MAX),
            ]
        )
        add_servicer(server, Servicer(node, CLUSTER_ID))
        ports[number] = server.add_secure_port("127.0.0.1:0", server_credentials(members.files(f"n{number}")))
        await server.start()
        servers.append(server)
    try:
        yield ports
    finally:
        await asyncio.gather(*(server.stop(None) for server in servers))


def map_of(ports: dict[int, int]) -> ClusterMap:
    nodes = tuple(
        MapNode(
            i,
            a.node_id,
            f"127.0.0.1:{ports.get(i, 1)}",
            a.server,
            a.site,
            a.operator,
            a.jurisdiction,
            1 << 40,
        )
        for i, a in enumerate(NODES, 1)
    )
    return ClusterMap(CLUSTER_ID, 1, 64, nodes, (Policy("2+1", 2, 1, ("FR",), Domain.NODE),), "2+1")


@pytest.fixture(params=["loopback", "simulated", "grpc"])
async def bench(request: pytest.FixtureRequest, members: Members) -> AsyncIterator[Bench]:
    placeholder = MapHolder(map_of({2: 2, 3: 3}), b"the signed map")
    nodes: dict[int, Node] = {}
    for number in (1, 2):
        clock = SystemClock()
        node = Node(number, f"n{number}", MemoryStore(clock), placeholder, clock)
        node.gate, node.reached, node.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        node.gate.set()
        nodes[number] = node
    if request.param == "loopback":
        transports = [LoopbackTransport(members.identity(who), nodes) for who in ("clinic", "alice", "n2")]
        yield Bench(transports[0], transports[1], transports[2], nodes)
        return
    if request.param == "simulated":
        network = Network(random.Random(1), Journal(asyncio.get_running_loop().time), Quality(0.001, 0.001))
        network.nodes = {number: Destination(number, node) for number, node in nodes.items()}
        who = ("clinic", "alice", "n2")
        twins = [SimulatedTransport(network, members.identity(name), name) for name in who]
        yield Bench(twins[0], twins[1], twins[2], nodes)
        return
    async with served(nodes, members) as ports:
        cluster_map = map_of(ports)
        tenant, operator, peer = (
            GrpcTransport(cluster_map, members.files(who)) for who in ("clinic", "alice", "n2")
        )
        try:
            yield Bench(tenant, operator, peer, nodes)
        finally:
            for transport in (tenant, operator, peer):
                await transport.close()


def read(key: str = "k") -> pb.BatchRequest:
    operation = pb.Operation(read=pb.Read(bucket="b", key=key))
    return pb.BatchRequest(epoch=1, tenant="clinic", operations=[operation])


async def shard(cells: int, size: int = 1000) -> AsyncIterator[ShardChunk]:
    yield ShardChunk(header=pb.ShardHeader(epoch=1, tenant="clinic", data_id=bytes(16), shard_index=0))
    for segment in range(cells):
        data = segment.to_bytes(2, "big") * (size // 2)
        yield ShardChunk(cells=[WireCell(segment=segment, crc=crc32c(data), data=data)])


async def test_every_call_arrives(bench: Bench) -> None:
    reply = await bench.tenant.batch(1, read(), 5)
    assert [outcome.code for outcome in reply.outcomes] == [0]
    written = await bench.tenant.write_shard(1, shard(3), 5)
    assert (written.cell_count, written.size_bytes) == (3, 3000)
    await bench.tenant.drop_shard(
        1, pb.DropShardRequest(tenant="clinic", data_id=bytes(16), shard_index=0), 5
    )
    assert not bench.nodes[1]._store._staging  # type: ignore[attr-defined]  # of the memory store
    listing = await bench.tenant.list(2, pb.ListRequest(epoch=1, tenant="clinic", bucket="b"), 5)
    assert (list(listing.entries), listing.more) == ([], False)
    status = await bench.operator.status(2, 5)
    assert (status.node_number, status.node_id, status.epoch) == (2, "n2", 1)
    request = pb.ReadShardRequest(epoch=1, tenant="clinic", bucket="b", key="k", stamp=bytes(16))
    with pytest.raises(errors.NotFound):
        await anext(bench.tenant.read_shard(1, request, 5))


async def test_the_map_is_for_every_member(bench: Bench) -> None:
    for transport in (bench.tenant, bench.operator):
        assert (await transport.get_map(1, pb.GetMapRequest(), 5)).signed_map == b"the signed map"
        assert (await transport.get_map(1, pb.GetMapRequest(known_epoch=1), 5)).signed_map == b""


async def test_a_connection_that_breaks_with_the_last_message_is_no_error_of_grpc(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gRPC raises there is none of the errors of a call; what became of the call says its status."""

    async def broken(call: object) -> None:
        raise grpc.aio.InternalError("execute_batch")

    monkeypatch.setattr("grpc.aio._call.StreamUnaryCall.done_writing", broken)
    grpc_alone = isinstance(bench.tenant, GrpcTransport)  # the twins have no such end
    with pytest.raises(DeadlineExceeded) if grpc_alone else nullcontext():
        await bench.tenant.write_shard(1, shard(1), 0.3)


async def test_who_calls_is_known_by_certificate(bench: Bench) -> None:
    with pytest.raises(PermissionDenied):
        await bench.tenant.status(1, 5)
    with pytest.raises(PermissionDenied):
        await bench.operator.batch(1, read(), 5)
    with pytest.raises(PermissionDenied):
        await bench.tenant.batch(1, pb.BatchRequest(epoch=1, tenant="lab"), 5)
    with pytest.raises(PermissionDenied):
        await bench.operator.write_shard(1, shard(1), 5)


async def test_nodes_read_each_other(bench: Bench) -> None:
    store = bench.nodes[1]._store
    name = ObjectName("clinic", "b", "k")
    await store.apply([Accept(name, 7, bytes(16), True, bytes(16), b"manifest", bytes(16), (), None)])
    reply = await bench.node.digests(1, pb.DigestsRequest(epoch=1), 5)
    assert unpack_digests(reply.digests) == {7: await store.partition_digest(7)}
    request = pb.PartitionRowsRequest(epoch=1, partition=7)
    (rows,) = [reply.rows async for reply in bench.node.partition_rows(1, request, 5)]
    (row,) = map(row_of_message, rows)
    assert (row.name, row.versions[0].tombstone) == (name, True)
    (outcome,) = expanded(await bench.node.batch(1, read(), 5)).outcomes
    assert outcome.versions[0].sealed.manifest == b"manifest"
    for other in (bench.tenant, bench.operator):
        with pytest.raises(PermissionDenied):
            await other.digests(1, pb.DigestsRequest(epoch=1), 5)
        with pytest.raises(PermissionDenied):
            await anext(other.partition_rows(1, request, 5))


async def test_a_node_changes_nothing_elsewhere(bench: Bench) -> None:
    with pytest.raises(PermissionDenied):
        await bench.node.write_shard(1, shard(1), 5)
    with pytest.raises(PermissionDenied):
        await bench.node.drop_shard(1, pb.DropShardRequest(tenant="clinic", data_id=bytes(16)), 5)
    with pytest.raises(PermissionDenied):
        await bench.node.list(1, pb.ListRequest(epoch=1, tenant="clinic", bucket="b"), 5)


class Switch:
    """A node's repair, as operators see it."""

    rate = 0

    def status(self) -> pb.RepairStatusReply:
        return pb.RepairStatusReply(bytes_per_second=self.rate)

    def control(self, request: pb.RepairControlRequest) -> None:
        self.rate = request.bytes_per_second


async def test_repair_is_for_operators(bench: Bench) -> None:
    request = pb.RepairControlRequest(action=pb.REPAIR_ACTION_PAUSE, bytes_per_second=7)
    with pytest.raises(Unavailable):
        await bench.operator.repair_status(1, 5)
    bench.nodes[1].repairs = Switch()
    assert (await bench.operator.repair_control(1, request, 5)).bytes_per_second == 7
    assert (await bench.operator.repair_status(1, 5)).bytes_per_second == 7
    for other in (bench.tenant, bench.node):
        with pytest.raises(PermissionDenied):
            await other.repair_status(1, 5)
        with pytest.raises(PermissionDenied):
            await other.repair_control(1, request, 5)


@pytest.mark.parametrize("cls", TRAVELLING, ids=lambda cls: cls.__name__)
async def test_every_error_crosses_unchanged(bench: Bench, cls: type[CoffreError]) -> None:
    expected = errors.InvalidArgument if cls is errors.PolicyViolation else cls
    bench.nodes[1].error = cls("what happened: é\n50 %")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bench.tenant.batch(1, read(), 5),
        lambda: bench.tenant.write_shard(1, shard(2), 5),
        lambda: anext(bench.tenant.read_shard(1, pb.ReadShardRequest(), 5)),
    ]
    for call in calls:
        with pytest.raises(CoffreError) as caught:
            await call()
        assert type(caught.value) in {expected, cls}
        assert "what happened: é" in str(caught.value) or cls is DeadlineExceeded  # gRPC's own text says it


async def test_a_bug_of_the_node_shows_nothing_of_it(
    bench: Bench, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    bench.nodes[1].error = ZeroDivisionError("Mme Durand")
    if isinstance(bench.tenant, LoopbackTransport):
        with pytest.raises(ZeroDivisionError):
            await bench.tenant.batch(1, read(), 5)
        return
    with pytest.raises(errors.InternalError) as caught:
        await bench.tenant.batch(1, read(), 5)
    assert "Durand" not in str(caught.value)


async def test_a_node_that_does_not_answer_in_time(bench: Bench) -> None:
    bench.nodes[1].gate.clear()
    for call in (
        bench.tenant.batch(1, read(), 0.05),
        bench.tenant.write_shard(1, shard(2), 0.05),
        anext(bench.tenant.read_shard(1, pb.ReadShardRequest(), 0.05)),
    ):
        with pytest.raises(DeadlineExceeded):
            await call
    assert (await bench.tenant.batch(2, read(), 5)).outcomes  # the other one does


async def test_cancelling_a_call_reaches_the_node(bench: Bench) -> None:
    bench.nodes[1].gate.clear()
    call = asyncio.create_task(bench.tenant.write_shard(1, shard(2), 60))
    await bench.nodes[1].reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(PATIENCE_SECONDS):
        await bench.nodes[1].cancelled.wait()


async def test_batches_do_not_wait_for_one_another(bench: Bench) -> None:
    bench.nodes[1].gate.clear()
    waiting = asyncio.create_task(bench.tenant.batch(1, read("slow"), 60))
    await bench.nodes[1].reached.wait()
    bench.nodes[1].gate, gate = asyncio.Event(), bench.nodes[1].gate
    bench.nodes[1].gate.set()
    for _ in range(20):
        assert (await bench.tenant.batch(1, read("quick"), 5)).votes
    assert not waiting.done()
    gate.set()
    assert (await waiting).votes


async def test_packed_operations_are_the_same_message(bench: Bench) -> None:
    plain = read()
    packed = pb.PackedBatchRequest(
        epoch=1, tenant="clinic", operations=[operation.SerializeToString() for operation in plain.operations]
    )
    assert expanded(await bench.tenant.batch(1, packed, 5)).outcomes == (
        expanded(await bench.tenant.batch(1, plain, 5)).outcomes
    )


async def test_a_node_that_is_down_or_not_there(bench: Bench) -> None:
    for number in (3, 99):
        with pytest.raises(Unavailable):
            await bench.tenant.batch(number, read(), 5)
        with pytest.raises(Unavailable):
            await bench.tenant.write_shard(number, shard(2), 5)
        with pytest.raises(Unavailable):
            await anext(bench.tenant.read_shard(number, pb.ReadShardRequest(), 5))


async def test_large_messages(bench: Bench) -> None:
    written = await bench.tenant.write_shard(1, shard(5, size=2 * MIB), 20)
    assert written.size_bytes == 10 * MIB
    request = pb.BatchRequest(epoch=1, tenant="clinic")
    while request.ByteSize() < 3 * MIB:
        request.operations.add(read=pb.Read(bucket="b", key="k" * 1000, stamp=bytes(4096)))
    reply = await bench.tenant.batch(1, request, 5)
    assert len(reply.outcomes) == len(request.operations)
    assert {outcome.code for outcome in reply.outcomes} == {errors.InvalidArgument.code}  # of the stamp


async def test_a_source_that_raises_ends_the_call_with_its_own_error(bench: Bench) -> None:
    async def broken() -> AsyncIterator[ShardChunk]:
        async with aclosing(shard(3)) as requests:  # type: ignore[type-var]  # an async generator
            async for request in requests:
                yield request
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        await bench.tenant.write_shard(1, broken(), 5)
    assert not bench.nodes[1]._store._staging  # type: ignore[attr-defined]  # of the memory store


async def test_a_slow_node_holds_the_writer_back(bench: Bench) -> None:
    drawn = 0

    async def endless() -> AsyncIterator[ShardChunk]:
        nonlocal drawn
        async with aclosing(shard(10_000, size=MIB)) as requests:  # type: ignore[type-var]  # an async generator
            async for request in requests:
                drawn += 1
                yield request

    bench.nodes[1].gate.clear()
    call = asyncio.create_task(bench.tenant.write_shard(1, endless(), 60))
    await asyncio.wait({call}, timeout=0.3)  # time enough to draw everything, were it not held back
    assert drawn < 32
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_slow_reader_holds_the_node_back(bench: Bench) -> None:
    node = bench.nodes[1]
    node.endless = True
    async with aclosing(bench.tenant.read_shard(1, pb.ReadShardRequest(), 60)) as replies:  # type: ignore[type-var]
        await anext(replies)
        waiting = asyncio.create_task(node.cancelled.wait())
        await asyncio.wait({waiting}, timeout=0.3)  # time enough to send a lot, were it not held back
        assert node.sent < 32
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting  # the reader went, and the node knows
