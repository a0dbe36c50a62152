"""One batch of mutations in one LMDB transaction, with the records that it appends, in the committer's thread.

The order is what makes a kill harmless: records are written and synced first, then the transaction that refers
to them. Nothing of a batch that fails is kept: counters and tables in memory change only after the commit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    InternalError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from coffre.node.disk.digests import Digests
from coffre.node.disk.index import Index, WriteKeys, partition_prefix
from coffre.node.disk.large_files import LargeFiles
from coffre.node.disk.marks import WriterId
from coffre.node.disk.records import LargeShard, decode_record, encode_record
from coffre.node.disk.repair_rows import RepairRows
from coffre.node.disk.rows import (
    VOLUME,
    Counters,
    Location,
    Row,
    decode_row,
    encode_first,
    encode_mark,
    encode_row,
    mark_key,
    seal,
    staging_key,
)
from coffre.node.disk.volumes import FILE_HEADER_BYTES, Volumes, VolumeState
from coffre.node.store import (
    ABORTED,
    ACCEPTED,
    LOCKED,
    Abort,
    Accept,
    Collect,
    Condemn,
    Drop,
    DropRepair,
    Entry,
    Forget,
    KeyMutation,
    Lock,
    Mark,
    Mutation,
    Outcome,
    QueueRepair,
    Refuse,
    Restore,
    Settle,
    StoreOptions,
    Verdict,
    check,
    digest_of,
    is_buried,
    kind_of,
    votes,
)

__all__ = ["Transaction"]

_NO_ROW = Row(-1, ())
# What becomes of the first version of a key, by (lock, has a shard, is a tombstone).
_FIRST = {
    (state == LOCKED, has_shard, tombstone): Outcome(state, has_shard=has_shard, replaces=tombstone)
    for state in (ACCEPTED, LOCKED)
    for has_shard in (False, True)
    for tombstone in (False, True)
}


class Transaction:
    """`room_bytes`: what ordinary writes may still take; deletes and aborts take from the reserve as well."""

    def __init__(
        self,
        index: Index,
        volumes: Volumes,
        counters: Counters,
        options: StoreOptions,
        room_bytes: int,
        now_ms: int,
    ) -> None:
        self.index = index
        self.txn = index.env.begin(write=True)
        self.counters = dataclasses.replace(counters)
        self.expires_ms = now_ms + int(options.staging_expiry * 1000)
        self.large = LargeFiles(index, self.txn, now_ms)
        self.now_ms = now_ms
        self.dropped: list[int] = []  # volumes to unlink after the commit
        self.verify: list[tuple[Location, bytes]] = []  # copies to read back before the commit
        self._keys = WriteKeys(index, self.txn, self.counters)
        self._volumes = volumes
        self._options = options
        self._room_bytes = room_bytes
        self._repairs = RepairRows(index, self.txn)
        self._rows: dict[bytes, Row] = {}  # as they will be
        self._first: dict[bytes, bytes] = {}  # encoded, of keys that had no row and are not in `_rows`
        self._buried: set[bytes] = set()  # keys whose rows were found among the graves
        self._listed: dict[bytes, bytes] = {}  # rows of the partitions table to add
        self._marks: dict[WriterId, bytes] = {}  # those that moved
        self._digests = Digests(index, self.txn)
        self._live: dict[int, int] = {}
        self._segments: list[tuple[int, int, list[bytes]]] = []  # volume, offset, buffers
        self._lengths: dict[int, int] = {}
        self._active = counters.volumes
        state = volumes.table.get(self._active)
        self._end = options.volume_bytes if state is None or not state.sound else state.length
        self._begun = False  # the active volume has a segment in this batch

    # ---------------------------------------------------------------- mutations

    def apply(self, mutation: Mutation) -> Outcome:
        """Decide and carry out one mutation."""
        error = check(mutation)
        if error is not None:
            return Outcome(error=error)
        if isinstance(mutation, Mark):
            return self._mark(mutation)
        context = mutation.name.context()
        try:
            return _APPLY[type(mutation)](self, mutation, context)
        except CoffreError as failure:
            if isinstance(failure, IntegrityError):
                self.index.ailments.row_damaged()
            return Outcome(error=failure)

    def row_of(self, mutation: KeyMutation, context: bytes) -> tuple[bytes, Row]:
        """The row of a mutation's object, with what marks say about its entries."""
        name = mutation.name
        key = self._keys.key(name, context[len(name.tenant) + len(name.bucket) + 2 :])
        row = self._row(key)
        if row.entries and row.partition != mutation.partition:
            raise InvalidArgument("this object is in another partition")
        if row.entries:
            tenant = name.tenant
            entries = votes.promoted(row.entries, lambda writer: self._mark_at((tenant, writer)))
            if entries is not row.entries:
                row = Row(row.partition, entries)
        return key, row

    def _row(self, key: bytes) -> Row:
        row = self._rows.get(key)
        if row is None:
            value = self._first.get(key) or self.txn.get(key, db=self.index.objects)
            if value is None:
                value = self.txn.get(key, db=self.index.graves)
                if value is not None:
                    self._buried.add(key)
            row = _NO_ROW if value is None else decode_row(key, value)
        return row

    def _accept(self, accept: Accept, context: bytes) -> Outcome:
        key, row = self.row_of(accept, context)
        if not row.entries and not accept.staged and accept.base is None:
            return self._accept_first(key, accept, context)
        shard_index = accept.shard_index
        large: LargeShard | None = None
        if accept.staged:
            large = self.large.staged(accept)
            if large is None:
                shard_index = None
        record = encode_record(accept, context, shard_index, large)
        location = self._next_location(len(record), large)
        conditional, base = accept.base is not None, accept.base or b""
        proposal = Entry(accept.stamp, ACCEPTED, accept.tombstone, shard_index, 0, location, (), conditional)
        damaged = self._repairs.found_damaged(row.entries, accept.stamp, context)
        verdict = votes.accept(
            row.entries,
            proposal,
            lock=accept.lock,
            asked=accept.shard_index,
            base=base,
            damaged=damaged,
            overrule=accept.overrule,
        )
        if verdict.error is not None:
            return Outcome(verdict.state, verdict.error, verdict.newest_stamp)
        if accept.staged and large is None and not accept.lock and not verdict.has_shard:
            return Outcome(error=NotFound("this shard is not staged here"))
        if verdict.stored:
            self._store(accept, record, shard_index, large)
        for entry in verdict.freed:
            self._free(entry, accept, give_back=False)
        self._put_row(key, context, row, accept.partition, verdict)
        self._brought(accept, context, verdict)
        replaces = votes.replaces(verdict.entries, accept.stamp, self._options.versions_kept)
        return Outcome(verdict.state, None, b"", verdict.has_shard, replaces)

    def _store(
        self, accept: Accept, record: bytes, shard_index: int | None, large: LargeShard | None
    ) -> None:
        """Append a version's record and adopt its large shard. Raises `ResourceExhausted`; nothing is done then."""
        if not accept.tombstone:
            if self._room_bytes < len(record):
                raise ResourceExhausted("the disk of this node is full")
            self._room_bytes -= len(record)
        self._append(record)
        if shard_index is not None:
            self.counters.shards += 1
        if large is not None:
            self.large.adopt(large)

    def _brought(self, accept: Accept, context: bytes, verdict: Verdict) -> None:
        """Forget a queued repair when the shard is here now."""
        for entry in verdict.entries:
            if entry.stamp == accept.stamp and entry.shard_index == accept.shard_index:
                self._repairs.drop(context, accept.stamp, accept.shard_index)

    def _accept_first(self, key: bytes, accept: Accept, context: bytes) -> Outcome:
        """The common case, in few steps: a key without versions is written, and no shard was staged."""
        partition, shard_index, tombstone = accept.partition, accept.shard_index, accept.tombstone
        record = encode_record(accept, context, shard_index, None)
        size_bytes = len(record)
        if not tombstone:
            if self._room_bytes < size_bytes:
                return Outcome(error=ResourceExhausted("the disk of this node is full"))
            self._room_bytes -= size_bytes
        self._roll(size_bytes)
        place = (self._active, self._end, size_bytes)
        self._append(record)
        self.counters.objects += 1
        if shard_index is not None:
            self.counters.shards += 1
        self._rows.pop(key, None)
        state = LOCKED if accept.lock else ACCEPTED
        self._first[key] = encode_first(key, partition, accept.stamp, state, tombstone, shard_index, place)
        self._listed[partition_prefix(partition) + key] = b""
        kind = kind_of(tombstone, shard_index is not None)
        self._digests.add(partition, accept.stamp, digest_of(context, accept.stamp, kind))
        self._repairs.drop(context, accept.stamp, shard_index)
        return _FIRST[accept.lock, shard_index is not None, tombstone]

    def _abort(self, abort: Abort, context: bytes) -> Outcome:
        key, row = self.row_of(abort, context)
        verdict = votes.abort(row.entries, abort.stamp)
        for entry in verdict.freed:
            self._free(entry, abort, give_back=True)
            self._repairs.forget(context, entry.stamp)
        self._put_row(key, context, row, abort.partition, verdict)
        return Outcome(verdict.state, verdict.error, b"", verdict.has_shard)

    def _settle(self, settle: Settle, context: bytes) -> Outcome:
        key, row = self.row_of(settle, context)
        verdict = votes.settle(row.entries, settle.stamp, settle.placement, self._options.versions_kept)
        verdict.changed = verdict.changed or (is_buried(verdict.entries) and key not in self._buried)
        for entry in verdict.freed:
            # An overtaken writer tries again above what stands in its way.
            self._free(entry, settle, give_back=entry.state == ACCEPTED)
            self._repairs.forget(context, entry.stamp)
        self._put_row(key, context, row, settle.partition, verdict)
        return Outcome(verdict.state, None, b"", verdict.has_shard)

    def _restore(self, restore: Restore, context: bytes) -> Outcome:
        key, row = self.row_of(restore, context)
        accept = restore.accept
        large = self.large.staged(accept) if accept.staged else None
        if accept.staged and large is None:
            return Outcome(error=NotFound("this shard is not staged here"))
        shard_index = accept.shard_index
        record = encode_record(accept, context, shard_index, large)
        location = self._next_location(len(record), large)
        conditional = accept.base is not None
        proposal = Entry(accept.stamp, ACCEPTED, accept.tombstone, shard_index, 0, location, (), conditional)
        kept = self._options.versions_kept
        verdict = votes.restore(row.entries, proposal, kept, replace=restore.replace)
        if verdict.stored:
            self._store(accept, record, shard_index, large)
        for entry in verdict.freed:
            self._free(entry, restore, give_back=entry.state == ACCEPTED and entry.stamp != accept.stamp)
            if not any(kept.stamp == entry.stamp and kept.state != ABORTED for kept in verdict.entries):
                self._repairs.forget(context, entry.stamp)
            elif verdict.stored:
                self._repairs.drop(context, accept.stamp, entry.shard_index)  # of the shard that gave way
        self._put_row(key, context, row, accept.partition, verdict)
        self._brought(accept, context, verdict)
        return Outcome(verdict.state, verdict.error, b"", verdict.has_shard)

    def _own(self, mutation: Refuse | Lock | Drop | Forget | Condemn | Collect, context: bytes) -> Outcome:
        """What a node's repair does to the entries alone."""
        key, row = self.row_of(mutation, context)
        verdict = votes.decide_own(row.entries, mutation)
        for entry in verdict.freed:
            self._free(entry, mutation, give_back=False)
            self._repairs.forget(context, entry.stamp)
        self._put_row(key, context, row, mutation.partition, verdict)
        return Outcome(verdict.state, verdict.error, b"", verdict.has_shard)

    def _mark(self, mark: Mark) -> Outcome:
        writer = (mark.tenant, mark.stamp[8:])
        if mark.stamp > self._mark_at(writer):
            self._marks[writer] = mark.stamp
        return Outcome()

    def _mark_at(self, writer: WriterId) -> bytes:
        mark = self._marks.get(writer)
        return self.index.marks.get(self.txn, writer) if mark is None else mark

    def _queue_repair(self, repair: QueueRepair, context: bytes, *, found_here: bool = False) -> Outcome:
        _, row = self.row_of(repair, context)
        if votes.is_wanted(row.entries, repair.stamp):
            if self._room_bytes <= 0 and not found_here:
                return Outcome(error=ResourceExhausted("the disk of this node is full"))
            self._repairs.put(repair, context, found_here=found_here)
        return Outcome()

    def queue_damage(self, repair: QueueRepair) -> Outcome:
        """Remember damage that this node found in its own shard: an `Accept` may then replace it."""
        return self._queue_repair(repair, repair.name.context(), found_here=True)

    def _drop_repair_row(self, repair: DropRepair, context: bytes) -> Outcome:
        self._repairs.drop(context, repair.stamp, repair.shard_index)
        return Outcome()

    # ---------------------------------------------------------------- rows

    def _put_row(self, key: bytes, context: bytes, before: Row, partition: int, verdict: Verdict) -> None:
        if not verdict.changed:
            return
        self._digests.recount(partition, context, before.entries, verdict.entries)
        self._rows[key] = Row(partition, verdict.entries)
        self._first.pop(key, None)
        if bool(before.entries) == bool(verdict.entries):
            return
        partition_key = partition_prefix(partition) + key
        if verdict.entries:
            self._listed[partition_key] = b""
            self.counters.objects += 1
        else:
            self._listed.pop(partition_key, None)
            self.txn.delete(partition_key, db=self.index.partitions)
            self.counters.objects -= 1

    def move(self, key: bytes, stamp: bytes, old: Location, record: bytes) -> bool:
        """Append a copy of a record and point the row to it, if the row still points to the old place."""
        row = self._row(key)
        for place, entry in enumerate(row.entries):
            if entry.stamp == stamp and entry.record == old:
                location = self._next_location(len(record), None)._replace(file=old.file, data_id=old.data_id)
                self._append(record)
                self.verify.append((location, record))
                self._live[old.volume] = self._live.get(old.volume, 0) - old.size_bytes
                moved = entry._replace(record=location)
                entries = (*row.entries[:place], moved, *row.entries[place + 1 :])
                self._rows[key] = Row(row.partition, entries)
                self._first.pop(key, None)
                return True
        return False

    def drop_volume(self, number: int) -> int:
        """Unlink a volume after the commit, if nothing in it lives. Returns its length."""
        state = self._volumes.table.get(number)
        live_bytes = self._live.get(number, 0) + (state.live_bytes if state else 0)
        if state is None or number == self._active or live_bytes or number in self._lengths:
            return 0
        self.txn.delete(number.to_bytes(4, "big"), db=self.index.volumes)
        self.dropped.append(number)
        return state.length

    # ---------------------------------------------------------------- records

    def _roll(self, size_bytes: int) -> None:
        """Begin a new volume when the next record does not fit into the active one."""
        if self._end + size_bytes > self._options.volume_bytes and self._end > FILE_HEADER_BYTES:
            self._active = self.counters.volumes = self.counters.volumes + 1
            self._end = FILE_HEADER_BYTES
            self._segments.append((self._active, 0, [self._volumes.header(self._active)]))
            self._lengths[self._active] = self._end
            self._begun = True

    def _next_location(self, size_bytes: int, large: LargeShard | None) -> Location:
        self._roll(size_bytes)
        if large is None:
            return Location(self._active, self._end, size_bytes)
        return Location(self._active, self._end, size_bytes, large.file, large.data_id)

    def _append(self, record: bytes) -> None:
        """Put a record at the end, where `_roll` made room for it."""
        if not self._begun:
            self._segments.append((self._active, self._end, []))
            self._begun = True
        self._segments[-1][2].append(record)
        self._end += len(record)
        self._lengths[self._active] = self._end
        self._live[self._active] = self._live.get(self._active, 0) + len(record)

    def _free(self, entry: Entry, mutation: KeyMutation, *, give_back: bool) -> None:
        location = entry.record
        assert isinstance(location, Location)
        self._live[location.volume] = self._live.get(location.volume, 0) - location.size_bytes
        if entry.shard_index is None:
            return
        self.counters.shards -= 1
        if location.file:
            if give_back:
                owner = staging_key(mutation.name.tenant, location.data_id, entry.shard_index)
                self.large.give_back(location.file, owner)
            else:
                self.large.free(location.file)

    # ---------------------------------------------------------------- the end

    def commit(self) -> None:
        """Records to the disk, then the transaction. Raises what the disk or LMDB raises; then call
        `abort`."""
        index = self.index
        self._put_rows()
        with self.txn.cursor(db=index.partitions) as cursor:
            cursor.putmulti(self._listed.items())
        for writer, stamp in self._marks.items():
            key = mark_key(*writer)
            self.txn.put(key, encode_mark(key, stamp), db=index.marks.table)
        self._digests.put()
        after = self._volumes_after()
        for number, state in after.items():
            key = number.to_bytes(4, "big")
            self.txn.put(key, seal(key, VOLUME.pack(state.length, state.live_bytes)), db=index.volumes)
        self.txn.put(b"counters", seal(b"counters", self.counters.encode()), db=index.meta)
        for number, offset, buffers in self._segments:
            if buffers:
                self._volumes.append(number, offset, buffers)
        for location, record in self.verify:
            copy = self._volumes.read(location.volume, location.offset, location.size_bytes)
            if copy != record:
                raise InternalError("a copied record does not read back as it was written")
            decode_record(copy, len(copy))
        with index.recent.lock:
            self.txn.commit()
            index.recent.add(self._digests.changes, self.now_ms)
        self._volumes.table.update(after)
        for number in self.dropped:
            del self._volumes.table[number]
        self._keys.committed()
        self._digests.committed()
        index.marks.committed(self._marks)

    def _put_rows(self) -> None:
        """Each row into its table, and out of the other one."""
        objects, graves = self.index.objects, self.index.graves
        with self.txn.cursor(db=objects) as cursor:
            cursor.putmulti(self._first.items())
        for key, row in self._rows.items():
            buried = is_buried(row.entries)
            if row.entries:
                value = encode_row(key, row.partition, row.entries)
                self.txn.put(key, value, db=graves if buried else objects)
            if buried or not row.entries:
                self.txn.delete(key, db=objects)
        for key in self._buried:
            after = self._rows.get(key)
            if key in self._first or (after is not None and not is_buried(after.entries)):
                self.txn.delete(key, db=graves)

    @property
    def syncs(self) -> int:
        """How many syncs the commit takes: one per volume written, and LMDB's."""
        return 1 + sum(bool(buffers) for _, _, buffers in self._segments)

    def _volumes_after(self) -> dict[int, VolumeState]:
        after: dict[int, VolumeState] = {}
        for number in (self._live.keys() | self._lengths.keys()) - set(self.dropped):
            held = self._volumes.table.get(number) or VolumeState(0, 0)
            length = self._lengths.get(number, held.length)
            after[number] = VolumeState(length, held.live_bytes + self._live.get(number, 0), held.sound)
        return after

    def abort(self) -> None:
        """Undo everything. Raises `OSError` when the volume cannot be cut back."""
        self.txn.abort()
        for number, _, _ in self._segments:
            self._volumes.cut(number)


# mypy cannot see that each function gets its own kind of mutation.
_APPLY: dict[type, Callable[..., Outcome]] = {
    Accept: Transaction._accept,
    Abort: Transaction._abort,
    Settle: Transaction._settle,
    QueueRepair: Transaction._queue_repair,
    DropRepair: Transaction._drop_repair_row,
    Restore: Transaction._restore,
    **dict.fromkeys((Refuse, Lock, Drop, Forget, Condemn, Collect), Transaction._own),
}
