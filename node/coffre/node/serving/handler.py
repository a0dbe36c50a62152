"""What a node does with a request once its sender is known: checks, then the store.

Least privilege: tenants reach their own buckets and nothing else; operators see counters, never data; other nodes read
what repair takes (ciphertext and manifests), and change nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    StaleMap,
    Unavailable,
    Unsupported,
)
from coffre.cluster.identity import Identity, Role
from coffre.cluster.manifest import MANIFEST_FORMAT, named_hash
from coffre.cluster.names import BUCKET_BYTES_MAX, ObjectName, check_bucket, check_tenant, partition_of
from coffre.cluster.version import __version__
from coffre.cluster.versions import STAMP_BYTES
from coffre.codec import HASH_BYTES
from coffre.node.following import EpochFence, MapHolder, PeerClocks, PeerWatch
from coffre.node.repair import RepairSwitch, pack_digests, row_message, witness
from coffre.node.serving.replies import batch_reply, cells_of_range, put_version, refuse
from coffre.node.serving.sightings import Refusals, TenantsMet
from coffre.node.serving.times import NEVER_MS, Times
from coffre.node.store import (
    Abort,
    Accept,
    KeyMutation,
    Mark,
    Mutation,
    QueueRepair,
    Refuse,
    Settle,
    ShardStore,
    StoredCell,
)
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell
from google.protobuf.message import DecodeError

__all__ = ["Handler"]

OPERATIONS_MAX = 1024
MARKS_MAX = 64
REPLY_BYTES = 4 << 20  # of cells in one reply to a batch; a read beyond is to be asked again
LIST_LIMIT_MAX = 1000
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
        self._fence = EpochFence(store, maps)
        self.clocks = PeerClocks(clock)
        self._times = Times(node_id, lambda: self._clock.unixtime_ms(), self.clocks)
        self.repairs: RepairSwitch | None = None
        self.watch: PeerWatch | None = None
        self.tellers: list[
            Callable[[pb.StatusReply], None]
        ] = []  # others that add to what this node says of itself
        self.refusals, self.tenants_met = Refusals(clock), TenantsMet(clock)
        self.certificate_expires_ms = 0
        self.started_ms = clock.unixtime_ms()
        self.serving = True

    @property
    def maps(self) -> MapHolder:
        """The map that this node works on."""
        return self._maps

    # ---------------------------------------------------------------- small operations

    async def batch(self, peer: Identity, request: pb.BatchRequest) -> pb.BatchReply:
        """Carry out the operations, and return their outcomes in order. Raises what refuses the message as a whole."""
        if not self._fence.is_passed:
            await self._fence.wait()
        tenant = request.tenant
        operations = list(request.operations)
        current = request.epoch == self._maps.map.epoch
        if peer.role is Role.NODE:
            self._admit_node(peer, request.epoch)
            check_tenant(tenant)
            if request.settled or not all(map(_changes_nothing, operations)):
                raise PermissionDenied(
                    "a node reads from others and reports to them; it changes nothing there"
                )
        else:
            # A vote to give up a version is about its stamp, whatever the map: a writer that a new map overtakes must
            # be able to tell what became of its write.
            aborting = not current and any(
                operation.WhichOneof("operation") == "abort" for operation in operations
            )
            self._admit(peer, tenant, None if aborting else request.epoch)
        if len(operations) > OPERATIONS_MAX or len(request.settled) > MARKS_MAX:
            raise InvalidArgument(
                f"a batch has at most {OPERATIONS_MAX} operations and {MARKS_MAX} marks of settled versions"
            )
        mutations: list[Mutation] = [_mark(tenant, stamp) for stamp in request.settled if current]
        marks = len(mutations)
        until = [NEVER_MS] * marks  # when each of them may be answered with yes, at the latest
        reply = pb.BatchReply()
        found: list[pb.Outcome | None] = []  # None: the outcome of the next mutation; others lie in the reply
        reply_bytes = 0
        for done, operation in enumerate(operations):
            try:
                which = operation.WhichOneof("operation")
                if not current and which != "abort":
                    raise self._stale(request.epoch)
                if which == "read":
                    if reply_bytes >= REPLY_BYTES:
                        raise ResourceExhausted("this reply is full: ask again")
                    found.append(reply.outcomes.add())
                    reply_bytes += await self._read(tenant, operation.read, reply.outcomes[-1])
                else:
                    mutation = self._mutation(tenant, which, operation)
                    until.append(self._times.check(operation, mutation, request.sent_unixtime_ms))
                    mutations.append(mutation)
                    found.append(None)
            except CoffreError as error:
                if len(found) == done:
                    found.append(reply.outcomes.add())
                refuse(reply.outcomes[-1], error)
        if current and request.epoch != self._maps.map.epoch:
            return await self.batch(
                peer, request
            )  # another map came while reads were answered, and nothing is done yet
        results = await self._store.apply(mutations) if mutations else []
        results = self._times.in_time(results, until)
        return batch_reply(reply, found, results[marks:])

    async def _read(self, tenant: str, read: pb.Read, outcome: pb.Outcome) -> int:
        """Put what this node has into an outcome; about how many bytes that are."""
        if read.stamp and len(read.stamp) != STAMP_BYTES:
            raise InvalidArgument(f"a stamp has {STAMP_BYTES} bytes")
        name = ObjectName(tenant, read.bucket, read.key)
        versions = await self._store.read(name, stamp=read.stamp, every=read.all, want_cell=read.want_cell)
        size_bytes = 0
        for version in versions:
            size_bytes += put_version(outcome.versions.add(), version)
        if read.range_bytes and read.want_cell and versions:
            for cell in await cells_of_range(self._store, name, versions[0], read):
                outcome.versions[0].cells.add(segment=cell.segment, crc=cell.crc, data=bytes(cell.data))
                size_bytes += len(cell.data)
        return size_bytes

    def _mutation(self, tenant: str, which: str | None, operation: pb.Operation) -> KeyMutation:
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
            if abort.unless_held:
                return Refuse(name, partition, abort.stamp)
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
        sealed = accept.sealed
        raw = sealed.manifest
        try:
            manifest = pb.Manifest.FromString(raw)
        except DecodeError:
            raise InvalidArgument("the manifest is not a manifest") from None
        if manifest.format != MANIFEST_FORMAT:
            raise Unsupported(f"manifest format {manifest.format} is not known to this node")
        stamp, data_id, mac, kind = manifest.stamp, manifest.data_id, sealed.mac, manifest.kind
        name, partition = self._place(tenant, accept.bucket, accept.key, stamp)
        if len(data_id) != DATA_ID_BYTES or len(mac) != 16:
            raise InvalidArgument("a manifest needs a data id and a seal of 16 bytes each")
        placement = tuple(sealed.placement[:])
        shard_index = accept.shard_index if accept.HasField("shard_index") else None
        if kind == pb.KIND_TOMBSTONE:
            if shard_index is not None or placement:
                raise InvalidArgument("a tombstone has no shards")
        elif kind == pb.KIND_OBJECT:
            if not accept.lock:  # what is completed may have been begun under another policy
                self._maps.check_coding(tenant, accept.bucket, manifest.k, manifest.m)
            self._check_shard(accept, manifest, placement, shard_index)
        else:
            raise Unsupported(f"manifest kind {kind} is not known to this node")
        base = _base(manifest) if manifest.conditional else None
        if manifest.recodes and (not base or len(manifest.recodes) != STAMP_BYTES or manifest.recodes > base):
            raise InvalidArgument("a version that is coded anew is decided on the one that it is made from")
        return Accept(
            name,
            partition,
            stamp,
            kind == pb.KIND_TOMBSTONE,
            data_id,
            raw,
            mac,
            placement,
            shard_index,
            accept.cell,
            accept.cell_crc,
            b"" if shard_index is None else named_hash(manifest, shard_index),
            accept.staged,
            accept.lock,
            accept.lock and accept.overrule and self._maps.votes_may_change(name, partition),
            base,
        )

    def _check_shard(
        self, accept: pb.Accept, manifest: pb.Manifest, placement: tuple[int, ...], shard_index: int | None
    ) -> None:
        k, m = manifest.k, manifest.m
        n = k + m
        if len(placement) != n or len(manifest.shard_hashes) != HASH_BYTES * n:
            raise InvalidArgument(f"a {k}+{m} manifest places {n} shards and has {n} hashes")
        self._maps.placement_for(k, m).check(placement)
        if shard_index is None:
            return
        if shard_index >= n or placement[shard_index] != self._number:
            raise InvalidArgument(f"shard {shard_index} is not placed on node {self._node_id}")

    # ---------------------------------------------------------------- large shards

    async def write_shard(self, peer: Identity, requests: AsyncIterator[ShardChunk]) -> pb.WriteShardReply:
        writer = None
        size_bytes = 0
        try:
            async for request in requests:
                size_bytes += sum(len(cell.data) for cell in request.cells)
                if writer is None:
                    header = request.header or pb.ShardHeader()
                    self._admit(peer, header.tenant)  # at any epoch: the Accept that adopts it decides
                    self._times.check_own_clock()
                    if len(header.data_id) != DATA_ID_BYTES or header.shard_index >= SHARDS_MAX:
                        raise InvalidArgument(
                            "a staged shard needs a data id of 16 bytes and an index below 255"
                        )
                    writer = await self._store.stage(header.tenant, header.data_id, header.shard_index)
                await writer.write([StoredCell(cell.segment, cell.crc, cell.data) for cell in request.cells])
            if writer is None:
                raise InvalidArgument("the stream ended before its header")
            staged = await writer.commit()
        except BaseException as error:
            if isinstance(error, ResourceExhausted):
                self.refusals.note(size_bytes)
            if writer is not None:
                await writer.discard()
            raise
        return pb.WriteShardReply(
            cell_count=staged.cell_count, size_bytes=staged.size_bytes, shard_hash=staged.shard_hash
        )

    async def read_shard(self, peer: Identity, request: pb.ReadShardRequest) -> AsyncIterator[ShardChunk]:
        self._admit_reader(peer, request.tenant)  # at any epoch: a version never changes
        name, _ = self._place(request.tenant, request.bucket, request.key, request.stamp)
        chunks = self._store.read_cells(
            name, request.stamp, request.shard_index, request.first_segment, request.segment_count
        )
        async for chunk in chunks:
            if peer.role is Role.NODE:
                self._check_node(peer)  # a newer map may have shut it out meanwhile
            self._maps.check_not_suspended(peer)
            yield ShardChunk([WireCell(cell.segment, cell.crc, cell.data) for cell in chunk])

    async def drop_shard(self, peer: Identity, request: pb.DropShardRequest) -> None:
        self._admit(peer, request.tenant)
        await self._store.drop_staged(request.tenant, request.data_id, request.shard_index)

    # ---------------------------------------------------------------- other nodes

    async def digests(self, peer: Identity, request: pb.DigestsRequest) -> pb.DigestsReply:
        self._check_node(peer)
        seen = await witness(self._store, peer.name, request.store_id, request.commits)
        await self._fence.wait()
        digests = b""
        if self._is_comparable(request.epoch):
            digests = pack_digests(await self._store.digests(request.before_unixtime_ms or None))
        comparable = self._is_comparable(request.epoch)  # another map may have come meanwhile
        return pb.DigestsReply(
            epoch=self._maps.map.epoch,
            starting=not comparable,  # then it testifies, at any epoch: who was down may have an old map
            witnessed_store_id=seen.store_id,
            witnessed_commits=seen.commits,
            digests=digests if comparable else b"",
            unixtime_ms=self._clock.unixtime_ms(),
        )

    def _is_comparable(self, epoch: int) -> bool:
        if epoch > self._maps.map.epoch:
            self._maps.behind.set()
        return self.serving and epoch == self._maps.map.epoch

    async def partition_rows(
        self, peer: Identity, request: pb.PartitionRowsRequest
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        await self._fence.wait()
        self._admit_node(peer, request.epoch)
        if request.partition >= self._maps.map.partitions or request.slot >= max(request.slots, 1):
            raise InvalidArgument("there is no such partition, or no such slot of it")
        rows = self._store.partition_rows(request.partition, slot=request.slot, slots=max(request.slots, 1))
        async for some in rows:
            self._admit_node(peer, request.epoch)  # a newer map may have come meanwhile
            yield pb.PartitionRowsReply(rows=map(row_message, some))

    # ---------------------------------------------------------------- listing, administration

    async def list(self, peer: Identity, request: pb.ListRequest) -> pb.ListReply:
        await self._fence.wait()
        self._admit(peer, request.tenant, request.epoch)
        if not request.bucket:
            return await self._buckets(request)
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
        self._check_epoch(request.epoch)  # another map may have come meanwhile
        reply = pb.ListReply(more=listing.more)
        for entry in listing.entries:
            row = reply.entries.add(key=entry.key, common_prefix=entry.common_prefix)
            for version in entry.versions:
                put_version(row.versions.add(), version)
        return reply

    async def _buckets(self, request: pb.ListRequest) -> pb.ListReply:
        """A list of no bucket: the tenant's buckets, as common prefixes."""
        if len(request.after) > BUCKET_BYTES_MAX:
            raise InvalidArgument("that is behind no bucket")
        limit = min(request.limit or LIST_LIMIT_MAX, LIST_LIMIT_MAX)
        names = await self._store.buckets(request.tenant, after=request.after, limit=limit + 1)
        self._check_epoch(request.epoch)
        entries = [pb.ListEntry(common_prefix=name) for name in names[:limit]]
        return pb.ListReply(entries=entries, more=len(names) > limit)

    async def status(self, peer: Identity) -> pb.StatusReply:
        if peer.role is Role.TENANT:
            raise PermissionDenied(
                "a node's counters are for operators and nodes; this is a tenant's certificate"
            )
        status = await self._store.status()
        reply = pb.StatusReply(
            node_number=self._number,
            node_id=self._node_id,
            epoch=self._maps.map.epoch,
            version=__version__,
            objects=status.objects,
            shards=status.shards,
            live_bytes=status.live_bytes,
            disk_bytes=status.disk_bytes,
            free_bytes=status.free_bytes,
            reserve_bytes=status.reserve_bytes,
            disk_size_bytes=status.size_bytes,
            writable=status.writable,
            cannot_write=status.cannot_write,
            index_damaged=status.index_damaged,
            waiting=not self.serving,
            serves_no_tenant=self._maps.suspended is None,
            suspended_tenants=sorted(self._maps.suspended or ()),
            damaged=status.damaged,
            syncs=status.syncs,
            repair_queue=status.repair_queue,
            unixtime_ms=self._clock.unixtime_ms(),
            certificate_expires_unixtime_ms=self.certificate_expires_ms,
            started_unixtime_ms=self.started_ms,
            clock_ahead_seconds=self.clocks.ahead_seconds,
        )
        if self.watch is not None:
            self.watch.tell(reply)
        for tell in (self.refusals.tell, self.tenants_met.tell, *self.tellers):
            tell(reply)
        return reply

    async def repair_status(self, peer: Identity) -> pb.RepairStatusReply:
        return self._admit_operator(peer).status()

    async def repair_control(self, peer: Identity, request: pb.RepairControlRequest) -> pb.RepairStatusReply:
        switch = self._admit_operator(peer)
        switch.control(request)
        return switch.status()

    def _admit_operator(self, peer: Identity) -> RepairSwitch:
        if peer.role is not Role.OPERATOR:
            raise PermissionDenied(f"this is for operators; the certificate is a {peer.role.value}'s")
        if self.repairs is None:
            raise Unavailable("this node does not repair (yet)")
        return self.repairs

    async def get_map(self, peer: Identity, request: pb.GetMapRequest) -> pb.GetMapReply:
        if request.known_epoch >= self._maps.map.epoch:
            return pb.GetMapReply()
        return pb.GetMapReply(signed_map=self._maps.signed)

    def _admit(self, peer: Identity, tenant: str, epoch: int | None = None) -> None:
        """Only a tenant, and only in its own buckets; and only on the map that this node has."""
        check_tenant(tenant)
        if peer.role is not Role.TENANT or peer.name != tenant:
            raise PermissionDenied(f"this certificate ({peer.role.value}) does not open tenant {tenant!r}")
        self._maps.check_not_suspended(peer)
        if epoch is None:
            self._check_serving()
        else:
            self._check_epoch(epoch)

    def _admit_reader(self, peer: Identity, tenant: str) -> None:
        """A tenant in its own buckets, or a node of the map; at any epoch."""
        if peer.role is not Role.NODE:
            self._admit(peer, tenant)
            return
        check_tenant(tenant)
        self._check_node(peer)
        self._check_serving()

    def _admit_node(self, peer: Identity, epoch: int) -> None:
        """Only a node, and only one that the map has, as its certificate says."""
        self._check_node(peer)
        self._check_epoch(epoch)

    def _check_node(self, peer: Identity) -> None:
        if peer.role is not Role.NODE:
            raise PermissionDenied(f"this is for nodes; the certificate is a {peer.role.value}'s")
        self._maps.check_member(peer)

    def _check_serving(self) -> None:
        if not self.serving:
            raise Unavailable(
                f"node {self._node_id} is starting: it asks the others what they have seen of it"
            )

    def _check_epoch(self, epoch: int) -> None:
        self._check_serving()
        if epoch != self._maps.map.epoch:
            raise self._stale(epoch)

    def _stale(self, epoch: int) -> StaleMap:
        if epoch > self._maps.map.epoch:
            self._maps.behind.set()
        return StaleMap(
            f"node {self._node_id} is at map epoch {self._maps.map.epoch}, the request at {epoch}"
        )


def _base(manifest: pb.Manifest) -> bytes:
    """What a conditional version was decided on."""
    base = manifest.base
    if len(base) not in (0, STAMP_BYTES) or base >= manifest.stamp:
        raise InvalidArgument("a conditional version is decided on an older one, or on none")
    return base


def _changes_nothing(operation: pb.Operation) -> bool:
    return operation.WhichOneof("operation") in ("read", "report")


def _mark(tenant: str, stamp: bytes) -> Mark:
    if len(stamp) != STAMP_BYTES:
        raise InvalidArgument(f"a stamp has {STAMP_BYTES} bytes")
    return Mark(tenant, stamp)
