"""A node that is sent nonsense: it refuses in the project's own words, and what others keep with it stays as it was."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import InternalError
from coffre.cluster.identity import Identity, Role
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import HybridClock
from coffre.codec import blake3_128, crc32c
from coffre.node.disk import LmdbStore
from coffre.node.following import MapHolder
from coffre.node.serving import Handler
from coffre.node.store import ShardStore, StoreOptions
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded
from coffre.proto.shard_stream import ShardChunk, WireCell, decode_write, encode_write
from google.protobuf.message import DecodeError

from tests.fuzz.mangle import mangled_bytes
from tests.fuzz.sender import Sender

CLUSTER_ID = "00112233445566aa"
_ROUNDS = 60
_NODES = tuple(
    MapNode(
        n, f"n{n}", f"127.0.0.1:{7000 + n}", f"server{n}", f"site{n % 3}", f"operator{n % 3}", "FR", 1 << 40
    )
    for n in range(1, 7)
)
_POLICY = Policy("4+2", 4, 2, ("FR",), Domain.SITE)
MAP = ClusterMap(CLUSTER_ID, 1, 16, _NODES, (_POLICY,), _POLICY.name)
_PLACEMENT = (1, 2, 3, 4, 5, 6)


def _tenant(name: str) -> Identity:
    return Identity(CLUSTER_ID, Role.TENANT, name)


def _peer_node() -> Identity:
    return Identity(CLUSTER_ID, Role.NODE, "n2", MAP.node(2).attributes)


class _Requests:
    """Lawful requests of one tenant, before they are mangled."""

    def __init__(self, rng: random.Random, tenant: str) -> None:
        self._rng = rng
        self._tenant = tenant
        self._clock = HybridClock(SystemClock(), 7)
        self._stamps: list[bytes] = []

    def accept(self, key: str = "", bucket: str = "b") -> pb.Operation:
        rng = self._rng
        cell = rng.randbytes(rng.choice([1, 50, 2000]))
        crc = crc32c(cell)
        stamp = self._clock.issue().to_bytes()
        self._stamps.append(stamp)
        manifest = pb.Manifest(
            format=MANIFEST_FORMAT, kind=pb.KIND_OBJECT, stamp=stamp, data_id=rng.randbytes(16),
            size_bytes=4 * len(cell), segment_bytes=1 << 20, k=4, m=2, shard_hashes=blake3_128(cell) * 6,
            key_id="k000000000000", wrapped_key=bytes(48),
        )  # fmt: skip
        sealed = pb.SealedManifest(manifest=manifest.SerializeToString(), mac=bytes(16), placement=_PLACEMENT)
        accept = pb.Accept(
            bucket=bucket, key=key or self._key(), sealed=sealed, shard_index=0, cell=cell, cell_crc=crc
        )
        return pb.Operation(accept=accept)

    def _key(self) -> str:
        return self._rng.choice(["k1", "k2", "k3"])

    def _stamp(self) -> bytes:
        return self._rng.choice(self._stamps) if self._stamps else bytes(16)

    def _operation(self) -> pb.Operation:
        key, stamp = self._key(), self._stamp()
        kind = self._rng.randrange(6)
        if kind == 0:
            return pb.Operation(
                read=pb.Read(bucket="b", key=key, want_cell=True, all=self._rng.random() < 0.5)
            )
        if kind == 1:
            return pb.Operation(settle=pb.Settle(bucket="b", key=key, stamp=stamp, placement=_PLACEMENT))
        if kind == 2:
            return pb.Operation(abort=pb.Abort(bucket="b", key=key, stamp=stamp))
        if kind == 3:
            return pb.Operation(report=pb.Report(bucket="b", key=key, stamp=stamp, shard_index=0))
        return self.accept(key)

    def batch(self, operations: list[pb.Operation] | None = None) -> pb.BatchRequest:
        if operations is None:
            operations = [self._operation() for _ in range(self._rng.choice([1, 2, 5]))]
        return pb.BatchRequest(
            epoch=1, tenant=self._tenant, operations=operations, settled=[self._stamp()] if operations else [],
            sent_unixtime_ms=SystemClock().unixtime_ms(),
        )  # fmt: skip

    def listing(self) -> pb.ListRequest:
        return pb.ListRequest(epoch=1, tenant=self._tenant, bucket="b", limit=100, delimiter="/", after=b"k")

    def buckets(self) -> pb.ListRequest:
        """Of no bucket: which there are."""
        return pb.ListRequest(epoch=1, tenant=self._tenant, limit=self._rng.choice([0, 1, 100]))

    def read_shard(self) -> pb.ReadShardRequest:
        return pb.ReadShardRequest(
            epoch=1, tenant=self._tenant, bucket="b", key=self._key(), stamp=self._stamp(), shard_index=0
        )

    def drop_shard(self) -> pb.DropShardRequest:
        return pb.DropShardRequest(tenant=self._tenant, data_id=self._rng.randbytes(16), shard_index=0)

    def chunks(self) -> list[ShardChunk]:
        header = pb.ShardHeader(
            epoch=1, tenant=self._tenant, data_id=self._rng.randbytes(16), shard_index=self._rng.randrange(6)
        )
        chunks = [ShardChunk([], header)]
        for segment in range(self._rng.choice([1, 3])):
            cell = self._rng.randbytes(3000)
            chunks.append(ShardChunk([WireCell(segment, crc32c(cell), cell)]))
        return chunks


class _Sender(Sender):
    """Sends what is mangled to one node, as one tenant, or as another node where nodes alone may ask."""

    def __init__(self, handler: Handler, requests: _Requests, rng: random.Random, tenant: str) -> None:
        super().__init__(rng)
        self._handler = handler
        self._requests = requests
        self._peer = _tenant(tenant)
        self._kinds = [
            *[self._batch] * 6, self._list, self._buckets, self._read, self._write, self._drop,
            self._digests, self._rows,
        ]  # fmt: skip

    async def _batch(self) -> None:
        request = self._requests.batch()
        self._mangled(request)
        reply = expanded(await self._handler.batch(self._peer, request))
        assert len(reply.outcomes) == len(request.operations)
        for outcome in reply.outcomes:
            assert outcome.code != InternalError.code, f"a bug of the node's: {outcome.detail}"

    async def _list(self) -> None:
        request = self._requests.listing()
        self._mangled(request)
        await self._handler.list(self._peer, request)

    async def _buckets(self) -> None:
        request = self._requests.buckets()
        self._mangled(request)
        reply = await self._handler.list(self._peer, request)
        if not request.bucket:
            assert "theirs" not in {entry.common_prefix for entry in reply.entries}, "another tenant's bucket"

    async def _read(self) -> None:
        request = self._requests.read_shard()
        self._mangled(request)
        async for _ in self._handler.read_shard(self._peer, request):
            pass

    async def _write(self) -> None:
        async def sent() -> AsyncIterator[ShardChunk]:
            for chunk in self._requests.chunks():
                raw = encode_write(chunk)
                try:
                    yield decode_write(mangled_bytes(self._rng, raw) if self._rng.random() < 0.4 else raw)
                except DecodeError:
                    return

        await self._handler.write_shard(self._peer, sent())

    async def _drop(self) -> None:
        request = self._requests.drop_shard()
        self._mangled(request)
        await self._handler.drop_shard(self._peer, request)

    async def _digests(self) -> None:
        request = pb.DigestsRequest(epoch=1)
        self._mangled(request)
        await self._handler.digests(_peer_node(), request)

    async def _rows(self) -> None:
        request = pb.PartitionRowsRequest(epoch=1, partition=self._rng.randrange(16))
        self._mangled(request)
        async for _ in self._handler.partition_rows(_peer_node(), request):
            pass


async def _kept(store: ShardStore, tenant: str) -> list[object]:
    """Everything that a tenant has in a store."""
    return [await store.read(ObjectName(tenant, "b", f"k{n}"), every=True, want_cell=True) for n in (1, 2, 3)]


async def test_requests_that_are_almost_right(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    clock = SystemClock()
    options = StoreOptions(reserve_bytes=0, volume_bytes=1 << 20)
    store = await LmdbStore.open(tmp_path / "store", options, clock)
    try:
        handler = Handler(1, "n1", store, MapHolder(MAP, b""), clock)
        others = _Requests(rng, "other")
        for key in ("k1", "k2", "k3"):
            both = [others.accept(key), others.accept(key, bucket="theirs")]
            await handler.batch(_tenant("other"), others.batch(both))
        await handler.batch(_tenant("other"), others.batch([]))
        before = await _kept(store, "other")
        assert all(before)
        sender = _Sender(handler, _Requests(rng, "clinic"), rng, "clinic")
        refused = [await sender.is_refused() for _ in range(_ROUNDS)]
        assert any(refused)
        assert not all(refused)
        assert await _kept(store, "other") == before, "another tenant's objects changed"
    finally:
        await store.close()
    store = await LmdbStore.open(tmp_path / "store", options, clock)
    try:
        assert await _kept(store, "other") == before, "another tenant's objects changed with a start"
        await _kept(store, "clinic")  # whatever it is, it can be read
        handler = Handler(1, "n1", store, MapHolder(MAP, b""), clock)
        fresh = _Requests(rng, "clinic")
        reply = await handler.batch(_tenant("clinic"), fresh.batch([fresh.accept("fresh")]))
        assert expanded(reply).outcomes[0].code == 0, "the node takes nothing any more"
    finally:
        await store.close()
