"""Asking other nodes: digests, rows, versions. Who does not answer is silent, which is never an error here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, IntegrityError, ResourceExhausted
from coffre.cluster.names import ObjectName
from coffre.cluster.transport import Transport
from coffre.cluster.versions import STAMP_BYTES
from coffre.node.following import ClockAsking
from coffre.node.repair.messages import row_of_message, unpack_digests
from coffre.node.store import (
    PartitionDigest,
    PartitionRow,
    State,
    StoredCell,
    StoredVersion,
    StoreIdentity,
)
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import outcomes_of

__all__ = ["Answers", "Asking", "bytes_of", "slots_of"]

_log = logging.getLogger(__name__)
_FULL = ResourceExhausted.code
_SLOT_VERSIONS = (
    8192  # of one slot, on the average; it is held in memory, of this node and of each that differs
)
_ROWS_MAX = 16 * _SLOT_VERSIONS  # of one slot, with what is too young for digests
Answers = dict[int, Sequence[StoredVersion]]
"""By node: every version of a name that it holds. Who is not in it did not answer."""


def slots_of(versions: int) -> int:
    """Into how many parts a partition is divided, by the hash of the names, so that each fits into memory."""
    return max(-(-versions // _SLOT_VERSIONS), 1)


def _tell(node_id: str, error: CoffreError) -> None:
    about = {"peer": node_id, "error": type(error).__name__, "reason": str(error)}
    _log.info("a node does not answer", extra=about)


class Asking:
    """Questions to the nodes of one epoch."""

    def __init__(
        self,
        transport: Transport,
        epoch: int,
        timeout: float,
        clock: Clock,
        identity: StoreIdentity,
        called: Callable[[int], str] = str,
    ) -> None:
        """`called`: a node's id, for the log."""
        self._transport = transport
        self._identity = identity
        self._timeout = timeout
        self._clock = clock
        self.called = called
        self.epoch = epoch
        self.testimonies: list[
            StoreIdentity
        ] = []  # what those who were asked for digests have seen of this node
        self._received_bytes = 0
        self.ahead_ms: dict[int, float] = {}
        """How far this node's clock is ahead of those of nodes that said what time it is there."""
        self.asked = ClockAsking.begin(clock)
        """When they were asked."""

    def take_received_bytes(self) -> int:
        """Bytes of cells and manifests that came since the last call."""
        received, self._received_bytes = self._received_bytes, 0
        return received

    async def digests(
        self, nodes: Iterable[int], before_ms: int | None = None
    ) -> dict[int, dict[int, PartitionDigest]]:
        """By node and partition (`ShardStore.digests`); nodes that do not answer are left out."""
        asked = tuple(nodes)
        self.asked = ClockAsking.begin(self._clock)
        own = self._identity
        request = pb.DigestsRequest(
            epoch=self.epoch, store_id=own.store_id, commits=own.commits, before_unixtime_ms=before_ms or 0
        )

        async def ask(node: int) -> dict[int, PartitionDigest] | None:
            asking = ClockAsking.begin(self._clock)
            try:
                reply = await self._transport.digests(node, request, self._timeout)
                self.testimonies.append(StoreIdentity(reply.witnessed_store_id, reply.witnessed_commits))
                ahead_ms = asking.ahead_ms(self._clock, reply.unixtime_ms)
                if ahead_ms is not None:
                    self.ahead_ms[node] = ahead_ms
                return None if reply.starting else unpack_digests(reply.digests)
            except CoffreError as error:
                _tell(self.called(node), error)
                return None

        answers = await asyncio.gather(*map(ask, asked))
        return {node: answer for node, answer in zip(asked, answers, strict=True) if answer is not None}

    async def rows(self, node: int, partition: int, slot: int, slots: int) -> AsyncIterator[PartitionRow]:
        """Those of one slot. Raises `CoffreError`, `IntegrityError` for more of them than a slot can have."""
        request = pb.PartitionRowsRequest(epoch=self.epoch, partition=partition, slot=slot, slots=slots)
        told = 0
        replies = self._transport.partition_rows(node, request, self._timeout)
        async with aclosing(replies) as stream:  # type: ignore[type-var]  # both twins return async generators
            async for reply in stream:
                for message in reply.rows:
                    told += max(len(message.versions), 1)
                    if told > _ROWS_MAX:
                        raise IntegrityError("a node tells more rows than there can be")
                    yield row_of_message(message)

    async def versions(
        self, wanted: Mapping[int, Sequence[ObjectName]], *, want_cells: bool
    ) -> tuple[dict[ObjectName, Answers], set[ObjectName]]:
        """All versions of names, asked of the nodes that `wanted` says, many in one message.

        Returns them, and the names that did not fit into somebody's reply: memory stays bounded, and the first
        name of all always fits. Those are to be asked again.
        """
        found: dict[ObjectName, Answers] = {name: {} for names in wanted.values() for name in names}
        again: set[ObjectName] = set()

        async def ask(node: int, names: Sequence[ObjectName]) -> None:
            by_tenant: dict[str, list[ObjectName]] = {}
            for name in names:
                by_tenant.setdefault(name.tenant, []).append(name)
            try:
                for tenant, some in by_tenant.items():
                    for name, versions in await self._read(node, tenant, some, want_cells, again):
                        found[name][node] = versions
            except CoffreError as error:
                _tell(self.called(node), error)

        await asyncio.gather(*(ask(node, names) for node, names in wanted.items() if names))
        return found, again

    async def _read(
        self,
        node: int,
        tenant: str,
        names: Sequence[ObjectName],
        want_cells: bool,
        again: set[ObjectName],
    ) -> list[tuple[ObjectName, Sequence[StoredVersion]]]:
        """One message of at most 1,024 reads. Raises `CoffreError`."""
        request = pb.BatchRequest(
            epoch=self.epoch,
            tenant=tenant,
            operations=[
                pb.Operation(read=pb.Read(bucket=n.bucket, key=n.key, all=True, want_cell=want_cells))
                for n in names
            ],
            sent_unixtime_ms=self._clock.unixtime_ms(),
        )
        reply = await self._transport.batch(node, request, self._timeout)
        outcomes = list(outcomes_of(reply))
        if len(outcomes) != len(names):
            raise IntegrityError("a node did not answer reads one by one")
        found: list[tuple[ObjectName, Sequence[StoredVersion]]] = []
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, int):
                raise IntegrityError("a node answered a read with a vote")
            if outcome.code == _FULL:
                again.add(name)
            elif not outcome.code:
                versions = tuple(map(_version_of, outcome.versions))
                self._received_bytes += bytes_of(versions)
                found.append((name, versions))
        return found

    async def report(self, node: int, name: ObjectName, stamp: bytes, shard_index: int) -> None:
        """Tell a node that its shard seems damaged or missing. Raises `CoffreError`."""
        report = pb.Report(bucket=name.bucket, key=name.key, stamp=stamp, shard_index=shard_index)
        request = pb.BatchRequest(
            epoch=self.epoch, tenant=name.tenant, operations=[pb.Operation(report=report)]
        )
        await self._transport.batch(node, request, self._timeout)

    async def cells(
        self, node: int, name: ObjectName, stamp: bytes, shard_index: int, first: int
    ) -> AsyncIterator[Sequence[StoredCell]]:
        """Cells of a large shard from a segment on, some at a time; their checksums are still to be verified.

        Raises `CoffreError`.
        """
        request = pb.ReadShardRequest(
            epoch=self.epoch,
            tenant=name.tenant,
            bucket=name.bucket,
            key=name.key,
            stamp=stamp,
            shard_index=shard_index,
            first_segment=first,
        )
        # No time is set for a whole shard, which may take hours at the rate that repair has.
        replies = self._transport.read_shard(node, request, _SHARD_SECONDS)
        async with aclosing(replies) as stream:  # type: ignore[type-var]  # as above
            async for chunk in stream:
                self._received_bytes += sum(len(cell.data) for cell in chunk.cells)
                yield [StoredCell(cell.segment, cell.crc, cell.data) for cell in chunk.cells]


_SHARD_SECONDS = 24 * 3600.0


def bytes_of(versions: Iterable[StoredVersion]) -> int:
    """What the manifests and cells of an answer come to."""
    return sum(len(v.manifest) + (len(v.cell.data) if v.cell else 0) for v in versions)


def _version_of(version: pb.Version) -> StoredVersion:
    """Raises `IntegrityError` for what no node can mean."""
    if len(version.stamp) != STAMP_BYTES or not 1 <= version.state <= len(State):
        raise IntegrityError("a node answered with a version that cannot be")
    state = State(version.state)
    sealed = version.sealed
    cell = None
    if version.cell or (version.HasField("shard_index") and not version.shard_bytes):
        cell = StoredCell(0, version.cell_crc, version.cell)
    return StoredVersion(
        state,
        version.stamp,
        bool(sealed.manifest) and not sealed.placement,  # objects are placed, tombstones are not
        sealed.manifest,
        sealed.mac,
        tuple(sealed.placement),
        version.shard_index if version.HasField("shard_index") else None,
        version.shard_bytes,
        cell,
        version.damaged,
        version.condemned,
    )
