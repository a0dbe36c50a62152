"""Figures of one thread, no cluster: the codec beside zfec and ISA-L, and the whole pipeline beside plain AES-GCM."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter

from coffre.bench.codec import SCHEMES, SIZES, measure_encode
from coffre.bench.figures._session import Group, Session, at_least
from coffre.bench.result import Figure, Measurement
from coffre.client.sealing import CellCipher, Draft
from coffre.client.writing import CellCoder
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName
from coffre.codec import codec, crc32c
from coffre.proto import coffre_pb2 as pb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["ENCODE", "PIPELINE", "Pipeline"]

_SEGMENT_BYTES = 1 << 20


class Pipeline:
    """Segments of 1 MiB, `size_bytes` in all, so many that they do not stay in the caches.

    A turn goes over all of them once. Messages are made and dropped, as an upload does once they are sent.
    """

    def __init__(self, k: int, m: int, size_bytes: int, seed: int) -> None:
        source = random.Random(seed)
        self._k, self._m = k, m
        self._segments = [source.randbytes(_SEGMENT_BYTES) for _ in range(size_bytes // _SEGMENT_BYTES)]
        self._key, self._data_id = source.randbytes(32), source.randbytes(16)
        name = ObjectName("clinic", "bench", "pipeline")
        draft = Draft(name, self._key, pb.Manifest(data_id=self._data_id))
        self._coder = CellCoder(draft, k, m, None)
        self._plain_cipher = AESGCM(self._key)

    def code(self) -> float:
        """Encrypt, encode, and checksum every cell: plaintext bytes per second."""
        coder = self._coder

        def code(number: int, segment: bytes) -> None:
            coder.add(number, coder.cut(segment))
            if coder.is_full:
                coder.finish()

        rate = self._rate(code)
        coder.finish()
        return rate

    def encrypt(self) -> float:
        """AES-256-GCM alone: bytes per second."""
        cipher, data_id = self._plain_cipher, self._data_id
        return self._rate(
            lambda number, segment: cipher.encrypt(number.to_bytes(12, "big"), segment, data_id)
        )

    def check(self) -> None:
        """Code one segment and rebuild it from parity. Raises `IntegrityError` unless all of it comes back."""
        plain = self._segments[0]
        self._coder.add(0, self._coder.cut(plain))
        cells = [chunk.cells[0] for chunk in self._coder.finish()]
        if any(crc32c(cell.data) != cell.crc for cell in cells):
            raise IntegrityError("a cell's checksum is not that of the cell")
        cipher = CellCipher(self._key, self._data_id, self._k, compress_level=None)
        if cipher.open(0, self._rebuilt([cell.data for cell in cells]), len(plain)) != plain:
            raise IntegrityError("the pipeline returned other bytes than it was given")

    def _rebuilt(self, cells: Sequence[bytes | memoryview]) -> list[bytes | bytearray | memoryview]:
        """The segment's data cells, the first m of them made from the others."""
        lost = {index: bytearray(len(cells[index])) for index in range(self._m)}
        left = {index: cell for index, cell in enumerate(cells) if index not in lost}
        codec(self._k, self._m).reconstruct_into(left, lost)
        return [lost.get(index, cells[index]) for index in range(self._k)]

    def _rate(self, work: Callable[[int, bytes], object]) -> float:
        start = perf_counter()
        for number, segment in enumerate(self._segments):
            work(number, segment)
        return len(self._segments) * _SEGMENT_BYTES / (perf_counter() - start)


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
