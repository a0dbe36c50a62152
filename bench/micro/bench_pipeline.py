"""From plaintext to cells: compress, encrypt and code one segment, beside AES-256-GCM of as many bytes."""

from __future__ import annotations

import random

import pytest
from coffre.client.sealing import Draft
from coffre.client.writing import CellCoder, SegmentCoder
from coffre.cluster.names import ObjectName
from coffre.proto import coffre_pb2 as pb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from micro_references import Beside, Reference

SMALL_OBJECTS = 32  # in a round; of large ones it has one
KEY = bytes(range(32))


def text(size_bytes: int) -> bytes:
    """Compresses about as health records do: words of a small vocabulary."""
    source = random.Random(1)
    words = [source.randbytes(source.randrange(3, 12)).hex().encode() for _ in range(2000)]
    return b" ".join(source.choices(words, k=size_bytes // 8))[:size_bytes]


def calls_of(size_bytes: int) -> int:
    return SMALL_OBJECTS if size_bytes < 1 << 20 else 1


def aes_gcm(size_bytes: int) -> Reference:
    cipher, plain, calls = AESGCM(KEY), bytes(size_bytes), calls_of(size_bytes)

    def encrypt() -> None:
        for number in range(calls):
            cipher.encrypt(number.to_bytes(12, "big"), plain, None)

    return Reference(f"aes_gcm_{size_bytes >> 10}k", encrypt)


@pytest.mark.parametrize("size_bytes", [4096, 1 << 20], ids=["4k", "1m"])
@pytest.mark.parametrize("kind", ["random", "text"])
@pytest.mark.parametrize(("k", "m"), [(4, 2), (8, 3)])
def bench_segment(beside: Beside, k: int, m: int, kind: str, size_bytes: int) -> None:
    plain = text(size_bytes) if kind == "text" else random.Random(1).randbytes(size_bytes)
    draft = Draft(ObjectName("tenant", "records", "patient/1"), KEY, pb.Manifest(data_id=bytes(16)))
    calls = calls_of(size_bytes)

    def code() -> None:
        coder = SegmentCoder(draft, k, m, 3)
        for segment in range(calls):
            coder.code(segment, plain)

    def code_large() -> None:
        coder = CellCoder(draft, k, m, 3)
        coder.add(0, coder.cut(plain))
        coder.finish()

    beside(aes_gcm(size_bytes), code if size_bytes < 1 << 20 else code_large)
