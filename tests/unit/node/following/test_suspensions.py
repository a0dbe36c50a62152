"""A suspended tenant is refused everywhere on a node, also after a restart, until a later decision takes it back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest
from coffre.cluster.clock import ManualClock, SystemClock
from coffre.cluster.coordination import MemoryCoordination, Tenant, create_tenant, suspend_tenant
from coffre.cluster.errors import PermissionDenied, ResourceExhausted, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.disk import LmdbStore
from coffre.node.disk.rows import note_key
from coffre.node.following import MapHolder, Suspensions
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.node.serving.coordination import CoordinationHandler
from coffre.node.store import StoreOptions
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coordination_pb2 as coordination_pb
from coffre.proto.shard_stream import ShardChunk

from tests.contract.coordination_stores import seeded_entropy
from tests.unit.node.serving.test_handler_refusals import MAP, NODES, TENANT

OTHER = replace(TENANT, name="other")
SUSPENDED = Tenant("clinic", 1, True, 10)


@pytest.fixture
def maps() -> MapHolder:
    return MapHolder(replace(MAP, coordinators=(NODES[0].number,)), b"")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ManualClock())


# ------------------------------------------------------------------ what is refused

Call = Callable[[Handler, Identity], Awaitable[object]]


async def batch(node: Handler, peer: Identity) -> object:
    read = pb.Operation(read=pb.Read(bucket="b", key="k"))
    return await node.batch(peer, pb.BatchRequest(epoch=1, tenant=peer.name, operations=[read]))


async def listed(node: Handler, peer: Identity) -> object:
    return await node.list(peer, pb.ListRequest(epoch=1, tenant=peer.name, bucket="b"))


async def dropped(node: Handler, peer: Identity) -> object:
    await node.drop_shard(peer, pb.DropShardRequest(tenant=peer.name, data_id=bytes(16)))
    return None


async def written(node: Handler, peer: Identity) -> object:
    async def requests() -> AsyncIterator[ShardChunk]:
        yield ShardChunk(header=pb.ShardHeader(epoch=1, tenant=peer.name, data_id=bytes(16)))

    return await node.write_shard(peer, requests())


@pytest.mark.parametrize("call", [batch, listed, dropped, written])
async def test_nothing_is_done_for_a_suspended_tenant(
    maps: MapHolder, store: MemoryStore, call: Call
) -> None:
    node = Handler(1, "n1", store, maps, ManualClock())
    await call(node, TENANT)
    await Suspensions(maps, store, ManualClock()).adopt([SUSPENDED])
    with pytest.raises(PermissionDenied, match="clinic is suspended"):
        await call(node, TENANT)
    await call(node, OTHER)


async def test_a_shard_that_is_being_read_ends_there() -> None:
    cluster: InProcessCluster = in_process_cluster(2, 1)
    client = cluster.client()
    info = await client.put("b", "k", os.urandom(20_000_000))
    await client.flush()
    place = (await client.locate("b", "k"))[0]
    node = cluster.handlers[int(place.node_id[1:])]
    stamp = bytes.fromhex(info.version)
    request = pb.ReadShardRequest(epoch=1, tenant="clinic", bucket="b", key="k", stamp=stamp)
    peer = Identity(cluster.cluster_map.cluster_id, Role.TENANT, "clinic")
    chunks = node.read_shard(peer, request)
    await anext(chunks)
    node.maps.suspended = frozenset({"clinic"})
    with pytest.raises(PermissionDenied):
        await anext(chunks)
    await cluster.aclose()


async def test_nor_has_it_a_part_in_coordination(maps: MapHolder, store: MemoryStore) -> None:
    coordination = MemoryCoordination(ManualClock(), seeded_entropy("suspended"))
    handler = CoordinationHandler(1, coordination, maps, ManualClock())
    await Suspensions(maps, store, ManualClock()).adopt([SUSPENDED])
    get = coordination_pb.CoordinationGetRequest(key="buckets/clinic/b")
    for refused in (
        handler.get(TENANT, get),
        handler.range(TENANT, coordination_pb.CoordinationRangeRequest(prefix="locks/clinic/")),
        handler.grant(TENANT, coordination_pb.LeaseGrantRequest(seconds=5)),
        anext(handler.watch(TENANT, coordination_pb.WatchRequest(prefix="maps/"))),
    ):
        with pytest.raises(PermissionDenied, match="suspended"):
            await refused
    await handler.get(OTHER, coordination_pb.CoordinationGetRequest(key="buckets/other/b"))
    await coordination.close()


# ------------------------------------------------------------------ what ends it, and what does not


async def test_only_a_later_decision_takes_it_back(maps: MapHolder, store: MemoryStore) -> None:
    suspensions = Suspensions(maps, store, ManualClock())
    await suspensions.adopt([SUSPENDED, Tenant("other", 1)])
    assert maps.suspended == frozenset({"clinic"})
    for nothing in (
        [],  # coordination was lost
        [Tenant("clinic", 99)],  # and the tenant entered again
        [Tenant("clinic", 1, False, 10)],
        [Tenant("clinic", 1, False, 9)],
    ):
        await suspensions.adopt(nothing)
        assert maps.suspended == frozenset({"clinic"})
    await suspensions.adopt([Tenant("clinic", 1, False, 11)])
    assert maps.suspended == frozenset()
    await suspensions.adopt([Tenant("clinic", 1, True, 12)])
    assert maps.suspended == frozenset({"clinic"})


async def test_a_restart_forgets_none(tmp_path: Path) -> None:
    """Coordination may be down just then."""
    for suspended, tenants in (
        (set(), [SUSPENDED, Tenant("other", 1, True, 7), Tenant("third", 1)]),
        ({"clinic", "other"}, [Tenant("other", 1, False, 8)]),
        ({"clinic"}, [Tenant("clinic", 1, False, 11)]),
        (set(), []),
    ):
        opened = await LmdbStore.open(tmp_path / "data", StoreOptions(), SystemClock())
        maps = MapHolder(MAP, b"")
        suspensions = Suspensions(maps, opened, SystemClock())
        await suspensions.load()
        assert maps.suspended == frozenset(suspended)
        await suspensions.adopt(tenants)
        await opened.close()


@pytest.mark.parametrize(
    "raw", [b"\2", b"\1abc", b"\1" + bytes(8) + b"no end", b"\1" + bytes(8) + b"UPPER\0"]
)
async def test_without_what_was_kept_no_tenant_is_served_until_coordination_answers(
    maps: MapHolder, store: MemoryStore, raw: bytes
) -> None:
    await store.keep_note("suspended", raw)
    suspensions, node = Suspensions(maps, store, ManualClock()), Handler(1, "n1", store, maps, ManualClock())
    await suspensions.load()
    for tenant in (TENANT, OTHER):
        with pytest.raises(Unavailable, match="lost its record of suspended tenants"):
            await listed(node, tenant)
    await suspensions.adopt([])
    await listed(node, TENANT)
    await Suspensions(maps, store, ManualClock()).load()  # it is kept again
    assert maps.suspended == frozenset()


async def test_a_note_that_rots_suspends_all(tmp_path: Path) -> None:
    opened = await LmdbStore.open(tmp_path / "data", StoreOptions(), SystemClock())
    await Suspensions(MapHolder(MAP, b""), opened, SystemClock()).adopt([SUSPENDED])
    await opened.close()
    with lmdb.open(str(tmp_path / "data" / "index"), max_dbs=16) as env, env.begin(write=True) as txn:
        meta, key = env.open_db(b"meta", txn=txn), note_key("suspended")
        rotten = bytearray(txn.get(key, db=meta) or b"")
        rotten[-2] ^= 1
        txn.put(key, bytes(rotten), db=meta)
    opened = await LmdbStore.open(tmp_path / "data", StoreOptions(), SystemClock())
    maps = MapHolder(MAP, b"")
    await Suspensions(maps, opened, SystemClock()).load()
    assert maps.suspended is None
    await opened.close()


async def test_a_full_disk_does_not_let_it_in(
    maps: MapHolder, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspensions = Suspensions(maps, store, ManualClock())

    async def full(*args: object, **options: object) -> None:
        raise ResourceExhausted("full")

    with monkeypatch.context() as filling:
        filling.setattr(store, "keep_note", full)
        with pytest.raises(ResourceExhausted):
            await suspensions.adopt([SUSPENDED])
    assert maps.suspended == frozenset({"clinic"})
    await suspensions.adopt([SUSPENDED])  # it is kept as soon as there is room
    again = MapHolder(MAP, b"")
    await Suspensions(again, store, ManualClock()).load()
    assert again.suspended == frozenset({"clinic"})


async def test_a_node_hears_of_it_by_itself(maps: MapHolder, store: MemoryStore) -> None:
    coordination = MemoryCoordination(SystemClock(), seeded_entropy("told"))
    changed = asyncio.Event()

    class Told(MemoryStore):
        async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
            await super().keep_note(title, note, sync=sync)
            changed.set()

    suspensions = Suspensions(maps, Told(SystemClock()), SystemClock())
    running = asyncio.create_task(suspensions.run(coordination))
    await create_tenant(coordination, Tenant("clinic", 1))
    for suspended in (True, False, True):
        changed.clear()
        await suspend_tenant(coordination, "clinic", suspended=suspended, unixtime_ms=5)
        async with asyncio.timeout(5):
            await changed.wait()
        assert maps.suspended == frozenset({"clinic"} if suspended else ())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await coordination.close()


def test_roles_other_than_tenants_are_not_concerned(maps: MapHolder) -> None:
    """An operator or a node may have the name of a tenant."""
    maps.suspended = frozenset({"clinic"})
    maps.check_not_suspended(Identity(TENANT.cluster_id, Role.OPERATOR, "clinic"))
    with pytest.raises(PermissionDenied):
        maps.check_not_suspended(TENANT)
