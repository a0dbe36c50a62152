"""What the figures of the data path do to a cluster: many small operations at once, or one large object, or records
in bulk."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import TypeVar

from coffre.bench.fhir_records import FhirRecord
from coffre.client import AsyncClient
from coffre.cluster.errors import CoffreError, IntegrityError
from coffre.dev.tasks import for_each, together

__all__ = [
    "BLOCK_BYTES",
    "Blocks",
    "ListedBucket",
    "SmallObjects",
    "get_large",
    "get_range",
    "get_records",
    "latencies",
    "percentile",
    "put_large",
    "put_records",
    "sustained_rate",
]

BLOCK_BYTES = 1 << 20
SMALL_BYTES = 4 << 10
PAGE_KEYS = 1000
_BLOCKS = 16
_SAMPLE_BYTES = 256
_Outcome = TypeVar("_Outcome")


class Blocks:
    """Incompressible bytes from a seed: 16 MiB, cut into small objects, or repeated as the blocks of a large one.

    A segment is compressed and encrypted on its own, so that the repetition helps nobody.
    """

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        self._blocks = [source.randbytes(BLOCK_BYTES) for _ in range(_BLOCKS)]
        self._small = [
            block[start : start + SMALL_BYTES]
            for block in self._blocks
            for start in range(0, BLOCK_BYTES, SMALL_BYTES)
        ]

    def small(self, number: int) -> bytes:
        """The 4 KiB object of a number."""
        return self._small[number % len(self._small)]

    def block(self, number: int) -> bytes:
        """The 1 MiB block of a number."""
        return self._blocks[number % _BLOCKS]

    def part(self, start: int, size_bytes: int) -> bytes:
        """So many bytes of a large object from a place on."""
        number, offset = divmod(start, BLOCK_BYTES)
        found = b""
        while len(found) < size_bytes:
            found += self.block(number)[offset : offset + size_bytes - len(found)]
            number, offset = number + 1, 0
        return found

    async def stream(self, blocks: int) -> AsyncIterator[bytes]:
        """A large object of so many blocks."""
        for number in range(blocks):
            yield self.block(number)


async def latencies(
    operation: Callable[[int], Awaitable[None]], *, callers: int, duration_s: float
) -> list[float]:
    """Seconds of each operation of `callers` that start new ones for `duration_s`; at least one of each caller.

    The first failure of an operation ends the measurement and is raised.
    """
    numbers = itertools.count()
    found: list[float] = []
    end = perf_counter() + duration_s

    async def caller() -> None:
        while True:
            start = perf_counter()
            await operation(next(numbers))
            now = perf_counter()
            found.append(now - start)
            if now >= end:
                return

    async with together() as group:
        for _ in range(callers):
            group.create_task(caller())
    return found


async def sustained_rate(
    operation: Callable[[int], Awaitable[None]],
    flush: Callable[[], Awaitable[None]],
    *,
    callers: int,
    duration_s: float,
) -> float:
    """Operations per second of `callers` that start new ones for `duration_s`.

    The clock runs from the first start until `flush` has returned: what an operation leaves behind for later, such as
    the shards of a put beyond the bar, is paid for inside the measured time. So are the start, and the tail when
    fewer callers are left. The first failure of an operation ends the measurement and is raised.
    """
    start = perf_counter()
    done = await latencies(operation, callers=callers, duration_s=duration_s)
    await flush()
    return len(done) / (perf_counter() - start)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that `percent` % of them do not exceed (nearest rank)."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


class SmallObjects:
    """4 KiB objects below one prefix of a bucket, under keys that count up."""

    def __init__(self, blocks: Blocks, bucket: str, prefix: str) -> None:
        self._blocks = blocks
        self._bucket = bucket
        self._prefix = prefix

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:08d}"

    async def put(self, client: AsyncClient, number: int) -> None:
        """Return when it is acknowledged."""
        await client.put(self._bucket, self._key(number), self._blocks.small(number))

    async def put_all(self, client: AsyncClient, count: int, callers: int) -> None:
        """Return when every node has all of its shards."""
        await for_each(range(count), lambda number: self.put(client, number), at_once=callers)
        await client.flush()

    async def get(self, client: AsyncClient, number: int) -> None:
        """Get one and compare all of it. Raises `IntegrityError`."""
        if await client.get(self._bucket, self._key(number)) != self._blocks.small(number):
            raise IntegrityError(f"{self._key(number)} came back with other bytes than went in")

    def gets(self, client: AsyncClient, count: int) -> Callable[[int], Awaitable[None]]:
        """What gets the first `count` of them, over and over."""
        return lambda number: self.get(client, number % count)


async def put_large(client: AsyncClient, blocks: Blocks, bucket: str, key: str, size_bytes: int) -> float:
    """Put an object of whole blocks; bytes per second until every node has stored its shard."""
    start = perf_counter()
    await client.put(bucket, key, blocks.stream(size_bytes // BLOCK_BYTES))
    await client.flush()
    return size_bytes / (perf_counter() - start)


async def get_large(
    client: AsyncClient, blocks: Blocks, bucket: str, key: str, size_bytes: int, *, compare_all: bool = False
) -> float:
    """Get it back; bytes per second. Raises `IntegrityError` when it is not what was put.

    Compares lengths and a part of every piece, or with `compare_all` every byte, for a turn that is not timed.
    """
    position = 0
    start = perf_counter()
    async with aclosing(client.get_stream(bucket, key)) as pieces:
        async for piece in pieces:
            compared = len(piece) if compare_all else min(len(piece), _SAMPLE_BYTES)
            if piece[:compared] != blocks.part(position, compared):
                raise IntegrityError(f"other bytes than went in came back from {position} on")
            position += len(piece)
    elapsed_s = perf_counter() - start
    if position != size_bytes:
        raise IntegrityError(f"{key} came back with {position} bytes instead of {size_bytes}")
    return size_bytes / elapsed_s


async def get_range(
    client: AsyncClient, blocks: Blocks, bucket: str, key: str, start: int, length: int
) -> None:
    """Get a part of it and compare all of it. Raises `IntegrityError`."""
    if await client.get(bucket, key, start=start, length=length) != blocks.part(start, length):
        raise IntegrityError(f"other bytes than went in came back from {start} on")


async def put_records(
    client: AsyncClient, bucket: str, prefix: str, records: Sequence[FhirRecord], call_records: int
) -> float:
    """Put them in calls of `call_records`, one after the other; records per second until every node has all shards.

    Raises what became of the first record that was not acknowledged.
    """
    start = perf_counter()
    for batch in _batches(records, call_records):
        outcomes = await client.put_many(bucket, [(f"{prefix}/{one.key}", one.data) for one in batch])
        for record, outcome in zip(batch, map(_succeeded, outcomes), strict=True):
            if (outcome.key, outcome.size_bytes) != (f"{prefix}/{record.key}", len(record.data)):
                raise IntegrityError(f"{outcome.key} was acknowledged in place of {prefix}/{record.key}")
    await client.flush()
    return len(records) / (perf_counter() - start)


async def get_records(
    client: AsyncClient, bucket: str, prefix: str, records: Sequence[FhirRecord], call_records: int
) -> float:
    """Get them back in calls of `call_records` and compare every byte; records per second. Raises `CoffreError`."""
    start = perf_counter()
    for batch in _batches(records, call_records):
        contents = await client.get_many(bucket, [f"{prefix}/{record.key}" for record in batch])
        for record, content in zip(batch, map(_succeeded, contents), strict=True):
            if content != record.data:
                raise IntegrityError(f"{record.key} came back with other bytes than went in")
    return len(records) / (perf_counter() - start)


def _batches(records: Sequence[FhirRecord], size: int) -> Iterator[Sequence[FhirRecord]]:
    return (records[start : start + size] for start in range(0, len(records), size))


def _succeeded(outcome: _Outcome | CoffreError) -> _Outcome:
    if isinstance(outcome, CoffreError):
        raise outcome
    return outcome


class ListedBucket:
    """A bucket of so many keys that a list goes through page by page. Its objects are next to nothing."""

    def __init__(self, bucket: str, keys: int) -> None:
        self.bucket = bucket
        self.keys = keys
        self._token: str | None = None
        self._next = 0

    @staticmethod
    def key(number: int) -> str:
        """Keys sort as their numbers do."""
        return f"patient/{number // 50:08d}/observation/{number % 50:02d}.json"

    async def fill(self, client: AsyncClient, first: int, last: int) -> None:
        """Put the keys from `first` up to `last`. Raises what became of the first that was not acknowledged."""
        for start in range(first, last, PAGE_KEYS):
            numbers = range(start, min(start + PAGE_KEYS, last))
            for outcome in await client.put_many(self.bucket, [(self.key(each), b"{}") for each in numbers]):
                _succeeded(outcome)
        await client.flush()

    async def page_rate(self, client: AsyncClient, duration_s: float) -> float:
        """Thousands of keys per second, page after page, from where the last call ended, over and over.

        A page that is cut short counts as what it brings. Raises `IntegrityError` unless every key comes, in order.
        """
        listed = 0
        start = now = perf_counter()
        while not listed or now - start < duration_s:
            page = await client.list_page(self.bucket, token=self._token, limit=PAGE_KEYS)
            for entry in page.objects:
                if entry.key != self.key(self._next):
                    raise IntegrityError(f"a list shows {entry.key} where {self.key(self._next)} should be")
                self._next += 1
            listed += len(page.objects)
            self._token = page.next_token
            if self._token is None:
                if self._next != self.keys:
                    raise IntegrityError(f"a list ends after {self._next} of {self.keys} keys")
                self._next = 0
            now = perf_counter()
        return listed / PAGE_KEYS / (now - start)
