"""The rows of large files and of what is staged, inside one transaction: docs/formats/node.md, "Large shards"."""

from __future__ import annotations

import dataclasses

import lmdb
from coffre.node.disk.index import Index
from coffre.node.disk.records import LargeShard
from coffre.node.disk.rows import LargeFile, LargeState, decode_large, encode_large, seal, staging_key, unseal
from coffre.node.store import RETRY_SECONDS, Accept

__all__ = ["LargeFiles"]


class LargeFiles:
    """`unlinked`: files to unlink after the commit."""

    def __init__(self, index: Index, txn: lmdb.Transaction[bytes], now_ms: int) -> None:
        self._index = index
        self._txn = txn
        self._now_ms = now_ms
        self.unlinked: list[int] = []

    def get(self, number: int) -> LargeFile | None:
        key = number.to_bytes(8, "big")
        value = self._txn.get(key, db=self._index.large)
        return None if value is None else decode_large(key, value)

    def put(self, number: int, file: LargeFile) -> None:
        """Write the row of a large file."""
        key = number.to_bytes(8, "big")
        self._txn.put(key, encode_large(key, file), db=self._index.large)

    def free(self, number: int) -> None:
        """Have a large file unlinked after the commit; its row stays until that is done."""
        file = self.get(number)
        if file is not None:
            self.put(number, dataclasses.replace(file, state=LargeState.UNLINKING))
            self.unlinked.append(number)

    def staged(self, accept: Accept) -> LargeShard | None:
        """The shard that was staged for a version, if it is the one that the manifest names, else None."""
        assert accept.shard_index is not None
        owner = staging_key(accept.name.tenant, accept.data_id, accept.shard_index)
        value = self._txn.get(owner, db=self._index.staging)
        if value is None:
            return None
        number = int.from_bytes(unseal(owner, value), "big")
        file = self.get(number)
        if file is None or file.owner != owner or file.state != LargeState.STAGED:
            return None
        if file.shard_hash != accept.shard_hash:
            return None
        return LargeShard(number, accept.data_id, file.cell_count, file.size_bytes, file.shard_hash)

    def adopt(self, large: LargeShard) -> None:
        """Take a staged shard for a version."""
        file = self.get(large.file)
        assert file is not None
        self.put(large.file, dataclasses.replace(file, state=LargeState.ADOPTED))
        self._txn.delete(file.owner, db=self._index.staging)

    def give_back(self, number: int, owner: bytes) -> None:
        """Stage the shard of a version that went, for its writer's next stamp; freed when something is staged."""
        if self._txn.get(owner, db=self._index.staging) is not None:
            self.free(number)
            return
        file = self.get(number)
        if file is not None:
            expires_ms = self._now_ms + int(RETRY_SECONDS * 1000)
            self.put(number, dataclasses.replace(file, state=LargeState.STAGED, expires_ms=expires_ms))
            self.put_staged(owner, number)

    def put_staged(self, owner: bytes, number: int) -> None:
        """Write under which data id and index a large file waits for its version."""
        self._txn.put(owner, seal(owner, number.to_bytes(8, "big")), db=self._index.staging)
