"""The store of one node as a seam: an index of versions, and the bytes of their shards.

`LmdbStore` (coffre.node.lmdb_store) keeps them on a disk; `MemoryStore` (coffre.node.memory_store) keeps them
in memory, for tests and simulation, and can forget what was not synced. Both pass
tests/contract/test_shard_store.py.

What a node may do to a version is decided in coffre.node.store.votes, which both share; docs/consistency.md says
why.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coffre.cluster.errors import CoffreError
from coffre.cluster.names import ObjectName

__all__ = [
    "ABORTED",
    "ACCEPTED",
    "LOCKED",
    "SETTLED",
    "Abort",
    "Accept",
    "Collect",
    "Condemn",
    "Drop",
    "DropRepair",
    "Forget",
    "KeyMutation",
    "Listing",
    "ListingEntry",
    "Lock",
    "Mark",
    "Mutation",
    "Outcome",
    "OwnMutation",
    "PartitionDigest",
    "PartitionRow",
    "QueueRepair",
    "Refuse",
    "Restore",
    "Settle",
    "ShardStore",
    "StagedShard",
    "StagedWriter",
    "State",
    "StoreIdentity",
    "StoreOptions",
    "StoreStatus",
    "StoredCell",
    "StoredVersion",
]


class State(enum.IntEnum):
    """How far a version has come on this node; the numbers are those of the wire (coffre.v1.State)."""

    ACCEPTED = 1
    LOCKED = 2
    SETTLED = 3
    ABORTED = 4


# For code that runs per operation: Python 3.11 takes several times as long to look up `State.SETTLED`.
ACCEPTED, LOCKED, SETTLED, ABORTED = State


# ------------------------------------------------------------------ mutations


@dataclass(slots=True)  # frozen ones take thrice as long to make, and these are made by the ten thousand
class Accept:
    """Store a version. `manifest` and `mac` are kept as they are; stamp, kind and data id were read from
    them."""

    name: ObjectName
    partition: int
    stamp: bytes
    tombstone: bool
    data_id: bytes
    manifest: bytes
    mac: bytes
    placement: tuple[int, ...]
    shard_index: int | None  # None: the manifest alone
    cell: bytes = b""  # the shard, when it is one cell and not staged
    cell_crc: int = 0
    shard_hash: bytes = b""  # what the manifest names for this shard, 16 bytes
    # The shard was staged before, under (tenant, data_id, shard_index). When it is not there: `NotFound`, but
    # with `lock` the manifest is accepted alone.
    staged: bool = False
    lock: bool = False
    overrule: bool = False  # a vote ABORTED here proves nothing, and others keep the version for ever
    base: bytes | None = None  # of a conditional version: the stamp that it was decided on, b"" for none


@dataclass(frozen=True, slots=True)
class Abort:
    """Vote that a version is given up."""

    name: ObjectName
    partition: int
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Settle:
    """Note that a version is established. Does not ask for a sync of its own."""

    name: ObjectName
    partition: int
    stamp: bytes
    placement: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """Note that every version which this stamp's writer (its last 8 bytes) wrote in this tenant's buckets, up to
    and with this stamp, is established. Does not ask for a sync of its own.

    Such a version IS settled wherever entries are read or decided; what a version replaces is trimmed by its
    `Settle` alone. A mark only moves up. A writer that gives up a version goes on under another id, so
    nothing that was given up lies below a mark.
    """

    tenant: str
    stamp: bytes


@dataclass(frozen=True, slots=True)
class QueueRepair:
    """Remember that a shard of this version, here or elsewhere, is damaged or missing.

    Nothing is remembered of a version that is aborted here, or trimmed below a newer settled one; and what is
    remembered is forgotten when the version goes, or when an `Accept` brings the shard.
    """

    name: ObjectName
    partition: int
    stamp: bytes
    shard_index: int | None  # None: the manifest of a node that holds no shard of the version


@dataclass(frozen=True, slots=True)
class DropRepair:
    """The repair of this shard is done, here or elsewhere: forget what `QueueRepair` remembered."""

    name: ObjectName
    partition: int
    stamp: bytes
    shard_index: int | None


# What follows is a node's own business: it comes from its repair (docs/repair.md); over the wire comes `Refuse` alone.


@dataclass(frozen=True, slots=True)
class Restore:
    """Hold an established version as SETTLED, with the shard that `accept` brings, and trim as a `Settle` does.

    Unlike an `Accept` it takes a version below a newer settled one, when it is one of those that are kept; and it
    brings a version that this node once voted against, since what is established stands. `replace`: the
    shard that is held of the version, damaged or of another index, gives way to this one. The caller
    has verified the shard against the manifest.
    """

    accept: Accept
    replace: bool = False

    @property
    def name(self) -> ObjectName:
        """Of the version that is brought."""
        return self.accept.name

    @property
    def partition(self) -> int:
        """Of the version that is brought."""
        return self.accept.partition

    @property
    def stamp(self) -> bytes:
        """Of the version that is brought."""
        return self.accept.stamp


@dataclass(frozen=True, slots=True)
class Refuse:
    """Vote ABORTED on a version that this node does not hold; nothing when it holds it after all."""

    name: ObjectName
    partition: int
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Lock:
    """Vote LOCKED on a version that this node holds as ACCEPTED."""

    name: ObjectName
    partition: int
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a version that is dead: an ABORTED vote takes the place of ACCEPTED or LOCKED. Never of SETTLED."""

    name: ObjectName
    partition: int
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the row of a name that this node is no primary of. `Conflict` when it holds a version beside
    `stamps`: one that came since they were looked at."""

    name: ObjectName
    partition: int
    stamps: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Condemn:
    """Flag a settled tombstone as known to every primary. `Conflict` unless it is the only version of its name."""

    name: ObjectName
    partition: int
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Collect:
    """Remove a condemned tombstone. `Conflict` unless it is the only version of its name."""

    name: ObjectName
    partition: int
    stamp: bytes


OwnMutation = Restore | Refuse | Lock | Drop | Forget | Condemn | Collect
KeyMutation = Accept | Abort | Settle | QueueRepair | DropRepair | OwnMutation  # of one object
Mutation = KeyMutation | Mark


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutation. `error` is None when it was done; `state` is the node's vote now."""

    state: State | None = None
    error: CoffreError | None = None
    newest_stamp: bytes = b""  # the newer stamp that stood in the way of an Accept
    has_shard: bool = False  # after Accept: this node holds a shard of the version
    replaces: bool = (
        False  # after Accept: a Settle of the version would trim other entries of the key, or bury it
    )


# ------------------------------------------------------------------ reads


class StoredCell(NamedTuple):
    """One cell, verified against `crc` when it was read. Segments count from 0."""

    segment: int
    crc: int
    data: bytes | memoryview


class StoredVersion(NamedTuple):
    """One version as this node has it. ABORTED versions have a stamp alone."""

    state: State
    stamp: bytes
    tombstone: bool = False
    manifest: bytes = b""
    mac: bytes = b""
    placement: tuple[int, ...] = ()
    shard_index: int | None = None
    shard_bytes: int = 0
    cell: StoredCell | None = None  # when asked for, whole, and undamaged
    damaged: bool = False  # the shard or the manifest is here and does not verify
    condemned: bool = False  # a tombstone that every primary is known to have
    was_locked: bool = False  # with ABORTED, to this node alone: a vote to keep that outlived its version


class ListingEntry(NamedTuple):
    """A key with its versions down to the newest settled one, or a common prefix with the first live key
    below."""

    key: str
    versions: tuple[StoredVersion, ...]
    common_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A page in key order (by UTF-8 bytes). `more`: entries follow the last one."""

    entries: tuple[ListingEntry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PartitionDigest:
    """Order-free digest (XOR of BLAKE2b-128 over name, stamp, kind, and whether the node has a shard) of the
    non-aborted versions of a partition."""

    digest: bytes = bytes(16)
    versions: int = 0


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """One key of a partition, with every version held here as the index has it: no manifest, placement or
    cell."""

    name: ObjectName
    versions: tuple[StoredVersion, ...]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Counters of a store. `writable` is False while free space is below the reserve, or while `cannot_write` says why
    else. `index_damaged`: rows or pages of the index do not read well, and the node is to be replaced."""

    objects: int = 0
    shards: int = 0
    live_bytes: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0
    reserve_bytes: int = 0  # of these: only deletes may use it
    size_bytes: int = 0  # of the disk, or of the quota where that is less; 0: not known
    writable: bool = True
    cannot_write: str = ""
    damaged: int = 0
    index_damaged: bool = False
    repair_queue: int = 0
    syncs: int = 0


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Which store this is, and how far it has come: `commits` only grows, and a disk that was rolled back has fewer."""

    store_id: bytes  # 16 bytes, drawn when the store was made
    commits: int


@dataclass(frozen=True, slots=True)
class StagedShard:
    """A shard that was streamed, verified and synced, but belongs to no version yet."""

    cell_count: int
    size_bytes: int
    shard_hash: bytes  # 16 bytes


class StagedWriter(Protocol):
    """Takes the cells of one large shard in order. Bounded memory: `write` returns when the cells are handed
    on."""

    async def write(self, cells: Sequence[StoredCell]) -> None:
        """Append cells; their segments go on from the last one by one. Raises `IntegrityError` on a bad CRC,
        `InvalidArgument` on a gap, `ResourceExhausted` when the disk is full."""

    async def commit(self) -> StagedShard:
        """Sync, and keep the shard until an `Accept` adopts it, it is dropped, or it expires."""

    async def discard(self) -> None:
        """Forget the shard and free its space. Harmless after `commit`, which it then does not undo."""


# ------------------------------------------------------------------ the store


@dataclass(slots=True)
class StoreOptions:
    """What a node tells its store. Sizes in bytes, times in seconds."""

    versions_kept: int = 1
    capacity_bytes: int | None = None  # a quota below the size of the disk
    reserve_bytes: int = 256 << 20  # free space that only deletes may use
    volume_bytes: int = 64 << 20
    staging_expiry: float = 24 * 3600.0
    map_bytes: int = 16 << 20  # where the LMDB map starts; it grows by itself
    queue_bytes: int = 64 << 20  # back-pressure: mutations waiting for the disk


class ShardStore(Protocol):
    """Index and volumes of one node. Names come with their tenant, so tenants cannot meet."""

    async def apply(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Decide the mutations in order and return once all of them are durable (group commit across callers;
        a call of `Settle`s and `Mark`s alone may return before its sync). One failing mutation does not touch
        the others.

        `Abort` of a version with an adopted large shard puts the shard back into staging, for the
        writer's next stamp; so does a `Settle` that trims a version that was merely accepted.
        An `Accept` with a shard for a version whose own shard here does not verify
        replaces the damaged one. Raises `ResourceExhausted` when the call alone is larger than the queue.

        A call is queued before it waits for anything: of two calls, what the first one asks for is done first."""

    async def drain(self) -> None:
        """Return when every `apply` that came before is decided: durable, or refused. Raises `Unavailable` when the
        store is closed."""

    async def read(
        self, name: ObjectName, *, stamp: bytes = b"", every: bool = False, want_cell: bool = False
    ) -> tuple[StoredVersion, ...]:
        """Versions, newest first: down to and with the newest settled one; or `every`; or only `stamp`.
        ABORTED ones are included. The cell comes along for one-cell shards when asked for."""

    def read_cells(
        self, name: ObjectName, stamp: bytes, shard_index: int, first_segment: int, segment_count: int
    ) -> AsyncIterator[Sequence[StoredCell]]:
        """Cells of a shard in order, verified, in chunks of at most about 1 MiB. `segment_count` 0: to
        the end. Raises `NotFound` or `IntegrityError` (and queues the shard for repair)."""

    async def buckets(self, tenant: str, *, after: bytes = b"", limit: int = 1000) -> tuple[str, ...]:
        """The first buckets of a tenant behind `after`, in order, that this store ever had a name of."""

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
        """Keys in order, unsettled versions included; keys whose newest version, ABORTED ones aside, is a settled
        tombstone are left out, and not even walked over where their rows say so, and keys with ABORTED ones alone.
        With a delimiter, keys are rolled up into common prefixes that have at least one version that is not a
        tombstone, and a page stays bounded work: when very many keys show nothing, the page ends with the
        last key that was looked at, as it is, and `more`; go on after it. A page may be cut short of
        `limit` by its bytes, too."""

    async def stage(self, tenant: str, data_id: bytes, shard_index: int) -> StagedWriter:
        """Start a large shard."""

    async def drop_staged(self, tenant: str, data_id: bytes, shard_index: int) -> None:
        """Free a staged shard that no version has adopted; nothing happens when there is none."""

    async def partition_digest(self, partition: int) -> PartitionDigest:
        """The digest of one partition; of one that holds nothing, the empty one."""

    async def digests(self, before_ms: int | None = None) -> Mapping[int, PartitionDigest]:
        """Of every partition that has versions here.

        `before_ms`: leave out of the digests (not of `versions`) what changed with a newest version from that time on,
        as far as it is known (`coffre.node.store.recent`).
        """

    def partition_rows(
        self, partition: int, *, slot: int = 0, slots: int = 1
    ) -> AsyncIterator[Sequence[PartitionRow]]:
        """The keys of a partition, some at a time, for repair: of `slots` parts that the hash of a name makes
        (`limits.slot_of`), the one numbered `slot`."""

    def repair_queue(self) -> AsyncIterator[QueueRepair]:
        """Shards reported as damaged or missing."""

    async def identity(self) -> StoreIdentity:
        """Which store this is, and how many commits it has made durable."""

    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
        """Keep a few bytes under a title, in place of those that were there. Does not ask for a sync of its own, unless
        `sync` says so."""

    async def note(self, title: str) -> bytes:
        """What was kept under a title; empty when nothing was. Raises `IntegrityError` when it does not verify."""

    async def reclaim(self, *, expire: bool = True) -> int:
        """One bounded step of freeing the space of what was deleted: bytes freed, 0 when there is nothing to
        do. `expire`: what is staged goes by its age, too; not while this node's clock cannot be believed."""

    async def status(self) -> StoreStatus:
        """How full it is, what it holds, and whether it takes writes. Bytes; counts."""

    async def close(self) -> None:
        """Finish what was accepted, sync, and let go of the disk. Later calls raise `Unavailable`."""
