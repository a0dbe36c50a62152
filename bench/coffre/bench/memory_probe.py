"""A client in a process of its own whose memory is measured: one large object in, then out, in constant memory.

    python -m coffre.bench.memory_probe CLIENT_TOML SIZE_BYTES SEED

Generates the object while it is sent, and hashes it while it comes back and is dropped. Prints how many bytes came
back, and fails when they are not those that were sent.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path

import click
import uvloop
from coffre.client import connect
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import IntegrityError

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


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("size_bytes", type=click.IntRange(min=0))
@click.argument("seed", type=int)
@one_line_errors
def main(config: Path, size_bytes: int, seed: int) -> None:
    """The probe."""
    click.echo(json.dumps({"bytes": uvloop.run(probe(config, size_bytes, seed))}))


if __name__ == "__main__":
    main()
