"""The real transport against real gRPC servers: who gets through, and how every failure reads."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import grpc
import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    Cancelled,
    CoffreError,
    ConfigurationError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    NotSent,
    StaleMap,
    Unavailable,
    error_of_status,
)
from coffre.cluster.identity import Identity, TlsFiles, peer_identity, server_credentials
from coffre.cluster.map import ClusterMap, Domain, MapNode, NodeState, Policy
from coffre.cluster.testing import Members
from coffre.cluster.transport import GrpcTransport
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coffre_pb2_grpc as pb_grpc
from coffre.proto.shard_stream import ShardChunk, WireCell
from grpc import aio

_Context = aio.ServicerContext  # generic, and the test does not care in what
CLUSTER_ID = "0123456789abcdef"


class Echo(pb_grpc.NodeServicer):
    """Answers enough to tell who asked; `status` is how it fails, `hold` how long it thinks."""

    def __init__(self) -> None:
        self.peers: list[Identity] = []
        self.status: grpc.StatusCode | None = None
        self.entered = asyncio.Event()
        self.hold: asyncio.Event | None = None
        self.cancelled = asyncio.Event()
        self.exchanges = 0

    async def _meet(self, context: _Context) -> None:  # type: ignore[type-arg]
        self.peers.append(peer_identity(context.auth_context(), CLUSTER_ID))
        self.entered.set()
        if self.status is not None:
            await context.abort(self.status, "why")
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def Exchange(
        self,
        request_iterator: AsyncIterator[pb.BatchRequest],
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[pb.BatchReply]:
        self.exchanges += 1
        async for request in request_iterator:
            if not self.peers or request.operations:
                await self._meet(context)
            yield pb.BatchReply(outcomes=[pb.Outcome(detail=request.tenant)], number=request.number)

    async def WriteShard(
        self,
        request_iterator: AsyncIterator[pb.WriteShardRequest],
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.WriteShardReply:
        await self._meet(context)
        count = 0
        async for request in request_iterator:
            count += len(request.cells)
        return pb.WriteShardReply(cell_count=count)

    async def ReadShard(
        self,
        request: pb.ReadShardRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[pb.ReadShardReply]:
        for segment in range(request.segment_count):
            yield pb.ReadShardReply(cells=[pb.Cell(segment=segment, data=bytes(1 << 20))])
        await self._meet(context)

    async def DropShard(self, request: pb.DropShardRequest, context: _Context) -> pb.DropShardReply:  # type: ignore[type-arg]
        await self._meet(context)
        return pb.DropShardReply()

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListReply:  # type: ignore[type-arg]
        await self._meet(context)
        return pb.ListReply(more=True)

    async def Digests(self, request: pb.DigestsRequest, context: _Context) -> pb.DigestsReply:  # type: ignore[type-arg]
        await self._meet(context)
        return pb.DigestsReply(epoch=5)

    async def PartitionRows(
        self,
        request: pb.PartitionRowsRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        await self._meet(context)
        yield pb.PartitionRowsReply(rows=[pb.NameRow(key="k")])

    async def RepairStatus(
        self,
        request: pb.RepairStatusRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.RepairStatusReply:
        await self._meet(context)
        return pb.RepairStatusReply(paused=True)

    async def RepairControl(
        self,
        request: pb.RepairControlRequest,
        context: _Context,  # type: ignore[type-arg]
    ) -> pb.RepairStatusReply:
        await self._meet(context)
        return pb.RepairStatusReply(bytes_per_second=request.bytes_per_second)

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:  # type: ignore[type-arg]
        await self._meet(context)
        return pb.StatusReply(node_id="n1")

    async def GetMap(self, request: pb.GetMapRequest, context: _Context) -> pb.GetMapReply:  # type: ignore[type-arg]
        await self._meet(context)
        return pb.GetMapReply(signed_map=b"map")


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One server, a map that has it as node 1, and a transport of the tenant to it."""

    echo: Echo
    cluster_map: ClusterMap
    transport: GrpcTransport


Open = Callable[..., AbstractAsyncContextManager[Stage]]


def map_of(members: Members, port: int, **changes: object) -> ClusterMap:
    at = members.attributes("n1")
    node = MapNode(
        1, at.node_id, f"127.0.0.1:{port}", at.server, at.site, at.operator, at.jurisdiction, 1 << 40
    )
    node = dataclasses.replace(node, **changes)  # type: ignore[arg-type]
    policy = Policy("1+1", 1, 1, ("FR",), Domain.NODE)
    return ClusterMap(CLUSTER_ID, 1, 64, (node,), (policy,), "1+1")


@pytest.fixture
def open_stage(members: Members) -> Open:
    @asynccontextmanager
    async def stage(*, server_files: TlsFiles | None = None, **changes: object) -> AsyncIterator[Stage]:
        echo = Echo()
        running = aio.server()
        pb_grpc.add_NodeServicer_to_server(echo, running)
        port = running.add_secure_port("127.0.0.1:0", server_credentials(server_files or members.files("n1")))
        await running.start()
        cluster_map = map_of(members, port, **changes)
        transport = GrpcTransport(cluster_map, members.files("hospital"))
        try:
            yield Stage(echo, cluster_map, transport)
        finally:
            await transport.close()
            await running.stop(None)

    return stage


async def shards(count: int) -> AsyncIterator[ShardChunk]:
    for segment in range(count):
        yield ShardChunk(cells=[WireCell(segment=segment, data=bytes(1 << 20))])


async def test_every_call(members: Members, open_stage: Open) -> None:
    async with open_stage() as stage:
        transport = stage.transport
        reply = await transport.batch(1, pb.BatchRequest(tenant="t"), 30)
        assert reply.outcomes[0].detail == "t"
        assert (await transport.write_shard(1, shards(5), 30)).cell_count == 5
        segments = [
            reply.cells[0].segment
            async for reply in transport.read_shard(1, pb.ReadShardRequest(segment_count=5), 30)
        ]
        assert segments == [0, 1, 2, 3, 4]
        await transport.drop_shard(1, pb.DropShardRequest(), 30)
        assert (await transport.list(1, pb.ListRequest(), 30)).more
        assert (await transport.status(1, 30)).node_id == "n1"
        assert (await transport.get_map(1, pb.GetMapRequest(), 30)).signed_map == b"map"
        assert stage.echo.peers == [members.identity("hospital")] * 7


# ------------------------------------------------------------------ who gets through


@pytest.mark.parametrize(
    "lie",
    [{"site": "lyon"}, {"server": "s9"}, {"operator": "scw"}, {"jurisdiction": "DE"}, {"node_id": "n9"}],
)
async def test_a_node_whose_certificate_says_otherwise_than_the_map(
    open_stage: Open, lie: dict[str, str]
) -> None:
    async with open_stage(**lie) as stage:
        with pytest.raises(Unavailable, match=r"node n.*certificates"):
            await stage.transport.status(1, 30)
        assert stage.echo.peers == []


async def test_another_node_at_the_address(members: Members, open_stage: Open) -> None:
    async with open_stage(server_files=members.files("n2")) as stage:
        with pytest.raises(Unavailable, match="certificates"):
            await stage.transport.status(1, 30)


async def test_a_tenant_that_poses_as_a_node(members: Members, open_stage: Open) -> None:
    async with open_stage(server_files=members.files("hospital")) as stage:
        with pytest.raises(Unavailable):
            await stage.transport.status(1, 30)
        assert stage.echo.peers == []


async def test_a_node_of_a_foreign_authority(strangers: Members, open_stage: Open) -> None:
    async with open_stage(server_files=strangers.files("n1")) as stage:
        with pytest.raises(Unavailable, match="certificates"):
            await stage.transport.status(1, 30)


async def test_a_caller_of_a_foreign_authority(
    strangers: Members, members: Members, open_stage: Open
) -> None:
    trusting = TlsFiles(
        members.files("n1").authority,
        strangers.files("hospital").certificate,
        strangers.files("hospital").key,
    )
    with pytest.raises(ConfigurationError):
        GrpcTransport(map_of(members, 1), trusting)
    async with open_stage() as stage:
        credentials = grpc.ssl_channel_credentials(
            members.authority.certificate,
            strangers.issued["hospital"].key,
            strangers.issued["hospital"].certificate,
        )
        transport = GrpcTransport(stage.cluster_map, credentials)
        with pytest.raises(Unavailable):
            await transport.status(1, 30)
        await transport.close()
        transport = GrpcTransport(
            stage.cluster_map, grpc.ssl_channel_credentials(members.authority.certificate)
        )
        with pytest.raises(Unavailable):  # no certificate at all
            await transport.status(1, 30)
        await transport.close()
        assert stage.echo.peers == []


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_every_status_arrives_as_its_class(open_stage: Open, status: grpc.StatusCode) -> None:
    kind = type(error_of_status(status.value[0], ""))
    async with open_stage() as stage:
        stage.echo.status = status
        transport = stage.transport
        # An exchange is no single operation: a failure of a node's own would come in a reply.
        broken = Unavailable if status is grpc.StatusCode.INTERNAL else kind
        with pytest.raises(broken, match="node n1") as caught:
            await transport.batch(1, BATCH, 30)
        assert type(caught.value) is broken
        with pytest.raises(kind, match="node n1"):
            await transport.write_shard(1, shards(64), 30)
        with pytest.raises(kind, match="node n1"):
            async for _ in transport.read_shard(1, pb.ReadShardRequest(segment_count=1), 30):
                pass


BATCH = pb.BatchRequest(tenant="t", operations=[pb.Operation()])


async def test_batches_share_one_call(open_stage: Open) -> None:
    async with open_stage() as stage:
        replies = await asyncio.gather(
            *(stage.transport.batch(1, pb.BatchRequest(tenant=f"t{i}"), 30) for i in range(50))
        )
        assert [reply.outcomes[0].detail for reply in replies] == [f"t{i}" for i in range(50)]
        assert stage.echo.exchanges == 1


async def test_after_a_missed_deadline_batches_go_on_over_a_new_call(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        waiting = asyncio.create_task(stage.transport.batch(1, pb.BatchRequest(tenant="behind"), 30))
        with pytest.raises(DeadlineExceeded, match=r"node n1: no answer within 0\.2 s"):
            await stage.transport.batch(1, BATCH, 0.2)
        with pytest.raises(Unavailable, match="node n1"):
            await waiting  # nobody knows whether the node saw it
        stage.echo.hold = None
        assert (await stage.transport.batch(1, BATCH, 30)).outcomes[0].detail == "t"
        assert stage.echo.exchanges == 2


async def test_a_caller_that_gives_up_disturbs_no_other(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        leaving = asyncio.create_task(stage.transport.batch(1, BATCH, 30))
        staying = asyncio.create_task(stage.transport.batch(1, pb.BatchRequest(tenant="stays"), 30))
        await stage.echo.entered.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        stage.echo.hold.set()
        assert (await staying).outcomes[0].detail == "stays"
        assert stage.echo.exchanges == 1


async def test_a_caller_may_give_up_at_any_moment_of_its_message(open_stage: Open) -> None:
    """grpc.aio ends a whole call when a task is cancelled that writes to it."""
    async with open_stage() as stage:
        for turns in range(40):
            leaving = asyncio.create_task(stage.transport.batch(1, pb.BatchRequest(tenant="leaves"), 30))
            staying = asyncio.create_task(stage.transport.batch(1, pb.BatchRequest(tenant="stays"), 30))
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).outcomes[0].detail == "stays"
        assert stage.echo.exchanges == 1


async def test_a_close_ends_batches_with_an_error_and_no_cancellation(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        task = asyncio.create_task(stage.transport.batch(1, BATCH, 30))
        await stage.echo.entered.wait()
        await stage.transport.close()
        with pytest.raises(Cancelled, match="node n1"):
            await task


async def test_a_move_lets_batches_under_way_end(open_stage: Open) -> None:
    async with open_stage() as old, open_stage() as new:
        old.echo.hold = asyncio.Event()
        task = asyncio.create_task(old.transport.batch(1, BATCH, 30))
        await old.echo.entered.wait()
        update = asyncio.create_task(old.transport.update_map(dataclasses.replace(new.cluster_map, epoch=2)))
        await asyncio.sleep(0)
        assert (await old.transport.batch(1, pb.BatchRequest(tenant="new"), 30)).outcomes
        assert new.echo.exchanges == 1
        old.echo.hold.set()
        assert (await task).outcomes[0].detail == "t"
        await update


async def test_nobody_there(members: Members) -> None:
    reserved = socket.socket()  # bound and not listening: every connection is refused
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    transport = GrpcTransport(map_of(members, port), members.files("hospital"), channels_per_node=2)
    for _ in range(2):
        with pytest.raises(Unavailable, match="node n1: it cannot be reached") as refused:
            await transport.status(1, 30)
        assert "127.0.0.1" not in str(refused.value)
        assert str(port) not in str(refused.value)
        assert refused.value.details.startswith(f"n1 (127.0.0.1:{port}): ")
        assert refused.value.node == "n1"
    await transport.close()
    reserved.close()


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.05, 0.3])
async def test_a_node_that_takes_connections_and_says_nothing(members: Members, timeout: float) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    transport = GrpcTransport(map_of(members, silent.getsockname()[1]), members.files("hospital"))
    async with asyncio.timeout(30):
        for _ in range(3):
            batches = (transport.batch(1, pb.BatchRequest(tenant="t"), timeout) for _ in range(3))
            for failure in await asyncio.gather(*batches, return_exceptions=True):
                assert isinstance(failure, DeadlineExceeded | Unavailable)
    await transport.close()
    silent.close()


async def test_deadline(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.2 s"):
            await stage.transport.status(1, 0.2)
        stage.echo.hold.set()


async def test_cancellation_passes_through_and_reaches_the_node(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        task = asyncio.create_task(stage.transport.status(1, 30))
        await stage.echo.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(stage.echo.cancelled.wait(), 30)


async def test_a_close_during_a_call_is_an_error_and_no_cancellation(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        task = asyncio.create_task(stage.transport.status(1, 30))
        await stage.echo.entered.wait()
        await stage.transport.close()
        with pytest.raises(Cancelled, match="node n1"):
            await task
        with pytest.raises(Unavailable, match="closed"):
            await stage.transport.status(1, 30)


async def test_an_error_of_the_sender_is_its_own(open_stage: Open) -> None:
    async def broken() -> AsyncIterator[ShardChunk]:
        yield ShardChunk()
        raise NotFound("the source is gone")

    async with open_stage() as stage:
        with pytest.raises(NotFound, match="the source is gone"):
            await stage.transport.write_shard(1, broken(), 30)


async def test_a_reader_that_leaves_ends_the_call(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        replies = stage.transport.read_shard(1, pb.ReadShardRequest(segment_count=1), 30)
        async for _ in replies:
            break
        await stage.echo.entered.wait()
        await replies.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(stage.echo.cancelled.wait(), 30)


async def test_large_messages_have_a_limit(open_stage: Open) -> None:
    async with open_stage() as stage:
        with pytest.raises(CoffreError, match="larger than max"):
            await stage.transport.batch(1, pb.BatchRequest(tenant="x" * (17 << 20)), 30)


# ------------------------------------------------------------------ maps


async def test_nodes_that_are_not_there(members: Members) -> None:
    transport = GrpcTransport(map_of(members, 1, state=NodeState.REMOVED), members.files("hospital"))
    with pytest.raises(Unavailable, match="removed"):
        await transport.status(1, 30)
    with pytest.raises(Unavailable, match="no node 2"):
        await transport.status(2, 30)
    with pytest.raises(InvalidArgument):
        GrpcTransport(transport.cluster_map, members.files("hospital"), channels_per_node=0)


async def test_a_node_that_moves_is_called_at_its_new_address(open_stage: Open) -> None:
    async with open_stage() as old, open_stage() as new:
        await old.transport.status(1, 30)
        moved = dataclasses.replace(new.cluster_map, epoch=2)
        await old.transport.update_map(moved)
        await old.transport.status(1, 30)
        assert (len(old.echo.peers), len(new.echo.peers)) == (1, 1)
        with pytest.raises(StaleMap):
            await old.transport.update_map(old.cluster_map)
        await old.transport.status(1, 30)
        assert len(new.echo.peers) == 2


async def test_a_move_lets_calls_under_way_end(open_stage: Open) -> None:
    async with open_stage() as old, open_stage() as new:
        old.echo.hold = asyncio.Event()
        task = asyncio.create_task(old.transport.status(1, 30))
        await old.echo.entered.wait()
        update = asyncio.create_task(old.transport.update_map(dataclasses.replace(new.cluster_map, epoch=2)))
        await asyncio.sleep(0)
        await old.transport.status(1, 30)  # already at the new address
        assert len(new.echo.peers) == 1
        old.echo.hold.set()
        assert (await task).node_id == "n1"
        await update


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """Takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_batch_without_a_connection_never_left(members: Members, hanging_port: int) -> None:
    for port, seconds, words in (
        (closed_port(), 20.0, "node n1"),
        (hanging_port, 0.3, "no connection within 0.3 s"),
    ):
        transport = GrpcTransport(map_of(members, port), members.files("hospital"))
        try:
            for _ in range(2):
                with pytest.raises(NotSent, match=words):
                    await transport.batch(1, pb.BatchRequest(tenant="t"), seconds)
        finally:
            await transport.close()


async def test_a_batch_that_left_is_never_called_unsent(open_stage: Open) -> None:
    async with open_stage() as stage:
        stage.echo.hold = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await stage.transport.batch(1, pb.BatchRequest(tenant="t"), 1.0)


async def test_ones_own_expired_certificate_is_named_first(members: Members) -> None:
    clock = ManualClock(unixtime_ms=8_000_000_000_000)
    files = members.files("hospital")
    transport = GrpcTransport(map_of(members, closed_port()), files, clock=clock)
    try:
        with pytest.raises(NotSent, match=rf"your own certificate, {files.certificate}, has expired"):
            await transport.batch(1, pb.BatchRequest(tenant="t"), 20)
    finally:
        await transport.close()
