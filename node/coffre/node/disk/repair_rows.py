"""The queue of reported damage, inside one transaction: docs/formats/node.md, table `repairs`."""

from __future__ import annotations

import lmdb
from coffre.node.disk.index import Index
from coffre.node.disk.rows import decode_repair, encode_repair, repair_key, repair_prefix
from coffre.node.store import Entry, QueueRepair

__all__ = ["RepairRows"]


class RepairRows:
    """Mostly there are none: then nothing costs anything."""

    def __init__(self, index: Index, txn: lmdb.Transaction[bytes]) -> None:
        self._table = index.repairs
        self._txn = txn
        self._any = txn.stat(index.repairs)["entries"] > 0

    def put(self, repair: QueueRepair, context: bytes, *, found_here: bool) -> None:
        """`found_here`: this node found the damage in its own shard, so another shard may replace it."""
        key = repair_key(context, repair.stamp, repair.shard_index)
        held = self._txn.get(key, db=self._table)
        found_here = found_here or (held is not None and decode_repair(key, held)[1])
        self._txn.put(key, encode_repair(key, repair, found_here=found_here), db=self._table)
        self._any = True

    def found_damaged(self, entries: tuple[Entry, ...], stamp: bytes, context: bytes) -> bool:
        """Whether this node found its own copy of a version damaged."""
        if self._any:
            for entry in entries:
                if entry.stamp == stamp and entry.record is not None:
                    key = repair_key(context, entry.stamp, entry.shard_index)
                    value = self._txn.get(key, db=self._table)
                    return value is not None and decode_repair(key, value)[1]
        return False

    def drop(self, context: bytes, stamp: bytes, shard_index: int | None) -> None:
        """Take one report out of the queue; one that is not there is no error."""
        if self._any:
            self._txn.delete(repair_key(context, stamp, shard_index), db=self._table)

    def forget(self, context: bytes, stamp: bytes) -> None:
        """Drop every repair of a version."""
        if not self._any:
            return
        prefix = repair_prefix(context, stamp)
        with self._txn.cursor(db=self._table) as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                cursor.delete()
                found = bool(cursor.key())
