"""CRC32C: the vectors of RFC 3720 and a bitwise reference."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from coffre.codec import Codec, Tier, crc32c
from coffre.codec import _fallback as fallback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Crc = Callable[[bytes | memoryview, int], int]

RFC_3720_B4 = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000000000000000000000000000" + "14000000" + "00000400" + "00000014" + "00000018"
            "28000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


def bitwise(data: bytes | memoryview, value: int = 0) -> int:
    register = value ^ 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.fixture
def crc(tier: Tier) -> Crc:
    """The checksum as this tier computes it."""
    if tier is Tier.ZFEC:
        return fallback.crc32c
    from coffre.codec import _kernel

    return lambda data, value: _kernel.crc32c_of_tier(tier.value, data, value)


@pytest.mark.parametrize(("data", "expected"), RFC_3720_B4)
def test_known_vectors(crc: Crc, data: bytes, expected: int) -> None:
    assert crc(data, 0) == expected
    assert crc32c(data) == expected


def test_every_short_length(crc: Crc) -> None:
    data = random.Random(1).randbytes(1200)
    value = 0
    for length in range(len(data)):
        assert crc(memoryview(data)[:length], 0) == value, length
        value = bitwise(data[length : length + 1], value)


@pytest.mark.parametrize("length", [3071, 3072, 3073, 4096, 6145, 9999])
def test_long_lengths_from_odd_addresses(crc: Crc, length: int) -> None:
    data = random.Random(length).randbytes(length + 3)
    assert crc(memoryview(data)[3:], 0x12345678) == bitwise(data[3:], 0x12345678)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=3000), cut=st.integers(0, 3000), value=st.integers(0, 2**32 - 1))
def test_continues_from_a_value(crc: Crc, data: bytes, cut: int, value: int) -> None:
    assert crc(data[cut:], crc(data[:cut], value)) == bitwise(data, value)


def test_buffers_larger_than_the_lock_threshold() -> None:
    data = random.Random(2).randbytes(1_000_001)
    value = 0
    for start in range(0, len(data), 1_000):
        value = crc32c(data[start : start + 1_000], value)
    assert crc32c(data) == value
    assert crc32c(bytearray(data), value=0) == value


def test_the_codec_checks_every_cell_on_its_own(tier: Tier) -> None:
    segment = random.Random(3).randbytes(4 * 301)
    parity = bytearray(2 * 301)
    crcs, _ = Codec(4, 2, tier=tier).encode_segment(segment, parity)
    whole = segment + parity
    assert crcs == tuple(bitwise(whole[i * 301 : (i + 1) * 301]) for i in range(6))


def untyped(value: object) -> Any:
    """What a caller without a type checker may pass."""
    return value


@pytest.mark.parametrize("implementation", [crc32c, fallback.crc32c])
def test_wrong_arguments(implementation: Callable[..., int]) -> None:
    with pytest.raises(TypeError, match="data must be a buffer, not str"):
        implementation("text")
    with pytest.raises(ValueError, match="data is not a contiguous buffer"):
        implementation(memoryview(b"abcd")[::2])
    for value in (-1, 2**32, 2**70):
        with pytest.raises(ValueError, match="value must be between 0 and"):
            implementation(b"", value)
    with pytest.raises(TypeError):
        implementation(b"", untyped("1"))
    with pytest.raises(TypeError):
        implementation()
    with pytest.raises(TypeError):
        implementation(b"", 0, 0)
    with pytest.raises(TypeError):
        implementation(b"", start=0)
    assert implementation(b"123456789", value=0) == 0xE3069283
