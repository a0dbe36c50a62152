"""The index of a node with a million keys in it (with --large, ten), on a real disk, through the ShardStore seam."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Generator
from itertools import count
from pathlib import Path

from coffre.bench.micro import INTERPRETER, Micro, Noise, Reference, Wanted
from coffre.cluster.clock import SystemClock
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import crc32c
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, Mutation, ShardStore, StoredVersion, StoreOptions

__all__ = ["benchmarks"]

LOAD_BATCH = 4096
INSERT_BATCH = 512
LOOKUPS = 200
LIST_PAGE = 1000
PARTITIONS = 4096
CELL = bytes(64)
CELL_CRC = crc32c(CELL)
MANIFEST = bytes(160)
_ODD = 0x9E3779B1  # times an odd number is a permutation of 32 bits: keys come in no order
# A disk that makes syncs wait is slow to measure, and few rounds say enough of it.
DISK_ROUNDS = 21


def name_of(place: int, more: str = "") -> ObjectName:
    """Keys in the order of their places, 0 to 2^32 - 1."""
    return ObjectName("tenant", "records", f"patient/{place:08x}{more}")


def insertion(number: int, name: ObjectName, partition: int) -> Mutation:
    stamp = number.to_bytes(8, "big") + bytes(8)
    return Accept(
        name, partition, stamp, False, bytes(16), MANIFEST, bytes(16), (1, 2, 3, 4, 5, 6), 1, CELL, CELL_CRC
    )  # fmt: skip


class LoadedStore:
    """A store with `keys` keys, and the event loop that it lives in."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.directory, self.keys = directory, keys
        self._runner = asyncio.Runner()
        self._next = count(keys, INSERT_BATCH)
        self._store: ShardStore = self._runner.run(
            LmdbStore.open(directory / "store", StoreOptions(), SystemClock())
        )
        self._source = random.Random(1)

    def _place(self, number: int) -> int:
        """Of the loaded key of that number: evenly over all places."""
        return number * ((1 << 32) // self.keys)

    def load(self) -> None:
        """In key order, partition by partition: in no order, every commit would rewrite leaves all over the tree."""
        for start in range(0, self.keys, LOAD_BATCH):
            numbers = range(start, min(start + LOAD_BATCH, self.keys))
            self._apply([insertion(n, name_of(self._place(n)), n * PARTITIONS // self.keys) for n in numbers])

    def insert(self) -> None:
        """A group commit of 512 new keys anywhere between the others, synced."""
        start, mutations = next(self._next), []
        for number in range(start, start + INSERT_BATCH):
            name = name_of(number * _ODD % (1 << 32), f"/{number}")
            mutations.append(insertion(number, name, partition_of(name, PARTITIONS)))
        self._apply(mutations)

    def _apply(self, mutations: list[Mutation]) -> None:
        outcomes = self._runner.run(self._store.apply(mutations))
        assert all(outcome.error is None for outcome in outcomes), "the store refused a key"

    def look_up(self) -> None:
        """200 keys with their cells, all at once, in no order."""
        names = [name_of(self._place(self._source.randrange(self.keys))) for _ in range(LOOKUPS)]
        found = self._runner.run(self._read(names, want_cell=True))
        assert all(versions[0].cell is not None for versions in found), "a key is gone"

    def look_up_absent(self) -> None:
        """200 keys that were never there."""
        names = [name_of(number * _ODD % (1 << 32), "x") for number in range(LOOKUPS)]
        assert not any(self._runner.run(self._read(names, want_cell=False))), "a key that nobody wrote"

    async def _read(self, names: list[ObjectName], *, want_cell: bool) -> list[tuple[StoredVersion, ...]]:
        return list(await asyncio.gather(*(self._store.read(name, want_cell=want_cell) for name in names)))

    def page(self) -> None:
        """A page of a thousand keys from somewhere in the middle."""
        after = f"patient/{self._source.randrange(1 << 31):08x}".encode()
        page = self._store.list("tenant", "records", "patient/", after=after, limit=LIST_PAGE)
        assert len(self._runner.run(page).entries) == LIST_PAGE, "a page is short"

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()


def append_sync(directory: Path) -> Reference:
    """Two appends of 4 MiB, each with its fdatasync: about what a commit of 512 keys in no order writes and syncs."""
    block, path = bytes(4 << 20), directory / "reference"

    def append() -> None:
        with path.open("ab", buffering=0) as sink:
            for _ in range(2):
                sink.write(block)
                os.fdatasync(sink.fileno())

    return Reference("append_sync_2x4m", append)


def benchmarks(wanted: Wanted, place: Path, large: bool) -> Generator[Micro]:
    """Those that are wanted, on a store that is loaded for them and gone afterwards."""
    kinds = ("insert", "lookup", "lookup_absent", "list")
    for size, keys in (("1m", 10**6), ("10m", 10**7))[: 2 if large else 1]:
        ids = [f"index_{kind}[{size}]" for kind in kinds]
        if not any(map(wanted, ids)):
            continue
        directory = place / f"micro-index-{os.getpid()}"
        directory.mkdir(parents=True)
        store = LoadedStore(directory, keys)
        try:
            store.load()
            insert = Micro(ids[0], append_sync(directory), store.insert, Noise.DISK, DISK_ROUNDS)
            reads = zip(ids[1:], (store.look_up, store.look_up_absent, store.page), strict=True)
            yield from filter(
                lambda micro: wanted(micro.id),
                [insert, *(Micro(name, INTERPRETER, run) for name, run in reads)],
            )
        finally:
            store.close()
            shutil.rmtree(directory)
