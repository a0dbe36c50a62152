"""From plaintext to cells: compress, encrypt and code one segment, beside AES-256-GCM of as many bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product

from coffre.bench.micro import Micro, Reference
from coffre.client.sealing import Draft
from coffre.client.writing import CellCoder, SegmentCoder
from coffre.cluster.names import ObjectName
from coffre.proto import coffre_pb2 as pb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["benchmarks"]

SMALL_OBJECTS = 32  # in a round; of large ones it has one
KEY = bytes(range(32))


def text(size_bytes: int) -> bytes:
    """Compresses about as health records do: words of a small vocabulary."""
    source = random.Random(1)
    words = [source.randbytes(source.randrange(3, 12)).hex().encode() for _ in range(2000)]
    return b" ".join(source.choices(words, k=size_bytes // 8))[:size_bytes]


def aes_gcm(size_bytes: int, calls: int) -> Reference:
    cipher, plain = AESGCM(KEY), bytes(size_bytes)

    def encrypt() -> None:
        for number in range(calls):
            cipher.encrypt(number.to_bytes(12, "big"), plain, None)

    return Reference(f"aes_gcm_{size_bytes >> 10}k", encrypt)


def coding(k: int, m: int, plain: bytes, calls: int) -> Callable[[], object]:
    draft = Draft(ObjectName("tenant", "records", "patient/1"), KEY, pb.Manifest(data_id=bytes(16)))

    def code() -> None:
        coder = SegmentCoder(draft, k, m, 3)
        for segment in range(calls):
            coder.code(segment, plain)

    def code_large() -> None:
        coder = CellCoder(draft, k, m, 3)
        coder.add(0, coder.cut(plain))
        coder.finish()

    return code if calls > 1 else code_large


def benchmarks() -> Iterator[Micro]:
    """Small objects and segments of large ones, that compress and that do not."""
    kinds = {"random": random.Random(1).randbytes, "text": text}
    sizes = {"4k": (4096, SMALL_OBJECTS), "1m": (1 << 20, 1)}
    for (k, m), kind, size in product(((4, 2), (8, 3)), kinds, sizes):
        size_bytes, calls = sizes[size]
        code = coding(k, m, kinds[kind](size_bytes), calls)
        yield Micro(f"segment[{k}-{m}-{kind}-{size}]", aes_gcm(size_bytes, calls), code)
