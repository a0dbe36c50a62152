"""The store of one node in memory: for tests and simulation. It can crash, fill up, and rot.

Durable is what a sync covered: every `apply` but one of `Settle`s and `Mark`s alone, and every committed
staging. `crash` goes back to that; all else is the same as on a disk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial

from coffre.cluster.clock import Clock
from coffre.cluster.errors import IntegrityError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from coffre.cluster.names import ObjectName
from coffre.node.memory.rows import Partition, Record, Row, Shard, is_damaged, outcome, record_of, version_of
from coffre.node.memory.staging import MemoryStagedWriter, MemoryStaging, ShardId
from coffre.node.store import (
    CHUNK_BYTES,
    ROWS_AT_ONCE,
    Abort,
    Accept,
    DropRepair,
    Entry,
    KeyMutation,
    Listing,
    ListingEntry,
    Mark,
    Mutation,
    Outcome,
    PartitionDigest,
    PartitionRow,
    QueueRepair,
    Recent,
    Restore,
    Settle,
    StagedWriter,
    State,
    StoredCell,
    StoredVersion,
    StoreIdentity,
    StoreOptions,
    StoreStatus,
    Verdict,
    change_of,
    check,
    check_stage,
    is_buried,
    list_page,
    slot_of,
    votes,
)

__all__ = ["MemoryStore"]

_Bucket = tuple[str, str]
_Writer = tuple[str, bytes]  # tenant, id


class MemoryStore:
    """`ShardStore` in memory. `clock` is used for the expiry of staged shards alone."""

    def __init__(
        self, clock: Clock, options: StoreOptions | None = None, *, store_id: bytes = bytes(16)
    ) -> None:
        self._clock = clock
        self._recent = Recent()
        self._store_id = store_id
        self._options = options or StoreOptions()
        self._rows: dict[ObjectName, Row] = {}
        self._keys: dict[_Bucket, list[bytes]] = {}
        self._partitions: dict[int, Partition] = {}
        self._staging = MemoryStaging(clock)
        self._repairs: dict[tuple[ObjectName, bytes, int | None], QueueRepair] = {}
        self._marks: dict[_Writer, bytes] = {}
        # Partition, and entries at the last sync.
        self._unsynced: dict[ObjectName, tuple[int, tuple[Entry, ...]]] = {}
        self._unsynced_marks: dict[_Writer, bytes] = {}  # marks at the last sync; empty: none
        self._notes: dict[str, bytes] = {}
        self._used_bytes = 0
        self._damaged = 0
        self._syncs = 0
        self._closed = False
        self._incarnation = 0

    # ---------------------------------------------------------------- faults

    def crash(self) -> None:
        """Lose what was not synced, and start again: settles and marks alone, and shards that were being staged."""
        for name, (partition, entries) in self._unsynced.items():
            left = [entry.record for entry in self._entries(name)]
            self._put_entries(name, partition, entries)
            for entry in entries:
                if entry.state != State.ABORTED:
                    self._take_back(record_of(entry), freed=entry.record not in left)
        self._marks.update(self._unsynced_marks)
        self._unsynced.clear()
        self._unsynced_marks.clear()
        self._incarnation += 1
        self._closed = False

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Fill the disk (0), or give it room."""
        self._options.capacity_bytes = capacity_bytes

    def flip_cell(self, name: ObjectName, stamp: bytes, offset: int = 0, segment: int = 0) -> None:
        """Flip one bit of a stored cell."""
        shard = record_of(self._entry(name, stamp)).shard
        assert shard is not None
        shard.cells[segment][1][offset] ^= 1

    def rot_manifest(self, name: ObjectName, stamp: bytes) -> None:
        """Let the manifest of a version fail its checksum from now on."""
        record_of(self._entry(name, stamp)).manifest_rotten = True

    def _entry(self, name: ObjectName, stamp: bytes) -> Entry:
        for entry in self._entries(name):
            if entry.stamp == stamp and entry.state != State.ABORTED:
                return entry
        raise NotFound("this node does not hold that version")

    # ---------------------------------------------------------------- mutations

    async def apply(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        self._check_open()
        outcomes = [self._apply_one(mutation) for mutation in mutations]
        if any(not isinstance(mutation, (Settle, Mark)) for mutation in mutations):
            self._sync()
        return outcomes

    async def drain(self) -> None:
        self._check_open()

    def _sync(self) -> None:
        self._unsynced.clear()
        self._unsynced_marks.clear()
        self._syncs += 1

    def _apply_one(self, mutation: Mutation) -> Outcome:
        error = check(mutation)
        if error is not None:
            return Outcome(error=error)
        if isinstance(mutation, Mark):
            return self._mark(mutation)
        row = self._rows.get(mutation.name)
        if row is not None and row.partition != mutation.partition:
            return Outcome(error=InvalidArgument("this object is in another partition"))
        entries = self._entries(mutation.name)
        if isinstance(mutation, (QueueRepair, DropRepair)):
            return self._note_repair(mutation, entries)
        if isinstance(mutation, Accept):
            return self._accept(mutation, entries)
        if isinstance(mutation, Restore):
            return self._restore(mutation, entries)
        if isinstance(mutation, Abort):
            verdict = votes.abort(entries, mutation.stamp)
        elif isinstance(mutation, Settle):
            verdict = votes.settle(entries, mutation.stamp, mutation.placement, self._options.versions_kept)
            verdict.changed = verdict.changed or is_buried(verdict.entries)
        else:
            verdict = votes.decide_own(entries, mutation)
        self._carry_out(mutation, verdict)
        return outcome(verdict)

    def _mark(self, mark: Mark) -> Outcome:
        writer = (mark.tenant, mark.stamp[8:])
        held = self._marks.get(writer, b"")
        if mark.stamp > held:
            self._unsynced_marks.setdefault(writer, held)
            self._marks[writer] = mark.stamp
        return Outcome()

    def _entries(self, name: ObjectName) -> tuple[Entry, ...]:
        """The versions of a name, with what marks say about them."""
        row = self._rows.get(name)
        entries = row.entries if row else ()
        return votes.promoted(entries, lambda writer: self._marks.get((name.tenant, writer), b""))

    def _accept(self, accept: Accept, entries: tuple[Entry, ...]) -> Outcome:
        shard, staged = self._shard_for(accept)
        shard_index = accept.shard_index if shard is not None else None
        record = Record(accept, shard)
        size_bytes, conditional = shard.size_bytes if shard else 0, accept.base is not None
        proposal = Entry(
            accept.stamp, State.ACCEPTED, accept.tombstone, shard_index, size_bytes, record, (), conditional
        )
        damaged = any(entry.stamp == accept.stamp and is_damaged(entry) for entry in entries)
        asked, base, lock, overrule = accept.shard_index, accept.base or b"", accept.lock, accept.overrule
        verdict = votes.accept(
            entries, proposal, lock=lock, asked=asked, base=base, damaged=damaged, overrule=overrule
        )
        missing = accept.staged and shard is None and not accept.lock and not verdict.has_shard
        if missing and verdict.error is None:
            return Outcome(error=NotFound("this shard is not staged here"))
        added_bytes = len(accept.manifest) + len(accept.cell)
        if verdict.stored and not accept.tombstone and not self._has_room(added_bytes):
            return Outcome(error=ResourceExhausted("the disk is full"))
        if verdict.stored and staged is not None:
            self._staging.take(staged)
        if verdict.stored:
            self._used_bytes += added_bytes
        self._carry_out(accept, verdict)
        held = any((e.stamp, e.shard_index) == (accept.stamp, accept.shard_index) for e in verdict.entries)
        if held and verdict.error is None:
            self._repairs.pop((accept.name, accept.stamp, accept.shard_index), None)
        replaces = votes.replaces(verdict.entries, accept.stamp, self._options.versions_kept)
        return outcome(verdict, replaces=replaces and verdict.error is None)

    def _restore(self, restore: Restore, entries: tuple[Entry, ...]) -> Outcome:
        accept = restore.accept
        shard, staged = self._shard_for(accept)
        if accept.staged and shard is None:
            return Outcome(error=NotFound("this shard is not staged here"))
        shard_bytes = shard.size_bytes if shard else 0
        proposal = Entry(
            accept.stamp,
            State.ACCEPTED,
            accept.tombstone,
            accept.shard_index,
            shard_bytes,
            Record(accept, shard),
            conditional=accept.base is not None,
        )
        kept = self._options.versions_kept
        verdict = votes.restore(entries, proposal, kept, replace=restore.replace)
        added_bytes = len(accept.manifest) + len(accept.cell)
        if verdict.stored and not accept.tombstone and not self._has_room(added_bytes):
            return Outcome(error=ResourceExhausted("the disk is full"))
        if verdict.stored and staged is not None:
            self._staging.take(staged)
        if verdict.stored:
            self._used_bytes += added_bytes
            for entry in verdict.freed:
                self._repairs.pop((accept.name, entry.stamp, entry.shard_index), None)
        self._carry_out(restore, verdict)
        if any((e.stamp, e.shard_index) == (accept.stamp, accept.shard_index) for e in verdict.entries):
            self._repairs.pop((accept.name, accept.stamp, accept.shard_index), None)
        return outcome(verdict)

    def _shard_for(self, accept: Accept) -> tuple[Shard | None, ShardId | None]:
        if accept.shard_index is None:
            return None, None
        if accept.staged:
            key = (accept.name.tenant, accept.data_id, accept.shard_index)
            staged = self._staging.get(key)
            return (staged, key) if staged and staged.hash == accept.shard_hash else (None, None)
        shard = Shard()
        shard.append(accept.cell_crc, accept.cell)
        return shard, None

    def _has_room(self, size_bytes: int) -> bool:
        capacity = self._options.capacity_bytes
        return capacity is None or self._used_bytes + size_bytes <= capacity

    def _note_repair(self, repair: QueueRepair | DropRepair, entries: tuple[Entry, ...]) -> Outcome:
        key = (repair.name, repair.stamp, repair.shard_index)
        if isinstance(repair, DropRepair):
            self._repairs.pop(key, None)
        elif votes.is_wanted(entries, repair.stamp):
            self._repairs[key] = repair
        return Outcome()

    def _carry_out(self, mutation: KeyMutation, verdict: Verdict) -> None:
        if not verdict.changed:
            return
        row = self._rows.get(mutation.name)
        self._unsynced.setdefault(mutation.name, (mutation.partition, row.entries if row else ()))
        self._put_entries(mutation.name, mutation.partition, verdict.entries)
        accepted = mutation.stamp if isinstance(mutation, Restore) else b""
        for entry in verdict.freed:
            record = record_of(entry)
            self._used_bytes -= len(record.accept.manifest) + len(record.accept.cell)
            if record.shard is not None and record.accept.staged:
                gives_back = isinstance(mutation, (Settle, Restore)) and entry.state == State.ACCEPTED
                if isinstance(mutation, Abort) or (gives_back and entry.stamp != accepted):
                    self._staging.put_back(record)
                else:
                    self._used_bytes -= record.shard.size_bytes
            if not any(kept.stamp == entry.stamp for kept in verdict.entries if kept.state != State.ABORTED):
                self._forget_repairs(mutation.name, entry.stamp)

    def _take_back(self, record: Record, *, freed: bool) -> None:
        """A shard that a lost `Settle` had given back is adopted as it was. `freed`: that had freed the record."""
        accept = record.accept
        if freed:
            self._used_bytes += len(accept.manifest) + len(accept.cell)
        if record.shard is not None and accept.staged and accept.shard_index is not None:
            key = (accept.name.tenant, accept.data_id, accept.shard_index)
            if self._staging.get(key) is record.shard:
                self._staging.take(key)
            elif freed:
                self._used_bytes += record.shard.size_bytes

    def _forget_repairs(self, name: ObjectName, stamp: bytes) -> None:
        for key in [key for key in self._repairs if key[:2] == (name, stamp)]:
            del self._repairs[key]

    def _put_entries(self, name: ObjectName, partition: int, entries: tuple[Entry, ...]) -> None:
        row = self._rows.setdefault(name, Row(partition))
        holder = self._partitions.setdefault(partition, Partition())
        counted, wanted = votes.kinds(row.entries), votes.kinds(entries)
        if counted != wanted:
            change = change_of(partition, name.context(), counted, wanted)
            holder.digest ^= change[2]
            holder.versions += len(wanted) - len(counted)
            self._recent.add((change,), self._clock.unixtime_ms())
        row.put(name, entries, self._keys.setdefault((name.tenant, name.bucket), []))
        if not entries:
            holder.names.discard(name)
            del self._rows[name]
            return
        holder.names.add(name)

    # ---------------------------------------------------------------- reads

    async def read(
        self, name: ObjectName, *, stamp: bytes = b"", every: bool = False, want_cell: bool = False
    ) -> tuple[StoredVersion, ...]:
        self._check_open()
        entries = self._entries(name)
        if stamp:
            entries = tuple(entry for entry in entries if entry.stamp == stamp)
        elif not every:
            entries = votes.down_to_settled(entries)
        return tuple(self._version(name, entry, want_cell) for entry in entries)

    def _version(self, name: ObjectName, entry: Entry, want_cell: bool) -> StoredVersion:
        version = version_of(entry, want_cell=want_cell)
        if version.damaged:
            self._report(name, entry)
        return version

    def _report(self, name: ObjectName, entry: Entry) -> None:
        self._damaged += 1
        repair = QueueRepair(name, self._rows[name].partition, entry.stamp, entry.shard_index)
        self._repairs[name, entry.stamp, entry.shard_index] = repair

    async def read_cells(
        self, name: ObjectName, stamp: bytes, shard_index: int, first_segment: int, segment_count: int
    ) -> AsyncIterator[Sequence[StoredCell]]:
        self._check_open()
        entry = self._entry(name, stamp)
        record = record_of(entry)
        if record.shard is None or entry.shard_index != shard_index:
            raise NotFound("this node does not hold that shard")
        cells = record.shard.cells
        end = min(first_segment + segment_count, len(cells)) if segment_count else len(cells)
        chunk: list[StoredCell] = []
        chunk_bytes = 0
        for place in range(first_segment, end):
            cell = None if record.manifest_rotten else record.shard.cell(place)
            if cell is None:
                self._report(name, entry)
                raise IntegrityError("the shard on this node does not verify")
            if chunk and chunk_bytes + len(cell.data) > CHUNK_BYTES:
                yield chunk
                chunk, chunk_bytes = [], 0
            chunk.append(cell)
            chunk_bytes += len(cell.data)
        if chunk:
            yield chunk

    async def buckets(self, tenant: str, *, after: bytes = b"", limit: int = 1000) -> tuple[str, ...]:
        self._check_open()
        names = sorted(bucket for owner, bucket in self._keys if owner == tenant)
        return tuple(name for name in names if name.encode() > after)[:limit]

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
        keys = self._keys.get((tenant, bucket), [])

        def scan(start: bytes) -> Iterator[tuple[bytes, tuple[Entry, ...]]]:
            for place in range(bisect_left(keys, start), len(keys)):
                yield keys[place], self._entries(ObjectName(tenant, bucket, keys[place].decode()))

        page = list_page(
            scan,
            prefix.encode(),
            after=after,
            after_prefix=after_prefix,
            delimiter=delimiter.encode(),
            limit=limit,
        )
        entries = []
        for row in page.rows:
            name = ObjectName(tenant, bucket, row.key.decode())
            versions = tuple(self._version(name, entry, want_cell=False) for entry in row.entries)
            entries.append(ListingEntry(name.key, versions, row.common_prefix.decode()))
        return Listing(tuple(entries), page.more)

    async def partition_digest(self, partition: int) -> PartitionDigest:
        return (await self.digests()).get(partition, PartitionDigest())

    async def digests(self, before_ms: int | None = None) -> Mapping[int, PartitionDigest]:
        self._check_open()
        young = {} if before_ms is None else self._recent.since(before_ms, self._clock.unixtime_ms())
        return {
            number: PartitionDigest((held.digest ^ young.get(number, 0)).to_bytes(16, "big"), held.versions)
            for number, held in sorted(self._partitions.items())
            if held.versions
        }

    async def partition_rows(
        self, partition: int, *, slot: int = 0, slots: int = 1
    ) -> AsyncIterator[Sequence[PartitionRow]]:
        self._check_open()
        held = self._partitions.get(partition, Partition())
        names = sorted(held.names, key=ObjectName.context)
        for first in range(0, len(names), ROWS_AT_ONCE):
            some = [n for n in names[first : first + ROWS_AT_ONCE] if slot_of(n.context(), slots) == slot]
            rows = [PartitionRow(name, votes.bare(self._entries(name))) for name in some]
            yield [row for row in rows if row.versions]

    async def repair_queue(self) -> AsyncIterator[QueueRepair]:
        self._check_open()
        for repair in list(self._repairs.values()):
            yield repair

    # ---------------------------------------------------------------- staging

    async def stage(self, tenant: str, data_id: bytes, shard_index: int) -> StagedWriter:
        self._check_open()
        check_stage(data_id, shard_index)
        incarnation = self._incarnation

        def check_staging() -> None:
            self._check_open()
            if incarnation != self._incarnation:
                raise Unavailable("this shard is not being staged any more")

        keep = partial(self._stage, (tenant, data_id, shard_index))
        return MemoryStagedWriter(check_staging, self._has_room, keep)

    def _stage(self, key: ShardId, shard: Shard) -> None:
        replaced = self._staging.take(key)
        self._used_bytes += shard.size_bytes - (replaced.size_bytes if replaced else 0)
        self._staging.put(key, shard, self._options.staging_expiry)
        self._sync()

    async def drop_staged(self, tenant: str, data_id: bytes, shard_index: int) -> None:
        self._check_open()
        shard = self._staging.take((tenant, data_id, shard_index))
        if shard is not None:
            self._used_bytes -= shard.size_bytes

    async def identity(self) -> StoreIdentity:
        return StoreIdentity(self._store_id, self._syncs)

    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
        self._notes[title] = note

    async def note(self, title: str) -> bytes:
        self._check_open()
        return self._notes.get(title, b"")

    async def reclaim(self, *, expire: bool = True) -> int:
        """Free what was staged and has expired; the rest is freed at once here."""
        self._check_open()
        freed = self._staging.expire(self._options.staging_expiry) if expire else 0
        self._used_bytes -= freed
        return freed

    # ---------------------------------------------------------------- life

    async def status(self) -> StoreStatus:
        self._check_open()
        entries = [entry for row in self._rows.values() for entry in row.entries]
        capacity = self._options.capacity_bytes
        free = (1 << 62) if capacity is None else max(capacity - self._used_bytes, 0)
        return StoreStatus(
            objects=len(self._rows),
            shards=sum(entry.shard_index is not None for entry in entries),
            live_bytes=self._used_bytes,
            disk_bytes=self._used_bytes,
            free_bytes=free,
            writable=free > 0,
            damaged=self._damaged,
            repair_queue=len(self._repairs),
            syncs=self._syncs,
        )

    async def close(self) -> None:
        if not self._closed:
            self._sync()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")
