"""Figures of large objects: all of one in, all of one out, and small ranges of one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence

from coffre.bench import references
from coffre.bench._workload import RandomRanges, get_large, latencies, put_large
from coffre.bench.figures._session import BUCKET, CONDITIONS, DataPath, Group, Session, Turns, measure_turns
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Target, row_of_rounds, take_turns

__all__ = ["LARGE"]

_PUT, _PUT_GRPC, _GET, _RANGE = "put_256m", "put_256m_vs_grpc", "get_256m", "range_64k_latency"
_RANGE_BYTES = 64 << 10
# 4+2 sends and stores 1.5 bytes for each one of the object.
_CODING_OVERHEAD = 1.5

_References = tuple[Measurement, Measurement]
"""Of one round: raw gRPC streaming, and the disk's sequential writes with their sync."""


class _Product:
    """The product's turns. Every round has keys of its own."""

    def __init__(self, path: DataPath, session: Session) -> None:
        self._path = path
        self._scale = session.scale
        self._seed = session.seed
        self._rounds = itertools.count()
        self._ranges: RandomRanges | None = None

    async def put(self) -> Measurement:
        key, size_bytes = self._fresh("put")
        rate = await put_large(self._path.writer, self._path.blocks, BUCKET, key, size_bytes)
        return Measurement(_PUT, rate, "bytes/s", f"{size_bytes >> 20} MiB, {CONDITIONS}")

    async def get(self) -> Measurement:
        key, size_bytes = self._fresh("get")
        await put_large(self._path.writer, self._path.blocks, BUCKET, key, size_bytes)
        rate = await get_large(self._path.reader, self._path.blocks, BUCKET, key, size_bytes)
        return Measurement(_GET, rate, "bytes/s", f"{size_bytes >> 20} MiB, {CONDITIONS}")

    async def check(self) -> None:
        """One large object in and out, not timed, every byte compared; opens the connections, too."""
        writer, reader, blocks = self._path.writer, self._path.reader, self._path.blocks
        key, size_bytes = self._fresh("check")
        await put_large(writer, blocks, BUCKET, key, size_bytes)
        await get_large(reader, blocks, BUCKET, key, size_bytes, compare_all=True)

    async def read_range(self) -> Measurement:
        """Of the same object in every round, at other places."""
        ranges = self._ranges or await self._put_ranges()
        found: list[float] = []
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            found = await latencies(
                lambda _: ranges.read(self._path.reader), callers=1, duration_s=duration_s
            )
        detail = f"64 KiB of {self._scale.range_bytes >> 20} MiB, median of {len(found)}, {CONDITIONS}"
        return Measurement(_RANGE, statistics.median(found), "s", detail)

    async def _put_ranges(self) -> RandomRanges:
        blocks, size_bytes = self._path.blocks, self._scale.range_bytes
        await put_large(self._path.writer, blocks, BUCKET, "large/ranges", size_bytes)
        self._ranges = RandomRanges(blocks, BUCKET, "large/ranges", size_bytes, _RANGE_BYTES, self._seed)
        return self._ranges

    def _fresh(self, what: str) -> tuple[str, int]:
        return f"large/{what}/{next(self._rounds)}", self._scale.large_bytes


def _ceiling(found: _References) -> Measurement:
    """What a put of 4+2 can reach: the slower of wire and disk, each of which takes 1.5 bytes for one."""
    slower = min(found, key=lambda one: one.value)
    name = f"min({found[0].id}, {found[1].id})/{_CODING_OVERHEAD}"
    return Measurement(name, slower.value / _CODING_OVERHEAD, "bytes/s", f"here {slower.id}: {slower.detail}")


async def _measure_put(
    session: Session,
    wanted: Sequence[str],
    product: Callable[[], Awaitable[Measurement]],
    reference: Callable[[], Awaitable[_References]],
) -> None:
    """The same puts make both rows, each beside its own reference."""
    rounds = session.scale.large_rounds
    session.say(f"measuring {' and '.join(wanted)}, {rounds} rounds")
    found = await take_turns(product, reference, rounds=rounds)
    if _PUT in wanted:
        session.add(row_of_rounds([(put, _ceiling(beside)) for put, beside in found]))
    if _PUT_GRPC in wanted:
        renamed = [
            (Measurement(_PUT_GRPC, put.value, put.unit, put.detail), beside[0]) for put, beside in found
        ]
        session.add(row_of_rounds(renamed))


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    scale = session.scale
    window = {"duration_s": scale.duration_s / 2, "warmup_s": scale.warmup_s}
    async with session.data_path() as path:
        product, server = _Product(path, session), path.server
        if puts := [name for name in wanted if name in (_PUT, _PUT_GRPC)]:

            async def wire_and_disk() -> _References:
                wire = await references.grpc_stream_1m(server, size_bytes=scale.large_bytes)
                directory = session.options.directory
                return wire, references.disk_write_sync(directory, size_bytes=scale.large_bytes)

            with session.recorded(puts):
                await product.check()
                await _measure_put(session, puts, product.put, wire_and_disk)
        if _GET in wanted:
            with session.recorded([_GET]):
                await product.check()
        turns = {
            _GET: Turns(
                product.get,
                lambda: references.grpc_stream_1m_reply(server, size_bytes=scale.large_bytes),
                scale.large_rounds,
            ),
            _RANGE: Turns(
                product.read_range, lambda: references.grpc_unary_64k(server, **window), scale.large_rounds
            ),
        }
        left = [name for name in wanted if name in turns and name not in session.figures.failures]
        await measure_turns(session, left, turns)


LARGE = Group(
    {
        _PUT: Target(Bound.AT_LEAST, 0.7),
        _PUT_GRPC: Target(Bound.AT_LEAST, 0.35),
        _GET: Target(Bound.AT_LEAST, 0.7),
        _RANGE: Target(Bound.AT_MOST, 4.0),
    },
    _measure,
)
