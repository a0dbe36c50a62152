"""Golden vectors: what zfec wrote when the format was frozen must stay what is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypedDict

import pytest
from coffre.codec import Codec, Tier


class Vector(TypedDict):
    k: int
    m: int
    size: int
    parity: dict[str, str]
    crc32c_first: str
    crc32c_last: str


DOCUMENT = json.loads((Path(__file__).parent / "vectors" / "zfec.json").read_text(encoding="utf-8"))
VECTORS: list[Vector] = DOCUMENT["vectors"]


def test_the_file_is_the_frozen_one() -> None:
    assert DOCUMENT["format"] == 1
    assert len(VECTORS) == 18


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['k']}+{vector['m']}")
def test_vector(tier: Tier, vector: Vector) -> None:
    k, m, size = vector["k"], vector["m"], vector["size"]
    data = [hashlib.shake_128(f"coffre {k} {m} {i}".encode()).digest(size) for i in range(k)]
    parity = [bytearray(size) for _ in range(m)]
    crcs, _ = Codec(k, m, tier=tier).encode_into(data, parity)
    for index, expected in vector["parity"].items():
        assert parity[int(index) - k].hex() == expected, index
    assert f"{crcs[0]:08x}" == vector["crc32c_first"]
    assert f"{crcs[-1]:08x}" == vector["crc32c_last"]
