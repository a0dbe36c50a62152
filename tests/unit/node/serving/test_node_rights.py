"""What a node's certificate opens on another node: reads and reports, and nothing that changes a version."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ClockSkew, InvalidArgument, PermissionDenied, StaleMap
from coffre.cluster.identity import Identity, NodeAttributes, Role
from coffre.cluster.map import NodeState
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import in_process_cluster
from coffre.node.following import MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.node.store import ROWS_AT_ONCE
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded

from tests.unit.node.serving.test_handler_refusals import CLUSTER_ID, LAWFUL, MAP, TENANT, request

STAMP = bytes(16)
WRITES = [
    pb.Operation(accept=request(LAWFUL).operations[0].accept),
    pb.Operation(abort=pb.Abort(bucket="b", key="k", stamp=STAMP)),
    pb.Operation(settle=pb.Settle(bucket="b", key="k", stamp=STAMP)),
    pb.Operation(),
]


def identity(number: int, **changes: object) -> Identity:
    attributes = dataclasses.replace(MAP.node(number).attributes, **changes)  # type: ignore[arg-type]
    return Identity(CLUSTER_ID, Role.NODE, attributes.node_id, attributes)


def handler(cluster_map: object = MAP) -> tuple[Handler, MemoryStore]:
    clock = ManualClock()
    store = MemoryStore(clock)
    return Handler(1, "n1", store, MapHolder(cluster_map, b""), clock), store  # type: ignore[arg-type]


def batch(*operations: pb.Operation, epoch: int = 1, settled: tuple[bytes, ...] = ()) -> pb.BatchRequest:
    return pb.BatchRequest(epoch=epoch, tenant="clinic", operations=operations, settled=settled)


READ = pb.Operation(read=pb.Read(bucket="b", key="k"))
REPORT = pb.Operation(report=pb.Report(bucket="b", key="k", stamp=STAMP, shard_index=1))


async def test_a_node_reads_and_reports_in_any_bucket() -> None:
    node, store = handler()
    reply = expanded(await node.batch(identity(2), batch(READ, REPORT)))
    assert [outcome.code for outcome in reply.outcomes] == [0, 0]
    assert [repair.shard_index async for repair in store.repair_queue()] == [1]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: str(write.WhichOneof("operation")))
async def test_every_write_of_a_node_is_refused_with_all_its_message(write: pb.Operation) -> None:
    node, store = handler()
    with pytest.raises(PermissionDenied):
        await node.batch(identity(2), batch(REPORT, write))
    assert [repair async for repair in store.repair_queue()] == []
    assert await store.digests() == {}


async def test_marks_of_a_node_are_refused() -> None:
    node, _ = handler()
    with pytest.raises(PermissionDenied):
        await node.batch(identity(2), batch(READ, settled=(STAMP,)))


@pytest.mark.parametrize(
    "peer",
    [
        identity(2, site="elsewhere"),
        identity(2, operator="another"),
        identity(2, generation=1),
        Identity(CLUSTER_ID, Role.NODE, "n99", NodeAttributes("n99", "s", "s", "o", "FR")),
        Identity(CLUSTER_ID, Role.OPERATOR, "alice"),
    ],
)
async def test_only_nodes_of_the_map(peer: Identity) -> None:
    node, _ = handler()
    with pytest.raises(PermissionDenied):
        await node.batch(peer, batch(READ))
    with pytest.raises(PermissionDenied):
        await node.digests(peer, pb.DigestsRequest(epoch=1))
    with pytest.raises(PermissionDenied):
        await anext(node.partition_rows(peer, pb.PartitionRowsRequest(epoch=1)))
    read = pb.ReadShardRequest(epoch=1, tenant="clinic", bucket="b", key="k", stamp=STAMP)
    with pytest.raises(PermissionDenied):
        await anext(node.read_shard(peer, read))


async def test_a_removed_node_reads_nothing() -> None:
    gone = dataclasses.replace(MAP.node(2), state=NodeState.REMOVED)
    nodes = tuple(gone if node.number == 2 else node for node in MAP.nodes)
    node, _ = handler(dataclasses.replace(MAP, nodes=nodes))
    with pytest.raises(PermissionDenied):
        await node.batch(identity(2), batch(READ))


async def test_another_epoch_is_refused() -> None:
    node, _ = handler()
    for call in (
        node.batch(identity(2), batch(READ, epoch=2)),
        anext(node.partition_rows(identity(2), pb.PartitionRowsRequest(epoch=2))),
    ):
        with pytest.raises(StaleMap):
            await call


async def test_a_node_testifies_to_one_that_has_an_old_map() -> None:
    """Or who was down while the map changed could never begin to serve again."""
    node, _ = handler()
    asked = pb.DigestsRequest(epoch=1, store_id=b"s" * 16, commits=7)
    assert not (await node.digests(identity(2), asked)).starting
    for epoch in (0, 2):
        asked.epoch = epoch
        reply = await node.digests(identity(2), asked)
        assert reply.starting
        assert not reply.digests
        assert (reply.witnessed_store_id, reply.witnessed_commits) == (b"s" * 16, 7)


async def test_rows_of_what_is_not_there() -> None:
    node, _ = handler()
    for wrong in (
        pb.PartitionRowsRequest(epoch=1, partition=16),
        pb.PartitionRowsRequest(epoch=1, slot=2, slots=2),
    ):
        with pytest.raises(InvalidArgument):
            await anext(node.partition_rows(identity(2), wrong))


@pytest.mark.parametrize(
    ("age_seconds", "code"),
    [(0, 0), (14 * 60, 0), (-3600, 0), (15 * 60 + 1, ClockSkew.code), (None, InvalidArgument.code)],
)
async def test_a_version_that_was_under_way_for_long_is_refused(age_seconds: int | None, code: int) -> None:
    node, store = handler()
    clock = node._clock
    assert isinstance(clock, ManualClock)
    message = request(LAWFUL)
    manifest = pb.Manifest.FromString(message.operations[0].accept.sealed.manifest)
    manifest.stamp = clock.unixtime_ms().to_bytes(6, "big") + bytes(10)
    message.operations[0].accept.sealed.manifest = manifest.SerializeToString()
    message.sent_unixtime_ms = 0 if age_seconds is None else clock.unixtime_ms() - age_seconds * 1000
    reply = expanded(await node.batch(TENANT, message))
    assert reply.outcomes[0].code == code
    assert bool(await store.digests()) == (code == 0)


def _partition(key: str, partitions: int) -> int:
    return partition_of(ObjectName("clinic", "b", key), partitions)


async def test_a_node_that_is_shut_out_in_the_middle_gets_no_more() -> None:
    """Of a shard, and of the rows of a partition, from the moment that this node has the map that names another
    certificate."""
    cluster = in_process_cluster(2, 1)
    client = cluster.client()
    info = await client.put("b", "k", os.urandom(20_000_000))
    partitions = cluster.cluster_map.partitions
    keys = (str(number) for number in itertools.count())
    some = itertools.islice((key for key in keys if _partition(key, partitions) == 1), ROWS_AT_ONCE + 1)
    await asyncio.gather(*(client.put("b", key, b"") for key in some))
    await client.flush()
    place = (await client.locate("b", "k"))[0]
    node = cluster.handlers[int(place.node_id[1:])]
    entry = next(each for each in cluster.cluster_map.nodes if each.node_id != place.node_id)
    peer = Identity(cluster.cluster_map.cluster_id, Role.NODE, entry.node_id, entry.attributes)
    stamp = bytes.fromhex(info.version)
    read = pb.ReadShardRequest(epoch=1, tenant="clinic", bucket="b", key="k", stamp=stamp)
    chunks = node.read_shard(peer, read)
    rows = node.partition_rows(peer, pb.PartitionRowsRequest(epoch=1, partition=1))
    await anext(chunks)
    await anext(rows)
    renewed = dataclasses.replace(entry, generation=1)
    nodes = tuple(renewed if each is entry else each for each in cluster.cluster_map.nodes)
    node.maps.adopt(dataclasses.replace(cluster.cluster_map, epoch=2, nodes=nodes), b"")
    for stream in (chunks, rows):
        with pytest.raises(PermissionDenied):
            await anext(stream)
    await cluster.aclose()
