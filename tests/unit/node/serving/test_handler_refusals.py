"""What a node refuses, and then does not store: placements that break the policy, and cells damaged on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import Conflict, IntegrityError, InvalidArgument, StaleMap
from coffre.cluster.identity import Identity, Role
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.map import BucketPolicy, ClusterMap, Domain, MapNode, NodeState, Placement, Policy
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.versions import HybridClock
from coffre.codec import blake3_128, crc32c
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.node.store import Refuse, State, StoredVersion
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded

CLUSTER_ID = "00112233445566aa"
TENANT = Identity(CLUSTER_ID, Role.TENANT, "clinic")
NAME = ObjectName("clinic", "b", "k")
LAWFUL = (1, 4, 2, 5, 3, 6)  # two of each site


def node(number: int, site: int, operator: int, jurisdiction: str = "FR") -> MapNode:
    place = (f"server{number}", f"site{site}", f"operator{operator}", jurisdiction)
    return MapNode(number, f"n{number}", f"127.0.0.1:{7000 + number}", *place, 1 << 40)


# Sites 1 to 3 with three nodes each; number 10 at a site and with an operator of its own, but in another country.
NODES = (*(node(n, (n - 1) % 3 + 1, (n - 1) % 3 + 1) for n in range(1, 10)), node(10, 4, 4, "US"))
POLICY = Policy("4+2", 4, 2, ("FR",), Domain.SITE)
MAP = ClusterMap(CLUSTER_ID, 1, 16, NODES, (POLICY,), POLICY.name)


def request(placement: tuple[int, ...]) -> pb.BatchRequest:
    cell = b"a cell"
    crc = crc32c(cell)
    manifest = pb.Manifest(
        format=MANIFEST_FORMAT,
        kind=pb.KIND_OBJECT,
        stamp=HybridClock(SystemClock(), 1).issue().to_bytes(),
        data_id=bytes(16),
        size_bytes=10,
        segment_bytes=1 << 20,
        k=4,
        m=2,
        shard_hashes=blake3_128(cell) * 6,
    )
    sealed = pb.SealedManifest(manifest=manifest.SerializeToString(), mac=bytes(16), placement=placement)
    accept = pb.Accept(bucket="b", key="k", sealed=sealed, shard_index=0, cell=cell, cell_crc=crc)
    return pb.BatchRequest(
        epoch=1,
        tenant="clinic",
        operations=[pb.Operation(accept=accept)],
        sent_unixtime_ms=SystemClock().unixtime_ms(),
    )


async def send(
    placement: tuple[int, ...], cell: bytes = b"a cell", *, cluster_map: ClusterMap = MAP, lock: bool = False
) -> tuple[int, int]:
    """The outcome's code, and how many versions node 1 holds afterwards. The checksums are those of `a cell`."""
    store = MemoryStore(SystemClock())
    handler = Handler(1, "n1", store, MapHolder(cluster_map, b""), SystemClock())
    asked = request(placement)
    asked.operations[0].accept.cell = cell
    asked.operations[0].accept.lock = lock
    reply = expanded(await handler.batch(TENANT, asked))
    return reply.outcomes[0].code, len(await store.read(ObjectName("clinic", "b", "k")))


async def test_a_lawful_placement_is_taken() -> None:
    assert await send(LAWFUL) == (0, 1)


@pytest.mark.parametrize(
    "placement",
    [
        (1, 4, 7, 2, 5, 3),  # three shards at site 1, which may be lost
        (1, 1, 2, 5, 3, 6),  # two shards on one node
        (1, 4, 2, 5, 3, 10),  # a country that the policy does not allow
        (1, 4, 2, 5, 3, 99),  # no such node
        (1, 4, 2, 5, 3),  # too few
        (4, 1, 2, 5, 3, 6),  # lawful, but shard 0 is not this node's
    ],
)
@pytest.mark.parametrize("lock", [False, True])
async def test_an_unlawful_placement_is_refused(placement: tuple[int, ...], lock: bool) -> None:
    """From its writer, and from a reader that completes it."""
    assert await send(placement, lock=lock) == (InvalidArgument.code, 0)


@pytest.mark.parametrize("cell", [b"", b"a celL", b"a cell "])
async def test_a_cell_damaged_on_the_way_is_refused(cell: bytes) -> None:
    assert await send(LAWFUL, cell) == (IntegrityError.code, 0)


@pytest.mark.parametrize("count", [0, 16, 95, 97, 112])
async def test_a_manifest_that_does_not_name_every_shard_is_refused(count: int) -> None:
    asked = request(LAWFUL)
    manifest = pb.Manifest.FromString(asked.operations[0].accept.sealed.manifest)
    assert len(manifest.shard_hashes) == 96
    manifest.shard_hashes = (manifest.shard_hashes * 2)[:count]
    asked.operations[0].accept.sealed.manifest = manifest.SerializeToString()
    handler = Handler(1, "n1", MemoryStore(SystemClock()), MapHolder(MAP, b""), SystemClock())
    assert expanded(await handler.batch(TENANT, asked)).outcomes[0].code == InvalidArgument.code


@pytest.mark.parametrize(("recodes", "code"), [(bytes(16), 0), (b"\0", 3), (b"\xff" * 16, 3)])
async def test_a_version_coded_anew_is_decided_on_an_older_one(recodes: bytes, code: int) -> None:
    asked = request(LAWFUL)
    manifest = pb.Manifest.FromString(asked.operations[0].accept.sealed.manifest)
    manifest.conditional, manifest.base, manifest.recodes = True, bytes(15) + b"\1", recodes
    asked.operations[0].accept.sealed.manifest = manifest.SerializeToString()
    handler = Handler(1, "n1", MemoryStore(SystemClock()), MapHolder(MAP, b""), SystemClock())
    assert expanded(await handler.batch(TENANT, asked)).outcomes[0].code == code
    manifest.conditional = False
    asked.operations[0].accept.sealed.manifest = manifest.SerializeToString()
    assert expanded(await handler.batch(TENANT, asked)).outcomes[0].code == InvalidArgument.code


async def test_a_coding_that_is_not_the_buckets_is_refused() -> None:
    """Only what was begun under another policy may be completed."""
    policies = (POLICY, Policy("5+3", 5, 3, ("FR",), Domain.SITE))
    own = dataclasses.replace(MAP, policies=policies, bucket_policies=(BucketPolicy("clinic", "b", "5+3"),))
    assert await send(LAWFUL, cluster_map=own) == (InvalidArgument.code, 0)
    assert await send(LAWFUL, cluster_map=own, lock=True) == (0, 1)
    other = dataclasses.replace(own, bucket_policies=(BucketPolicy("clinic", "c", "5+3"),))
    assert await send(LAWFUL, cluster_map=other) == (0, 1)
    default = dataclasses.replace(MAP, policies=policies, default_policy="5+3")
    assert await send(LAWFUL, cluster_map=default) == (InvalidArgument.code, 0)


@pytest.mark.parametrize(
    ("moving", "joins", "claims", "taken"),
    [
        (True, True, True, True),
        (True, True, False, False),
        (True, False, True, True),
        (True, False, False, False),
        (False, True, True, False),
    ],
)
async def test_a_vote_is_overruled_only_while_the_map_changes_and_by_who_says_so(
    moving: bool, joins: bool, claims: bool, taken: bool
) -> None:
    """Where this node, or another one, is new among the primaries; before the change, and after it, its votes count."""
    partition = partition_of(NAME, MAP.partitions)
    placement = Placement(MAP, POLICY).primaries(partition)
    me, new = placement[0], placement[0 if joins else 1]
    without = dataclasses.replace(MAP.node(new), state=NodeState.DRAINING)
    before = dataclasses.replace(MAP, nodes=tuple(without if n.number == new else n for n in NODES))
    cluster_map = dataclasses.replace(MAP, epoch=2).with_prior([before] if moving else [])
    store = MemoryStore(SystemClock())
    handler = Handler(me, f"n{me}", store, MapHolder(cluster_map, b""), SystemClock())
    asked = request(placement)
    asked.epoch = 2
    accept = asked.operations[0].accept
    accept.lock, accept.overrule = True, claims
    manifest = pb.Manifest.FromString(accept.sealed.manifest)
    await store.apply([Refuse(NAME, partition, manifest.stamp)])
    reply = expanded(await handler.batch(TENANT, asked))
    assert reply.outcomes[0].code == (0 if taken else Conflict.code)
    assert [version.state for version in await store.read(NAME)] == [State.LOCKED if taken else State.ABORTED]


async def test_a_vote_is_not_overruled_by_a_map_that_came_meanwhile() -> None:
    """A read of the same message is answered before, and the move ends just then: nothing of the message is done."""
    partition = partition_of(NAME, MAP.partitions)
    placement = Placement(MAP, POLICY).primaries(partition)
    me = placement[0]
    without = dataclasses.replace(MAP.node(me), state=NodeState.DRAINING)
    before = dataclasses.replace(MAP, nodes=tuple(without if n.number == me else n for n in NODES))
    holder = MapHolder(dataclasses.replace(MAP, epoch=2).with_prior([before]), b"")

    class Slow(MemoryStore):
        async def read(self, *args: Any, **options: Any) -> tuple[StoredVersion, ...]:
            found = await super().read(*args, **options)
            holder.adopt(dataclasses.replace(MAP, epoch=3), b"")
            return found

    store = Slow(SystemClock())
    handler = Handler(me, f"n{me}", store, holder, SystemClock())
    asked = request(placement)
    asked.epoch = 2
    accept = asked.operations[0].accept
    accept.lock = accept.overrule = True
    asked.operations.add().read.CopyFrom(pb.Read(bucket="b", key="other"))
    await store.apply([Refuse(NAME, partition, pb.Manifest.FromString(accept.sealed.manifest).stamp)])
    with pytest.raises(StaleMap):
        await handler.batch(TENANT, asked)
    assert [version.state for version in await MemoryStore.read(store, NAME)] == [State.ABORTED]
