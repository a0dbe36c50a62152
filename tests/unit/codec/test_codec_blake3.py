"""BLAKE3: the reference implementation, on every tier, for all sizes at which the tree changes its shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3
from coffre.codec import Tier, blake3_128
from coffre.codec import _fallback as fallback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Hash = Callable[[Any], bytes]

# The first 16 bytes that its authors publish for inputs of bytes 0, 1, ... 250, 0, 1, ...
# (github.com/BLAKE3-team/BLAKE3, test_vectors/test_vectors.json).
PUBLISHED = {
    0: "af1349b9f5f9a1a6a0404dea36dcc949",
    1: "2d3adedff11b61f14c886e35afa03673",
    1024: "42214739f095a406f3fc83deb889744a",
    1025: "d00278ae47eb27b34faecf67b4fe263f",
    2048: "e776b6028c7cd22a4d0ba182a8bf6220",
    31_744: "62b6960e1a44bcc1eb1a611a8d6235b6",
    102_400: "bc3e3d41a1146b069abffad3c0d44860",
}


@pytest.fixture
def hashed(tier: Tier) -> Hash:
    """The hash as this tier computes it."""
    if tier is Tier.ZFEC:
        return fallback.blake3_128
    from coffre.codec import _kernel

    return lambda data: _kernel.blake3_128_of_tier(tier.value, data)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_vectors(hashed: Hash, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    assert hashed(data).hex() == PUBLISHED[size]
    assert blake3_128(data).hex() == PUBLISHED[size]


def test_every_short_length(hashed: Hash) -> None:
    data = random.Random(1).randbytes(2200)
    for size in range(len(data)):
        assert hashed(memoryview(data)[:size]) == blake3(data[:size]).digest(16), size


def test_every_shape_of_tree(hashed: Hash) -> None:
    """From one chunk to more than what fills the widest registers twice, whole chunks and torn ones."""
    data = random.Random(2).randbytes(70 * 1024)
    for chunks in range(1, 70):
        for size in (chunks * 1024 - 1, chunks * 1024, chunks * 1024 + 1):
            assert hashed(memoryview(data)[:size]) == blake3(data[:size]).digest(16), size


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(size=st.integers(0, 300_000), offset=st.integers(0, 70), seed=st.integers(0, 2**32))
def test_any_size_and_alignment(hashed: Hash, size: int, offset: int, seed: int) -> None:
    data = random.Random(seed).randbytes(size + offset)
    assert hashed(memoryview(data)[offset:]) == blake3(data[offset:]).digest(16)


@pytest.mark.parametrize("implementation", [blake3_128, fallback.blake3_128])
def test_wrong_arguments(implementation: Hash) -> None:
    with pytest.raises(TypeError, match="data must be a buffer, not str"):
        implementation("text")
    with pytest.raises(ValueError, match="data is not a contiguous buffer"):
        implementation(memoryview(b"abcd")[::2])
