"""Writes the golden vectors again, with fixed entropy. Run only for a new format: the files are frozen.

python tests/unit/client/vectors/generate.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from coffre.client.keys import KeyRing
from coffre.client.sealing import CellCipher, Sealer, SegmentCipher
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

HERE = Path(__file__).parent
PASSPHRASE = "coffre vectors"
NAME = ("clinic", "records", "patient/é.json")
STAMP = (0x018BCFE568000007, 0x1122334455667788)


def counting_entropy() -> Callable[[int], bytes]:
    """Bytes 0, 1, 2, ..., so that everything is the same each time."""
    position = 0

    def entropy(size: int) -> bytes:
        nonlocal position
        position += size
        return bytes(i % 251 for i in range(position - size, position))

    return entropy


RECORD = (
    b'{"resourceType":"Observation","id":"7","status":"final","subject":{"reference":"Patient/17"},'
    b'"code":{"coding":[{"system":"http://loinc.org","code":"29463-7","display":"Body weight"}]},'
    b'"valueQuantity":{"value":65.6,"unit":"kg","system":"http://unitsofmeasure.org","code":"kg"}}'
)
"""Small JSON: goes with the dictionary."""


def plain(size_bytes: int) -> bytes:
    """A text that compresses."""
    return (b"Coffre keeps what it was given. " * (size_bytes // 32 + 1))[:size_bytes]


async def manifest_vector(ring: KeyRing) -> dict[str, object]:
    sealer = Sealer(ring, counting_entropy())
    draft = await sealer.draft(
        ObjectName(*NAME), pb.KIND_OBJECT, content_type="application/json", metadata={"ward": "3"}
    )
    draft.manifest.size_bytes, draft.manifest.segment_bytes = 1000, 1 << 20
    draft.manifest.k, draft.manifest.m = 4, 2
    draft.manifest.shard_hashes = bytes(range(96))
    sealed = draft.seal(Stamp(*STAMP), (1, 2, 3, 4, 5, 6))
    return {
        "name": NAME,
        "data_key": draft.data_key.hex(),
        "data_id": draft.manifest.data_id.hex(),
        "wrapped_key": draft.manifest.wrapped_key.hex(),
        "sealed_metadata": draft.manifest.sealed_metadata.hex(),
        "manifest": sealed.manifest.hex(),
        "mac": sealed.mac.hex(),
    }


def segment_vectors() -> list[dict[str, object]]:
    data_key, data_id = bytes(range(32)), bytes(range(16))
    vectors: list[dict[str, object]] = []
    for k, size_bytes, segment in ((4, 0, 0), (4, 1, 0), (8, 63, 5), (2, 100, 1 << 20), (10, 1000, 3)):
        cipher = SegmentCipher(data_key, data_id, k, compress_level=None)
        sealed = cipher.seal(segment, plain(size_bytes))
        vectors.append({"k": k, "size_bytes": size_bytes, "segment": segment, "sealed": sealed.hex()})
    shrunk = SegmentCipher(data_key, data_id, 4, compress_level=3).seal(0, plain(5000))
    vectors.append({"k": 4, "size_bytes": 5000, "segment": 0, "sealed": shrunk.hex(), "compressed": True})
    record = SegmentCipher(data_key, data_id, 4, compress_level=3).seal(0, RECORD)
    vectors.append(
        {"k": 4, "size_bytes": len(RECORD), "segment": 0, "sealed": record.hex(), "plain": RECORD.decode()}
    )
    return vectors


def cell_vectors() -> list[dict[str, object]]:
    data_key, data_id = bytes(range(32)), bytes(range(16))
    vectors: list[dict[str, object]] = []
    for k, size_bytes, segment, level in (
        (4, 1, 0, None), (4, 100, 0, None), (8, 63, 5, None), (2, 101, (1 << 20) - 1, None), (4, 5000, 7, 3)
    ):  # fmt: skip
        cipher = CellCipher(data_key, data_id, k, compress_level=level)
        parts = cipher.cut(plain(size_bytes))
        cells = [bytearray(parts.cell_bytes) for _ in range(k)]
        cipher.seal_into(segment, parts, [memoryview(cell) for cell in cells])
        vectors.append(
            {
                "k": k,
                "size_bytes": size_bytes,
                "segment": segment,
                "way": parts.way.name,
                "cells": [cell.hex() for cell in cells],
            }
        )
    return vectors


async def keyring_vector(ring: KeyRing) -> dict[str, object]:
    context = b"a context"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ring"
        ring.save(path, PASSPHRASE.encode(), entropy=counting_entropy())
        content = json.loads(path.read_text())
    wrapped = await ring.wrap(bytes(range(32)), context)
    return {
        "passphrase": PASSPHRASE,
        "file": content,
        "key_ids": ring.key_ids,
        "current": ring.current,
        "context": context.hex(),
        "data_key": bytes(range(32)).hex(),
        "wrapped": wrapped.wrapped.hex(),
    }


async def main() -> None:
    entropy = counting_entropy()
    ring = KeyRing.generate(entropy).rotated(entropy)
    for name, vector in (
        ("keyring", await keyring_vector(ring)),
        ("manifest", await manifest_vector(ring)),
        ("segments", {"data_key": bytes(range(32)).hex(), "segments": segment_vectors()}),
        ("cells", {"data_key": bytes(range(32)).hex(), "segments": cell_vectors()}),
    ):
        (HERE / f"{name}.json").write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
