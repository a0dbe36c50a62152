"""Figures of one thread, no cluster: the codec beside zfec and ISA-L, and the whole pipeline beside plain AES-GCM."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from coffre.bench._pipeline import Pipeline
from coffre.bench.codec import SCHEMES, SIZES, measure_encode
from coffre.bench.figures._session import Group, Session, at_least
from coffre.bench.result import Figure, Measurement

__all__ = ["ENCODE", "PIPELINE"]

_PIPELINE = Figure("pipeline_4_2", "bytes/s", at_least(0.45))


def _figures_of(k: int, m: int, size: str) -> list[Figure]:
    """What the measurement of one scheme at one size is published as."""
    scheme, found = f"encode_{k}_{m}", []
    if (k, m) in SCHEMES[:3] and size == "1m":
        found = [
            Figure(f"{scheme}_vs_zfec", "bytes/s", at_least(10.0)),
            Figure(f"{scheme}_vs_isal", "bytes/s", at_least(0.8)),
        ]
    return [*found, Figure(f"{scheme}_{size}_vs_isal", "bytes/s", at_least(1.0))]


_ENCODE = {(k, m, size): _figures_of(k, m, size) for k, m in SCHEMES for size in SIZES}


async def _encode(session: Session) -> None:
    """One measurement per scheme and size, which is in up to three rows. Blocks."""
    for (k, m, size), figures in _ENCODE.items():
        if asked := session.wants(*figures):
            session.say(f"measuring {' and '.join(figure.id for figure in asked)}")
            with session.recorded(*asked):
                with_zfec = any(figure.id.endswith("_vs_zfec") for figure in asked)
                found = measure_encode(k, m, SIZES[size], with_zfec=with_zfec)
                for figure in asked:
                    scheme, _, other = figure.id.rpartition("_vs_")
                    row = found.vs_isal if other == "isal" else found.vs_zfec
                    assert row is not None
                    session.add(replace(row, id=figure.id, reference_id=f"{other}_{scheme}"))


async def _pipeline(session: Session) -> None:
    """Both halves run in one thread that may use one core."""
    core = min(os.sched_getaffinity(0))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, {core})) as thread:
        pipeline = Pipeline(4, 2, session.scale.pipeline_bytes, session.seed)
        await loop.run_in_executor(thread, pipeline.check)

        async def product() -> float:
            return await loop.run_in_executor(thread, pipeline.code)

        async def reference() -> Measurement:
            return Measurement("aes_gcm", await loop.run_in_executor(thread, pipeline.encrypt), "bytes/s")

        await session.turns(_PIPELINE, product, reference, session.scale.pipeline_rounds)


ENCODE = Group(tuple(figure for figures in _ENCODE.values() for figure in figures), _encode)
PIPELINE = Group((_PIPELINE,), _pipeline)
