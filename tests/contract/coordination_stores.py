"""The implementations of `Coordination` that the contract suite runs against."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import grpc
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import (
    Coordination,
    EmbeddedCoordination,
    MemoryCoordination,
    RemoteCoordination,
)
from coffre.cluster.identity import Identity, NodeAttributes, Role, server_credentials
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.testing import make_members
from coffre.cluster.transport import GrpcTransport
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.server import MESSAGE_BYTES_MAX
from coffre.node.serving import CoordinationServicer, Handler
from coffre.node.serving.coordination import CoordinationHandler
from coffre.proto.coordination_pb2_grpc import add_CoordinationServicer_to_server

from tests.simulation.agreement import Agreement, StoreProcess
from tests.simulation.coordinators import MemberTransport
from tests.simulation.journal import Journal
from tests.simulation.network import Network
from tests.simulation.virtual_time import VirtualLoop

__all__ = ["STORES", "Store", "seeded_entropy"]


def seeded_entropy(seed: str) -> Callable[[int], bytes]:
    """Bytes that are the same in every run."""
    drawn = 0

    def draw(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return blake2b(f"{seed}/{drawn}".encode(), digest_size=count).digest()

    return draw


@dataclass(frozen=True, slots=True)
class Store:
    """One implementation. `clock` runs its leases; None: they take real seconds."""

    coordination: Coordination
    clock: ManualClock | None


@asynccontextmanager
async def memory(_: Path) -> AsyncGenerator[Store]:
    clock = ManualClock()
    store = MemoryCoordination(clock, seeded_entropy("memory"))
    yield Store(store, clock)
    await store.close()


@asynccontextmanager
async def embedded(directory: Path) -> AsyncGenerator[Store]:
    clock = ManualClock()
    store = await EmbeddedCoordination.open(directory / "coordination", clock, seeded_entropy("embedded"))
    yield Store(store, clock)
    await store.close()


@asynccontextmanager
async def remote(directory: Path) -> AsyncGenerator[Store]:
    """Through a node's service, over mutual TLS, as an operator whom the tests let use the keys below test/."""
    attributes = NodeAttributes("n1", "server-1", "site-1", "operator-1", "FR")
    members = make_members(directory / "pki", "test", [attributes], [], ["alice"])
    clock = ManualClock()
    backing = MemoryCoordination(clock, seeded_entropy("remote"))
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", 4 * MESSAGE_BYTES_MAX),
        ]
    )
    port = server.add_secure_port("127.0.0.1:0", server_credentials(members.files("n1")))
    cluster_map = _map_of(port)
    handler = _OpenHandler(1, backing, MapHolder(cluster_map, b""), clock)
    add_CoordinationServicer_to_server(CoordinationServicer(handler, "test"), server)  # type: ignore[arg-type]
    await server.start()
    transport = GrpcTransport(cluster_map, members.files("alice"))
    store = RemoteCoordination(transport)
    yield Store(store, clock)
    await store.close()
    await transport.close()
    await server.stop(None)
    await backing.close()


@asynccontextmanager
async def simulated(_: Path) -> AsyncGenerator[Store]:
    """As clients of a simulated world have it: through a node, over the simulated network."""
    clock = ManualClock()
    loop = cast(VirtualLoop, asyncio.get_running_loop())  # nobody is killed here: any loop does

    async def pause() -> None:
        await asyncio.sleep(0)

    backing = StoreProcess(loop, clock, seeded_entropy("simulated"), pause)
    cluster_map = _map_of(1)
    maps = MapHolder(cluster_map, b"")
    network = Network(random.Random(1), Journal(loop.time))
    network.nodes = {1: _Coordinator(1, Handler(1, "n1", MemoryStore(clock), maps, clock))}
    agreement = Agreement(backing, network.nodes, lambda _: maps, clock, handler=_OpenHandler)
    alice = Identity("test", Role.OPERATOR, "alice")
    store = RemoteCoordination(MemberTransport(network, alice, "alice", agreement, cluster_map))
    yield Store(store, clock)
    await store.close()
    await backing.close()


@dataclass(slots=True)
class _Coordinator:
    """A node as the simulated network sees it."""

    number: int
    handler: Handler
    up: bool = True
    incarnation: int = 0
    slowness: float = 1.0

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return asyncio.create_task(work)


def _map_of(port: int) -> ClusterMap:
    node = MapNode(1, "n1", f"127.0.0.1:{port}", "server-1", "site-1", "operator-1", "FR", 1 << 40)
    policy = Policy("1-1", 1, 1, ("FR",), Domain.NODE)
    return ClusterMap("test", 1, 16, (node,), (policy,), "1-1", (1,))


class _OpenHandler(CoordinationHandler):
    """Lets everybody use every key; who may use which is tested elsewhere."""

    def _admit(self, peer: Identity, allowed: Sequence[str], keys: Sequence[str]) -> None:
        assert peer.name == "alice"


STORES = {"memory": memory, "embedded": embedded, "remote": remote, "simulated": simulated}
