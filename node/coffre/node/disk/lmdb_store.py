"""The store of one node on a disk: LMDB index, volumes, and large shards. docs/formats/node.md describes its
files."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVarTuple, Unpack

from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    ResourceExhausted,
    Unavailable,
)
from coffre.cluster.names import ObjectName
from coffre.node.disk.chores import (
    CommitLarge,
    DropStaged,
    FreeLarge,
    KeepNote,
    Nothing,
    OpenLarge,
    ReportDamage,
)
from coffre.node.disk.committer import Committer
from coffre.node.disk.index import partition_prefix
from coffre.node.disk.large_shards import LargeShardWriter
from coffre.node.disk.opening import Parts, StoreOwner, open_directory
from coffre.node.disk.reader import Reader
from coffre.node.disk.reclaim import Reclaimer
from coffre.node.disk.rows import (
    DIGEST,
    LargeFile,
    LargeState,
    note_key,
    staging_key,
    unseal,
)
from coffre.node.store import (
    Listing,
    Mark,
    Mutation,
    Outcome,
    PartitionDigest,
    PartitionRow,
    QueueRepair,
    Settle,
    StagedShard,
    StagedWriter,
    StoredCell,
    StoredVersion,
    StoreIdentity,
    StoreOptions,
    StoreStatus,
    check_stage,
)

__all__ = ["LmdbStore"]

_log = logging.getLogger(__name__)
_THREADS = 4
_HUNG_SECONDS = 10.0  # so long no sync takes on a disk that is well
_Arguments = TypeVarTuple("_Arguments")


class LmdbStore:
    """`ShardStore` on a disk. Make one with `open`, in the event loop that will use it."""

    def __init__(self, parts: Parts, options: StoreOptions, clock: Clock) -> None:
        self._clock = clock
        self._parts = parts
        self._closed = False
        self._threads = ThreadPoolExecutor(_THREADS, "coffre-store")
        self._comparing = ThreadPoolExecutor(1, "coffre-digests")  # they wait for a commit; others need not
        self._committer = Committer(
            parts.index,
            parts.volumes,
            parts.counters,
            parts.space,
            options,
            clock,
            parts.large,
            parts.open_shards,
        )
        self._reader = Reader(parts.index, parts.volumes, parts.open_shards, self._threads, self._report)
        self._reclaimer = Reclaimer(
            parts.index, parts.volumes, self._committer, self._threads, clock, self._report, options
        )
        self._loop = asyncio.get_running_loop()
        self._committer.start()

    @classmethod
    async def open(
        cls, path: Path | str, options: StoreOptions, clock: Clock, owner: StoreOwner | None = None
    ) -> LmdbStore:
        """Open the data directory at `path`, or make one; mends what a kill left.

        `owner`: the node whose store it has to be, and will be if it is made now. None: whoever's it is.

        Raises `ConfigurationError`: in use by another process, another node's, of another format, or not readable.
        """
        loop = asyncio.get_running_loop()
        parts = await loop.run_in_executor(None, open_directory, Path(path), options, owner)
        return cls(parts, options, clock)

    async def close(self) -> None:
        """Finish what was accepted, sync, and let go of the disk. Later calls raise `Unavailable`."""
        if self._closed:
            return
        self._closed = self._reader.closed = True
        await self._committer.close()
        await self._loop.run_in_executor(None, self._comparing.shutdown)
        await self._loop.run_in_executor(None, self._threads.shutdown)
        self._parts.volumes.close()
        self._parts.open_shards.clear()
        self._parts.index.close()
        os.close(self._parts.lock)

    @property
    def found(self) -> StoreIdentity | None:
        """What was on the disk before this process wrote anything; None when the directory was empty."""
        commits = self._parts.index.commits_found
        return StoreIdentity(self._parts.store_id, commits) if commits else None

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    def _check_room(self, size_bytes: int) -> None:
        """Raise what a write of a large shard is refused with, unless there is room for so much."""
        ailments = self._parts.ailments
        if ailments.failure:
            raise Unavailable(ailments.failure)
        try:
            room_bytes = self._parts.space.room_bytes()
        except OSError as error:
            raise ailments.refusal(error) from error
        if room_bytes < size_bytes:
            raise ResourceExhausted("the disk of this node is full")

    def _report(self, repair: QueueRepair) -> None:
        """Queue damage for repair; from any thread."""
        self._loop.call_soon_threadsafe(self._committer.post, ReportDamage(repair))

    # ---------------------------------------------------------------- mutations, reads

    async def apply(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        self._check_open()
        lazy = all(isinstance(mutation, (Settle, Mark)) for mutation in mutations)
        return await self._committer.run(mutations, lazy=lazy)

    async def drain(self) -> None:
        self._check_open()
        await self._committer.drain()

    async def read(
        self, name: ObjectName, *, stamp: bytes = b"", every: bool = False, want_cell: bool = False
    ) -> tuple[StoredVersion, ...]:
        self._check_open()
        return await self._reader.read(name, stamp, every, want_cell)

    async def read_cells(
        self, name: ObjectName, stamp: bytes, shard_index: int, first_segment: int, segment_count: int
    ) -> AsyncIterator[Sequence[StoredCell]]:
        self._check_open()
        async for chunk in self._reader.read_cells(name, stamp, shard_index, first_segment, segment_count):
            yield chunk

    async def buckets(self, tenant: str, *, after: bytes = b"", limit: int = 1000) -> tuple[str, ...]:
        return await self._reader.buckets(tenant, after, limit)

    async def list(
        self,
        tenant: str,
        bucket: str,
        prefix: str,
        *,
        after: bytes = b"",
        after_prefix: bool = False,
        delimiter: str = "",
        limit: int = 1000,
    ) -> Listing:
        self._check_open()
        return await self._reader.list(tenant, bucket, prefix, after, after_prefix, delimiter, limit)

    async def partition_digest(self, partition: int) -> PartitionDigest:
        self._check_open()
        index, prefix = self._parts.index, partition_prefix(partition)
        with index.reading() as txn:
            value = txn.get(prefix, db=index.digests)
        if value is None:
            return PartitionDigest()
        return PartitionDigest(*DIGEST.unpack(unseal(prefix, value)))

    async def digests(self, before_ms: int | None = None) -> Mapping[int, PartitionDigest]:
        self._check_open()
        now_ms = self._clock.unixtime_ms()
        return await self._loop.run_in_executor(self._comparing, self._reader.digests, before_ms, now_ms)

    async def partition_rows(
        self, partition: int, *, slot: int = 0, slots: int = 1
    ) -> AsyncIterator[Sequence[PartitionRow]]:
        self._check_open()
        async for rows in self._reader.partition_rows(partition, slot, slots):
            yield rows

    async def repair_queue(self) -> AsyncIterator[QueueRepair]:
        self._check_open()
        await self._flush()
        async for repair in self._reader.repair_queue():
            yield repair

    async def _flush(self) -> None:
        """Return when reports of damage up to now are durable."""
        await asyncio.sleep(0)  # reports come by way of the loop
        await self._committer.run([Nothing()])

    # ---------------------------------------------------------------- staging

    async def stage(self, tenant: str, data_id: bytes, shard_index: int) -> StagedWriter:
        self._check_open()
        check_stage(data_id, shard_index)
        self._check_room(1)
        (number,) = await self._committer.run([OpenLarge()])
        writer = _StagedWriter(self, number, staging_key(tenant, data_id, shard_index))
        await writer.open(tenant, data_id, shard_index)
        return writer

    async def drop_staged(self, tenant: str, data_id: bytes, shard_index: int) -> None:
        self._check_open()
        check_stage(data_id, shard_index)
        await self._committer.run([DropStaged(staging_key(tenant, data_id, shard_index))])

    async def identity(self) -> StoreIdentity:
        self._check_open()
        return StoreIdentity(self._parts.store_id, self._parts.index.commits())

    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
        self._check_open()
        await self._committer.run([KeepNote(title, note)], lazy=not sync)

    async def note(self, title: str) -> bytes:
        self._check_open()
        key, index = note_key(title), self._parts.index
        with index.reading() as txn:
            value = txn.get(key, db=index.meta)
        return b"" if value is None else unseal(key, value)

    async def reclaim(self, *, expire: bool = True) -> int:
        self._check_open()
        self._reader.forget_reports()
        return await self._reclaimer.step(expire=expire)

    # ---------------------------------------------------------------- status

    async def probe(self) -> None:
        """Write a little, and wait until it is synced: a disk that failed is known before anybody needs it."""
        self._check_open()
        with suppress(CoffreError):
            await self._committer.run([Nothing()])

    async def status(self) -> StoreStatus:
        self._check_open()
        parts, ailments = self._parts, self._parts.ailments
        counters = self._committer.counters
        repairs = free_bytes = room_bytes = size_bytes = 0
        with suppress(IntegrityError), parts.index.reading() as txn:
            repairs = txn.stat(parts.index.repairs)["entries"]
        with suppress(OSError):
            free_bytes, room_bytes = parts.space.free_bytes(), parts.space.room_bytes()
            size_bytes = parts.space.size_bytes()
        cannot_write, waiting = ailments.cannot_write(), self._committer.waiting_seconds
        if not cannot_write and waiting > _HUNG_SECONDS:
            cannot_write = f"its disk has not answered for {waiting:.0f} s: look at the machine's log (dmesg)"
        return StoreStatus(
            objects=counters.objects,
            shards=counters.shards,
            live_bytes=sum(state.live_bytes for state in list(parts.volumes.table.values()))
            + parts.space.large_bytes,
            disk_bytes=parts.space.used_bytes(),
            free_bytes=free_bytes,
            reserve_bytes=parts.space.reserve_bytes,
            size_bytes=size_bytes,
            writable=room_bytes > 0 and not cannot_write,
            cannot_write=cannot_write,
            damaged=parts.damaged + self._reader.damaged,
            index_damaged=ailments.index_damaged,
            repair_queue=repairs,
            syncs=self._committer.syncs,
        )


class _StagedWriter:
    """`StagedWriter` of a disk store."""

    def __init__(self, store: LmdbStore, number: int, owner: bytes) -> None:
        self._store = store
        self._number = number
        self._owner = owner
        self._writer: LargeShardWriter | None = None
        self._writing: Future[None] | None = None
        self._counted_bytes = 0  # what the store believes to have on its disk of this shard

    async def open(self, tenant: str, data_id: bytes, shard_index: int) -> None:
        directory = self._store._parts.large
        try:
            self._writer = await self._store._loop.run_in_executor(
                self._store._threads,
                LargeShardWriter,
                directory,
                self._number,
                tenant,
                data_id,
                shard_index,
            )
        except OSError as error:
            raise self._store._parts.ailments.refusal(error) from error
        self._count(self._writer.file_bytes)

    async def write(self, cells: Sequence[StoredCell]) -> None:
        writer = self._open_writer()
        writer.check(cells)
        self._store._check_room(sum(len(cell.data) for cell in cells))
        buffers = writer.append(cells)
        self._count(writer.file_bytes)
        for filled in buffers:
            await self._written()
            self._begin(writer.write, filled)

    async def commit(self) -> StagedShard:
        writer = self._open_writer()
        await self._written()
        self._begin(writer.finish)
        await self._written()
        self._count(writer.file_bytes)
        file = LargeFile(
            LargeState.STAGED,
            0,
            writer.cell_count,
            writer.size_bytes,
            writer.file_bytes,
            writer.shard_hash,
            self._owner,
        )
        await self._store._committer.run([CommitLarge(self._number, file)])
        self._writer = None
        return StagedShard(writer.cell_count, writer.size_bytes, writer.shard_hash)

    async def discard(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._writing is not None:
            # The thread cannot be called back; and what it says now matters to nobody.
            await asyncio.gather(asyncio.wrap_future(self._writing), return_exceptions=True)
        if not self._store._closed:
            self._count(writer.written_bytes)  # as many as the one who unlinks it will find
            await self._store._committer.run([FreeLarge(self._number)])

    def _count(self, size_bytes: int) -> None:
        self._store._parts.space.add_large(size_bytes - self._counted_bytes)
        self._counted_bytes = size_bytes

    def _begin(self, step: Callable[[Unpack[_Arguments]], None], *arguments: *_Arguments) -> None:
        """Start what blocks, while the next cells are on their way."""
        self._writing = self._store._threads.submit(step, *arguments)

    async def _written(self) -> None:
        """Wait for what was begun last; once it has failed, so does every later call."""
        if self._writing is None:
            return
        try:
            if self._writing.done():  # mostly it is, and nobody had to wake the loop for it
                self._writing.result()
            else:
                await asyncio.shield(asyncio.wrap_future(self._writing))
        except OSError as error:
            raise self._store._parts.ailments.refusal(error) from error

    def _open_writer(self) -> LargeShardWriter:
        self._store._check_open()
        if self._writer is None:
            raise Unavailable("this shard is not being staged any more")
        return self._writer
