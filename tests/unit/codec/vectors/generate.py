"""Writes zfec.json beside itself, from stock zfec and a bitwise CRC32C; nothing of coffre is involved.

Run `python tests/unit/codec/vectors/generate.py` only when a new format version is made: the file is frozen.
Shard i of the data is SHAKE-128 of "coffre k m i", `size` bytes long.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import zfec

SCHEMES = (
    (1, 0), (1, 1), (1, 3), (2, 1), (3, 2), (4, 2), (5, 5), (6, 3), (8, 3), (10, 4), (16, 4), (17, 9),
    (32, 32), (64, 3), (100, 5), (250, 6), (255, 1), (3, 253),
)  # fmt: skip
PARITY_SHOWN_MAX = 8
SIZE = 21


def crc32c(data: bytes) -> int:
    """CRC32C bit by bit, as RFC 3720 defines it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def data_shards(k: int, m: int, size: int) -> tuple[bytes, ...]:
    return tuple(hashlib.shake_128(f"coffre {k} {m} {i}".encode()).digest(size) for i in range(k))


def vector(k: int, m: int) -> dict[str, object]:
    data = data_shards(k, m, SIZE)
    parity = zfec.Encoder(k, k + m).encode(data, tuple(range(k, k + m)))
    # Long schemes show their first and last parity shards only, to keep the file readable.
    shown = sorted({*range(min(m, PARITY_SHOWN_MAX // 2)), *range(max(0, m - PARITY_SHOWN_MAX // 2), m)})
    return {
        "k": k,
        "m": m,
        "size": SIZE,
        "parity": {str(k + i): parity[i].hex() for i in shown},
        "crc32c_first": f"{crc32c(data[0]):08x}",
        "crc32c_last": f"{crc32c([*data, *parity][-1]):08x}",
    }


def main() -> None:
    document = {"format": 1, "vectors": [vector(k, m) for k, m in SCHEMES]}
    path = Path(__file__).with_name("zfec.json")
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
