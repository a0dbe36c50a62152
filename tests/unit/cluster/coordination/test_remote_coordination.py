"""What a member makes of coordinators that cannot be reached, or decide nothing: what it knows, it says."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import Bucket, MemoryCoordination, RemoteCoordination, create_bucket
from coffre.cluster.errors import OutcomeUnknown, Unavailable
from coffre.cluster.identity import NodeAttributes, server_credentials
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.testing import Members, make_members
from coffre.cluster.transport import GrpcTransport
from coffre.node.following import MapHolder
from coffre.node.serving import CoordinationServicer
from coffre.node.serving.coordination import CoordinationHandler
from coffre.proto.coordination_pb2_grpc import add_CoordinationServicer_to_server
from grpc import aio

from tests.contract.coordination_stores import seeded_entropy

ATTRIBUTES = [NodeAttributes(f"n{i}", f"server-{i}", "site-1", "operator-1", "FR") for i in (1, 2)]
BUCKET = Bucket("clinic", "records", "", 1)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(tmp_path_factory.mktemp("pki"), "test", ATTRIBUTES, ["clinic"], [])


def map_of(ports: list[int], coordinators: tuple[int, ...]) -> ClusterMap:
    nodes = tuple(
        MapNode(n, at.node_id, f"127.0.0.1:{port}", at.server, at.site, at.operator, "FR", 1 << 40)
        for n, (at, port) in enumerate(zip(ATTRIBUTES, ports, strict=True), 1)
    )
    return ClusterMap("test", 1, 16, nodes, (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1", coordinators)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def serving(members: Members, number: int, store: MemoryCoordination | None) -> AsyncIterator[int]:
    """A node that serves this store, or none; its port."""
    server = aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(members.files(f"n{number}")))
    named = map_of([1, 2], (1, 2))
    handler = CoordinationHandler(number, store, MapHolder(named, b""), ManualClock())
    add_CoordinationServicer_to_server(CoordinationServicer(handler, "test"), server)  # type: ignore[arg-type]
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def asking(
    members: Members, ports: list[int], coordinators: tuple[int, ...]
) -> AsyncIterator[RemoteCoordination]:
    transport = GrpcTransport(map_of(ports, coordinators), members.files("clinic"))
    yield RemoteCoordination(transport, timeout=1.0)
    await transport.close()


async def refusal(coordination: RemoteCoordination) -> str:
    """What is said of a bucket that cannot be created; that it was not is known."""
    with pytest.raises(Unavailable) as refused:
        await create_bucket(coordination, BUCKET)
    assert not isinstance(refused.value, OutcomeUnknown), refused.value
    assert "not known" not in str(refused.value)
    return str(refused.value)


async def test_nobody_is_there(members: Members) -> None:
    async with asking(members, [closed_port(), closed_port()], (1, 2)) as coordination:
        said = await refusal(coordination)
        assert "coordination cannot be reached" in said
        assert "nothing was changed" in said
    async with asking(members, [closed_port(), closed_port()], ()) as coordination:
        assert "names no coordinators" in await refusal(coordination)


async def test_who_is_there_serves_none(members: Members) -> None:
    async with (
        serving(members, 1, None) as port,
        asking(members, [port, closed_port()], (1,)) as coordination,
    ):
        said = await refusal(coordination)
        assert "does not serve coordination" in said
        assert "nothing was changed" in said


async def test_the_next_one_is_asked_when_it_is_known_that_nothing_was_done(members: Members) -> None:
    for first_serves_none in (True, False):
        store = MemoryCoordination(ManualClock(), seeded_entropy("remote"))
        async with (
            serving(members, 1, None) as silent,
            serving(members, 2, store) as port,
            asking(members, [silent if first_serves_none else closed_port(), port], (1, 2)) as coordination,
        ):
            await create_bucket(coordination, BUCKET)
        await store.close()
