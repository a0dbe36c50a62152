"""Encoding: byte-identical with zfec on every tier, for every scheme, size and alignment."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import cache

import pytest
import zfec
from blake3 import blake3
from coffre.codec import Codec, Tier, active_tier, codec, crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMALL_SCHEMES = tuple((k, n - k) for n in range(1, 33) for k in range(1, n + 1))
# Around every vector width and the block edges; the odd ones leave every kind of tail.
SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 191, 255, 257, 351, 1023, 4097)


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def zfec_parity(k: int, m: int, data: tuple[bytes, ...]) -> list[bytes]:
    return list(zfec.Encoder(k, k + m).encode(data, tuple(range(k, k + m))))


def checks_of(shards: Sequence[bytes | bytearray]) -> tuple[tuple[int, ...], bytes]:
    """The CRC32Cs by ours, which has tests of its own, and the hashes by the reference implementation."""
    return tuple(crc32c(shard) for shard in shards), b"".join(blake3(shard).digest(16) for shard in shards)


@cache
def small_case(k: int, m: int) -> tuple[tuple[bytes, ...], list[bytes], tuple[tuple[int, ...], bytes]]:
    """Data, zfec's parity and the checks of one scheme, computed once for all tiers."""
    size = (k * 37 + m * 11) % 150 + 1
    data = tuple(random_bytes(k << 16 | m << 8 | i, size) for i in range(k))
    parity = zfec_parity(k, m, data)
    return data, parity, checks_of([*data, *parity])


def test_every_scheme_up_to_32_shards(tier: Tier) -> None:
    for k, m in SMALL_SCHEMES:
        data, expected, checks = small_case(k, m)
        parity = [bytearray(len(data[0])) for _ in range(m)]
        assert Codec(k, m, tier=tier).encode_into(data, parity, checks=False) == ((), b"")
        assert parity == expected, (k, m)
        segment_parity = bytearray(m * len(data[0]))
        wanted = tier is not Tier.ZFEC or k + m < 8  # the fallback's CRC is slow, and the same for all
        found = Codec(k, m, tier=tier).encode_segment(b"".join(data), segment_parity, checks=wanted)
        assert segment_parity == b"".join(expected), (k, m)
        assert found == (checks if wanted else ((), b"")), (k, m)


@pytest.mark.parametrize(
    ("k", "m"),
    [(1, 255), (2, 254), (33, 1), (60, 12), (100, 156), (128, 128), (200, 55), (250, 6), (255, 1), (256, 0)],
)
def test_long_schemes(tier: Tier, k: int, m: int) -> None:
    data = tuple(random_bytes(i, 70) for i in range(k))
    parity = [bytearray(70) for _ in range(m)]
    checks = Codec(k, m, tier=tier).encode_into(data, parity)
    assert parity == (zfec_parity(k, m, data) if m else [])
    assert checks == checks_of([*data, *parity])


@pytest.mark.parametrize(("k", "m"), [(1, 1), (4, 2), (8, 3), (3, 7), (10, 4)])
def test_every_tail(tier: Tier, k: int, m: int) -> None:
    for size in SIZES:
        data = tuple(random_bytes(i, size) for i in range(k))
        # Guard bytes on both sides of every output must survive.
        outputs = [bytearray(b"\xa5" * (size + 128)) for _ in range(m)]
        checks = Codec(k, m, tier=tier).encode_into(
            data, [memoryview(output)[64 : 64 + size] for output in outputs]
        )
        expected = zfec_parity(k, m, data) if size else [b""] * m
        assert outputs == [b"\xa5" * 64 + parity + b"\xa5" * 64 for parity in expected], size
        assert checks == checks_of([*data, *expected]), size


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    k=st.integers(1, 40),
    m=st.integers(0, 20),
    size=st.integers(0, 700),
    offsets=st.tuples(st.integers(0, 130), st.integers(0, 130)),
    seed=st.integers(0, 2**32),
)
def test_any_scheme_size_and_alignment(
    tier: Tier, k: int, m: int, size: int, offsets: tuple[int, int], seed: int
) -> None:
    source = random_bytes(seed, k * size + offsets[0])
    segment = memoryview(source)[offsets[0] :]
    room = bytearray(m * size + offsets[1] + 64)
    parity = memoryview(room)[offsets[1] : offsets[1] + m * size]
    Codec(k, m, tier=tier).encode_segment(segment, parity, checks=False)
    data = tuple(bytes(segment[i * size : (i + 1) * size]) for i in range(k))
    assert bytes(parity) == (b"".join(zfec_parity(k, m, data)) if size else b"")
    assert not any(room[: offsets[1]])
    assert not any(room[offsets[1] + m * size :])


def test_cells_larger_than_a_block(tier: Tier) -> None:
    size = 100_003 if tier is not Tier.ZFEC else 5_003
    data = tuple(random_bytes(i, size) for i in range(4))
    parity = [bytearray(size) for _ in range(2)]
    checks = Codec(4, 2, tier=tier).encode_into(data, parity)
    assert parity == zfec_parity(4, 2, data)
    assert checks == checks_of([*data, *parity])


def test_threads_share_a_codec() -> None:
    shared = codec(4, 2)
    segments = [random_bytes(i, 4 * 50_000) for i in range(4)]
    parities = [bytearray(2 * 50_000) for _ in segments]

    def encode(index: int) -> None:
        for _ in range(20):
            shared.encode_segment(segments[index], parities[index])

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(len(segments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for segment, parity in zip(segments, parities, strict=True):
        data = tuple(segment[i * 50_000 : (i + 1) * 50_000] for i in range(4))
        assert parity == b"".join(zfec_parity(4, 2, data))


def test_properties_and_the_cached_factory() -> None:
    shared = codec(8, 3)
    assert (shared.k, shared.m, shared.n, shared.tier) == (8, 3, 11, active_tier())
    assert codec(8, 3) is shared
    assert codec(8, 4) is not shared
    assert repr(shared) == f"Codec(8, 3, tier={active_tier()})"


@pytest.mark.parametrize("wanted", [True, False])
def test_empty_cells(tier: Tier, wanted: bool) -> None:
    expected = checks_of([b""] * 6) if wanted else ((), b"")
    assert Codec(4, 2, tier=tier).encode_segment(b"", bytearray(), checks=wanted) == expected


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2048, 3071, 16_383, 16_385, 33_000, 262_160])
@pytest.mark.parametrize(("k", "m"), [(4, 2), (1, 0), (3, 4), (17, 3)])
def test_hashes_of_cells_that_are_trees(tier: Tier, k: int, m: int, size: int) -> None:
    """Taken in while the code is computed, block by block, of all cells together."""
    if tier is Tier.ZFEC:
        size = min(size, 3071)  # its CRC is slow
    data = tuple(random_bytes(i, size) for i in range(k))
    parity = [bytearray(size) for _ in range(m)]
    assert Codec(k, m, tier=tier).encode_into(data, parity)[1] == checks_of([*data, *parity])[1]
