"""The marks of writers: the stamps up to which all that each of them wrote is established.

docs/formats/node.md, "Index", has their rows; `coffre.node.store.votes.promoted` says what they mean.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lmdb
from coffre.cluster.errors import IntegrityError
from coffre.node.disk.rows import decode_mark, mark_key

__all__ = ["MarkView", "Marks", "WriterId"]

_log = logging.getLogger(__name__)
_CACHED_MAX = 10_000

WriterId = tuple[str, bytes]  # tenant, the last 8 bytes of its stamps


class Marks:
    """The table of marks, and in memory those that moved lately. Reads are for any thread.

    Only the committer adds to what memory holds, after its commit: a reader that did could put back what it
    had read before that commit.
    """

    def __init__(self, table: lmdb._Database) -> None:
        self.table = table
        self._cached: dict[WriterId, bytes] = {}

    def get(self, txn: lmdb.Transaction[bytes], writer: WriterId) -> bytes:
        """The mark of a writer, empty when there is none, or none that verifies."""
        mark = self._cached.get(writer)
        return self._load(txn, writer) if mark is None else mark

    def _load(self, txn: lmdb.Transaction[bytes], writer: WriterId) -> bytes:
        key = mark_key(*writer)
        value = txn.get(key, db=self.table)
        if value is None:
            return b""
        try:
            return decode_mark(key, value)
        except IntegrityError as error:
            _log.error("the mark of a writer counts as none: %s", error)
            return b""

    def committed(self, marks: Mapping[WriterId, bytes]) -> None:
        """Keep marks that are on disk now. For the committer's thread."""
        if len(self._cached) + len(marks) > _CACHED_MAX:
            self._cached.clear()
        self._cached.update(marks)


class MarkView:
    """`MarkOf` for one tenant inside one read transaction; each writer is looked up once."""

    def __init__(self, marks: Marks, txn: lmdb.Transaction[bytes], tenant: str) -> None:
        self._marks = marks
        self._txn = txn
        self._tenant = tenant
        self._seen: dict[bytes, bytes] = {}

    def __call__(self, writer: bytes) -> bytes:
        mark = self._seen.get(writer)
        if mark is None:
            mark = self._seen[writer] = self._marks.get(self._txn, (self._tenant, writer))
        return mark
