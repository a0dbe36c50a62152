"""Seals, wraps and segments: what a node or a thread might get wrong is never believed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from coffre.client._sealing import SegmentCipher

MIB = 1 << 20


def test_threads_may_share_a_cipher() -> None:
    """Segments of one object are sealed in several threads at once; one compressor for all corrupts them."""
    cipher = SegmentCipher(bytes(32), bytes(16), 4)
    rng = random.Random(7)
    plains = [b"%d" % rng.randrange(1000) * (MIB // 3) for _ in range(200)]
    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(lambda item: cipher.seal(*item), enumerate(plains)))
    for segment, plain in enumerate(plains):
        assert cipher.open(segment, sealed[segment], len(plain)) == plain
