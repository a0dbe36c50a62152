"""Reading everything that a node holds, at an even pace, so that rot is found before it is needed.

The store verifies what it reads, and notes what does not verify in its queue of reports; repair takes it from there.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, IntegrityError, NotFound
from coffre.node.repair.options import RepairOptions
from coffre.node.store import ABORTED, PartitionRow, ShardStore
from coffre.proto import coffre_pb2 as pb

__all__ = ["Scrub"]

_log = logging.getLogger(__name__)
NOTE = "scrub"
_PLACE = struct.Struct(
    ">IQQQ"
)  # next partition, unix ms when the pass began, bytes read, when the last pass ended
_RETRY_SECONDS = 60.0
_IDLE_SECONDS = 3600.0


class Scrub:
    """One pass after another; how far it is rests in the store, partition by partition."""

    def __init__(self, store: ShardStore, options: RepairOptions, clock: Clock) -> None:
        self._store = store
        self._options = options
        self._clock = clock
        self._next = 0
        self._started_ms = 0
        self._finished_ms = 0
        self._bytes = 0
        self._damaged = 0
        self._done = 0.0

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.one_pass()
            except CoffreError as error:
                _log.warning("scrub is interrupted: %s", error)
                await self._clock.sleep(_RETRY_SECONDS)
                continue
            if not await self._store.digests():
                await self._clock.sleep(_IDLE_SECONDS)

    async def one_pass(self) -> None:
        """From where the last one stopped to the end, evenly over the time that a pass has."""
        await self._recall()
        digests = await self._store.digests()
        total = sum(digest.versions for digest in digests.values())
        seen = sum(digest.versions for number, digest in digests.items() if number < self._next)
        begun, begun_at = self._clock.monotonic(), seen
        for partition in sorted(number for number in digests if number >= self._next):
            async for rows in self._store.partition_rows(partition):
                await self._read(rows)
                seen += sum(len(row.versions) for row in rows)
                self._done = min(seen / max(total, 1), 1.0)
                share = (seen - begun_at) / max(total, 1)
                ahead = begun + share * self._options.scrub_seconds - self._clock.monotonic()
                if ahead > 0:
                    await self._clock.sleep(ahead)
            self._next = partition + 1
            await self._remember()
        self._finished_ms = self._clock.unixtime_ms()
        self._next = self._started_ms = self._bytes = 0
        self._done = 0.0
        await self._remember()

    async def _read(self, rows: Sequence[PartitionRow]) -> None:
        for row in rows:
            for version in row.versions:
                if version.state == ABORTED:
                    continue
                try:
                    self._bytes += await self._read_version(row, version.stamp, version.shard_index)
                except IntegrityError:
                    self._damaged += 1
                except NotFound:
                    continue  # overwritten or deleted meanwhile

    async def _read_version(self, row: PartitionRow, stamp: bytes, shard_index: int | None) -> int:
        """Bytes read. Raises `IntegrityError` for what does not verify."""
        held = await self._store.read(row.name, stamp=stamp, want_cell=True)
        if held and held[0].damaged:
            raise IntegrityError("damaged")
        size_bytes = sum(len(version.manifest) for version in held)
        if not held or shard_index is None or held[0].cell is not None:
            return size_bytes + sum(version.shard_bytes for version in held)
        async for chunk in self._store.read_cells(row.name, stamp, shard_index, 0, 0):
            size_bytes += sum(len(cell.data) for cell in chunk)
        return size_bytes

    async def _recall(self) -> None:
        raw = b""
        try:
            raw = await self._store.note(NOTE)
        except IntegrityError as error:
            _log.error("the place of the scrub is lost, so it begins anew: %s", error)
        if len(raw) == _PLACE.size:
            self._next, self._started_ms, self._bytes, self._finished_ms = _PLACE.unpack(raw)
        if not self._started_ms:
            self._started_ms = self._clock.unixtime_ms()

    async def _remember(self) -> None:
        place = _PLACE.pack(self._next, self._started_ms, self._bytes, self._finished_ms)
        await self._store.keep_note(NOTE, place)

    def tell(self, reply: pb.RepairStatusReply) -> None:
        """Fill in what this scrub has to say."""
        reply.scrub_started_unixtime_ms = self._started_ms
        reply.scrub_finished_unixtime_ms = self._finished_ms
        reply.scrub_done = self._done
        reply.scrub_bytes = self._bytes
        reply.scrub_damaged = self._damaged
