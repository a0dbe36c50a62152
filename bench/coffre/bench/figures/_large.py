"""Figures of large objects: all of one in, all of one out, and small ranges of one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from coffre.bench import references
from coffre.bench._workload import RandomRanges, get_large, latencies, put_large
from coffre.bench.figures._session import BUCKET, DataPath, Group, Session, at_least, at_most
from coffre.bench.references import Measurement
from coffre.bench.result import Figure, row_of, take_turns

__all__ = ["LARGE"]

_PUT = Figure("put_256m", "bytes/s", at_least(0.7))
_PUT_GRPC = Figure("put_256m_vs_grpc", "bytes/s", at_least(0.35))
_GET = Figure("get_256m", "bytes/s", at_least(0.7))
_RANGE = Figure("range_64k_latency", "s", at_most(4.0))
_RANGE_BYTES = 64 << 10
# 4+2 sends and stores 1.5 bytes for each one of the object.
_CODING_OVERHEAD = 1.5


class _Product:
    """The product's turns. Every round has keys of its own."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path, self._session = path, session
        self._size_bytes = session.scale.large_bytes
        self._ranges: RandomRanges | None = None

    async def put(self) -> float:
        return await self._put(self._path.fresh("large/put"), self._size_bytes)

    async def get(self, *, compare_all: bool = False) -> float:
        key, path = self._path.fresh("large/get"), self._path
        await self._put(key, self._size_bytes)
        return await get_large(
            path.reader, path.blocks, BUCKET, key, self._size_bytes, compare_all=compare_all
        )

    async def check(self) -> None:
        """One large object in and out, not timed, every byte compared; opens the connections, too."""
        await self.get(compare_all=True)

    async def read_range(self) -> float:
        """Of the same object in every round, at other places."""
        ranges = self._ranges or await self._put_ranges()
        found = await self._session.warmed_up(
            lambda duration_s: latencies(
                lambda _: ranges.read(self._path.reader), callers=1, duration_s=duration_s
            )
        )
        return statistics.median(found)

    async def _put(self, key: str, size_bytes: int) -> float:
        return await put_large(self._path.writer, self._path.blocks, BUCKET, key, size_bytes)

    async def _put_ranges(self) -> RandomRanges:
        key, size_bytes, seed = "large/ranges", self._session.scale.range_bytes, self._session.seed
        await self._put(key, size_bytes)
        self._ranges = RandomRanges(self._path.blocks, BUCKET, key, size_bytes, _RANGE_BYTES, seed)
        return self._ranges


def _ceiling(found: Sequence[Measurement]) -> Measurement:
    """What a put of 4+2 can reach: the slower of wire and disk, each of which takes 1.5 bytes for one."""
    slower = min(found, key=lambda one: one.value)
    name = f"min({', '.join(one.id for one in found)})/{_CODING_OVERHEAD}"
    return Measurement(name, slower.value / _CODING_OVERHEAD, "bytes/s", f"here {slower.id}: {slower.detail}")


async def _measure_put(session: Session, product: _Product, path: DataPath) -> None:
    """The same puts make both rows, each beside its own reference."""
    size_bytes, rounds = session.scale.large_bytes, session.scale.large_rounds

    async def wire_and_disk() -> tuple[Measurement, Measurement]:
        wire = await references.grpc_stream_1m(path.server, size_bytes=size_bytes)
        return wire, references.disk_write_sync(session.options.directory, size_bytes=size_bytes)

    wanted = session.wants(_PUT, _PUT_GRPC)
    session.say(f"measuring {' and '.join(figure.id for figure in wanted)}, {rounds} rounds")
    found = await take_turns(product.put, wire_and_disk, rounds=rounds)
    if _PUT in wanted:
        session.add(row_of(_PUT, *((rate, _ceiling(beside)) for rate, beside in found)))
    if _PUT_GRPC in wanted:
        session.add(row_of(_PUT_GRPC, *((rate, wire) for rate, (wire, _) in found)))


async def _measure(session: Session) -> None:
    scale, half_s = session.scale, session.scale.duration_s / 2
    async with session.data_path() as path:
        product, server = _Product(path, session), path.server
        if session.wants(_PUT, _PUT_GRPC):
            with session.recorded(_PUT, _PUT_GRPC):
                await product.check()
                await _measure_put(session, product, path)
        if session.wants(_GET):
            with session.recorded(_GET):
                await product.check()
        await session.turns(
            _GET,
            product.get,
            lambda: references.grpc_stream_1m_reply(server, size_bytes=scale.large_bytes),
            scale.large_rounds,
        )
        await session.turns(
            _RANGE,
            product.read_range,
            lambda: references.grpc_unary_64k(server, duration_s=half_s, warmup_s=scale.warmup_s),
            scale.large_rounds,
        )


LARGE = Group((_PUT, _PUT_GRPC, _GET, _RANGE), _measure)
