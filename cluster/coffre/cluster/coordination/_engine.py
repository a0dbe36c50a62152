"""The rules of a coordination store in one process: compares, revisions, leases, watches. Rows rest elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from coffre.cluster.clock import Clock
from coffre.cluster.coordination.seam import (
    RANGE_LIMIT_MAX,
    Change,
    Changes,
    Commit,
    Compare,
    Entry,
    Lease,
    Page,
    Put,
    check_commit,
    check_key,
    check_lease_seconds,
    check_prefix,
    check_range,
)
from coffre.cluster.errors import (
    NotFound,
    OutcomeUnknown,
    ReadAgain,
    ResourceExhausted,
    RetryableError,
    Unavailable,
)

__all__ = ["Engine", "LeaseRow", "Row", "Rows", "Write"]

_log = logging.getLogger("coffre.node")
HISTORY_COMMITS_MAX = 4096
HISTORY_BYTES_MAX = 16 << 20
WATCHERS_MAX = 4096
LEASES_MAX = 65_536
EXPIRY_STEP_SECONDS = 1.0  # how late a watcher may hear of the end of a lease; readers never see it late
_LEASE_ID_BYTES = 8
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it rests: with its lease, 0 when it has none."""

    entry: Entry
    lease: int


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as it rests."""

    number: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Write:
    """What one step changes, all or nothing. None: the key or the lease is gone."""

    revision: int
    rows: Mapping[str, Row | None] = field(default_factory=dict)
    leases: Mapping[int, LeaseRow | None] = field(default_factory=dict)


class Rows(Protocol):
    """Where the rows rest. `write` returns once they are as safe as they will be."""

    revision: int

    def get(self, key: str) -> Row | None:
        """The row of a key, or None."""

    def scan(self, prefix: str, after: str, limit: int) -> tuple[list[Row], bool]:
        """Up to `limit` rows (fewer when they are large) in key order, and whether there are more."""

    def leases(self) -> list[LeaseRow]:
        """All leases, in no order."""

    def leased(self) -> list[tuple[str, int]]:
        """The keys that have a lease, and which."""

    async def write(self, write: Write) -> None:
        """Make one change durable, all of it or nothing. Raises what the disk raises."""


@dataclass(slots=True)
class _Held:
    """A lease that has not ended."""

    row: LeaseRow
    deadline: float
    keys: set[str] = field(default_factory=set)


class Engine:
    """A `Coordination` over `Rows`. Leases count from the start of the process: none ends early for a restart."""

    def __init__(self, rows: Rows, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._rows = rows
        self._clock = clock
        self._entropy = entropy
        self._writing = asyncio.Lock()
        self._history: deque[Changes] = deque()
        self._history_bytes = 0
        self._forgotten = rows.revision  # changes up to here are not remembered
        self._changed: asyncio.Future[None] | None = None  # watchers wait for it
        self._watchers = 0
        self._interruptions = 0
        self._closed = False
        self._failure = ""
        self._steps: set[asyncio.Future[Any]] = set()  # of whatever result
        self._expiry: asyncio.Task[None] | None = None
        now = clock.monotonic()
        self._held = {row.number: _Held(row, now + row.seconds) for row in rows.leases()}
        for key, lease in rows.leased():
            if lease in self._held:
                self._held[lease].keys.add(key)
        if self._held:
            self._expiry = asyncio.create_task(self._watch_the_clock())

    # ---------------------------------------------------------------- reading

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        await self._end_leases()
        row = self._rows.get(key)
        return row.entry if row is not None else None

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        check_range(prefix, limit, after)
        await self._end_leases()
        rows, more = self._rows.scan(prefix, after, limit)
        return Page(tuple(row.entry for row in rows), more, self._rows.revision)

    # ---------------------------------------------------------------- changing

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        check_commit(compares, puts, deletes)
        await self._end_leases()
        return await self._to_its_end(self._commit(compares, puts, deletes))

    async def _commit(
        self, compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str]
    ) -> Commit:
        async with self._writing:
            self._check_open()
            if not all(self._modified(compare.key) == compare.modified for compare in compares):
                return Commit(False, self._rows.revision)
            revision = self._rows.revision + 1
            rows: dict[str, Row | None] = {key: None for key in deletes if self._rows.get(key) is not None}
            for put in puts:
                if put.lease and put.lease not in self._held:
                    raise NotFound("that lease has ended")
                before = self._rows.get(put.key)
                created = before.entry.created if before is not None else revision
                rows[put.key] = Row(Entry(put.key, put.value, created, revision), put.lease)
            if not rows:
                return Commit(True, self._rows.revision)  # only deletes of what was not there
            try:
                await self._write(Write(revision, rows))
            except Unavailable as error:  # the disk failed at it, and may have it all the same
                raise OutcomeUnknown(f"it is not known whether that was agreed: {error}") from None
            return Commit(True, revision)

    def _modified(self, key: str) -> int:
        row = self._rows.get(key)
        return row.entry.modified if row is not None else 0

    async def _to_its_end(self, step: Coroutine[None, None, _T]) -> _T:
        """Do all of a step even if its caller is cancelled meanwhile: what rests and what is in memory go together."""
        task = asyncio.ensure_future(step)
        self._steps.add(task)
        task.add_done_callback(self._step_done)
        return await asyncio.shield(task)

    def _step_done(self, task: asyncio.Future[_T]) -> None:
        self._steps.discard(task)
        if not task.cancelled():
            task.exception()  # its caller, if there still is one, gets it too

    async def _rest(self, write: Write) -> None:
        """Make it safe. Raises `ResourceExhausted` when there is no room, and then nothing has changed; `Unavailable`
        when nobody knows whether it has, and then this store is broken."""
        try:
            await self._rows.write(write)
        except RetryableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody knows what the disk holds
            self._break(error)
            raise Unavailable(self._failure) from None

    def _break(self, error: Exception) -> None:
        # After a failed sync nobody knows what the disk holds: to go on could undo what others were told is agreed.
        if not self._failure:
            self._failure = (
                f"the disk of this coordination store failed ({error}); it decides nothing more until its node is "
                "restarted, or another one has the role"
            )
            _log.critical("%s", self._failure)
        self._wake()

    @property
    def failure(self) -> str:
        """Why this store decides nothing any more; empty while it does."""
        return self._failure

    async def _write(self, write: Write) -> None:
        """Make it safe, then let it be seen. The caller holds the lock."""
        before = {key: self._rows.get(key) for key in write.rows}
        await self._rest(write)
        for key, old in before.items():
            if old is not None and old.lease in self._held:
                self._held[old.lease].keys.discard(key)
        for key, row in write.rows.items():
            if row is not None and row.lease:
                self._held[row.lease].keys.add(key)
        if write.rows:
            changes = tuple(
                Change(key, row.entry.value if row is not None else None) for key, row in write.rows.items()
            )
            self._remember(Changes(write.revision, changes))

    # ---------------------------------------------------------------- leases

    async def grant(self, seconds: int) -> Lease:
        check_lease_seconds(seconds)
        return await self._to_its_end(self._grant(seconds))

    async def _grant(self, seconds: int) -> Lease:
        async with self._writing:
            self._check_open()
            if len(self._held) >= LEASES_MAX:
                raise ResourceExhausted(f"there are {LEASES_MAX} leases already")
            number = 0
            while not number or number in self._held:
                number = int.from_bytes(self._entropy(_LEASE_ID_BYTES), "big") >> 1
            row = LeaseRow(number, seconds)
            await self._rest(Write(self._rows.revision, leases={number: row}))
            self._held[number] = _Held(row, self._clock.monotonic() + seconds)
        if self._expiry is None:
            self._expiry = asyncio.create_task(self._watch_the_clock())
        return Lease(number, seconds)

    async def keep_alive(self, lease: int) -> None:
        await self._end_leases()
        self._check_open()
        held = self._held.get(lease)
        if held is None:
            raise NotFound("that lease has ended")
        held.deadline = self._clock.monotonic() + held.row.seconds

    async def revoke(self, lease: int) -> None:
        await self._to_its_end(self._end([lease]))

    async def _end_leases(self) -> None:
        """End what has run out. Called before anything is read or decided, so nobody sees a key of a dead lease."""
        self._check_open()
        now = self._clock.monotonic()
        ended = [number for number, held in self._held.items() if held.deadline <= now]
        if ended:
            await self._to_its_end(self._end(ended, now))

    async def _end(self, leases: Sequence[int], now: float | None = None) -> None:
        """End leases; with `now`, only those that nobody has kept alive in the meantime."""
        for lease in leases:
            async with self._writing:
                self._check_open()
                held = self._held.get(lease)
                if held is None or (now is not None and held.deadline > now):
                    continue
                revision = self._rows.revision + bool(held.keys)
                await self._write(Write(revision, dict.fromkeys(sorted(held.keys)), {lease: None}))
                self._held.pop(lease, None)

    async def _watch_the_clock(self) -> None:
        """End leases when their time is up even if nobody asks, since somebody may watch."""
        while self._held and not self._closed and not self._failure:
            next_end = min(held.deadline for held in self._held.values())
            wait = next_end - self._clock.monotonic()
            await self._clock.sleep(min(max(wait, 0.0), EXPIRY_STEP_SECONDS))
            try:
                await self._end_leases()
            except RetryableError:
                # Closed or broken, and then it ends; or the disk is full: then later, or by the next reader.
                await self._clock.sleep(EXPIRY_STEP_SECONDS)
            except Exception as error:  # noqa: BLE001 - who would end leases, if this did not go on?
                self._break(error)
        self._expiry = None

    # ---------------------------------------------------------------- watching

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        check_prefix(prefix)
        self._check_open()
        if self._watchers >= WATCHERS_MAX:
            raise ResourceExhausted(f"there are {WATCHERS_MAX} watchers already")
        self._watchers += 1
        interruptions = self._interruptions
        try:
            while True:
                if interruptions != self._interruptions:
                    raise Unavailable("the watch was interrupted")
                for changes in self._since(revision):
                    revision = changes.revision
                    mine = tuple(change for change in changes.changes if change.key.startswith(prefix))
                    if mine:
                        yield Changes(revision, mine)
                        break  # the history may have moved while the watcher worked
                else:
                    if self._changed is None:
                        self._changed = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._changed)
        finally:
            self._watchers -= 1

    def _since(self, revision: int) -> list[Changes]:
        self._check_open()
        if revision < self._forgotten:
            raise ReadAgain("what this watch missed is not remembered: read, and watch from there")
        return [changes for changes in self._history if changes.revision > revision]

    def _remember(self, changes: Changes) -> None:
        self._history.append(changes)
        self._history_bytes += _size_bytes(changes)
        while len(self._history) > HISTORY_COMMITS_MAX or self._history_bytes > HISTORY_BYTES_MAX:
            oldest = self._history.popleft()
            self._history_bytes -= _size_bytes(oldest)
            self._forgotten = oldest.revision
        self._wake()

    def interrupt_watches(self) -> None:
        """End every open watch with `Unavailable`."""
        self._interruptions += 1
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    # ---------------------------------------------------------------- life

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this coordination store is closed")
        if self._failure:
            raise Unavailable(self._failure)

    async def close(self) -> None:
        self._closed = True
        self._wake()
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
            self._expiry = None
        await asyncio.gather(*self._steps, return_exceptions=True)  # what is being written is finished


def _size_bytes(changes: Changes) -> int:
    return sum(len(change.key) + len(change.value or b"") + 64 for change in changes.changes)
