"""Digests of partitions as one batch will leave them: docs/formats/node.md, table `digests`."""

from __future__ import annotations

import lmdb
from coffre.node.disk.index import Index, partition_prefix
from coffre.node.disk.rows import DIGEST, seal, unseal
from coffre.node.store import Change, Entry, change_of, votes

__all__ = ["Digests"]


class Digests:
    """What the rows of a batch change in the digests of their partitions. Nothing of it is kept before `committed`."""

    def __init__(self, index: Index, txn: lmdb.Transaction) -> None:
        self._index = index
        self._txn = txn
        self._digests: dict[int, list[int]] = {}  # by partition: the digest, and of how many versions
        self.changes: list[Change] = []

    def recount(
        self, partition: int, context: bytes, before: tuple[Entry, ...], after: tuple[Entry, ...]
    ) -> None:
        """Bring a partition's digest up to date with one row."""
        counted, wanted = votes.kinds(before), votes.kinds(after)
        if counted == wanted:
            return
        change = change_of(partition, context, counted, wanted)
        digest = self._digest(partition)
        digest[0] ^= change[2]
        digest[1] += len(wanted) - len(counted)
        self.changes.append(change)

    def add(self, partition: int, stamp: bytes, delta: int) -> None:
        """Count the first version of a key, whose digest is `delta`."""
        digest = self._digest(partition)
        digest[0] ^= delta
        digest[1] += 1
        self.changes.append((partition, stamp, delta))

    def put(self) -> None:
        """Write what has changed into the transaction."""
        for partition, (digest, versions) in self._digests.items():
            prefix = partition_prefix(partition)
            body = DIGEST.pack(digest.to_bytes(16, "big"), versions)
            self._txn.put(prefix, seal(prefix, body), db=self._index.digests)

    def committed(self) -> None:
        """The transaction is durable: what was counted holds from now on."""
        self._index.counted.update(self._digests)

    def _digest(self, partition: int) -> list[int]:
        digest = self._digests.get(partition)
        if digest is None:
            held = self._index.counted.get(partition)
            digest = self._digests[partition] = self._counted(partition) if held is None else held[:]
        return digest

    def _counted(self, partition: int) -> list[int]:
        prefix = partition_prefix(partition)
        raw = self._txn.get(prefix, db=self._index.digests)
        value, versions = (b"", 0) if raw is None else DIGEST.unpack(unseal(prefix, bytes(raw)))
        return [int.from_bytes(value, "big"), versions]
