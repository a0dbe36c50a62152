"""Figures of FHIR records of about 1.3 kB in bulk: through put_many and get_many, and what they take on disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from coffre.bench import references
from coffre.bench._workload import get_records, put_records
from coffre.bench.fhir_records import FhirRecord, compression, fhir_records
from coffre.bench.figures._session import BUCKET, Group, Session, at_least, at_most
from coffre.bench.references import Measurement
from coffre.bench.result import Figure
from coffre.client import connect

__all__ = ["RECORDS", "SPACE"]

_PUT = Figure("put_many_fhir", "records/s", at_least(1.5))
_GET = Figure("get_many_fhir", "records/s", at_least(2.0))
_DISK = Figure("disk_per_fhir_record", "bytes", at_most(2.0))
# Any two shards of 4+2 can be lost, so nothing that survives that takes less than 1.5 times the plaintext, unless it
# is compressed.
_CODING_OVERHEAD = 1.5


def _take(source: Iterator[FhirRecord], session: Session) -> list[FhirRecord]:
    return list(islice(source, session.scale.bulk_records))


async def _measure(session: Session) -> None:
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

        server, rounds = path.server, scale.large_rounds
        await session.turns(_PUT, put, lambda: references.grpc_unary_4k(server, **session.window), rounds)
        await session.turns(
            _GET, get, lambda: references.grpc_unary_4k_reply(server, **session.window), rounds
        )


async def _measure_space(session: Session) -> None:
    """On nodes that hold nothing else: all that their data directories take counts, whatever it is for."""
    session.say(f"measuring {_DISK.id}, {session.scale.bulk_records} records")
    records = _take(fhir_records(session.seed), session)
    async with session.cluster() as cluster:
        async with await connect(cluster.client_config()) as client:
            await put_records(client, BUCKET, "space", records, session.scale.bulk_call_records)
        disk_bytes = cluster.disk_bytes()
    plain_bytes = sum(len(record.data) for record in records) / len(records)
    spread = Measurement("plaintext x 1.5", plain_bytes * _CODING_OVERHEAD, "bytes", "as 4+2 spreads it")
    session.add_once(_DISK, disk_bytes / len(records), spread)


RECORDS = Group((_PUT, _GET), _measure)
SPACE = Group((_DISK,), _measure_space)
