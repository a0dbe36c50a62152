"""Who may do what with coordination: the table of docs/formats/wire.md, each role and each call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import EmbeddedCoordination, MemoryCoordination, Put
from coffre.cluster.errors import (
    CoffreError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from coffre.cluster.identity import Identity, NodeAttributes, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, NodeState, Policy
from coffre.node.config import EmbeddedConfig
from coffre.node.following import MapHolder
from coffre.node.serving import coordination as served
from coffre.node.serving.coordination import CoordinationHandler
from coffre.node.serving.coordinator import StoreWatch
from coffre.proto import coordination_pb2 as pb
from coffre.proto.coffre_pb2 import COORDINATION_KIND_EMBEDDED, StatusReply

from tests.contract.coordination_stores import seeded_entropy

KEYS = {
    "maps": "maps/current",
    "tenants": "tenants/clinic",
    "own bucket": "buckets/clinic/records",
    "other bucket": "buckets/clinic-2/records",
    "own lock": "locks/clinic/00/aa",
    "other lock": "locks/clinic-2/00/aa",
    "repair": "repair/00007",
    "own node": "nodes/0000000001",
    "other node": "nodes/0000000002",
    "elsewhere": "secret/x",
}
READ, WRITE = "read", "write"
OF_TENANTS = ("own bucket", "other bucket", "own lock", "other lock")
ALLOWED = {
    "tenant": {"maps": {READ}, "own bucket": {READ, WRITE}, "own lock": {READ, WRITE}},
    "operator": {
        "maps": {READ, WRITE},
        "tenants": {READ, WRITE},
        **{what: {READ} for what in (*OF_TENANTS, "repair", "own node", "other node")},
    },
    "node": {
        "repair": {READ, WRITE},
        "own node": {READ, WRITE},
        **{what: {READ} for what in ("maps", "tenants", *OF_TENANTS, "other node")},
    },
    "removed node": {"maps": {READ}},
    "stranger": {"maps": {READ}},
    "old certificate": {"maps": {READ}},
}


def node_identity(node_id: str, generation: int = 1) -> Identity:
    attributes = NodeAttributes(node_id, "server", "site", "runs", "FR", generation)
    return Identity("test", Role.NODE, node_id, attributes)


MEMBERS = {
    "tenant": Identity("test", Role.TENANT, "clinic"),
    "operator": Identity("test", Role.OPERATOR, "alice"),
    "node": node_identity("a1"),
    "removed node": node_identity("a3"),
    "stranger": node_identity("a9"),
    "old certificate": node_identity("a1", 0),
}


def map_node(number: int, state: NodeState = NodeState.ACTIVE) -> MapNode:
    address = f"127.0.0.1:740{number}"
    return MapNode(number, f"a{number}", address, "server", "site", "runs", "FR", 1, state, generation=1)


POLICY = Policy("1-1", 1, 1, ("FR",), Domain.NODE)
NODES = (map_node(1), map_node(2), map_node(3, NodeState.REMOVED))
MAP = ClusterMap("test", 1, 16, NODES, (POLICY,), "1-1", (1,))


@pytest.fixture
async def store() -> AsyncGenerator[MemoryCoordination]:
    opened = MemoryCoordination(ManualClock(), seeded_entropy("access"))
    yield opened
    await opened.close()


@pytest.fixture
def handler(store: MemoryCoordination) -> CoordinationHandler:
    return CoordinationHandler(1, store, MapHolder(MAP, b""), ManualClock())


Call = Callable[[CoordinationHandler, Identity, str, int], Awaitable[object]]


async def get(handler: CoordinationHandler, peer: Identity, key: str, lease: int) -> object:
    return await handler.get(peer, pb.CoordinationGetRequest(key=key))


async def read_range(handler: CoordinationHandler, peer: Identity, key: str, lease: int) -> object:
    return await handler.range(peer, pb.CoordinationRangeRequest(prefix=key))


async def watch(handler: CoordinationHandler, peer: Identity, key: str, lease: int) -> object:
    watching = handler.watch(peer, pb.WatchRequest(prefix=key, revision=0))
    reply = await anext(watching)
    await watching.aclose()
    return reply


async def put(handler: CoordinationHandler, peer: Identity, key: str, lease: int) -> object:
    change = pb.CoordinationPut(key=key, value=b"x", lease=lease)
    return await handler.commit(peer, pb.CoordinationCommitRequest(puts=[change]))


async def delete(handler: CoordinationHandler, peer: Identity, key: str, lease: int) -> object:
    return await handler.commit(peer, pb.CoordinationCommitRequest(deletes=[key]))


CALLS: dict[str, tuple[str, Call]] = {
    "get": (READ, get),
    "range": (READ, read_range),
    "watch": (READ, watch),
    "put": (WRITE, put),
    "delete": (WRITE, delete),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", KEYS)
@pytest.mark.parametrize("who", MEMBERS)
async def test_the_table(
    handler: CoordinationHandler, store: MemoryCoordination, who: str, what: str, call: str
) -> None:
    right, make = CALLS[call]
    lease = await store.grant(100)
    await store.commit([], [Put(KEYS[what], b"before")])
    allowed = right in ALLOWED[who].get(what, set())
    try:
        await make(handler, MEMBERS[who], KEYS[what], lease.number)
    except PermissionDenied:
        assert not allowed
        entry = await store.get(KEYS[what])
        assert entry is not None
        assert entry.value == b"before"
    else:
        assert allowed


@pytest.mark.parametrize("who", MEMBERS)
async def test_a_compare_tells_nothing_of_what_may_not_be_read(
    handler: CoordinationHandler, who: str
) -> None:
    own = {"tenant": "buckets/clinic/a", "operator": "maps/x", "node": "repair/00001"}.get(who, "maps/x")
    request = pb.CoordinationCommitRequest(
        compares=[pb.CoordinationCompare(key="secret/x")], puts=[pb.CoordinationPut(key=own)]
    )
    with pytest.raises(PermissionDenied):
        await handler.commit(MEMBERS[who], request)


@pytest.mark.parametrize("prefix", ["", "b", "buckets/", "buckets/clinic", "locks/", "locks/clinic"])
async def test_a_tenant_cannot_widen_a_prefix(handler: CoordinationHandler, prefix: str) -> None:
    with pytest.raises(CoffreError):
        await handler.range(MEMBERS["tenant"], pb.CoordinationRangeRequest(prefix=prefix))


async def test_what_a_tenant_puts_is_small_and_its_claims_end(handler: CoordinationHandler) -> None:
    large = pb.CoordinationPut(key="buckets/clinic/a", value=bytes(served.TENANT_VALUE_BYTES_MAX + 1))
    endless = pb.CoordinationPut(key="locks/clinic/00/aa", value=b"")
    for change in (large, endless):
        with pytest.raises(InvalidArgument):
            await handler.commit(MEMBERS["tenant"], pb.CoordinationCommitRequest(puts=[change]))


async def test_a_member_has_so_many_leases(
    handler: CoordinationHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "LEASES_PER_MEMBER_MAX", 3)
    tenant, request = MEMBERS["tenant"], pb.LeaseGrantRequest(seconds=100)
    leases = [await handler.grant(tenant, request) for _ in range(3)]
    with pytest.raises(ResourceExhausted):
        await handler.grant(tenant, request)
    await handler.grant(MEMBERS["node"], request)
    await handler.revoke(tenant, pb.LeaseRevokeRequest(lease=leases[0].lease))
    await handler.keep_alive(tenant, pb.LeaseKeepAliveRequest(lease=leases[1].lease))
    await handler.grant(tenant, request)


async def test_a_member_has_so_many_watches(
    handler: CoordinationHandler, store: MemoryCoordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "WATCHES_PER_MEMBER_MAX", 1)
    await store.commit([], [Put("maps/current", b"1")])
    request = pb.WatchRequest(prefix="maps/", revision=0)
    first = handler.watch(MEMBERS["tenant"], request)
    await anext(first)
    with pytest.raises(ResourceExhausted):
        await anext(handler.watch(MEMBERS["tenant"], request))
    await first.aclose()
    again = handler.watch(MEMBERS["tenant"], request)
    await anext(again)
    await again.aclose()


async def test_a_node_that_the_map_does_not_name_lets_maps_be_read_and_no_more(
    store: MemoryCoordination,
) -> None:
    """Two stores agree on nothing; but who has an old map must learn who the coordinators are now."""
    maps = MapHolder(replace(MAP, coordinators=(2,)), b"")
    handler, operator = CoordinationHandler(1, store, maps, ManualClock()), MEMBERS["operator"]
    await store.commit([], [Put("maps/current", b"1"), Put("tenants/clinic", b"")])
    assert (await handler.get(operator, pb.CoordinationGetRequest(key="maps/current"))).entry.value == b"1"
    assert len((await handler.range(operator, pb.CoordinationRangeRequest(prefix="maps/"))).entries) == 1
    refused: list[Awaitable[object]] = [
        handler.get(operator, pb.CoordinationGetRequest(key="tenants/clinic")),
        handler.range(operator, pb.CoordinationRangeRequest(prefix="tenants/")),
        put(handler, operator, "maps/current", 0),
        watch(handler, operator, "maps/", 0),
        handler.grant(operator, pb.LeaseGrantRequest(seconds=5)),
        handler.keep_alive(operator, pb.LeaseKeepAliveRequest(lease=1)),
        handler.revoke(operator, pb.LeaseRevokeRequest(lease=1)),
    ]
    for call in refused:
        with pytest.raises(Unavailable, match="does not name this node"):
            await call
    maps.adopt(replace(MAP, epoch=2), b"")
    await handler.grant(operator, pb.LeaseGrantRequest(seconds=5))


async def test_a_store_of_a_nodes_own_decides_nothing_while_others_are_named_too(tmp_path: Path) -> None:
    """Two stores agree on nothing; but a signed map that names one alone must find its way."""
    maps = MapHolder(replace(MAP, coordinators=(1, 2)), b"")
    own = await EmbeddedCoordination.open(tmp_path / "own", ManualClock(), seeded_entropy("own"))
    handler, operator = CoordinationHandler(1, own, maps, ManualClock()), MEMBERS["operator"]
    watch_store = StoreWatch(1, maps, own, EmbeddedConfig(tmp_path / "own"), ManualClock())
    status = StatusReply()
    try:
        await put(handler, operator, "maps/current", 0)
        await watch(handler, operator, "maps/", 0)
        refused: list[Awaitable[object]] = [
            handler.get(operator, pb.CoordinationGetRequest(key="tenants/clinic")),
            handler.range(operator, pb.CoordinationRangeRequest(prefix="tenants/")),
            put(handler, operator, "tenants/clinic", 0),
            watch(handler, operator, "tenants/", 0),
            handler.grant(operator, pb.LeaseGrantRequest(seconds=5)),
        ]
        for call in refused:
            with pytest.raises(Unavailable, match="the map names a1, a2 as coordinators"):
                await call
        await watch_store.look()
        watch_store.tell(status)
        assert status.coordination.kind == COORDINATION_KIND_EMBEDDED
        assert "a store of its own (embedded)" in status.coordination.trouble
        maps.adopt(replace(MAP, epoch=2, coordinators=(1,)), b"")
        await put(handler, operator, "tenants/clinic", 0)
        await watch_store.look()
        watch_store.tell(status)
        assert status.coordination.trouble == ""
    finally:
        await own.close()


async def test_a_node_without_a_store_says_so() -> None:
    handler = CoordinationHandler(1, None, MapHolder(MAP, b""), ManualClock())
    with pytest.raises(Unavailable):
        await handler.get(MEMBERS["tenant"], pb.CoordinationGetRequest(key="maps/current"))
    with pytest.raises(Unavailable):
        await handler.grant(MEMBERS["tenant"], pb.LeaseGrantRequest(seconds=5))
