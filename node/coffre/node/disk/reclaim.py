"""Freeing the space of what was deleted: expired staging, dead volumes, and volumes that are mostly dead.

A record moves only after it verified, and the volume that it left goes only after the copy was read back and
the index points to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from coffre.cluster.clock import Clock
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX
from coffre.node.disk.chores import Copy, DropStaged, DropVolume, MoveRecords
from coffre.node.disk.committer import Committer
from coffre.node.disk.index import Index
from coffre.node.disk.records import HEADER_BYTES, decode_record, is_sound_cell, record_bytes_at
from coffre.node.disk.rows import Location, decode_large, decode_row, unseal
from coffre.node.disk.volumes import FILE_HEADER_BYTES, Volumes
from coffre.node.store import RETRY_SECONDS, QueueRepair, StoreOptions

__all__ = ["Reclaimer"]

_log = logging.getLogger(__name__)
_PIECE_BYTES = 1 << 20
_STAGED_AT_ONCE = 256


class Reclaimer:
    """One step at a time, for the event loop; the disk is read in threads, the index changed by the
    committer."""

    def __init__(
        self,
        index: Index,
        volumes: Volumes,
        committer: Committer,
        threads: ThreadPoolExecutor,
        clock: Clock,
        report: Callable[[QueueRepair], None],
        options: StoreOptions,
    ) -> None:
        self._index = index
        self._volumes = volumes
        self._committer = committer
        self._threads = threads
        self._clock = clock
        self._report = report
        self._kept_ms = int(max(options.staging_expiry, RETRY_SECONDS) * 1000)
        self._lock = asyncio.Lock()
        self._stuck: dict[int, int] = {}  # volumes with damage: what lived in them when it was met

    async def step(self, *, expire: bool) -> int:
        """Free something: the bytes freed, 0 when there is nothing to do."""
        async with self._lock:
            return (expire and await self._expire()) or await self._drop() or await self._empty()

    async def _expire(self) -> int:
        loop = asyncio.get_running_loop()
        owners = await loop.run_in_executor(self._threads, self._expired)
        if not owners:
            return 0
        return sum(await self._committer.run([DropStaged(owner, expired=True) for owner in owners]))

    def _expired(self) -> list[bytes]:
        now_ms = self._clock.unixtime_ms()
        last_ms = now_ms + self._kept_ms + STAMP_AHEAD_MS_MAX
        owners: list[bytes] = []
        with self._index.reading() as txn, txn.cursor(db=self._index.staging) as cursor:
            for owner, value in cursor:
                number = unseal(owner, value)
                row = txn.get(number, db=self._index.large)
                if row is None or not now_ms < decode_large(number, row).expires_ms <= last_ms:
                    owners.append(owner)
                    if len(owners) == _STAGED_AT_ONCE:
                        break
        return owners

    async def _drop(self) -> int:
        """Unlink a sealed volume in which nothing lives."""
        for number, state in list(self._volumes.table.items()):
            if not state.live_bytes and number != self._committer.counters.volumes:
                (freed,) = await self._committer.run([DropVolume(number)])
                if freed:
                    return int(freed)
        return 0

    async def _empty(self) -> int:
        """Move what lives out of a sealed volume that is more than half dead, and unlink it."""
        for number, state in list(self._volumes.table.items()):
            mostly_dead = state.live_bytes * 2 < state.length - FILE_HEADER_BYTES
            stuck = self._stuck.get(number) == state.live_bytes
            if number == self._committer.counters.volumes or not mostly_dead or stuck:
                continue
            moved_bytes = await self._move_all(number, state.length)
            (length,) = await self._committer.run([DropVolume(number)])
            if length:
                self._stuck.pop(number, None)
                return max(int(length) - moved_bytes, 1)
            self._stuck[number] = (
                state.live_bytes
                if number not in self._volumes.table
                else (self._volumes.table[number].live_bytes)
            )
        return 0

    async def _move_all(self, number: int, length: int) -> int:
        loop = asyncio.get_running_loop()
        offset, moved_bytes = FILE_HEADER_BYTES, 0
        while offset < length:
            copies, offset = await loop.run_in_executor(self._threads, self._piece, number, offset, length)
            if copies:
                moved_bytes += sum(await self._committer.run([MoveRecords(copies)]))
        return moved_bytes

    def _piece(self, number: int, offset: int, length: int) -> tuple[list[Copy], int]:
        """The live records of about a MiB from `offset` on, and where to go on; `length` ends the volume."""
        copies: list[Copy] = []
        place = 0
        try:
            data = self._volumes.read(number, offset, min(_PIECE_BYTES, length - offset))
            while place < len(data):
                if len(data) - place < HEADER_BYTES and offset + len(data) < length:
                    break
                size_bytes = record_bytes_at(data, place)
                raw = data[place : place + size_bytes]
                if len(raw) < size_bytes:
                    if place:
                        break
                    raw = self._volumes.read(number, offset, size_bytes)
                copy = self._live(number, offset + place, raw)
                if copy is not None:
                    copies.append(copy)
                place += size_bytes
        except (IntegrityError, OSError) as error:
            _log.error("volume %d cannot be emptied past %d: %s", number, offset + place, error)
            return copies, length
        return copies, offset + place if place else length

    def _live(self, number: int, offset: int, raw: bytes) -> Copy | None:
        """The copy to make of a record; None when its row does not point to it. Raises `IntegrityError`."""
        record = decode_record(raw, len(raw))
        tenant, bucket, key = record.context.split(b"\0", 2)
        name = ObjectName(tenant.decode(), bucket.decode(), key.decode())
        with self._index.reading() as txn:
            row_key = self._index.find(txn, name)
            value = None if row_key is None else self._index.row(txn, row_key)
        if row_key is None or value is None:
            return None
        row = decode_row(row_key, value)
        for entry in row.entries:
            place = entry.record
            if isinstance(place, Location) and (place.volume, place.offset) == (number, offset):
                if is_sound_cell(record, raw[record.cell_offset :]):
                    return Copy(row_key, entry.stamp, place, raw)
                self._report(QueueRepair(name, row.partition, entry.stamp, entry.shard_index))
        return None
