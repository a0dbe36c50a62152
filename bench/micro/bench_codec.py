"""Erasure coding: every tier of the kernel, and other libraries, beside zfec; CRC32C beside zlib's CRC-32."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import cache

import pytest
import zfec
from coffre.bench import _isal
from coffre.codec import Codec, Tier, available_tiers, crc32c
from micro_references import Beside, Reference

SHARD_BYTES = 256 << 10
SCHEMES = ((4, 2), (8, 3))
CALLS = 8  # of what is fast, in one round; zfec, and what is no faster, has one
SLOW = (Tier.SCALAR, Tier.ZFEC)

Encode = Callable[[], object]


@cache
def data(k: int) -> tuple[bytearray, ...]:
    source = random.Random(1)
    return tuple(bytearray(source.randbytes(SHARD_BYTES)) for _ in range(k))


def zfec_reference(k: int, m: int) -> Reference:
    oracle, blocks, numbers = zfec.Encoder(k, k + m), data(k), tuple(range(k, k + m))
    return Reference(f"zfec_{k}_{m}", lambda: oracle.encode(blocks, numbers))


def repeated(encode: Encode, calls: int = CALLS) -> Encode:
    def run() -> None:
        for _ in range(calls):
            encode()

    return run


def parity_of(k: int, m: int) -> list[bytearray]:
    return [bytearray(SHARD_BYTES) for _ in range(m)]


@pytest.mark.parametrize("tier", available_tiers(), ids=lambda tier: tier.value)
@pytest.mark.parametrize(("k", "m"), SCHEMES)
def bench_encode(beside: Beside, k: int, m: int, tier: Tier) -> None:
    code, parity = Codec(k, m, tier=tier), parity_of(k, m)
    calls = 1 if tier in SLOW else CALLS
    beside(zfec_reference(k, m), repeated(lambda: code.encode_into(data(k), parity, crc=False), calls))


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def bench_encode_with_crc(beside: Beside, k: int, m: int) -> None:
    code, parity = Codec(k, m), parity_of(k, m)
    beside(zfec_reference(k, m), repeated(lambda: code.encode_into(data(k), parity)))


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def bench_encode_by_isal(beside: Beside, k: int, m: int) -> None:
    parity = parity_of(k, m)  # kept alive here: ISA-L gets bare addresses
    try:
        encode = _isal.encoder(k, m, data(k), parity, SHARD_BYTES)
    except _isal.IsalMissing as error:
        pytest.skip(str(error))
    beside(zfec_reference(k, m), repeated(encode))


@pytest.mark.parametrize(("k", "m"), SCHEMES)
def bench_encode_by_zfex(beside: Beside, k: int, m: int) -> None:
    """One call in a round, as zfec: a ratio of 1 is zfec's speed."""
    zfex = pytest.importorskip("zfex", reason="zfex is not installed: its last release is of 2022")
    encoder, numbers = zfex.Encoder(k, k + m), tuple(range(k, k + m))
    blocks = [bytes(block) for block in data(k)]
    beside(zfec_reference(k, m), lambda: encoder.encode(blocks, numbers))


@pytest.mark.parametrize("lost", [1, 2])
def bench_reconstruct_4_2(beside: Beside, lost: int) -> None:
    code, parity = Codec(4, 2), parity_of(4, 2)
    code.encode_into(data(4), parity)
    shards = dict(enumerate([*data(4), *parity]))
    wanted = {index: bytearray(SHARD_BYTES) for index in range(lost)}
    left = {index: shard for index, shard in shards.items() if index >= lost}
    beside(zfec_reference(4, 2), repeated(lambda: code.reconstruct_into(left, wanted)))


@pytest.mark.parametrize("size_bytes", [4096, 1 << 20], ids=["4k", "1m"])
def bench_crc32c(beside: Beside, size_bytes: int) -> None:
    block, calls = random.Random(1).randbytes(size_bytes), (4 << 20) // size_bytes

    def checksum() -> None:
        for _ in range(calls):
            crc32c(block)

    beside(Reference("zlib_crc32_1m", lambda: zlib.crc32(bytes(1 << 20))), checksum)
