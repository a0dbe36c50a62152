"""Figures of objects that go in and out: small ones, records in bulk, large ones; and lists of very many."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from time import perf_counter

from coffre.bench import references
from coffre.bench._workload import (
    ListedBucket,
    SmallObjects,
    get_large,
    get_range,
    get_records,
    latencies,
    put_large,
    put_records,
    sustained_rate,
)
from coffre.bench.fhir_records import FhirRecord, compression, fhir_records
from coffre.bench.figures._session import BUCKET, CALLERS, DataPath, Group, Session, at_least, at_most
from coffre.bench.result import Bound, Figure, Measurement, Quantity, Target, row_of, take_turns
from coffre.client import AsyncClient, connect

__all__ = ["LARGE", "LISTING", "RECORDS", "SMALL", "SPACE"]

# 4+2 sends and stores 1.5 bytes for each one of an object, and nothing that survives the loss of any two shards takes
# less than that, unless it is compressed.
_CODING_OVERHEAD = 1.5

# ------------------------------------------------------------------ small objects, one call per object

_PUT = Figure("put_4k_c64", "puts/s", at_least(0.5))
_PUT_ONE = Figure("put_4k_c1_latency", "s", at_most(4.0))
_GET = Figure("get_4k_c64", "gets/s", at_least(0.6))


async def _small(session: Session) -> None:
    scale, rounds = session.scale, session.scale.small_rounds
    async with session.data_path() as path:
        writer, reader = path.writer, path.reader

        def fresh(what: str) -> SmallObjects:
            return SmallObjects(path.blocks, BUCKET, path.fresh(f"small/{what}"))

        async def put() -> float:
            return await session.warmed_up(
                lambda duration_s: sustained_rate(
                    partial(fresh("put").put, writer), writer.flush, callers=CALLERS, duration_s=duration_s
                )
            )

        async def get() -> float:
            objects = fresh("get")
            await objects.put_all(writer, scale.small_objects, CALLERS)
            gets = objects.gets(reader, scale.small_objects)
            return await session.warmed_up(
                lambda duration_s: sustained_rate(gets, reader.flush, callers=CALLERS, duration_s=duration_s)
            )

        async def put_alone() -> float:
            async def puts(duration_s: float) -> list[float]:
                found = await latencies(
                    partial(fresh("put-one").put, writer), callers=1, duration_s=duration_s
                )
                await writer.flush()
                return found

            return statistics.median(await session.warmed_up(puts))

        async def call_and_sync() -> Measurement:
            """The least that a durable put can take: one call to another process, and one sync there."""
            call = await session.unary("grpc_unary_4k_c1", path, duration_s=scale.duration_s / 2)
            sync, _ = references.disk_append_sync_4k(session.directory, duration_s=scale.duration_s / 2)
            return Measurement(f"{call.id}+{sync.id}", call.value + sync.value, "s")

        await session.turns(_PUT, put, partial(session.unary, "grpc_unary_4k", path), rounds)
        await session.turns(_PUT_ONE, put_alone, call_and_sync, rounds)
        await session.turns(_GET, get, partial(session.unary, "grpc_unary_4k_reply", path), rounds)


SMALL = Group((_PUT, _PUT_ONE, _GET), _small)

# ------------------------------------------------------------------ FHIR records of about 1.3 kB in bulk

_PUT_MANY = Figure("put_many_fhir", "records/s", at_least(1.5))
_GET_MANY = Figure("get_many_fhir", "records/s", at_least(2.0))
_DISK = Figure("disk_per_fhir_record", "bytes", at_most(2.6))


def _take(source: Iterator[FhirRecord], session: Session) -> list[FhirRecord]:
    return list(islice(source, session.scale.bulk_records))


async def _records(session: Session) -> None:
    """Every round has records of its own, made before the clock starts."""
    scale, source = session.scale, fhir_records(session.seed)
    first = _take(fhir_records(session.seed), session)
    session.say(f"FHIR: {compression([record.data for record in first])}")
    async with session.data_path() as path:

        async def put() -> float:
            records, prefix = _take(source, session), path.fresh("round")
            return await put_records(path.writer, BUCKET, prefix, records, scale.bulk_call_records)

        async def get() -> float:
            records, prefix = _take(source, session), path.fresh("round")
            await put_records(path.writer, BUCKET, prefix, records, scale.bulk_call_records)
            return await get_records(path.reader, BUCKET, prefix, records, scale.bulk_call_records)

        rounds = scale.large_rounds
        await session.turns(_PUT_MANY, put, partial(session.unary, "grpc_unary_4k", path), rounds)
        await session.turns(_GET_MANY, get, partial(session.unary, "grpc_unary_4k_reply", path), rounds)


async def _space(session: Session) -> None:
    """On nodes that hold nothing else: all that their data directories take counts, whatever it is for."""
    session.say(f"measuring {_DISK.id}, {session.scale.bulk_records} records")
    records = _take(fhir_records(session.seed), session)
    async with session.cluster() as cluster:
        async with await connect(cluster.client_config()) as client:
            await put_records(client, BUCKET, "space", records, session.scale.bulk_call_records)
        disk_bytes = cluster.disk_bytes()
    plain_bytes = sum(len(record.data) for record in records) / len(records)
    spread = Measurement("plaintext x 1.5", plain_bytes * _CODING_OVERHEAD, "bytes")
    session.add_once(_DISK, disk_bytes / len(records), spread)


RECORDS = Group((_PUT_MANY, _GET_MANY), _records)
SPACE = Group((_DISK,), _space)

# ------------------------------------------------------------------ large objects, and small ranges of one

_PUT_LARGE = Figure("put_256m", "bytes/s", at_least(0.7))
_PUT_GRPC = Figure("put_256m_vs_grpc", "bytes/s", at_least(0.35))
_GET_LARGE = Figure("get_256m", "bytes/s", at_least(0.7))
_RANGE = Figure("range_64k_latency", "s", at_most(4.0))
_RANGE_BYTES = 64 << 10


def _ceiling(found: Sequence[Measurement]) -> Measurement:
    """What a put of 4+2 can reach: the slower of wire and disk, each of which takes 1.5 bytes for one."""
    slower = min(found, key=lambda one: one.value)
    name = f"min({', '.join(one.id for one in found)})/{_CODING_OVERHEAD}"
    return Measurement(name, slower.value / _CODING_OVERHEAD, "bytes/s")


async def _large(session: Session) -> None:
    """Every round has keys of its own."""
    size_bytes, rounds = session.scale.large_bytes, session.scale.large_rounds
    async with session.data_path() as path:

        async def put() -> float:
            return await put_large(path.writer, path.blocks, BUCKET, path.fresh("large/put"), size_bytes)

        async def get(*, compare_all: bool = False) -> float:
            key = path.fresh("large/get")
            await put_large(path.writer, path.blocks, BUCKET, key, size_bytes)
            return await get_large(path.reader, path.blocks, BUCKET, key, size_bytes, compare_all=compare_all)

        async def wire_and_disk() -> tuple[Measurement, Measurement]:
            wire = await references.grpc_stream_1m(path.server, size_bytes=size_bytes)
            return wire, references.disk_write_sync(session.directory, size_bytes=size_bytes)

        # One large object in and out before each, not timed, every byte compared; opens the connections, too.
        if wanted := session.wants(_PUT_LARGE, _PUT_GRPC):
            session.say(f"measuring {' and '.join(figure.id for figure in wanted)}, {rounds} rounds")
            with session.recorded(*wanted):
                await get(compare_all=True)
                found = await take_turns(put, wire_and_disk, rounds=rounds)
                if _PUT_LARGE in wanted:
                    session.add(row_of(_PUT_LARGE, *((rate, _ceiling(beside)) for rate, beside in found)))
                if _PUT_GRPC in wanted:
                    session.add(row_of(_PUT_GRPC, *((rate, wire) for rate, (wire, _) in found)))
        with session.recorded(_GET_LARGE):
            if session.wants(_GET_LARGE):
                await get(compare_all=True)
        streamed = partial(references.grpc_stream_1m_reply, path.server, size_bytes=size_bytes)
        await session.turns(_GET_LARGE, get, streamed, rounds)
        if session.wants(_RANGE):
            with session.recorded(_RANGE):
                await _ranges(session, path)


async def _ranges(session: Session, path: DataPath) -> None:
    """Of the same object in every round, at other places."""
    key, size_bytes = "large/ranges", session.scale.range_bytes
    await put_large(path.writer, path.blocks, BUCKET, key, size_bytes)
    places = random.Random(session.seed)

    async def get(_: int) -> None:
        start = places.randint(0, size_bytes - _RANGE_BYTES)
        await get_range(path.reader, path.blocks, BUCKET, key, start, _RANGE_BYTES)

    async def read() -> float:
        return statistics.median(
            await session.warmed_up(lambda duration_s: latencies(get, callers=1, duration_s=duration_s))
        )

    call = partial(session.unary, "grpc_unary_64k", path, duration_s=session.scale.duration_s / 2)
    await session.turns(_RANGE, read, call, session.scale.large_rounds)


LARGE = Group((_PUT_LARGE, _PUT_GRPC, _GET_LARGE, _RANGE), _large)

# ------------------------------------------------------------------ whether a page costs more in a large bucket

_PAGES_AT_LEAST = Target(Bound.AT_LEAST, 10.0, Quantity.VALUE)
_LIST = Figure("list_1000_of_1m", "pages/s", Target(Bound.AT_LEAST, 0.8, also=_PAGES_AT_LEAST))
_TELLS = 10


async def _listing(session: Session) -> None:
    scale = session.scale
    async with session.data_path() as path:
        few = ListedBucket("listed-few", scale.listed_keys_few)
        many = ListedBucket("listed-many", scale.listed_keys)
        await few.fill(path.writer, 0, few.keys)
        await _fill(session, many, path.writer)
        session.say(f"  {path.cluster.disk_bytes() / 1e9:.1f} GB on disk")

        async def pages_of_few() -> Measurement:
            rate = await few.page_rate(path.reader, scale.duration_s)
            return Measurement(f"list_1000_of_{few.keys}", rate, "pages/s")

        pages_of_many = partial(many.page_rate, path.reader, scale.duration_s)
        await session.turns(_LIST, pages_of_many, pages_of_few, scale.large_rounds)


async def _fill(session: Session, bucket: ListedBucket, writer: AsyncClient) -> None:
    """Minutes; says how far it has come."""
    start = perf_counter()
    step = -(-bucket.keys // _TELLS)
    for first in range(0, bucket.keys, step):
        last = min(first + step, bucket.keys)
        await bucket.fill(writer, first, last)
        session.say(f"  {last} of {bucket.keys} keys put, {last / (perf_counter() - start):.0f}/s")


LISTING = Group((_LIST,), _listing)
