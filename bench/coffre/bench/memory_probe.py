"""A client in a process of its own whose memory is measured: one large object in, then out, in constant memory.

    python -m coffre.bench.memory_probe CLIENT_TOML SIZE_BYTES SEED

Generates the object while it is sent, and hashes it while it comes back and is dropped. Prints how many bytes came
back, and fails when they are not those that were sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path

import uvloop
from coffre.client import connect
from coffre.cluster.errors import CoffreError, IntegrityError

_BUCKET, _KEY = "bench", "memory"
_PIECE_BYTES = 1 << 20


async def probe(config: Path, size_bytes: int, seed: int) -> int:
    """Put and get; return how many bytes came back. Raises `CoffreError`."""
    source, sent, returned = random.Random(seed), sha256(), sha256()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size_bytes, _PIECE_BYTES):
            piece = source.randbytes(min(_PIECE_BYTES, size_bytes - start))
            sent.update(piece)
            yield piece

    count = 0
    async with await connect(config) as client:
        await client.put(_BUCKET, _KEY, pieces())
        await client.flush()
        async with aclosing(client.get_stream(_BUCKET, _KEY)) as stream:
            async for piece in stream:
                returned.update(piece)
                count += len(piece)
    if returned.digest() != sent.digest():
        raise IntegrityError("other bytes came back than were sent")
    return count


def main(arguments: list[str]) -> int:
    match arguments:
        case [config, size, seed] if size.isdigit() and seed.isdigit():
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                count = runner.run(probe(Path(config), int(size), int(seed)))
            sys.stdout.write(json.dumps({"bytes": count}) + "\n")
            return 0
        case _:
            sys.stderr.write("usage: python -m coffre.bench.memory_probe CLIENT_TOML SIZE_BYTES SEED\n")
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CoffreError as error:
        sys.exit(f"error: {error}")
