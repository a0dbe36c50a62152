"""A node's store in a process of its own: filled with shards through its own seam, and asked for some of them.

    python -m coffre.bench.index_probe fill DATA_DIRECTORY SHARDS [SHARD_INDEX]
    python -m coffre.bench.index_probe lookup DATA_DIRECTORY SHARDS LOOKUPS SEED

The same objects are filled in everywhere; with SHARD_INDEX it is that shard of each, as on the nodes of one cluster.
`fill` prints one line of JSON each time another part is durable, {"shards": so far}; `lookup` prints
{"p99_s": seconds}, and fails when a shard is not there as it was filled in.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import click
import uvloop
from coffre.bench._workload import percentile
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import crc32c
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, Mutation, Settle, State, StoreOptions

_PARTITIONS = 256
_PLACEMENT = (1, 2, 3, 4, 5, 6)
_BATCH_SHARDS = 20_000
_TELLS = 10
# What a node gets of a FHIR record of 1.3 kB with 4+2: a quarter of it compressed, and the manifest.
_CELL = random.Random(1).randbytes(97)
_CELL_CRC = crc32c(_CELL)
_MANIFEST = random.Random(2).randbytes(142)
_MAC = bytes(16)


def _digest(number: int) -> bytes:
    return blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def _name(digest: bytes) -> ObjectName:
    """Keys in no order: the harder case for a tree, and what keys with identifiers are."""
    return ObjectName("clinic", "records", f"fhir/Observation/{digest.hex()}.json")


def _stamp(number: int) -> bytes:
    return (number + 1).to_bytes(16, "big")


def _mutations(first: int, last: int, shard_index: int | None) -> Iterator[Mutation]:
    """What brings one shard each of so many objects, and says that they are established."""
    for number in range(first, last):
        digest = _digest(number)
        name, stamp = _name(digest), _stamp(number)
        partition = partition_of(name, _PARTITIONS)
        yield Accept(
            name,
            partition,
            stamp,
            False,
            digest,
            _MANIFEST,
            _MAC,
            _PLACEMENT,
            number % len(_PLACEMENT) if shard_index is None else shard_index,
            _CELL,
            _CELL_CRC,
        )
        yield Settle(name, partition, stamp)


@asynccontextmanager
async def _store(directory: Path) -> AsyncIterator[LmdbStore]:
    store = await LmdbStore.open(directory, StoreOptions(), SystemClock())
    try:
        yield store
    finally:
        await store.close()


async def fill(
    directory: Path, shards: int, told: Callable[[int], None], shard_index: int | None = None
) -> None:
    """Fill the store of a data directory; says from time to time how many shards are durable. Raises `CoffreError`."""
    tells = 0
    async with _store(directory) as store:
        for first in range(0, shards, _BATCH_SHARDS):
            last = min(first + _BATCH_SHARDS, shards)
            for outcome in await store.apply(list(_mutations(first, last, shard_index))):
                if outcome.error is not None:
                    raise outcome.error
            if last * _TELLS // shards > tells:
                tells = last * _TELLS // shards
                told(last)


async def lookup(directory: Path, shards: int, lookups: int, seed: int) -> float:
    """p99 in seconds of so many reads of an index row, one at a time, of objects drawn at random.

    As many are read before, untimed. Raises `IntegrityError` when one is not as it was filled in.
    """
    source = random.Random(seed)
    found: list[float] = []
    async with _store(directory) as store:
        for timed in (False, True):
            for _ in range(lookups):
                number = source.randrange(shards)
                name = _name(_digest(number))
                start = perf_counter()
                versions = await store.read(name)
                elapsed_s = perf_counter() - start
                if [(one.stamp, one.state) for one in versions] != [(_stamp(number), State.SETTLED)]:
                    raise IntegrityError(f"shard {number} is not in the index as it was put there")
                if timed:
                    found.append(elapsed_s)
    return percentile(found, 99)


@click.group()
def main() -> None:
    """The probe."""


@main.command("fill")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("shards", type=click.IntRange(min=1))
@click.argument("shard_index", type=click.IntRange(min=0), required=False)
@one_line_errors
def _fill(directory: Path, shards: int, shard_index: int | None) -> None:
    uvloop.run(fill(directory, shards, lambda done: click.echo(json.dumps({"shards": done})), shard_index))


@main.command("lookup")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("shards", type=click.IntRange(min=1))
@click.argument("lookups", type=click.IntRange(min=1))
@click.argument("seed", type=int)
@one_line_errors
def _lookup(directory: Path, shards: int, lookups: int, seed: int) -> None:
    click.echo(json.dumps({"p99_s": uvloop.run(lookup(directory, shards, lookups, seed))}))


if __name__ == "__main__":
    main()
