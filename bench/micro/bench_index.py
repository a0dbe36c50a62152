"""The index of a node with a million keys in it (with --large, ten), on a real disk, through the ShardStore seam."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from coffre.cluster.clock import SystemClock
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import crc32c
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, Mutation, ShardStore, StoreOptions
from micro_references import INTERPRETER, Beside, Noise, Reference

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


def key(place: int) -> str:
    """Keys in the order of their places, 0 to 2^32 - 1."""
    return f"patient/{place:08x}"


def insertion(number: int, name: ObjectName, partition: int) -> Mutation:
    stamp = number.to_bytes(8, "big") + bytes(8)
    return Accept(
        name, partition, stamp, False, bytes(16), MANIFEST, bytes(16), (1, 2, 3, 4, 5, 6), 1, CELL, CELL_CRC
    )  # fmt: skip


class LoadedStore:
    """A store with `keys` keys, and the event loop that it lives in."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.directory, self.keys = directory, keys
        self.runner = asyncio.Runner()
        self.next = count(keys, INSERT_BATCH)
        self.store: ShardStore = self.runner.run(
            LmdbStore.open(directory / "store", StoreOptions(), SystemClock())
        )

    def place(self, number: int) -> int:
        """Of the loaded key of that number: evenly over all places."""
        return number * ((1 << 32) // self.keys)

    def load(self) -> None:
        """In key order, partition by partition: in no order, every commit would rewrite leaves all over the tree."""
        for start in range(0, self.keys, LOAD_BATCH):
            numbers = range(start, min(start + LOAD_BATCH, self.keys))
            self.apply([self.loading(number) for number in numbers])

    def loading(self, number: int) -> Mutation:
        name = ObjectName("tenant", "records", key(self.place(number)))
        return insertion(number, name, number * PARTITIONS // self.keys)

    def insert_next(self) -> None:
        """New keys anywhere between the others."""
        start, mutations = next(self.next), []
        for number in range(start, start + INSERT_BATCH):
            name = ObjectName("tenant", "records", f"{key(number * _ODD % (1 << 32))}/{number}")
            mutations.append(insertion(number, name, partition_of(name, PARTITIONS)))
        self.apply(mutations)

    def apply(self, mutations: list[Mutation]) -> None:
        outcomes = self.runner.run(self.store.apply(mutations))
        assert all(outcome.error is None for outcome in outcomes), "the store refused a key"

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()


@pytest.fixture(scope="module", params=["1m", "10m"])
def loaded(request: pytest.FixtureRequest) -> Iterator[LoadedStore]:
    keys = {"1m": 10**6, "10m": 10**7}[request.param]
    if keys > 10**6 and not request.config.getoption("--large"):
        pytest.skip("ten million keys take minutes: --large")
    directory = Path(request.config.getoption("--place")) / f"micro-index-{os.getpid()}"
    directory.mkdir(parents=True)
    store = LoadedStore(directory, keys)
    try:
        store.load()
        yield store
    finally:
        store.close()
        shutil.rmtree(directory)


def append_sync(directory: Path) -> Reference:
    """Two appends of 4 MiB, each with its fdatasync: about what a commit of 512 keys in no order writes and syncs."""
    block, path = bytes(4 << 20), directory / "reference"

    def append() -> None:
        with path.open("ab", buffering=0) as sink:
            for _ in range(2):
                sink.write(block)
                os.fdatasync(sink.fileno())

    return Reference("append_sync_2x4m", append)


def bench_index_insert(beside: Beside, loaded: LoadedStore) -> None:
    """A group commit of 512 new keys in no order, synced."""
    beside(append_sync(loaded.directory), loaded.insert_next, noise=Noise.DISK, rounds=DISK_ROUNDS)


def bench_index_lookup(beside: Beside, loaded: LoadedStore) -> None:
    """200 keys with their cells, all at once, in no order."""
    source = random.Random(1)

    async def look_up(names: list[ObjectName]) -> None:
        found = await asyncio.gather(*(loaded.store.read(name, want_cell=True) for name in names))
        assert all(versions[0].cell is not None for versions in found), "a key is gone"

    def lookups() -> None:
        places = (loaded.place(source.randrange(loaded.keys)) for _ in range(LOOKUPS))
        loaded.runner.run(look_up([ObjectName("tenant", "records", key(place)) for place in places]))

    beside(INTERPRETER, lookups)


def bench_index_lookup_absent(beside: Beside, loaded: LoadedStore) -> None:
    """200 keys that were never there."""

    async def look_up() -> None:
        places = (number * _ODD % (1 << 32) for number in range(LOOKUPS))
        names = [ObjectName("tenant", "records", f"{key(place)}x") for place in places]
        found = await asyncio.gather(*(loaded.store.read(name) for name in names))
        assert not any(found), "a key that nobody wrote"

    beside(INTERPRETER, lambda: loaded.runner.run(look_up()))


def bench_index_list(beside: Beside, loaded: LoadedStore) -> None:
    """A page of a thousand keys from somewhere in the middle."""
    source = random.Random(1)

    async def page() -> None:
        after = f"patient/{source.randrange(1 << 31):08x}".encode()
        found = await loaded.store.list("tenant", "records", "patient/", after=after, limit=LIST_PAGE)
        assert len(found.entries) == LIST_PAGE, "a page is short"

    beside(INTERPRETER, lambda: loaded.runner.run(page()))
