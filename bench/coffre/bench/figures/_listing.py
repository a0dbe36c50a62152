"""Figures of lists: whether a page costs more in a large bucket than in a small one."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from coffre.bench._workload import ListedBucket
from coffre.bench.figures._session import CONDITIONS, Group, Session
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Quantity, Target, alternate
from coffre.client import AsyncClient

__all__ = ["LISTING"]

_LIST = "list_1000_of_1m"
_PAGES_AT_LEAST = Target(Bound.AT_LEAST, 10.0, Quantity.VALUE)
_TELLS = 10


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    scale, rounds = session.scale, session.scale.large_rounds
    async with session.data_path() as path:
        few = ListedBucket("listed-few", scale.listed_keys_few)
        many = ListedBucket("listed-many", scale.listed_keys)
        await few.fill(path.writer, 0, few.keys)
        await _fill(session, many, path.writer)
        session.say(f"  {path.cluster.disk_bytes() / 1e9:.1f} GB on disk")
        session.say(f"measuring {_LIST}, {rounds} rounds")

        async def pages(bucket: ListedBucket, name: str) -> Measurement:
            rate = await bucket.page_rate(path.reader, scale.duration_s)
            detail = f"pages of 1,000 keys, {bucket.keys} keys in the bucket, {CONDITIONS}"
            return Measurement(name, rate, "pages/s", detail)

        session.add(
            await alternate(
                lambda: pages(many, _LIST), lambda: pages(few, f"list_1000_of_{few.keys}"), rounds=rounds
            )
        )


async def _fill(session: Session, bucket: ListedBucket, writer: AsyncClient) -> None:
    """Minutes; says how far it has come."""
    start = perf_counter()
    step = -(-bucket.keys // _TELLS)
    for first in range(0, bucket.keys, step):
        last = min(first + step, bucket.keys)
        await bucket.fill(writer, first, last)
        session.say(f"  {last} of {bucket.keys} keys put, {last / (perf_counter() - start):.0f}/s")


LISTING = Group({_LIST: Target(Bound.AT_LEAST, 0.8, also=_PAGES_AT_LEAST)}, _measure)
