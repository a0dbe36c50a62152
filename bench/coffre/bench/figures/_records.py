"""Figures of FHIR records of about 1.3 kB in bulk: through put_many and get_many, and what they take on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import islice

from coffre.bench import references
from coffre.bench._workload import get_records, put_records
from coffre.bench.fhir_records import FhirRecord, compression, fhir_records
from coffre.bench.figures._session import (
    BUCKET,
    CALLERS,
    CONDITIONS,
    DataPath,
    Group,
    Session,
    Turns,
    measure_turns,
)
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Target, row_of
from coffre.client import connect

__all__ = ["RECORDS", "SPACE"]

_PUT, _GET, _DISK = "put_many_fhir", "get_many_fhir", "disk_per_fhir_record"
# Any two shards of 4+2 can be lost, so nothing that survives that takes less than 1.5 times the plaintext, unless it
# is compressed.
_CODING_OVERHEAD = 1.5


class _Product:
    """The product's turns. Every round has records of its own, made before the clock starts."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path = path
        self._scale = session.scale
        self._source = fhir_records(session.seed)
        self._rounds = itertools.count()

    def _fresh(self) -> tuple[str, list[FhirRecord]]:
        return f"round-{next(self._rounds)}", _take(self._source, self._scale.bulk_records)

    async def put(self) -> Measurement:
        prefix, records = self._fresh()
        rate = await put_records(self._path.writer, BUCKET, prefix, records, self._scale.bulk_call_records)
        return Measurement(_PUT, rate, "records/s", self._detail(records))

    async def get(self) -> Measurement:
        prefix, records = self._fresh()
        await put_records(self._path.writer, BUCKET, prefix, records, self._scale.bulk_call_records)
        rate = await get_records(self._path.reader, BUCKET, prefix, records, self._scale.bulk_call_records)
        return Measurement(_GET, rate, "records/s", self._detail(records))

    def _detail(self, records: Sequence[FhirRecord]) -> str:
        return f"{_alikeness(records)}; calls of {self._scale.bulk_call_records}, {CONDITIONS}"


def _take(source: Iterator[FhirRecord], count: int) -> list[FhirRecord]:
    return list(islice(source, count))


def _alikeness(records: Sequence[FhirRecord]) -> str:
    return str(compression([record.data for record in records]))


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    scale = session.scale
    window = {"duration_s": scale.duration_s, "warmup_s": scale.warmup_s}
    session.say(f"FHIR: {_alikeness(_take(fhir_records(session.seed), scale.bulk_records))}")
    async with session.data_path() as path:
        product, server = _Product(path, session), path.server
        turns = {
            _PUT: Turns(
                product.put,
                lambda: references.grpc_unary_4k(server, callers=CALLERS, **window),
                scale.large_rounds,
            ),
            _GET: Turns(
                product.get,
                lambda: references.grpc_unary_4k_reply(server, callers=CALLERS, **window),
                scale.large_rounds,
            ),
        }
        await measure_turns(session, wanted, turns)


async def _measure_space(session: Session, wanted: Sequence[str]) -> None:
    """On nodes that hold nothing else: all that their data directories take counts, whatever it is for."""
    scale = session.scale
    session.say(f"measuring {_DISK}, {scale.bulk_records} records")
    records = _take(fhir_records(session.seed), scale.bulk_records)
    async with session.cluster() as cluster:
        async with await connect(cluster.client_config()) as client:
            await put_records(client, BUCKET, "space", records, scale.bulk_call_records)
        disk_bytes = cluster.disk_bytes()
    plain_bytes = sum(len(record.data) for record in records)
    session.add(
        row_of(
            Measurement(_DISK, disk_bytes / len(records), "bytes", _alikeness(records)),
            Measurement(
                "plaintext x 1.5", plain_bytes / len(records) * _CODING_OVERHEAD, "bytes", "as 4+2 spreads it"
            ),
        )
    )


RECORDS = Group({_PUT: Target(Bound.AT_LEAST, 1.5), _GET: Target(Bound.AT_LEAST, 2.0)}, _measure)
SPACE = Group({_DISK: Target(Bound.AT_MOST, 2.0)}, _measure_space)
