"""Reads of a disk store: rows of the index made into versions, each checksum verified on the way.

What memory holds is read in the event loop at once; the disk is read in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TypeVar, TypeVarTuple, Unpack

import lmdb
from coffre.cluster.errors import IntegrityError, NotFound, Unavailable
from coffre.cluster.names import ObjectName
from coffre.node.disk.ailments import is_passing
from coffre.node.disk.index import Index, partition_prefix
from coffre.node.disk.large_shards import LargeShardReader
from coffre.node.disk.marks import MarkView
from coffre.node.disk.open_shards import OpenShards
from coffre.node.disk.records import Record, decode_record, head_bytes, is_sound_cell
from coffre.node.disk.rows import DIGEST, Location, Row, decode_repair, decode_row, unseal
from coffre.node.disk.volumes import Volumes
from coffre.node.store import (
    ABORTED,
    ROWS_AT_ONCE,
    SETTLED,
    Entry,
    Listing,
    ListingEntry,
    Page,
    PageRow,
    PartitionDigest,
    PartitionRow,
    QueueRepair,
    StoredCell,
    StoredVersion,
    digest_xor,
    list_page,
    slot_of,
    votes,
)

__all__ = ["Reader"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")
_PAGE_BYTES_MAX = 2 << 20
_HEADS_AT_ONCE = 250  # rows; their heads take a MiB at most, but for those that are longer than usual
_HEAD_BYTES = 2048  # enough for most manifests; a longer one is read again, whole
_MOVED_TRIES = 8  # a record may move between the look at its row and the look at it
_REPORTED_MAX = 1024


class _Moved(Exception):
    """The volume of a record went away: its row says where it is now."""


class Reader:
    """`report` is told of each damaged shard or manifest, once in a while."""

    def __init__(
        self,
        index: Index,
        volumes: Volumes,
        open_shards: OpenShards,
        threads: ThreadPoolExecutor,
        report: Callable[[QueueRepair], None],
    ) -> None:
        self._index = index
        self._volumes = volumes
        self._open_shards = open_shards
        self._threads = threads
        self._report = report
        self._reported: set[tuple[bytes, bytes]] = set()  # name context, stamp
        self.damaged = 0
        self.closed = False

    async def _in_thread(self, function: Callable[[Unpack[_Arguments]], _T], *arguments: *_Arguments) -> _T:
        return await self._start(function, *arguments)

    def _start(
        self, function: Callable[[Unpack[_Arguments]], _T], *arguments: *_Arguments
    ) -> asyncio.Future[_T]:
        self._check_open()
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable("the store is closed")

    # ---------------------------------------------------------------- one object

    def row(self, name: ObjectName) -> Row | None:
        """Raises `IntegrityError`."""
        self._check_open()
        index = self._index
        with index.reading() as txn:
            key = index.find(txn, name)
            value = None if key is None else index.row(txn, key)
            return None if value is None or key is None else self._row(txn, name.tenant, key, value)

    def _row(self, txn: lmdb.Transaction[bytes], tenant: str, key: bytes, value: bytes) -> Row:
        """A row with what marks say about its entries."""
        row = decode_row(key, value)
        entries = row.entries
        if len(entries) == 1 and entries[0].state is SETTLED:
            return row
        marks = self._index.marks
        promoted = votes.promoted(entries, lambda writer: marks.get(txn, (tenant, writer)))
        return row if promoted is entries else tuple.__new__(Row, (row.partition, promoted))

    async def read(
        self, name: ObjectName, stamp: bytes, every: bool, want_cell: bool
    ) -> tuple[StoredVersion, ...]:
        for _ in range(_MOVED_TRIES):
            row = self.row(name)
            if row is None:
                return ()
            entries = row.entries
            if stamp:
                entries = tuple(entry for entry in entries if entry.stamp == stamp)
            elif not every:
                entries = votes.down_to_settled(entries)
            try:
                versions = []
                for entry in entries:
                    location = entry.record
                    if location is None:
                        versions.append(StoredVersion(entry.state, entry.stamp, was_locked=entry.was_locked))
                        continue
                    assert isinstance(location, Location)
                    raw = self._cached(location)
                    if raw is None:
                        raw = await self._in_thread(self._load, location)
                    versions.append(self._version(name.context(), row.partition, entry, raw, want_cell))
            except _Moved:
                continue
            return tuple(versions)
        raise IntegrityError("the volume of this object is missing")

    def _cached(self, location: Location) -> bytes | None:
        try:
            return self._volumes.read_cached(location.volume, location.offset, location.size_bytes)
        except OSError as error:
            return self._unreadable(location, error)

    def _load(self, location: Location) -> bytes:
        try:
            return self._volumes.read(location.volume, location.offset, location.size_bytes)
        except OSError as error:
            return self._unreadable(location, error)

    def _load_head(self, location: Location) -> bytes:
        """At least what precedes the cell."""
        volume, offset, size_bytes = location[:3]
        try:
            raw = self._volumes.read(volume, offset, min(size_bytes, _HEAD_BYTES))
            needed = head_bytes(raw)
            if len(raw) < needed <= size_bytes:
                raw = self._volumes.read(volume, offset, needed)
        except OSError as error:
            return self._unreadable(location, error)
        return raw

    def _load_heads(self, rows: Sequence[PageRow]) -> dict[tuple[int, int], bytes]:
        """What precedes the cells of the rows' newest versions, by volume and offset, as far as a few reads get
        it: neighbours are read together, and keys that were written in order are neighbours."""
        locations = [row.entries[0].record for row in rows]
        heads: dict[tuple[int, int], bytes] = {}
        span: list[Location] = []
        for location in sorted(at for at in locations if isinstance(at, Location)):
            gap_bytes = location.offset - span[-1].offset if span else 0
            if span and (location.volume != span[0].volume or gap_bytes > _HEAD_BYTES * 2):
                self._load_span(span, heads)
                span = []
            span.append(location)
        if span:
            self._load_span(span, heads)
        return heads

    def _load_span(self, span: Sequence[Location], heads: dict[tuple[int, int], bytes]) -> None:
        volume, start = span[0][:2]
        length = span[-1].offset + min(span[-1].size_bytes, _HEAD_BYTES) - start
        try:
            data = self._volumes.read(volume, start, length)
        except OSError as error:
            data = self._unreadable(span[0], error)
        for _, offset, size_bytes, *_ in span:
            heads[volume, offset] = data[offset - start : offset - start + min(size_bytes, _HEAD_BYTES)]

    def _unreadable(self, location: Location, error: OSError) -> bytes:
        """No bytes, which is damage, unless the volume was emptied and dropped meanwhile."""
        if location.volume not in self._volumes.table:
            raise _Moved from None
        if is_passing(error):
            raise Unavailable("this node has no file descriptors left") from None
        _log.error("volume %d cannot be read: %s", location.volume, error)
        return b""

    def _version(
        self, context: bytes, partition: int, entry: Entry, raw: bytes, want_cell: bool
    ) -> StoredVersion:
        record = self._record(context, entry, raw)
        if record is None:
            self._note_damage(context, partition, entry)
            return StoredVersion(
                entry.state, entry.stamp, entry.tombstone, shard_index=entry.shard_index, damaged=True
            )
        cell: StoredCell | None = None
        damaged = False
        large = record.large
        if want_cell and large is None and entry.shard_index is not None:
            data = raw[record.cell_offset :]
            if is_sound_cell(record, data):
                cell = StoredCell(0, record.cell_crc, data)
            else:
                damaged = True
                self._note_damage(context, partition, entry)
        return StoredVersion(
            entry.state,
            entry.stamp,
            entry.tombstone,
            record.manifest,
            record.mac,
            entry.placement or record.placement,
            entry.shard_index,
            record.cell_bytes if large is None else large.size_bytes,
            cell,
            damaged,
            entry.condemned,
        )

    @staticmethod
    def _record(context: bytes, entry: Entry, raw: bytes) -> Record | None:
        assert isinstance(entry.record, Location)
        try:
            record = decode_record(raw, entry.record.size_bytes)
        except IntegrityError:
            return None
        same = record.context == context and record.shard_index == entry.shard_index
        return record if same and record.tombstone == entry.tombstone else None

    def _note_damage(self, context: bytes, partition: int, entry: Entry) -> None:
        self.damaged += 1
        _log.error("the copy of a version on this node does not verify: %s", entry.stamp.hex())
        if len(self._reported) >= _REPORTED_MAX:
            self._reported.clear()
        if (context, entry.stamp) not in self._reported:
            self._reported.add((context, entry.stamp))
            tenant, bucket, key = context.split(b"\0", 2)
            name = ObjectName(tenant.decode(), bucket.decode(), key.decode())
            self._report(QueueRepair(name, partition, entry.stamp, entry.shard_index))

    def forget_reports(self) -> None:
        """A repair may have come and gone: report damage anew."""
        self._reported.clear()

    # ---------------------------------------------------------------- cells

    async def read_cells(
        self, name: ObjectName, stamp: bytes, shard_index: int, first: int, count: int
    ) -> AsyncIterator[Sequence[StoredCell]]:
        versions = await self.read(name, stamp, False, True)
        if not versions or versions[0].state == ABORTED or versions[0].shard_index != shard_index:
            raise NotFound("this node does not hold that shard")
        version = versions[0]
        if version.damaged:
            raise IntegrityError("the shard on this node does not verify")
        if version.cell is not None:
            if first == 0:
                yield (version.cell,)
            return
        try:
            reader, chunk, end = await self._in_thread(
                self._begin_large, name, stamp, shard_index, first, count
            )
            while chunk:
                first += len(chunk)
                ahead = self._start(reader.chunk, first, end) if first < end else None
                try:
                    yield chunk
                    chunk = [] if ahead is None else await ahead
                finally:
                    if ahead is not None:
                        ahead.cancel()
        except (IntegrityError, OSError) as error:
            if isinstance(error, OSError) and is_passing(error):
                raise Unavailable("this node has no file descriptors left") from None
            row = self.row(name)
            for entry in row.entries if row else ():
                if row is not None and entry.stamp == stamp and entry.state != ABORTED:
                    self._note_damage(name.context(), row.partition, entry)
            raise IntegrityError(f"the shard on this node does not verify: {error}") from error

    def _begin_large(
        self, name: ObjectName, stamp: bytes, shard_index: int, first: int, count: int
    ) -> tuple[LargeShardReader, Sequence[StoredCell], int]:
        """Open a large shard, and read the first chunk at once: a short range costs one thread's turn. Blocks.

        Returns where the range ends in this shard, too.
        """
        reader = self._open_large(name, stamp, shard_index)
        end = min(first + count, reader.cell_count) if count else reader.cell_count
        return reader, reader.chunk(first, end) if first < end else [], end

    def _open_large(self, name: ObjectName, stamp: bytes, shard_index: int) -> LargeShardReader:
        for _ in range(_MOVED_TRIES):
            row = self.row(name)
            for entry in row.entries if row else ():
                if entry.stamp == stamp and isinstance(entry.record, Location):
                    try:
                        record = self._record(name.context(), entry, self._load(entry.record))
                    except _Moved:
                        break
                    if record is None or record.large is None or record.large.file != entry.record.file:
                        raise IntegrityError("the record of a large shard does not verify")
                    return self._open_shards.get(name.tenant, shard_index, record.large)
        raise NotFound("this node does not hold that shard any more")

    # ---------------------------------------------------------------- many objects

    async def buckets(self, tenant: str, after: bytes, limit: int) -> tuple[str, ...]:
        def walk() -> tuple[str, ...]:
            with self._index.reading() as txn:
                return tuple(islice(self._index.buckets(txn, tenant, after), limit))

        return await self._in_thread(walk)

    async def list(
        self,
        tenant: str,
        bucket: str,
        prefix: str,
        after: bytes,
        after_prefix: bool,
        delimiter: str,
        limit: int,
    ) -> Listing:
        def walk() -> tuple[Page, dict[bytes, int]]:
            partitions: dict[bytes, int] = {}
            with self._index.reading() as txn:
                code = self._index.root(txn, tenant, bucket)
                mark_of = MarkView(self._index.marks, txn, tenant)

                def scan(start: bytes) -> Iterator[tuple[bytes, tuple[Entry, ...]]]:
                    if code is not None:
                        for key, _, row in self._index.scan(txn, code, start):
                            partitions[key] = row.partition
                            yield key, votes.promoted(row.entries, mark_of)

                page = list_page(
                    scan,
                    prefix.encode(),
                    after=after,
                    after_prefix=after_prefix,
                    delimiter=delimiter.encode(),
                    limit=limit,
                )
            return page, partitions

        def fill() -> Listing:
            for _ in range(_MOVED_TRIES):
                page, partitions = walk()
                try:
                    return self._listing(tenant, bucket, page, partitions)
                except _Moved:
                    continue
            raise IntegrityError("a volume of this node is missing")

        return await self._in_thread(fill)

    def _listing(self, tenant: str, bucket: str, page: Page, partitions: dict[bytes, int]) -> Listing:
        entries: list[ListingEntry] = []
        size_bytes = 0
        prefix = b"%s\0%s\0" % (tenant.encode(), bucket.encode())
        heads: dict[tuple[int, int], bytes] = {}
        for place, row in enumerate(page.rows):
            if place % _HEADS_AT_ONCE == 0:
                heads = self._load_heads(page.rows[place : place + _HEADS_AT_ONCE])
            versions = self.versions(prefix + row.key, Row(partitions[row.key], row.entries), heads)
            size_bytes += len(row.key) + sum(len(version.manifest) + 64 for version in versions)
            if entries and size_bytes > _PAGE_BYTES_MAX:
                return Listing(tuple(entries), more=True)
            entries.append(ListingEntry(row.key.decode(), versions, row.common_prefix.decode()))
        return Listing(tuple(entries), page.more)

    def versions(
        self, context: bytes, row: Row, heads: Mapping[tuple[int, int], bytes]
    ) -> tuple[StoredVersion, ...]:
        """All versions of a name's row, without cells; `heads` as `_load_heads` found them, those that it did
        not are loaded. Blocks. Raises `_Moved`."""
        found = []
        for entry in row.entries:
            location = entry.record
            if not isinstance(location, Location):
                found.append(StoredVersion(entry.state, entry.stamp, was_locked=entry.was_locked))
                continue
            raw = heads.get(location[:2], b"")
            if not raw or (location.size_bytes > _HEAD_BYTES and head_bytes(raw) > len(raw)):
                raw = self._load_head(location)
            found.append(self._version(context, row.partition, entry, raw, False))
        return tuple(found)

    async def partition_rows(
        self, partition: int, slot: int, slots: int
    ) -> AsyncIterator[Sequence[PartitionRow]]:
        start = partition_prefix(partition)
        while start:
            rows, start = await self._in_thread(self._some_rows, partition, start, slot, slots)
            yield rows

    def _some_rows(
        self, partition: int, start: bytes, slot: int, slots: int
    ) -> tuple[Sequence[PartitionRow], bytes]:
        """Rows from the key `start` on, and the key to go on from, empty at the end."""
        prefix = partition_prefix(partition)
        keys: list[bytes] = []
        following = b""
        with self._index.reading() as txn, txn.cursor(db=self._index.partitions) as cursor:
            found = cursor.set_range(start)
            while found and cursor.key().startswith(prefix):
                if len(keys) == ROWS_AT_ONCE:
                    following = cursor.key()
                    break
                keys.append(cursor.key()[2:])
                found = cursor.next()
            rows = [self._partition_row(txn, key, slot, slots) for key in keys]
        return [row for row in rows if row is not None], following

    def _partition_row(
        self, txn: lmdb.Transaction[bytes], key: bytes, slot: int, slots: int
    ) -> PartitionRow | None:
        """A row of the partition; None for one of another slot, or that does not verify: it is noted as damage."""
        name = self._index.name_of(txn, key)
        if slots > 1 and slot_of(name.context(), slots) != slot:
            return None
        value = self._index.row(txn, key)
        try:
            row = None if value is None else self._row(txn, name.tenant, key, value)
        except IntegrityError as error:
            self.damaged += 1
            self._index.ailments.row_damaged()
            _log.error("%s", error)
            return None
        return None if row is None else PartitionRow(name, votes.bare(row.entries))

    def digests(self, before_ms: int | None, now_ms: int) -> Mapping[int, PartitionDigest]:
        """Of every partition with versions. Raises `IntegrityError`."""
        found: dict[int, PartitionDigest] = {}
        with ExitStack() as exits:
            with self._index.recent.lock:
                txn = exits.enter_context(self._index.reading())
                young = {} if before_ms is None else self._index.recent.since(before_ms, now_ms)
            for key, value in exits.enter_context(txn.cursor(db=self._index.digests)):
                digest, versions = DIGEST.unpack(unseal(key, value))
                if versions:
                    partition = int.from_bytes(key, "big")
                    if partition in young:
                        digest = digest_xor(digest, young[partition])
                    found[partition] = PartitionDigest(digest, versions)
        return found

    async def repair_queue(self) -> AsyncIterator[QueueRepair]:
        start = b""
        while True:
            repairs, start = await self._in_thread(self._some_repairs, start)
            for repair in repairs:
                yield repair
            if not start:
                return

    def _some_repairs(self, start: bytes) -> tuple[Sequence[QueueRepair], bytes]:
        repairs: list[QueueRepair] = []
        with self._index.reading() as txn, txn.cursor(db=self._index.repairs) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found:
                key, value = cursor.item()
                if len(repairs) == ROWS_AT_ONCE:
                    return repairs, key
                try:
                    repairs.append(decode_repair(key, value)[0])
                except IntegrityError as error:
                    _log.error("a queued repair is lost: %s", error)
                found = cursor.next()
        return repairs, b""
