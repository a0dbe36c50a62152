"""Encoding speed of Coffre's kernel beside zfec and ISA-L: python -m coffre.bench.codec

Like with like: the same buffers and the same generator matrix, parity only (no checksums) unless it says so,
one thread. The contenders take turns within every repetition, so that a busy machine slows all of them, and a
figure is the median of the ratios of the repetitions.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import zfec
from coffre.bench import _isal
from coffre.bench.result import machine
from coffre.bench.tables import Table
from coffre.cluster.admin import one_line_errors
from coffre.cluster.version import __version__
from coffre.codec import Codec, active_tier
from rich.console import Console

__all__ = ["CELL_BYTES", "SCHEMES", "SHARD_BYTES", "EncodeMeasurement", "measure_encode"]

SCHEMES = ((4, 2), (8, 3), (10, 4), (16, 4))
SHARD_BYTES = 1 << 20
CELL_BYTES = 1 << 16
SEED = 1
REPETITIONS = 25
# Data coded per turn: long enough for the clock and for the vector units to wake up, short enough that turns
# stay close together. A turn of zfec, which is slow, is one call.
TURN_BYTES = 64 << 20
_ZFEC_REPETITIONS = 9

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class EncodeMeasurement:
    """One scheme at one shard size. Speeds are GB of data (not parity) per second, medians."""

    k: int
    m: int
    shard_bytes: int
    kernel_gb_per_s: float
    kernel_with_crc_gb_per_s: float
    isal_gb_per_s: float
    zfec_gb_per_s: float | None
    vs_isal: float
    with_crc_vs_isal: float
    vs_zfec: float | None
    parity_sha256: str


@dataclass(frozen=True, slots=True)
class _Contender:
    encode: Callable[[], object]
    calls_per_turn: int


def _durations(contenders: Sequence[_Contender], repetitions: int, clock_ns: Clock) -> list[list[float]]:
    """Nanoseconds per call of each contender in each repetition, after one call each to warm up."""
    durations: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender.encode()
    for _ in range(repetitions):
        for contender, found in zip(contenders, durations, strict=True):
            start = clock_ns()
            for _ in range(contender.calls_per_turn):
                contender.encode()
            found.append((clock_ns() - start) / contender.calls_per_turn)
    return durations


def _median_ratio(reference: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(reference, ours, strict=True))


def measure_encode(
    k: int, m: int, shard_bytes: int, *, with_zfec: bool, clock_ns: Clock = time.perf_counter_ns
) -> EncodeMeasurement:
    """Encode random data of `k` shards of `shard_bytes`. Raises IsalMissing without ISA-L."""
    source = random.Random(SEED)
    data = [bytearray(source.randbytes(shard_bytes)) for _ in range(k)]
    parity = [bytearray(shard_bytes) for _ in range(m)]
    code = Codec(k, m)
    isal = _isal.encoder(k, m, data, parity, shard_bytes)

    isal()
    expected = hashlib.sha256(b"".join(parity)).hexdigest()
    code.encode_into(data, parity, crc=False)
    if hashlib.sha256(b"".join(parity)).hexdigest() != expected:
        raise AssertionError(f"the kernel and ISA-L disagree on {k}+{m}; nothing was measured")

    def kernel() -> None:
        code.encode_into(data, parity, crc=False)

    def kernel_with_crc() -> None:
        code.encode_into(data, parity, crc=True)

    calls = max(1, TURN_BYTES // (k * shard_bytes))
    turns = [_Contender(encode, calls) for encode in (kernel, kernel_with_crc, isal)]
    plain, checked, reference = _durations(turns, REPETITIONS, clock_ns)
    vs_zfec = zfec_median = None
    if with_zfec:
        oracle, blocks, numbers = zfec.Encoder(k, k + m), tuple(data), tuple(range(k, k + m))
        if hashlib.sha256(b"".join(oracle.encode(blocks, numbers))).hexdigest() != expected:
            raise AssertionError(f"the kernel and zfec disagree on {k}+{m}; nothing was measured")
        turns = [_Contender(kernel, calls), _Contender(lambda: oracle.encode(blocks, numbers), 1)]
        beside, slow = _durations(turns, _ZFEC_REPETITIONS, clock_ns)
        vs_zfec, zfec_median = _median_ratio(slow, beside), statistics.median(slow)
    size = k * shard_bytes
    return EncodeMeasurement(
        k=k,
        m=m,
        shard_bytes=shard_bytes,
        kernel_gb_per_s=size / statistics.median(plain),
        kernel_with_crc_gb_per_s=size / statistics.median(checked),
        isal_gb_per_s=size / statistics.median(reference),
        zfec_gb_per_s=None if zfec_median is None else size / zfec_median,
        vs_isal=_median_ratio(reference, plain),
        with_crc_vs_isal=_median_ratio(reference, checked),
        vs_zfec=vs_zfec,
        parity_sha256=expected,
    )


def _cells(one: EncodeMeasurement) -> tuple[str, ...]:
    return (
        f"{one.k}+{one.m}",
        f"{one.shard_bytes >> 10} KiB",
        f"{one.kernel_gb_per_s:.1f} ({one.vs_isal:.2f})",
        f"{one.kernel_with_crc_gb_per_s:.1f} ({one.with_crc_vs_isal:.2f})",
        f"{one.isal_gb_per_s:.1f} (1)",
        "" if one.zfec_gb_per_s is None else f"{one.zfec_gb_per_s:.2f}",
        one.parity_sha256[:12],
    )


@click.command()
@one_line_errors
def main() -> None:
    """Encoding speed of Coffre's kernel beside zfec and ISA-L: every scheme at both sizes, a few seconds."""
    console = Console(width=110)
    rows = [
        _cells(measure_encode(k, m, size, with_zfec=size == SHARD_BYTES))
        for size in (SHARD_BYTES, CELL_BYTES)
        for k, m in SCHEMES
    ]
    console.print(f"coffre {__version__}, tier {active_tier().value}, seed {SEED}; {machine(Path.cwd())}")
    console.print(
        "GB of data per second, one thread; in brackets: ratio to ISA-L, which computes no checksum"
    )
    heads = ("scheme", "shard", "Coffre", "with CRC32C", "ISA-L", "zfec", "parity SHA-256")
    Table(heads, rows).show(console)


if __name__ == "__main__":
    main()
