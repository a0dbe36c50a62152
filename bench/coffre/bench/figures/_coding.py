"""Figures of one thread, no cluster: the codec beside zfec and ISA-L, and the whole pipeline beside plain AES-GCM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from coffre.bench._pipeline import Pipeline
from coffre.bench.codec import CELL_BYTES, SCHEMES, SHARD_BYTES, EncodeMeasurement, measure_encode
from coffre.bench.figures._session import Group, Session
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Row, Target, alternate

__all__ = ["ENCODE", "PIPELINE"]

_OLDER_SCHEMES = SCHEMES[:3]
_SIZES = {"1m": SHARD_BYTES, "64k": CELL_BYTES}
_PIPELINE = "pipeline_4_2"


def _encode_targets() -> dict[str, Target]:
    found = {}
    for k, m in _OLDER_SCHEMES:
        found[f"encode_{k}_{m}_vs_zfec"] = Target(Bound.AT_LEAST, 10.0)
        found[f"encode_{k}_{m}_vs_isal"] = Target(Bound.AT_LEAST, 0.8)
    for k, m in SCHEMES:
        for size in _SIZES:
            found[f"encode_{k}_{m}_{size}_vs_isal"] = Target(Bound.AT_LEAST, 1.0)
    return found


async def _encode(session: Session, wanted: Sequence[str]) -> None:
    """One measurement per scheme and size; the 1 MiB one is in up to three rows. Blocks."""
    for k, m in SCHEMES:
        for size, size_bytes in _SIZES.items():
            scheme = f"encode_{k}_{m}"
            ids = [f"{scheme}_{size}_vs_isal"]
            if size_bytes == SHARD_BYTES:
                ids = [f"{scheme}_vs_zfec", f"{scheme}_vs_isal", *ids]
            asked = [name for name in ids if name in wanted]
            if asked:
                session.say(f"measuring {' and '.join(asked)}")
                with session.recorded(asked):
                    found = measure_encode(k, m, size_bytes, with_zfec=f"{scheme}_vs_zfec" in asked)
                    session.add(*(_encode_row(name, found) for name in asked))


def _encode_row(name: str, found: EncodeMeasurement) -> Row:
    if name.endswith("_vs_zfec"):
        assert found.zfec_gb_per_s is not None
        other, speed, ratio = "zfec", found.zfec_gb_per_s, found.vs_zfec
    else:
        other, speed, ratio = "isal", found.isal_gb_per_s, found.vs_isal
    reference_id = other + "_" + name.removesuffix(f"_vs_{other}")
    return Row(name, found.kernel_gb_per_s * 1e9, "bytes/s", speed * 1e9, reference_id, ratio)


async def _pipeline(session: Session, wanted: Sequence[str]) -> None:
    """Both halves run in one thread that may use one core."""
    rounds = session.scale.pipeline_rounds
    session.say(f"measuring {_PIPELINE}, {rounds} rounds")
    core = min(os.sched_getaffinity(0))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, {core})) as thread:
        pipeline = Pipeline(4, 2, session.scale.pipeline_bytes, session.seed)
        await loop.run_in_executor(thread, pipeline.check)

        async def product() -> Measurement:
            rate = await loop.run_in_executor(thread, pipeline.code)
            return Measurement(_PIPELINE, rate, "bytes/s", "1 MiB segments, one core, no compression")

        async def reference() -> Measurement:
            rate = await loop.run_in_executor(thread, pipeline.encrypt)
            return Measurement("aes_gcm", rate, "bytes/s", "the same bytes, one core")

        session.add(await alternate(product, reference, rounds=rounds))


ENCODE = Group(_encode_targets(), _encode)
PIPELINE = Group({_PIPELINE: Target(Bound.AT_LEAST, 0.45)}, _pipeline)
