"""Figures of lists: whether a page costs more in a large bucket than in a small one."""

from __future__ import annotations

from time import perf_counter

from coffre.bench._workload import ListedBucket
from coffre.bench.figures._session import Group, Session
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Figure, Quantity, Target
from coffre.client import AsyncClient

__all__ = ["LISTING"]

_PAGES_AT_LEAST = Target(Bound.AT_LEAST, 10.0, Quantity.VALUE)
_LIST = Figure("list_1000_of_1m", "pages/s", Target(Bound.AT_LEAST, 0.8, also=_PAGES_AT_LEAST))
_TELLS = 10


async def _measure(session: Session) -> None:
    scale = session.scale
    async with session.data_path() as path:
        few = ListedBucket("listed-few", scale.listed_keys_few)
        many = ListedBucket("listed-many", scale.listed_keys)
        await few.fill(path.writer, 0, few.keys)
        await _fill(session, many, path.writer)
        session.say(f"  {path.cluster.disk_bytes() / 1e9:.1f} GB on disk")

        async def pages_of_many() -> float:
            return await many.page_rate(path.reader, scale.duration_s)

        async def pages_of_few() -> Measurement:
            rate = await few.page_rate(path.reader, scale.duration_s)
            return Measurement(f"list_1000_of_{few.keys}", rate, "pages/s", "pages of 1,000 keys")

        await session.turns(_LIST, pages_of_many, pages_of_few, scale.large_rounds)


async def _fill(session: Session, bucket: ListedBucket, writer: AsyncClient) -> None:
    """Minutes; says how far it has come."""
    start = perf_counter()
    step = -(-bucket.keys // _TELLS)
    for first in range(0, bucket.keys, step):
        last = min(first + step, bucket.keys)
        await bucket.fill(writer, first, last)
        session.say(f"  {last} of {bucket.keys} keys put, {last / (perf_counter() - start):.0f}/s")


LISTING = Group((_LIST,), _measure)
