"""Group commit: one thread takes all that waits, makes it durable in one go, and resolves the callers.

Callers and their event loop only queue; what a batch does is in coffre.node.transaction.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, IntegrityError, InternalError, ResourceExhausted, Unavailable
from coffre.node.disk.chores import Chore, ForgetFiles
from coffre.node.disk.index import Index
from coffre.node.disk.large_shards import large_path
from coffre.node.disk.open_shards import OpenShards
from coffre.node.disk.rows import Counters
from coffre.node.disk.transaction import Transaction
from coffre.node.disk.volumes import Volumes
from coffre.node.store import (
    Abort,
    Accept,
    Collect,
    Condemn,
    Drop,
    DropRepair,
    Forget,
    Lock,
    Mark,
    Mutation,
    QueueRepair,
    Refuse,
    Restore,
    Settle,
    StoreOptions,
)

__all__ = ["Committer", "DiskSpace"]

_log = logging.getLogger(__name__)
_COMPANY_SECONDS = 0.01  # how long settles alone wait for something that needs a sync
_BATCH_ITEMS_MAX = 4096
_BATCH_BYTES_MAX = 16 << 20
_ITEM_BYTES = 512  # what a queued item is taken to weigh beside its cell and manifest
_FULL_BYTES = 1 << 20  # with less free space, a failed write is a full disk
_MUTATIONS = (
    *(Accept, Mark, Settle, Abort, QueueRepair, DropRepair),
    *(Restore, Refuse, Lock, Drop, Forget, Condemn, Collect),
)

Item = Mutation | Chore


class DiskSpace:
    """What the store takes on its disk, and what ordinary writes may still take. For any thread."""

    def __init__(self, root: Path, options: StoreOptions, volumes: Volumes, index: Index) -> None:
        self._root = root
        self._options = options
        self._volumes = volumes
        self._index = index
        self._lock = threading.Lock()
        self.large_bytes = 0

    def add_large(self, size_bytes: int) -> None:
        """Count the bytes of a large file that was written, or with a negative size, unlinked."""
        with self._lock:
            self.large_bytes += size_bytes

    def used_bytes(self) -> int:
        """Bytes of volumes, large files and index on this disk."""
        volume_bytes = sum(state.length for state in list(self._volumes.table.values()))
        return volume_bytes + self.large_bytes + self._index.used_bytes()

    def free_bytes(self) -> int:
        """Free space of the disk, or what is left of the quota, whichever is less."""
        stat = os.statvfs(self._root)
        free = stat.f_bavail * stat.f_frsize
        capacity = self._options.capacity_bytes
        return free if capacity is None else max(min(free, capacity - self.used_bytes()), 0)

    def is_full(self) -> bool:
        """Whether the disk itself, whatever the quota, has next to nothing left."""
        stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize < _FULL_BYTES

    def size_bytes(self) -> int:
        """The whole disk, or the quota, whichever is less."""
        stat = os.statvfs(self._root)
        size = stat.f_blocks * stat.f_frsize
        capacity = self._options.capacity_bytes
        return size if capacity is None else min(size, capacity)

    @property
    def reserve_bytes(self) -> int:
        """What only deletes may use. A small quota keeps an eighth of itself as its reserve."""
        reserve, capacity = self._options.reserve_bytes, self._options.capacity_bytes
        return reserve if capacity is None else min(reserve, capacity // 8)

    def room_bytes(self) -> int:
        """What is free above the reserve."""
        return self.free_bytes() - self.reserve_bytes


class _Job:
    __slots__ = ("error", "future", "items", "lazy", "results", "size_bytes")

    def __init__(
        self, items: Sequence[Item], future: asyncio.Future[list[Any]] | None, size_bytes: int, lazy: bool
    ) -> None:
        self.items = items
        self.future = future
        self.size_bytes = size_bytes
        self.lazy = lazy
        self.results: list[Any] = []
        self.error: Exception | None = None


class Committer:
    """Queue and thread. `run` and `post` are for the event loop that `start` was called in."""

    def __init__(
        self,
        index: Index,
        volumes: Volumes,
        counters: Counters,
        space: DiskSpace,
        options: StoreOptions,
        clock: Clock,
        large_directory: Path,
        open_shards: OpenShards,
    ) -> None:
        self._index = index
        self._volumes = volumes
        self._space = space
        self._options = options
        self._clock = clock
        self._large_directory = large_directory
        self._open_shards = open_shards
        self._wakeup = threading.Condition(threading.Lock())
        self._queue: deque[_Job] = deque()
        self._urgent = 0
        self._closing = False
        self._queued_bytes = 0
        self._waiting: deque[_Job] = deque()  # for room in the queue
        self._unlinked: list[int] = []
        self._ailments = index.ailments
        self._begun: float | None = None  # when the batch that is under way was taken up
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="coffre-committer", daemon=True)
        self.counters = counters
        self.syncs = 0

    def start(self) -> None:
        """Begin to take batches; their outcomes are set in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    # ---------------------------------------------------------------- the callers' side

    async def run(self, items: Sequence[Item], *, lazy: bool = False) -> list[Any]:
        """Queue `items`, wait until they are durable, and return what became of each, in order.

        Raises `ResourceExhausted` when they alone are larger than the queue, `Unavailable` after `close`.
        """
        size_bytes = sum(map(_weight, items))
        limit = self._options.queue_bytes
        if size_bytes > limit:
            raise ResourceExhausted(f"one call may bring {limit} bytes at most; this one has {size_bytes}")
        assert self._loop is not None
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        job = _Job(items, future, size_bytes, lazy)
        if self._waiting or self._queued_bytes + size_bytes > limit:
            self._waiting.append(job)
        else:
            self._submit(job)
        return await future

    async def drain(self) -> None:
        """Return when everything that was queued before is decided: durable, or refused. It asks for no sync itself.

        Raises `Unavailable` after `close`.
        """
        await self.run(())

    def post(self, item: Chore) -> None:
        """Queue a chore that nobody waits for."""
        self._submit(_Job((item,), None, 0, True))

    def _submit(self, job: _Job) -> None:
        with self._wakeup:
            if self._closing:
                if job.future is not None:
                    job.future.set_exception(Unavailable("the store is closed"))
                return
            self._queued_bytes += job.size_bytes
            self._queue.append(job)
            if not job.lazy:
                self._urgent += 1
            if not job.lazy or len(self._queue) == 1:
                self._wakeup.notify()

    def _release(self, size_bytes: int) -> None:
        """Let those in who waited for room, in the order in which they came."""
        self._queued_bytes -= size_bytes
        waiting = self._waiting
        while waiting and self._queued_bytes + waiting[0].size_bytes <= self._options.queue_bytes:
            job = waiting.popleft()
            if job.future is not None and not job.future.cancelled():
                self._submit(job)

    async def close(self) -> None:
        """Finish what is queued; the thread ends."""
        assert self._loop is not None
        with self._wakeup:
            self._closing = True
            self._wakeup.notify()
        await self._loop.run_in_executor(None, self._thread.join)

    @property
    def waiting_seconds(self) -> float:
        """For how long the batch that is under way has waited for the disk; 0 when none is."""
        begun = self._begun
        return 0.0 if begun is None else self._clock.monotonic() - begun

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            jobs = self._take()
            if not jobs:
                return
            self._begun = self._clock.monotonic()
            self._commit(jobs)
            self._begun = None
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._resolve, jobs)

    def _take(self) -> list[_Job]:
        """Wait for work; all that waits, up to a bound. Empty: the store closes."""
        with self._wakeup:
            while not self._queue and not self._closing:
                self._wakeup.wait()
            if not self._urgent and not self._closing:
                self._wakeup.wait_for(lambda: self._urgent or self._closing, _COMPANY_SECONDS)
            jobs: list[_Job] = []
            items = size_bytes = 0
            while self._queue and items < _BATCH_ITEMS_MAX and size_bytes < _BATCH_BYTES_MAX:
                job = self._queue.popleft()
                self._urgent -= not job.lazy
                items += len(job.items)
                size_bytes += job.size_bytes
                jobs.append(job)
            return jobs

    def _commit(self, jobs: list[_Job]) -> None:
        """Make a batch durable, or give each of its jobs an error."""
        if not any(job.items for job in jobs):
            return  # who waits for what came before
        if self._ailments.failure:
            _fail(jobs, Unavailable(self._ailments.failure))
            return
        try:
            self._index.grow_if_needed()
            while not self._try(jobs):
                self._index.grow()
        except lmdb.DiskError as error:
            _fail(jobs, ResourceExhausted(f"the disk of this node is full: {error}"))
        except OSError as error:
            _fail(jobs, self._ailments.refusal(error))
        except lmdb.Error as error:
            if self._space.is_full() and not isinstance(error, lmdb.PanicError):
                # LMDB calls a short write an input/output error; the pages written so far belong to nobody.
                _fail(jobs, ResourceExhausted("the disk of this node is full"))
            else:
                self._ailments.index_failed(error)
                _fail(jobs, Unavailable(self._ailments.failure))
        except Exception as error:  # noqa: BLE001 - its callers must hear of it
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
                return
            _log.exception("a mutation failed")
            if isinstance(error, IntegrityError):
                self._ailments.row_damaged()
            kept = (
                error
                if isinstance(error, CoffreError)
                else InternalError(f"the store failed ({type(error).__name__})")
            )
            _fail(jobs, kept)

    def _try(self, jobs: list[_Job]) -> bool:
        """One transaction. False when the map was full; everything is undone then, as with every
        exception."""
        room_bytes = self._space.room_bytes()
        tx = Transaction(
            self._index,
            self._volumes,
            self.counters,
            self._options,
            room_bytes,
            self._clock.unixtime_ms(),
        )
        try:
            for job in jobs:
                job.results = [
                    tx.apply(item) if isinstance(item, _MUTATIONS) else item.run(tx) for item in job.items
                ]
            if self._unlinked:
                ForgetFiles(self._unlinked).run(tx)
            tx.commit()
        except BaseException as error:
            tx.abort()
            if isinstance(error, lmdb.MapFullError):
                return False
            raise
        self.counters = tx.counters
        self.syncs += tx.syncs
        self._unlinked = []
        self._after(tx)
        return True

    def _after(self, tx: Transaction) -> None:
        """Unlink what the commit freed. A crash before leaves it to the next start."""
        for number in tx.dropped:
            self._volumes.forget(number)
            self._unlink(self._volumes.path(number))
        for number in tx.large.unlinked:
            self._space.add_large(-self._unlink(large_path(self._large_directory, number)))
            self._open_shards.forget(number)  # its space is free when nobody holds it open
            self._unlinked.append(number)

    @staticmethod
    def _unlink(path: Path) -> int:
        """The size of the file that is gone now. One that cannot be unlinked is left to the next start."""
        try:
            size_bytes = path.stat().st_size
            path.unlink()
        except OSError as error:
            _log.warning("%s was freed but not removed: %s", path, error)
            return 0
        return size_bytes

    def _resolve(self, jobs: list[_Job]) -> None:
        released = 0
        for job in jobs:
            released += job.size_bytes
            future = job.future
            if future is None or future.done():
                continue
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.results)
        self._release(released)


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        if job.items:  # whoever waits for others to be decided has what it waits for
            job.error = error


def _weight(item: Item) -> int:
    if isinstance(item, Accept):
        return _ITEM_BYTES + len(item.cell) + len(item.manifest)
    if isinstance(item, Restore):
        return _weight(item.accept)
    return _ITEM_BYTES
