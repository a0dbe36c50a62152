"""What the store itself asks of the committer, beside the mutations of callers: each runs inside one
transaction."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coffre.cluster.errors import CoffreError
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX
from coffre.node.disk.rows import LargeFile, LargeState, Location, note_key, seal, unseal
from coffre.node.disk.transaction import Transaction
from coffre.node.store import RETRY_SECONDS, QueueRepair

__all__ = [
    "Chore",
    "CommitLarge",
    "Copy",
    "DropStaged",
    "DropVolume",
    "ForgetFiles",
    "FreeLarge",
    "KeepNote",
    "MoveRecords",
    "Nothing",
    "OpenLarge",
    "ReportDamage",
]

_log = logging.getLogger(__name__)


class Chore(Protocol):
    """Work of the store itself: runs in the committer's thread, inside the transaction of a batch."""

    def run(self, tx: Transaction) -> int:
        """Do it; the number's meaning is each chore's own."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """Resolves when everything that was queued before it is durable."""

    def run(self, tx: Transaction) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class OpenLarge:
    """Give out the number of a large file, so that no file is ever untracked. Returns it."""

    def run(self, tx: Transaction) -> int:
        tx.counters.files += 1
        tx.large.put(tx.counters.files, LargeFile(LargeState.WRITING))
        return tx.counters.files


@dataclass(frozen=True, slots=True)
class CommitLarge:
    """Keep a large file, whole and synced, as staged; one that was staged before under the same owner
    goes."""

    number: int
    file: LargeFile

    def run(self, tx: Transaction) -> int:
        owner = self.file.owner
        held = tx.txn.get(owner, db=tx.index.staging)
        if held is not None:
            tx.large.free(int.from_bytes(unseal(owner, held), "big"))
        file = dataclasses.replace(self.file, state=LargeState.STAGED, expires_ms=tx.expires_ms)
        tx.large.put(self.number, file)
        tx.large.put_staged(owner, self.number)
        return self.number


@dataclass(frozen=True, slots=True)
class FreeLarge:
    """Unlink the file of a writer that gave up."""

    number: int

    def run(self, tx: Transaction) -> int:
        tx.large.free(self.number)
        return 0


@dataclass(frozen=True, slots=True)
class DropStaged:
    """Free what is staged under an owner; with `expired`, only when its time is over. Returns the bytes
    freed."""

    owner: bytes
    expired: bool = False

    def run(self, tx: Transaction) -> int:
        value = tx.txn.get(self.owner, db=tx.index.staging)
        if value is None:
            return 0
        number = int.from_bytes(unseal(self.owner, value), "big")
        file = tx.large.get(number)
        # What expires later than what is staged now was staged in the future, by a clock that was wrong.
        last_ms = max(tx.expires_ms, tx.now_ms + int(RETRY_SECONDS * 1000)) + STAMP_AHEAD_MS_MAX
        if file is not None and self.expired and tx.now_ms < file.expires_ms <= last_ms:
            return 0
        tx.txn.delete(self.owner, db=tx.index.staging)
        if file is None or file.state != LargeState.STAGED:
            return 0
        tx.large.free(number)
        return file.file_bytes


@dataclass(frozen=True, slots=True)
class ForgetFiles:
    """Remove the rows of large files that are unlinked."""

    numbers: Sequence[int]

    def run(self, tx: Transaction) -> int:
        for number in self.numbers:
            tx.txn.delete(number.to_bytes(8, "big"), db=tx.index.large)
        return 0


@dataclass(frozen=True, slots=True)
class KeepNote:
    """Keep a few bytes under a title."""

    title: str
    note: bytes

    def run(self, tx: Transaction) -> int:
        key = note_key(self.title)
        tx.txn.put(key, seal(key, self.note), db=tx.index.meta)
        return len(self.note)


@dataclass(frozen=True, slots=True)
class ReportDamage:
    """Queue a shard or manifest of this node that did not verify."""

    repair: QueueRepair

    def run(self, tx: Transaction) -> int:
        try:
            tx.queue_damage(self.repair)
        except CoffreError as error:
            _log.error("damage cannot be queued for repair: %s", error)
        return 0


@dataclass(frozen=True, slots=True)
class Copy:
    """A live record of a volume that is being emptied: its row's key, its version, and its bytes,
    verified."""

    key: bytes
    stamp: bytes
    location: Location
    record: bytes


@dataclass(frozen=True, slots=True)
class MoveRecords:
    """Append copies and point their rows to them. Returns the bytes moved."""

    copies: Sequence[Copy]

    def run(self, tx: Transaction) -> int:
        moved = 0
        for copy in self.copies:
            if tx.move(copy.key, copy.stamp, copy.location, copy.record):
                moved += len(copy.record)
        return moved


@dataclass(frozen=True, slots=True)
class DropVolume:
    """Unlink a volume without live records. Returns the bytes freed."""

    number: int

    def run(self, tx: Transaction) -> int:
        return tx.drop_volume(self.number)
