"""Shards of small records for a node's store: what a put leaves on one node, numbered, under keys in no order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path

from coffre.cluster.clock import SystemClock
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import crc32c
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, Mutation, StoreOptions

__all__ = ["PLACEMENT", "accept", "applied", "digest_of", "name_of", "opened", "stamp_of"]

PLACEMENT = (1, 2, 3, 4, 5, 6)
_PARTITIONS = 256
# What a node gets of a FHIR record of 1.3 kB with 4+2: a quarter of it compressed, and the manifest.
CELL = random.Random(1).randbytes(97)
MANIFEST = random.Random(2).randbytes(142)
MAC = bytes(16)
_CELL_CRC = crc32c(CELL)


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
