"""Figures of small objects, one call per object: rates with many in flight, and the latency of one alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from coffre.bench import references
from coffre.bench._workload import SmallObjects, latencies, sustained_rate
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
from coffre.bench.result import Bound, Target
from coffre.client import AsyncClient

__all__ = ["SMALL"]

_PUT, _GET, _PUT_ONE = "put_4k_c64", "get_4k_c64", "put_4k_c1_latency"


class _Product:
    """The product's turns. Every round has keys of its own."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path = path
        self._scale = session.scale
        self._rounds = itertools.count()

    async def put(self) -> Measurement:
        rate = 0.0
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            objects = self._fresh("put")
            rate = await self._rate(self._path.writer, objects.put, duration_s)
        return Measurement(_PUT, rate, "puts/s", f"4 KiB, {CONDITIONS}")

    async def get(self) -> Measurement:
        objects, count = self._fresh("get"), self._scale.small_objects
        await objects.put_all(self._path.writer, count, CALLERS)

        async def get(client: AsyncClient, number: int) -> None:
            await objects.get(client, number % count)

        rate = 0.0
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            rate = await self._rate(self._path.reader, get, duration_s)
        return Measurement(_GET, rate, "gets/s", f"4 KiB, {CONDITIONS}")

    async def put_one(self) -> Measurement:
        writer = self._path.writer
        found: list[float] = []
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            put = partial(self._fresh("put-one").put, writer)
            found = await latencies(put, callers=1, duration_s=duration_s)
            await writer.flush()
        detail = f"4 KiB, one at a time, median of {len(found)}, {CONDITIONS}"
        return Measurement(_PUT_ONE, statistics.median(found), "s", detail)

    def _fresh(self, what: str) -> SmallObjects:
        return SmallObjects(self._path.blocks, BUCKET, f"small/{what}/{next(self._rounds)}")

    async def _rate(
        self, client: AsyncClient, call: Callable[[AsyncClient, int], Awaitable[None]], duration_s: float
    ) -> float:
        return await sustained_rate(
            lambda number: call(client, number), client.flush, callers=CALLERS, duration_s=duration_s
        )


async def _call_and_sync(path: DataPath, session: Session) -> Measurement:
    """The least that a durable put can take: one call to another process, and one sync there."""
    window = {"duration_s": session.scale.duration_s / 2, "warmup_s": session.scale.warmup_s}
    call = await references.grpc_unary_4k_c1(path.server, **window)
    sync, _ = references.disk_append_sync_4k(
        session.options.directory, duration_s=session.scale.duration_s / 2
    )
    detail = f"{call.detail}; {sync.detail}"
    return Measurement(f"{call.id}+{sync.id}", call.value + sync.value, "s", detail)


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    scale = session.scale
    window = {"duration_s": scale.duration_s, "warmup_s": scale.warmup_s}
    async with session.data_path() as path:
        product, server = _Product(path, session), path.server
        turns = {
            _PUT: Turns(
                product.put,
                lambda: references.grpc_unary_4k(server, callers=CALLERS, **window),
                scale.small_rounds,
            ),
            _PUT_ONE: Turns(product.put_one, lambda: _call_and_sync(path, session), scale.small_rounds),
            _GET: Turns(
                product.get,
                lambda: references.grpc_unary_4k_reply(server, callers=CALLERS, **window),
                scale.small_rounds,
            ),
        }
        await measure_turns(session, wanted, turns)


SMALL = Group(
    {
        _PUT: Target(Bound.AT_LEAST, 0.5),
        _PUT_ONE: Target(Bound.AT_MOST, 4.0),
        _GET: Target(Bound.AT_LEAST, 0.6),
    },
    _measure,
)
