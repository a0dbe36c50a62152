"""What must be agreed between members beyond one object: a small store of keys with revisions, as a seam.

The shape is that of etcd v3. Implementations: `MemoryCoordination` (tests and simulation), `EmbeddedCoordination`
(LMDB in one node), `EtcdCoordination` (production), `RemoteCoordination` (through a node). All pass
tests/contract/test_coordination.py. What is kept in it, key by key: docs/formats/coordination.md.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coffre.cluster.errors import InvalidArgument

__all__ = [
    "COMMIT_BYTES_MAX",
    "COMMIT_KEYS_MAX",
    "KEY_BYTES_MAX",
    "LEASE_ID_MAX",
    "LEASE_SECONDS_MAX",
    "RANGE_BYTES_MAX",
    "RANGE_LIMIT_MAX",
    "VALUE_BYTES_MAX",
    "Change",
    "Changes",
    "Commit",
    "Compare",
    "Coordination",
    "Entry",
    "Lease",
    "Page",
    "Put",
    "check_commit",
    "check_key",
    "check_lease_seconds",
    "check_prefix",
    "check_range",
    "prefix_end",
]

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1 << 20
COMMIT_KEYS_MAX = 64  # compares, puts and deletes, each
COMMIT_BYTES_MAX = 1_200_000  # of values in one commit; etcd takes requests of up to 1.5 MiB
RANGE_LIMIT_MAX = 1000
RANGE_BYTES_MAX = 2 << 20  # of values on one page, beyond its first entry
LEASE_SECONDS_MAX = 3600
LEASE_ID_MAX = (1 << 63) - 1
_KEY = re.compile(r"[!-~]{1,512}")  # printable ASCII without spaces: order of characters is order of bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value. `created`: the revision since when it has existed without a gap; it serves as a fencing
    token. `modified`: the revision of its last change."""

    key: str
    value: bytes
    created: int
    modified: int


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in key order. `revision`: what the whole store was at; a watch from there misses nothing."""

    entries: tuple[Entry, ...]
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds when `key` was last changed at revision `modified`; 0: when there is no such key."""

    key: str
    modified: int


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. With a lease, it vanishes when the lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """`succeeded`: every compare held, and all was done, at `revision`. Otherwise nothing was done."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Lease:
    """`seconds` may be more than was asked for."""

    number: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key after a commit; `value` is None when it is gone."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit (or the end of one lease) changed below the watched prefix."""

    revision: int
    changes: tuple[Change, ...]


class Coordination(Protocol):
    """Keys with revisions. Every change of the store has a revision of its own; they rise and never go back.

    Every method is linearizable. It raises `Unavailable` when the store cannot be reached: then nothing was done,
    except where it says `OutcomeUnknown`. `InvalidArgument` when something exceeds the bounds of this module.
    """

    async def get(self, key: str) -> Entry | None:
        """The entry of a key, or None when there is none. Raises `Unavailable`."""

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        """Return up to `limit` entries whose keys start with `prefix` and come behind `after`.

        A page of large values may be shorter than `limit` and still have `more`.
        """

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        """If all compares hold, do all puts and deletes at one revision. No key may be named twice by them.

        Raises `NotFound` when a put names a lease that has ended, `OutcomeUnknown` when the answer was lost,
        `ResourceExhausted` when the store is full.
        """

    async def grant(self, seconds: int) -> Lease:
        """Return a new lease. Its number cannot be guessed: who knows it may keep it alive and end it."""

    async def keep_alive(self, lease: int) -> None:
        """Let the lease's time begin anew. Raises `NotFound` when it has ended."""

    async def revoke(self, lease: int) -> None:
        """End a lease now, and its keys with it. A lease that has ended is no error."""

    def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        """Yield what changes below `prefix` after `revision`, in order, without end.

        Raises `ReadAgain` when this watcher fell behind, or the changes since `revision` are not remembered: read, and
        watch from there. Raises `Unavailable` when the store cannot be reached any more.
        """

    async def close(self) -> None:
        """End what is under way, and the connections."""


def check_key(key: str) -> None:
    """Raise `InvalidArgument` unless `key` is 1 to 512 printable ASCII characters without spaces."""
    if not _KEY.fullmatch(key):
        raise InvalidArgument(f"a key of coordination is 1 to {KEY_BYTES_MAX} printable ASCII characters")


def check_prefix(prefix: str) -> None:
    """Raise `InvalidArgument` for what cannot start a key."""
    check_key(prefix)


def check_range(prefix: str, limit: int, after: str) -> None:
    """Check the arguments of `range`. Raises `InvalidArgument`."""
    check_prefix(prefix)
    if after:
        check_key(after)
    if not 1 <= limit <= RANGE_LIMIT_MAX:
        raise InvalidArgument(f"a page has 1 to {RANGE_LIMIT_MAX} entries")


def check_commit(compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str]) -> None:
    """Raise `InvalidArgument` for a commit beyond the bounds, or one that names a key twice."""
    if max(len(compares), len(puts), len(deletes)) > COMMIT_KEYS_MAX:
        raise InvalidArgument(f"a commit has at most {COMMIT_KEYS_MAX} compares, puts and deletes each")
    if not puts and not deletes:
        raise InvalidArgument("a commit changes something")
    changed = [put.key for put in puts] + list(deletes)
    for key in (*changed, *(compare.key for compare in compares)):
        check_key(key)
    if len(set(changed)) < len(changed):
        raise InvalidArgument("a commit changes each key once")
    if any(compare.modified < 0 for compare in compares):
        raise InvalidArgument("a revision is never negative")
    if any(not 0 <= put.lease <= LEASE_ID_MAX for put in puts):
        raise InvalidArgument("that is not the number of a lease")
    if any(len(put.value) > VALUE_BYTES_MAX for put in puts):
        raise InvalidArgument(f"a value of coordination has at most {VALUE_BYTES_MAX} bytes")
    if sum(len(put.value) for put in puts) > COMMIT_BYTES_MAX:
        raise InvalidArgument(f"the values of a commit have at most {COMMIT_BYTES_MAX} bytes together")


def check_lease_seconds(seconds: int) -> None:
    """Check how long a lease is to last. Raises `InvalidArgument`."""
    if not 1 <= seconds <= LEASE_SECONDS_MAX:
        raise InvalidArgument(f"a lease lasts 1 to {LEASE_SECONDS_MAX} seconds")


def prefix_end(prefix: str) -> str:
    """The first key behind all that start with `prefix` (keys end at '~', so one more is always possible)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
