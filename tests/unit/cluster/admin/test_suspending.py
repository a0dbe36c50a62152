"""Who may be suspended without --force, and how a command learns which nodes have taken it."""

from __future__ import annotations

import asyncio
import os

import pytest
from coffre.cluster.admin import suspending
from coffre.cluster.admin.suspending import Taken, await_taken, check_known
from coffre.cluster.clock import ManualClock, SystemClock
from coffre.cluster.coordination import MemoryCoordination, Tenant, create_tenant
from coffre.cluster.errors import InvalidArgument, NotFound, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.transport import LoopbackTransport
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.proto import coffre_pb2 as pb


class _Operator(LoopbackTransport):
    """An operator's connections, some of which are cut."""

    def __init__(self, cluster: InProcessCluster) -> None:
        identity = Identity(cluster.cluster_map.cluster_id, Role.OPERATOR, "alice")
        super().__init__(identity, cluster.handlers)
        self.down: set[int] = set()

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        if node in self.down:
            raise Unavailable("it does not answer")
        return await super().status(node, timeout)


@pytest.fixture
def cluster() -> InProcessCluster:
    return in_process_cluster(2, 1)


def suspend(cluster: InProcessCluster, *numbers: int) -> None:
    for number in numbers:
        cluster.handlers[number].maps.suspended = frozenset({"clinic"})


async def test_a_slip_is_refused_with_what_was_meant(cluster: InProcessCluster) -> None:
    store, transport = MemoryCoordination(SystemClock(), os.urandom), _Operator(cluster)
    nodes = cluster.cluster_map.nodes
    await create_tenant(store, Tenant("clinic", 1))
    await check_known(store, transport, nodes, "clinic")
    with pytest.raises(NotFound, match=r"clinik; did you mean clinic\?"):
        await check_known(store, transport, nodes, "clinik")
    with pytest.raises(NotFound, match="--force"):
        await check_known(store, transport, nodes, "somebody")
    with pytest.raises(InvalidArgument):
        await check_known(store, transport, nodes, "No Name")
    await store.close()


async def test_a_tenant_that_nodes_have_met_is_known(cluster: InProcessCluster) -> None:
    store, transport = MemoryCoordination(SystemClock(), os.urandom), _Operator(cluster)
    cluster.handlers[2].tenants_met.note("lab", 1)
    transport.down = {1}
    await check_known(store, transport, cluster.cluster_map.nodes, "lab")
    transport.down = {1, 2, 3}
    with pytest.raises(NotFound):
        await check_known(store, transport, cluster.cluster_map.nodes, "lab")
    await store.close()


async def test_all_nodes_have_taken_it(cluster: InProcessCluster) -> None:
    transport, clock = _Operator(cluster), SystemClock()
    nodes = cluster.cluster_map.nodes
    suspend(cluster, 1, 2, 3)
    done = await await_taken(transport, nodes, "clinic", suspended=True, clock=clock)
    assert done == Taken(("n1", "n2", "n3"), {})
    cluster.handlers[1].maps.suspended = None  # it serves no tenant at all
    assert await await_taken(transport, nodes, "clinic", suspended=True, clock=clock) == done


async def test_nodes_that_are_late_are_waited_for(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, clock = _Operator(cluster), ManualClock()
    suspend(cluster, 1)
    waiting = asyncio.create_task(
        await_taken(transport, cluster.cluster_map.nodes, "clinic", suspended=True, clock=clock)
    )
    await _settle()
    assert not waiting.done()
    suspend(cluster, 2, 3)
    clock.advance(suspending.PAUSE_SECONDS)
    assert await waiting == Taken(("n1", "n2", "n3"), {})


async def test_nodes_that_do_not_take_it_are_named(cluster: InProcessCluster) -> None:
    transport, clock = _Operator(cluster), ManualClock()
    suspend(cluster, 1)
    transport.down = {3}
    for suspended, expected in (
        (True, Taken(("n1",), {"n2": "has not heard of it", "n3": "does not answer"})),
        (False, Taken(("n2",), {"n1": "has not heard of it", "n3": "does not answer"})),
    ):
        waiting = asyncio.create_task(
            await_taken(transport, cluster.cluster_map.nodes, "clinic", suspended=suspended, clock=clock)
        )
        while not waiting.done():
            await _settle()
            clock.advance(suspending.PATIENCE_SECONDS)
        assert await waiting == expected


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
