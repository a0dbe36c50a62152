"""What a node has met: shards that did not fit, and the ends of tenants' certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ResourceExhausted
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.codec import crc32c
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.node.serving.sightings import CERTIFICATES_MAX, LATELY_MS, TENANTS_MAX, TenantsMet
from coffre.node.store import StoreOptions
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell

NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
MAP = ClusterMap("test", 1, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")
KB = 1 << 10


async def test_a_large_shard_that_does_not_fit_is_counted() -> None:
    clock = ManualClock()
    store = MemoryStore(clock, StoreOptions(capacity_bytes=100 * KB))
    handler = Handler(1, "a1", store, MapHolder(MAP, b""), clock)
    operator = Identity("test", Role.OPERATOR, "alice")
    assert not (await handler.status(operator)).space_refusals.count

    async def chunks() -> AsyncIterator[ShardChunk]:
        header = pb.ShardHeader(tenant="clinic", data_id=bytes(16), shard_index=0)
        for segment in range(4):
            data = bytes(40 * KB)
            cells = [WireCell(segment, crc32c(data), data)]
            yield ShardChunk(cells, header) if not segment else ShardChunk(cells)

    with pytest.raises(ResourceExhausted):
        await handler.write_shard(Identity("test", Role.TENANT, "clinic"), chunks())
    refusals = (await handler.status(operator)).space_refusals
    assert (refusals.count, refusals.last_bytes, refusals.last_unixtime_ms) == (
        1,
        120 * KB,
        clock.unixtime_ms(),
    )


def ends(met: TenantsMet) -> dict[str, int]:
    reply = pb.StatusReply()
    met.tell(reply)
    return {tenant.name: tenant.certificate_expires_unixtime_ms for tenant in reply.tenants}


def test_the_first_end_counts_of_what_a_tenant_shows() -> None:
    clock = ManualClock()
    met = TenantsMet(clock)
    for expires_ms in (500, 900, 700):
        met.note("clinic", expires_ms)
    met.note("lab", 300)
    assert ends(met) == {"clinic": 500, "lab": 300}
    clock.advance((LATELY_MS + 1) / 1000)
    met.note("clinic", 900)  # the others were replaced
    assert ends(met) == {"clinic": 900, "lab": 300}


def test_what_is_remembered_is_bounded() -> None:
    met = TenantsMet(ManualClock())
    for number in range(TENANTS_MAX + 10):
        met.note(f"t{number}", 1)
    assert len(ends(met)) == TENANTS_MAX
    for expires_ms in range(1, 20):
        met.note("clinic", expires_ms)
    assert ends(met)["clinic"] == 20 - CERTIFICATES_MAX
