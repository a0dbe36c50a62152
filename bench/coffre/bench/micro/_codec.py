"""Coding: all tiers, and other libraries, beside zfec; CRC32C beside zlib's CRC-32, BLAKE3 beside SHA-256."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import zfec
from coffre.bench.codec import IsalMissing, isal_encoder
from coffre.bench.timing import Operation, Reference, Work
from coffre.codec import Codec, Tier, available_tiers, blake3_128, crc32c

__all__ = ["operations"]

_SHARD_BYTES = 256 << 10
_CALLS = 8  # of what is fast, in one round; zfec, and what is no faster, has one
_SLOW = (Tier.SCALAR, Tier.ZFEC)


def operations() -> Iterator[Operation]:
    """All of them; ISA-L and zfex where they are installed."""
    source = random.Random(1)
    for k, m in ((4, 2), (8, 3)):
        data = tuple(bytearray(source.randbytes(_SHARD_BYTES)) for _ in range(k))
        parity = [bytearray(_SHARD_BYTES) for _ in range(m)]
        encode = partial(zfec.Encoder(k, k + m).encode, data, tuple(range(k, k + m)))
        reference = Reference(f"zfec_{k}_{m}", Work(encode))
        for tier in available_tiers():
            plain = partial(Codec(k, m, tier=tier).encode_into, data, parity, checks=False)
            name, calls = f"encode[{k}-{m}-{tier.value}]", 1 if tier in _SLOW else _CALLS
            yield Operation(name, reference, plain, calls)
        with_checks = partial(Codec(k, m).encode_into, data, parity)
        yield Operation(f"encode_with_checks[{k}-{m}]", reference, with_checks, _CALLS)
        for name, run, calls in _others(k, m, data, parity):
            yield Operation(f"encode_by_{name}[{k}-{m}]", reference, run, calls)
        if (k, m) == (4, 2):
            yield from _reconstructions(data, reference)
    zlib_crc = Reference("zlib_crc32_1m", Work(partial(zlib.crc32, bytes(1 << 20))))
    for name, size_bytes in (("4k", 4096), ("1m", 1 << 20)):
        checksum = partial(crc32c, random.Random(1).randbytes(size_bytes))
        yield Operation(f"crc32c[{name}]", zlib_crc, checksum, (4 << 20) // size_bytes)
    sha256 = Reference("sha256_1m", Work(partial(hashlib.sha256, bytes(1 << 20))))
    for name, size_bytes in (("1k", 1024), ("256k", 256 << 10)):
        hashed = partial(blake3_128, random.Random(1).randbytes(size_bytes))
        yield Operation(f"blake3[{name}]", sha256, hashed, (1 << 20) // size_bytes)


def _others(
    k: int, m: int, data: tuple[bytearray, ...], parity: list[bytearray]
) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Other libraries. zfex has one call in a round, as zfec: a ratio of 1 is zfec's speed."""
    with suppress(IsalMissing):
        yield "isal", isal_encoder(k, m, data, parity, _SHARD_BYTES), _CALLS
    with suppress(ModuleNotFoundError):  # its last release is of 2022
        import zfex

        blocks, numbers = [bytes(block) for block in data], tuple(range(k, k + m))
        yield "zfex", partial(zfex.Encoder(k, k + m).encode, blocks, numbers), 1


def _reconstructions(data: tuple[bytearray, ...], reference: Reference) -> Iterator[Operation]:
    code, parity = Codec(4, 2), [bytearray(_SHARD_BYTES) for _ in range(2)]
    code.encode_into(data, parity)
    shards = dict(enumerate([*data, *parity]))
    for lost in (1, 2):
        wanted = {index: bytearray(_SHARD_BYTES) for index in range(lost)}
        left = {index: shard for index, shard in shards.items() if index >= lost}
        run = partial(code.reconstruct_into, left, wanted)
        yield Operation(f"reconstruct_4_2[{lost}]", reference, run, _CALLS)
