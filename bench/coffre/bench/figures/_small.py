"""Figures of small objects, one call per object: rates with many in flight, and the latency of one alone."""

from __future__ import annotations

import statistics
from functools import partial

from coffre.bench import references
from coffre.bench._workload import SmallObjects, latencies, sustained_rate
from coffre.bench.figures._session import BUCKET, CALLERS, DataPath, Group, Session, at_least, at_most
from coffre.bench.references import Measurement
from coffre.bench.result import Figure

__all__ = ["SMALL"]

_PUT = Figure("put_4k_c64", "puts/s", at_least(0.5))
_PUT_ONE = Figure("put_4k_c1_latency", "s", at_most(4.0))
_GET = Figure("get_4k_c64", "gets/s", at_least(0.6))


class _Product:
    """The product's turns."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path, self._session = path, session

    def _fresh(self, what: str) -> SmallObjects:
        return SmallObjects(self._path.blocks, BUCKET, self._path.fresh(f"small/{what}"))

    async def put(self) -> float:
        writer = self._path.writer
        return await self._session.warmed_up(
            lambda duration_s: sustained_rate(
                partial(self._fresh("put").put, writer), writer.flush, callers=CALLERS, duration_s=duration_s
            )
        )

    async def get(self) -> float:
        objects, count, reader = self._fresh("get"), self._session.scale.small_objects, self._path.reader
        await objects.put_all(self._path.writer, count, CALLERS)
        return await self._session.warmed_up(
            lambda duration_s: sustained_rate(
                lambda number: objects.get(reader, number % count),
                reader.flush,
                callers=CALLERS,
                duration_s=duration_s,
            )
        )

    async def put_one(self) -> float:
        writer = self._path.writer

        async def puts(duration_s: float) -> list[float]:
            put = partial(self._fresh("put-one").put, writer)
            found = await latencies(put, callers=1, duration_s=duration_s)
            await writer.flush()
            return found

        return statistics.median(await self._session.warmed_up(puts))


async def _call_and_sync(path: DataPath, session: Session) -> Measurement:
    """The least that a durable put can take: one call to another process, and one sync there."""
    half_s, warmup_s = session.scale.duration_s / 2, session.scale.warmup_s
    call = await references.grpc_unary_4k_c1(path.server, duration_s=half_s, warmup_s=warmup_s)
    sync, _ = references.disk_append_sync_4k(session.options.directory, duration_s=half_s)
    return Measurement(f"{call.id}+{sync.id}", call.value + sync.value, "s", f"{call.detail}; {sync.detail}")


async def _measure(session: Session) -> None:
    rounds, window = session.scale.small_rounds, session.window
    async with session.data_path() as path:
        product, server = _Product(path, session), path.server
        await session.turns(_PUT, product.put, lambda: references.grpc_unary_4k(server, **window), rounds)
        await session.turns(_PUT_ONE, product.put_one, lambda: _call_and_sync(path, session), rounds)
        await session.turns(
            _GET, product.get, lambda: references.grpc_unary_4k_reply(server, **window), rounds
        )


SMALL = Group((_PUT, _PUT_ONE, _GET), _measure)
