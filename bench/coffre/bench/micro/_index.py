"""The index of a node with a million keys in it (with --large, ten), on a real disk, through the ShardStore seam."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

from coffre.bench.index_probe import accept, applied
from coffre.bench.timing import INTERPRETER, Operation, Reference, Work
from coffre.cluster.clock import SystemClock
from coffre.cluster.names import ObjectName
from coffre.node.disk import LmdbStore
from coffre.node.store import StoredVersion, StoreOptions

__all__ = ["operations"]

_LOAD_BATCH = 4096
_INSERT_BATCH = 512
_LOOKUPS = 200
_LIST_PAGE = 1000
_ODD = 0x9E3779B1  # times an odd number is a permutation of 32 bits: keys come in no order
# A disk that makes syncs wait is slow to measure, and few rounds say enough of it.
_DISK_ROUNDS = 21
_DISK_TOLERANCE = 0.6


def operations(wanted: Callable[[str], bool], place: Path, large: bool) -> Generator[Operation]:
    """Those that are wanted, on a store that is loaded for them and gone afterwards."""
    for size, keys in (("1m", 10**6), ("10m", 10**7))[: 2 if large else 1]:
        ids = [f"index_{kind}[{size}]" for kind in ("insert", "lookup", "lookup_absent", "list")]
        if not any(map(wanted, ids)):
            continue
        directory = place / f"micro-index-{os.getpid()}"
        directory.mkdir(parents=True)
        try:
            with closing(_LoadedStore(directory / "store", keys)) as store:
                # About what a commit of 512 keys in no order writes and syncs.
                append = Reference("append_sync_2x4m", Work(partial(_append, directory / "reference"), 2))
                found = [Operation(ids[0], append, store.insert, 1, _DISK_TOLERANCE, _DISK_ROUNDS)]
                reads = zip(ids[1:], (store.look_up, store.look_up_absent, store.page), strict=True)
                found += [Operation(name, INTERPRETER, run) for name, run in reads]
                yield from (each for each in found if wanted(each.id))
        finally:
            shutil.rmtree(directory)


def _append(path: Path) -> None:
    with path.open("ab", buffering=0) as sink:
        sink.write(bytes(4 << 20))
        os.fdatasync(sink.fileno())


def _name(place: int, more: str = "") -> ObjectName:
    """Keys in the order of their places, 0 to 2^32 - 1."""
    return ObjectName("tenant", "records", f"patient/{place:08x}{more}")


class _LoadedStore:
    """A store with so many keys, and the event loop that it lives in."""

    def __init__(self, directory: Path, keys: int) -> None:
        """Loaded in the order of its keys: in no order, every commit would rewrite leaves all over the tree."""
        self._keys, self._next = keys, count(keys, _INSERT_BATCH)
        self._random = random.Random(1)
        self._runner = asyncio.Runner()
        self._store = self._runner.run(LmdbStore.open(directory, StoreOptions(), SystemClock()))
        for start in range(0, keys, _LOAD_BATCH):
            numbers = range(start, min(start + _LOAD_BATCH, keys))
            self._runner.run(applied(self._store, (accept(n, _name(self._place(n))) for n in numbers)))

    def _place(self, number: int) -> int:
        """Of the loaded key of that number: evenly over all places."""
        return number * ((1 << 32) // self._keys)

    def insert(self) -> None:
        """A group commit of 512 new keys anywhere between the others, synced."""
        first = next(self._next)
        numbers = range(first, first + _INSERT_BATCH)
        names = (_name(number * _ODD % (1 << 32), f"/{number}") for number in numbers)
        self._runner.run(applied(self._store, map(accept, numbers, names)))

    def look_up(self) -> None:
        """200 keys with their cells, all at once, in no order."""
        names = [_name(self._place(self._random.randrange(self._keys))) for _ in range(_LOOKUPS)]
        found = self._runner.run(self._read(names, want_cell=True))
        assert all(versions[0].cell is not None for versions in found), "a key is gone"

    def look_up_absent(self) -> None:
        """200 keys that were never there."""
        names = [_name(number * _ODD % (1 << 32), "x") for number in range(_LOOKUPS)]
        assert not any(self._runner.run(self._read(names, want_cell=False))), "a key that nobody wrote"

    async def _read(self, names: list[ObjectName], *, want_cell: bool) -> list[tuple[StoredVersion, ...]]:
        return await asyncio.gather(*(self._store.read(name, want_cell=want_cell) for name in names))

    def page(self) -> None:
        """A page of a thousand keys from somewhere in the middle."""
        after = f"patient/{self._random.randrange(1 << 31):08x}".encode()
        page = self._store.list("tenant", "records", "patient/", after=after, limit=_LIST_PAGE)
        assert len(self._runner.run(page).entries) == _LIST_PAGE, "a page is short"

    def close(self) -> None:
        """Close it and its loop."""
        self._runner.run(self._store.close())
        self._runner.close()
