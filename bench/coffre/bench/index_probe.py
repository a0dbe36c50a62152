"""A node's store in a process of its own: filled with shards through its own seam, and asked for some of them.

    python -m coffre.bench.index_probe fill DATA_DIRECTORY SHARDS [SHARD_INDEX]
    python -m coffre.bench.index_probe lookup DATA_DIRECTORY SHARDS LOOKUPS SEED

The same objects are filled in everywhere; with SHARD_INDEX it is that shard of each, as on the nodes of one cluster.
`fill` prints one line of JSON each time another part is durable, {"shards": so far}; `lookup` prints
{"p99_s": seconds}, and fails when a shard is not there as it was filled in.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import click
import uvloop
from coffre.bench._workload import percentile
from coffre.bench.processes import tell
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import blake3_128, crc32c
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, Mutation, Settle, State, StoreOptions

__all__ = ["PLACEMENT", "accept", "applied", "digest_of", "name_of", "opened", "stamp_of"]

PLACEMENT = (1, 2, 3, 4, 5, 6)
_PARTITIONS = 256
# What a node gets of a FHIR record of 1.3 kB with 4+2: a quarter of it compressed, and the manifest.
CELL = random.Random(1).randbytes(97)
MANIFEST = random.Random(2).randbytes(214)
MAC = bytes(16)
_CELL_CRC, _CELL_HASH = crc32c(CELL), blake3_128(CELL)


def digest_of(number: int) -> bytes:
    """Sixteen bytes that no other number has."""
    return blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def name_of(number: int) -> ObjectName:
    """Keys in no order: the harder case for a tree, and what keys with identifiers are."""
    return ObjectName("clinic", "records", f"fhir/Observation/{digest_of(number).hex()}.json")


def stamp_of(number: int) -> bytes:
    """All of one writer."""
    return (number + 1).to_bytes(8, "big") + b"a writer"


def accept(
    number: int, name: ObjectName | None = None, *, cell: bytes = CELL, shard_index: int | None = None
) -> Accept:
    """What brings the shard of an object, which is called `name_of(number)` unless it is told otherwise.

    `shard_index`: any of them unless given.
    """
    name = name or name_of(number)
    return Accept(
        name,
        partition_of(name, _PARTITIONS),
        stamp_of(number),
        tombstone=False,
        data_id=digest_of(number),
        manifest=MANIFEST,
        mac=MAC,
        placement=PLACEMENT,
        shard_index=number % len(PLACEMENT) if shard_index is None else shard_index,
        cell=cell,
        cell_crc=_CELL_CRC if cell is CELL else crc32c(cell),
        shard_hash=_CELL_HASH if cell is CELL else blake3_128(cell),
    )


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[LmdbStore]:
    """The store of a data directory, made when it is not there, and closed afterwards."""
    store = await LmdbStore.open(directory, StoreOptions(), SystemClock())
    try:
        yield store
    finally:
        await store.close()


async def applied(store: LmdbStore, mutations: Iterable[Mutation]) -> None:
    """Commit them at once. Raises what became of the first that was not done."""
    for outcome in await store.apply(list(mutations)):
        if outcome.error is not None:
            raise outcome.error


_BATCH_SHARDS = 20_000
_TELLS = 10


def _mutations(first: int, last: int, shard_index: int | None) -> Iterator[Mutation]:
    """What brings one shard each of so many objects, and says that they are established."""
    for number in range(first, last):
        found = accept(number, shard_index=shard_index)
        yield found
        yield Settle(found.name, found.partition, found.stamp)


async def fill(
    directory: Path, shards: int, told: Callable[[int], None], shard_index: int | None = None
) -> None:
    """Fill the store of a data directory; says from time to time how many shards are durable. Raises `CoffreError`."""
    tells = 0
    async with opened(directory) as store:
        for first in range(0, shards, _BATCH_SHARDS):
            last = min(first + _BATCH_SHARDS, shards)
            await applied(store, _mutations(first, last, shard_index))
            if last * _TELLS // shards > tells:
                tells = last * _TELLS // shards
                told(last)


async def lookup(directory: Path, shards: int, lookups: int, seed: int) -> float:
    """p99 in seconds of so many reads of an index row, one at a time, of objects drawn at random.

    As many are read before, untimed. Raises `IntegrityError` when one is not as it was filled in.
    """
    source = random.Random(seed)
    found: list[float] = []
    async with opened(directory) as store:
        for _ in range(2 * lookups):
            number = source.randrange(shards)
            name = name_of(number)
            start = perf_counter()
            versions = await store.read(name)
            found.append(perf_counter() - start)
            if [(one.stamp, one.state) for one in versions] != [(stamp_of(number), State.SETTLED)]:
                raise IntegrityError(f"shard {number} is not in the index as it was put there")
    return percentile(found[lookups:], 99)


@click.group()
def main() -> None:
    """The probe."""


@main.command("fill")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("shards", type=click.IntRange(min=1))
@click.argument("shard_index", type=click.IntRange(min=0), required=False)
@one_line_errors
def _fill(directory: Path, shards: int, shard_index: int | None) -> None:
    uvloop.run(fill(directory, shards, lambda done: tell({"shards": done}), shard_index))


@main.command("lookup")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("shards", type=click.IntRange(min=1))
@click.argument("lookups", type=click.IntRange(min=1))
@click.argument("seed", type=int)
@one_line_errors
def _lookup(directory: Path, shards: int, lookups: int, seed: int) -> None:
    tell({"p99_s": uvloop.run(lookup(directory, shards, lookups, seed))})


if __name__ == "__main__":
    main()
