"""Large shards that were read a moment ago, kept open: a range of one is then one read of the disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from coffre.node.disk.large_shards import LargeShardReader
from coffre.node.disk.records import LargeShard

__all__ = ["OpenShards"]

OPEN_MAX = 64  # each takes one descriptor, and 576 KiB of its table and the hashes above it at most


class OpenShards:
    """Open readers by file number, which no two files of a store ever share. For any thread.

    A freed file keeps its space while it is open. So whoever unlinks one calls `forget` afterwards, and a reader that
    was opened meanwhile is not kept: it is put in first, and looked at then.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._readers: OrderedDict[int, LargeShardReader] = OrderedDict()  # the one used last comes last

    def get(self, tenant: str, shard_index: int, large: LargeShard) -> LargeShardReader:
        """The open file of a shard. Blocks. Raises `OSError` and `IntegrityError`."""
        number = large.file
        with self._lock:
            reader = self._readers.get(number)
            if reader is not None:
                self._readers.move_to_end(number)
        if reader is not None and reader.serves(tenant, shard_index, large):
            return reader
        self.forget(number)
        reader = LargeShardReader(self._directory, tenant, shard_index, large)
        with self._lock:
            self._readers[number] = reader
            if len(self._readers) > OPEN_MAX:
                self._readers.popitem(last=False)
        if not reader.linked:
            self.forget(number)
        return reader

    def forget(self, number: int) -> None:
        """Let go of a file; it closes when the reads that are under way are over."""
        with self._lock:
            self._readers.pop(number, None)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._readers.clear()
