"""Encoding speed of Coffre's kernel beside zfec and ISA-L: python -m coffre.bench.codec

ISA-L is the copy that PyECLib's wheel brings along. Like with like: the same buffers and the same generator matrix,
parity only (no checksums) unless it says so, one thread. A figure is the median of the ratios of the rounds.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import click
import zfec
from coffre.bench.result import Figure, Measurement, Row, machine, print_table, row_of
from coffre.bench.timing import Work, timed
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.version import __version__
from coffre.codec import Codec, active_tier
from rich.console import Console

__all__ = ["SCHEMES", "SEED", "SIZES", "Encoding", "measure_encode"]

_TABLE_BYTES_PER_COEFFICIENT = 32


class IsalMissing(ConfigurationError):
    """ISA-L is not installed; the text tells how to get it."""


@cache
def library() -> ctypes.CDLL:
    """The shared library. Raises IsalMissing."""
    advice = "ISA-L is needed for this comparison; install it with: pip install 'coffre[bench]'"
    try:
        files = importlib.metadata.files("pyeclib") or []
    except importlib.metadata.PackageNotFoundError:
        raise IsalMissing(advice) from None
    for file in files:
        if file.name.startswith("libisal") and ".so" in file.name:
            try:
                return ctypes.CDLL(str(file.locate()))
            except OSError as error:
                raise IsalMissing(f"{advice} (found, but it cannot be loaded: {error})") from error
    raise IsalMissing(f"{advice} (the installed PyECLib brings no ISA-L)")


def generator_rows(k: int, m: int) -> bytes:
    """Coffre's m parity rows of k coefficients, read off the code itself by encoding unit vectors."""
    parity = bytearray(m * k)
    cells = b"".join(bytes(i == j for i in range(k)) for j in range(k))
    Codec(k, m).encode_segment(cells, parity, checks=False)
    return bytes(parity)


def isal_encoder(
    k: int, m: int, data: Sequence[bytearray], parity: Sequence[bytearray], size: int
) -> Callable[[], None]:
    """A call that encodes `data` into `parity`, `size` bytes each, with Coffre's generator matrix.

    The arrays of pointers are made once, outside the call: only ISA-L's own work is left to measure. The call keeps the
    buffers, which must not change their size.
    """
    isal = library()
    rows = (ctypes.c_ubyte * (k * m)).from_buffer_copy(generator_rows(k, m))
    tables = (ctypes.c_ubyte * (k * m * _TABLE_BYTES_PER_COEFFICIENT))()
    isal.ec_init_tables(k, m, rows, tables)
    sources, targets = _pointers(data), _pointers(parity)
    function = isal.ec_encode_data
    function.restype = None
    length, source_count, target_count = ctypes.c_int(size), ctypes.c_int(k), ctypes.c_int(m)

    buffers = (*data, *parity)  # pointers alone would not keep them

    def encode(_buffers: tuple[bytearray, ...] = buffers) -> None:
        function(length, source_count, target_count, tables, sources, targets)

    return encode


def _pointers(buffers: Sequence[bytearray]) -> ctypes.Array[ctypes.c_void_p]:
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    return (ctypes.c_void_p * len(addresses))(*addresses)


SCHEMES = ((4, 2), (8, 3), (10, 4), (16, 4))
SIZES = {"1m": 1 << 20, "64k": 1 << 16}
SEED = 1
_ROUNDS = 25
# Data coded per turn: long enough for the clock and for the vector units to wake up, short enough that turns
# stay close together. A turn of zfec, which is slow, is one call.
_TURN_BYTES = 64 << 20
_ZFEC_ROUNDS = 9


class Encoding(NamedTuple):
    """One scheme at one shard size, in bytes of data (not parity) per second.

    The kernel beside ISA-L, the same with the checksums that ISA-L does not make, and the kernel beside zfec if asked.
    """

    vs_isal: Row
    with_checks_vs_isal: Row
    vs_zfec: Row | None
    parity_sha256: str


def measure_encode(
    k: int, m: int, shard_bytes: int, *, with_zfec: bool, clock: Callable[[], float] = perf_counter
) -> Encoding:
    """Encode random data of `k` shards of `shard_bytes`. Raises `IsalMissing` without ISA-L."""
    source = random.Random(SEED)
    data = [bytearray(source.randbytes(shard_bytes)) for _ in range(k)]
    parity = [bytearray(shard_bytes) for _ in range(m)]
    isal = isal_encoder(k, m, data, parity, shard_bytes)
    kernel, with_checks = (
        partial(Codec(k, m).encode_into, data, parity, checks=checks) for checks in (False, True)
    )
    zfec_encode = partial(zfec.Encoder(k, k + m).encode, tuple(data), tuple(range(k, k + m)))

    def digest() -> str:
        return hashlib.sha256(b"".join(parity)).hexdigest()

    isal()
    expected = digest()
    kernel()
    if digest() != expected:
        raise AssertionError(f"the kernel and ISA-L disagree on {k}+{m}; nothing was measured")
    size_bytes = k * shard_bytes
    calls = max(1, _TURN_BYTES // size_bytes)

    def row(name: str, other: str, rounds: list[tuple[float, float]], other_calls: int) -> Row:
        return row_of(
            Figure(f"{name}_{k}_{m}", "bytes/s"),
            *(
                (calls * size_bytes / ours, Measurement(other, other_calls * size_bytes / theirs, "bytes/s"))
                for ours, theirs in rounds
            ),
        )

    found = timed([Work(kernel, calls), Work(with_checks, calls), Work(isal, calls)], _ROUNDS, clock)
    vs_zfec = None
    if with_zfec:
        if hashlib.sha256(b"".join(zfec_encode())).hexdigest() != expected:
            raise AssertionError(f"the kernel and zfec disagree on {k}+{m}; nothing was measured")
        beside = timed([Work(kernel, calls), Work(zfec_encode)], _ZFEC_ROUNDS, clock)
        vs_zfec = row("encode", "zfec", [(ours, theirs) for ours, theirs in beside], 1)
    return Encoding(
        row("encode", "isal", [(plain, other) for plain, _, other in found], calls),
        row("encode_with_checks", "isal", [(checked, other) for _, checked, other in found], calls),
        vs_zfec,
        expected,
    )


@click.command()
@one_line_errors
def main() -> None:
    """Encoding speed of Coffre's kernel beside zfec and ISA-L: every scheme at both sizes, a few seconds."""
    console, digest = Console(width=110), hashlib.sha256()
    rows: list[Row] = []
    for size, shard_bytes in SIZES.items():
        for k, m in SCHEMES:
            *found, parity_sha256 = measure_encode(k, m, shard_bytes, with_zfec=size == "1m")
            rows += [replace(row, id=f"{row.id}_{size}") for row in found if isinstance(row, Row)]
            digest.update(parity_sha256.encode())
    origin = f"coffre {__version__}, tier {active_tier().value}, seed {SEED}; {machine(Path.cwd())}"
    console.print(origin, soft_wrap=True)
    console.print("data per second, one thread; ISA-L computes no checksum")
    print_table(rows, {}, console)
    console.print(f"SHA-256 of all parity {digest.hexdigest()}", soft_wrap=True)


if __name__ == "__main__":
    main()
