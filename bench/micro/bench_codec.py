"""Erasure coding: every tier of the kernel, and other libraries, beside zfec; CRC32C beside zlib's CRC-32."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import zfec
from coffre.bench import _isal
from coffre.bench.micro import Micro, Reference
from coffre.codec import Codec, Tier, available_tiers, crc32c

__all__ = ["benchmarks"]

SHARD_BYTES = 256 << 10
SCHEMES = ((4, 2), (8, 3))
CALLS = 8  # of what is fast, in one round; zfec, and what is no faster, has one
SLOW = (Tier.SCALAR, Tier.ZFEC)

Encode = Callable[[], object]


def repeated(encode: Encode, calls: int = CALLS) -> Encode:
    def run() -> None:
        for _ in range(calls):
            encode()

    return run


def parity_of(m: int) -> list[bytearray]:
    return [bytearray(SHARD_BYTES) for _ in range(m)]


def benchmarks() -> Iterator[Micro]:
    """All of them; ISA-L and zfex where they are installed."""
    source = random.Random(1)
    for k, m in SCHEMES:
        data = tuple(bytearray(source.randbytes(SHARD_BYTES)) for _ in range(k))
        numbers = tuple(range(k, k + m))
        reference = Reference(f"zfec_{k}_{m}", partial(zfec.Encoder(k, k + m).encode, data, numbers))
        for tier in available_tiers():
            encode = partial(Codec(k, m, tier=tier).encode_into, data, parity_of(m), crc=False)
            calls = 1 if tier in SLOW else CALLS
            yield Micro(f"encode[{k}-{m}-{tier.value}]", reference, repeated(encode, calls))
        with_crc = partial(Codec(k, m).encode_into, data, parity_of(m))
        yield Micro(f"encode_with_crc[{k}-{m}]", reference, repeated(with_crc))
        for name, other in others(k, m, data):
            yield Micro(f"encode_by_{name}[{k}-{m}]", reference, other)
        if (k, m) == (4, 2):
            yield from reconstructions(data, reference)
    for name, size_bytes in (("4k", 4096), ("1m", 1 << 20)):
        checksum = partial(crc32c, random.Random(1).randbytes(size_bytes))
        beside = Reference("zlib_crc32_1m", partial(zlib.crc32, bytes(1 << 20)))
        yield Micro(f"crc32c[{name}]", beside, repeated(checksum, (4 << 20) // size_bytes))


def others(k: int, m: int, data: tuple[bytearray, ...]) -> Iterator[tuple[str, Encode]]:
    """Other libraries. zfex has one call in a round, as zfec: a ratio of 1 is zfec's speed."""
    with suppress(_isal.IsalMissing):
        yield "isal", repeated(_isal.encoder(k, m, data, parity_of(m), SHARD_BYTES))
    try:
        import zfex
    except ModuleNotFoundError:  # its last release is of 2022
        return
    yield (
        "zfex",
        partial(zfex.Encoder(k, k + m).encode, [bytes(block) for block in data], tuple(range(k, k + m))),
    )


def reconstructions(data: tuple[bytearray, ...], reference: Reference) -> Iterator[Micro]:
    code, parity = Codec(4, 2), parity_of(2)
    code.encode_into(data, parity)
    shards = dict(enumerate([*data, *parity]))
    for lost in (1, 2):
        wanted = {index: bytearray(SHARD_BYTES) for index in range(lost)}
        left = {index: shard for index, shard in shards.items() if index >= lost}
        yield Micro(
            f"reconstruct_4_2[{lost}]", reference, repeated(partial(code.reconstruct_into, left, wanted))
        )
