"""What a node does with a request once its sender is known: checks, then the store.

Least privilege: tenants reach their own buckets and nothing else; operators and other nodes see counters, never data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    ClockSkew,
    CoffreError,
    IntegrityError,
    InternalError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    StaleMap,
    Unsupported,
)
from coffre.cluster.identity import Identity, Role
from coffre.cluster.names import ObjectName, check_bucket, check_tenant, partition_of
from coffre.cluster.version import __version__
from coffre.cluster.versions import STAMP_BYTES, Stamp
from coffre.codec import crc32c
from coffre.node.mapholder import MapHolder
from coffre.node.store import (
    Abort,
    Accept,
    Mutation,
    Outcome,
    QueueRepair,
    Settle,
    ShardStore,
    StoredCell,
    StoredVersion,
)
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell
from google.protobuf.message import DecodeError

__all__ = ["Handler"]

OPERATIONS_MAX = 1024
REPLY_BYTES = 4 << 20  # of cells in one reply to a batch; a read beyond is to be asked again
LIST_LIMIT_MAX = 1000
CLOCK_SKEW_MS_MAX = 60_000
MANIFEST_FORMAT = 1
DATA_ID_BYTES = 16
SHARDS_MAX = 255


class Handler:
    """One node's side of the wire contract (`coffre.cluster.transport.NodeHandler`)."""

    def __init__(self, number: int, node_id: str, store: ShardStore, maps: MapHolder, clock: Clock) -> None:
        self._number = number
        self._node_id = node_id
        self._store = store
        self._maps = maps
        self._clock = clock

    # ---------------------------------------------------------------- small operations

    async def batch(self, peer: Identity, request: pb.BatchRequest) -> pb.BatchReply:
        self._admit(peer, request.tenant, request.epoch)
        if len(request.operations) > OPERATIONS_MAX:
            raise InvalidArgument(f"a batch has at most {OPERATIONS_MAX} operations")
        reply = pb.BatchReply()
        outcomes = [reply.outcomes.add() for _ in request.operations]
        mutations: list[Mutation] = []
        targets: list[pb.Outcome] = []
        reply_bytes = 0
        for operation, outcome in zip(request.operations, outcomes, strict=True):
            try:
                if operation.HasField("read"):
                    if reply_bytes >= REPLY_BYTES:
                        raise ResourceExhausted("this reply is full: ask again")
                    await self._read(request.tenant, operation.read, outcome)
                    reply_bytes += outcome.ByteSize()
                else:
                    mutations.append(self._mutation(request.tenant, operation))
                    targets.append(outcome)
            except CoffreError as error:
                _put_error(outcome, error)
        if mutations:
            for target, result in zip(targets, await self._store.apply(mutations), strict=True):
                _put_outcome(target, result)
        return reply

    async def _read(self, tenant: str, read: pb.Read, outcome: pb.Outcome) -> None:
        if read.stamp and len(read.stamp) != STAMP_BYTES:
            raise InvalidArgument(f"a stamp has {STAMP_BYTES} bytes")
        name = ObjectName(tenant, read.bucket, read.key)
        versions = await self._store.read(name, stamp=read.stamp, every=read.all, want_cell=read.want_cell)
        for version in versions:
            _put_version(outcome.versions.add(), version)

    def _mutation(self, tenant: str, operation: pb.Operation) -> Mutation:
        which = operation.WhichOneof("operation")
        if which == "accept":
            return self._accept(tenant, operation.accept)
        if which == "settle":
            settle = operation.settle
            name, partition = self._place(tenant, settle.bucket, settle.key, settle.stamp)
            if len(settle.placement) > SHARDS_MAX:
                raise InvalidArgument("a placement has at most 255 nodes")
            return Settle(name, partition, settle.stamp, tuple(settle.placement))
        if which == "abort":
            abort = operation.abort
            name, partition = self._place(tenant, abort.bucket, abort.key, abort.stamp)
            return Abort(name, partition, abort.stamp)
        if which == "report":
            report = operation.report
            name, partition = self._place(tenant, report.bucket, report.key, report.stamp)
            if report.shard_index >= SHARDS_MAX:
                raise InvalidArgument("no such shard index")
            return QueueRepair(name, partition, report.stamp, report.shard_index)
        raise Unsupported("this node does not know that operation; it may be older than the client")

    def _place(self, tenant: str, bucket: str, key: str, stamp: bytes) -> tuple[ObjectName, int]:
        if len(stamp) != STAMP_BYTES:
            raise InvalidArgument(f"a stamp has {STAMP_BYTES} bytes")
        name = ObjectName(tenant, bucket, key)
        return name, partition_of(name, self._maps.map.partitions)

    def _accept(self, tenant: str, accept: pb.Accept) -> Accept:
        try:
            manifest = pb.Manifest.FromString(accept.sealed.manifest)
        except DecodeError:
            raise InvalidArgument("the manifest is not a manifest") from None
        if manifest.format != MANIFEST_FORMAT:
            raise Unsupported(f"manifest format {manifest.format} is not known to this node")
        name, partition = self._place(tenant, accept.bucket, accept.key, manifest.stamp)
        self._check_stamp(manifest.stamp)
        if len(manifest.data_id) != DATA_ID_BYTES or len(accept.sealed.mac) != 16:
            raise InvalidArgument("a manifest needs a data id and a seal of 16 bytes each")
        placement = tuple(accept.sealed.placement)
        shard_index = accept.shard_index if accept.HasField("shard_index") else None
        tombstone = manifest.kind == pb.KIND_TOMBSTONE
        if tombstone:
            if shard_index is not None or placement:
                raise InvalidArgument("a tombstone has no shards")
        elif manifest.kind == pb.KIND_OBJECT:
            self._check_shard(accept, manifest, placement, shard_index)
        else:
            raise Unsupported(f"manifest kind {manifest.kind} is not known to this node")
        return Accept(
            name,
            partition,
            manifest.stamp,
            tombstone,
            manifest.data_id,
            accept.sealed.manifest,
            accept.sealed.mac,
            placement,
            shard_index,
            accept.cell,
            accept.cell_crc,
            accept.staged,
            accept.lock,
        )

    def _check_stamp(self, stamp: bytes) -> None:
        ahead_ms = Stamp.from_bytes(stamp).unixtime_ms - self._clock.unixtime_ms()
        if ahead_ms > CLOCK_SKEW_MS_MAX:
            raise ClockSkew(
                f"the writer's clock is {ahead_ms / 1000:.0f} s ahead of node {self._node_id}'s; "
                f"at most {CLOCK_SKEW_MS_MAX // 1000} s are allowed: set the clocks (NTP)"
            )

    def _check_shard(
        self, accept: pb.Accept, manifest: pb.Manifest, placement: tuple[int, ...], shard_index: int | None
    ) -> None:
        n = manifest.k + manifest.m
        if len(placement) != n or len(manifest.shard_crcs) != 4 * n:
            raise InvalidArgument(
                f"a {manifest.k}+{manifest.m} manifest places {n} shards and has {n} checksums"
            )
        self._maps.placement_for(manifest.k, manifest.m).check(placement)
        if shard_index is None:
            return
        if shard_index >= n or placement[shard_index] != self._number:
            raise InvalidArgument(f"shard {shard_index} is not placed on node {self._node_id}")
        if accept.staged:
            return
        # That the cell has its checksum is the store's to see; here, that the checksum is the manifest's.
        expected = manifest.shard_crcs[4 * shard_index : 4 * shard_index + 4]
        if crc32c(accept.cell_crc.to_bytes(4, "little")).to_bytes(4, "little") != expected:
            raise IntegrityError("the cell is not the one that the manifest names")

    # ---------------------------------------------------------------- large shards

    async def write_shard(self, peer: Identity, requests: AsyncIterator[ShardChunk]) -> pb.WriteShardReply:
        writer = None
        try:
            async for request in requests:
                if writer is None:
                    header = request.header or pb.ShardHeader()
                    self._admit(peer, header.tenant, header.epoch)
                    if len(header.data_id) != DATA_ID_BYTES or header.shard_index >= SHARDS_MAX:
                        raise InvalidArgument(
                            "a staged shard needs a data id of 16 bytes and an index below 255"
                        )
                    writer = await self._store.stage(header.tenant, header.data_id, header.shard_index)
                await writer.write([StoredCell(cell.segment, cell.crc, cell.data) for cell in request.cells])
            if writer is None:
                raise InvalidArgument("the stream ended before its header")
            staged = await writer.commit()
        except BaseException:
            if writer is not None:
                await writer.discard()
            raise
        return pb.WriteShardReply(
            cell_count=staged.cell_count, size_bytes=staged.size_bytes, shard_crc=staged.shard_crc
        )

    async def read_shard(self, peer: Identity, request: pb.ReadShardRequest) -> AsyncIterator[ShardChunk]:
        self._admit(peer, request.tenant, request.epoch)
        name, _ = self._place(request.tenant, request.bucket, request.key, request.stamp)
        chunks = self._store.read_cells(
            name, request.stamp, request.shard_index, request.first_segment, request.segment_count
        )
        async for chunk in chunks:
            yield ShardChunk([WireCell(cell.segment, cell.crc, cell.data) for cell in chunk])

    async def drop_shard(self, peer: Identity, request: pb.DropShardRequest) -> None:
        self._admit(peer, request.tenant)
        await self._store.drop_staged(request.tenant, request.data_id, request.shard_index)

    # ---------------------------------------------------------------- listing, administration

    async def list(self, peer: Identity, request: pb.ListRequest) -> pb.ListReply:
        self._admit(peer, request.tenant, request.epoch)
        check_bucket(request.bucket)
        listing = await self._store.list(
            request.tenant,
            request.bucket,
            request.prefix,
            after=request.after,
            after_prefix=request.after_prefix,
            delimiter=request.delimiter,
            limit=min(request.limit or LIST_LIMIT_MAX, LIST_LIMIT_MAX),
        )
        reply = pb.ListReply(more=listing.more)
        for entry in listing.entries:
            row = reply.entries.add(key=entry.key, common_prefix=entry.common_prefix)
            for version in entry.versions:
                _put_version(row.versions.add(), version)
        return reply

    async def status(self, peer: Identity) -> pb.StatusReply:
        if peer.role is Role.TENANT:
            raise PermissionDenied(
                "a node's counters are for operators and nodes; this is a tenant's certificate"
            )
        status = await self._store.status()
        return pb.StatusReply(
            node_number=self._number,
            node_id=self._node_id,
            epoch=self._maps.map.epoch,
            version=__version__,
            objects=status.objects,
            shards=status.shards,
            live_bytes=status.live_bytes,
            disk_bytes=status.disk_bytes,
            free_bytes=status.free_bytes,
            writable=status.writable,
            damaged=status.damaged,
            syncs=status.syncs,
            repair_queue=status.repair_queue,
            unixtime_ms=self._clock.unixtime_ms(),
        )

    async def get_map(self, peer: Identity, request: pb.GetMapRequest) -> pb.GetMapReply:
        if request.known_epoch >= self._maps.map.epoch:
            return pb.GetMapReply()
        return pb.GetMapReply(signed_map=self._maps.signed)

    def _admit(self, peer: Identity, tenant: str, epoch: int | None = None) -> None:
        """Only a tenant, and only in its own buckets; and only on the map that this node has."""
        check_tenant(tenant)
        if peer.role is not Role.TENANT or peer.name != tenant:
            raise PermissionDenied(f"this certificate ({peer.role.value}) does not open tenant {tenant!r}")
        if epoch is not None and epoch != self._maps.map.epoch:
            raise StaleMap(
                f"node {self._node_id} is at map epoch {self._maps.map.epoch}, the request at {epoch}"
            )


def _put_error(target: pb.Outcome, error: CoffreError) -> None:
    target.code = error.code or InternalError.code  # 0 would say that it was done
    target.detail = str(error)


def _put_outcome(target: pb.Outcome, outcome: Outcome) -> None:
    if outcome.error is not None:
        _put_error(target, outcome.error)
    if outcome.state is not None:
        target.state = pb.State.ValueType(outcome.state)
    target.newest_stamp = outcome.newest_stamp
    target.has_shard = outcome.has_shard


def _put_version(target: pb.Version, version: StoredVersion) -> None:
    target.state = pb.State.ValueType(version.state)
    target.stamp = version.stamp
    if not version.manifest:
        target.damaged = version.damaged
        return
    target.sealed.manifest = version.manifest
    target.sealed.mac = version.mac
    target.sealed.placement.extend(version.placement)
    target.shard_bytes = version.shard_bytes
    target.damaged = version.damaged
    if version.shard_index is not None:
        target.shard_index = version.shard_index
    if version.cell is not None:
        target.cell = bytes(version.cell.data)
        target.cell_crc = version.cell.crc
