"""A client whose nodes answer nonsense: it returns no wrong byte, loses nothing, and works again at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

from coffre.client import AsyncClient
from coffre.cluster.errors import CoffreError, NotFound
from coffre.dev.in_process import in_process_cluster

from tests.fuzz.lies import lie

_SECONDS = 20.0  # nothing takes longer
_RANGE = (1_000_000, 1_100_000)


def _content(rng: random.Random) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one": b"1",
        "text": b"a record of some length, compressible; " * 60,
        "random": rng.randbytes(5_000),
        "large": rng.randbytes(700_000) + bytes(500_000),
    }


async def _refused(call: Awaitable[object]) -> object:
    """What a call returns, or the error that it is refused with."""
    try:
        async with asyncio.timeout(_SECONDS):
            return await call
    except CoffreError as error:
        return error


async def _collected(client: AsyncClient) -> list[str]:
    return [entry if isinstance(entry, str) else entry.key async for entry in client.list("b")]


def _check(seen: object, value: object, what: str) -> None:
    if isinstance(seen, CoffreError):
        assert not isinstance(seen, NotFound), f"{what} is said not to be there"
    else:
        assert seen == value, f"{what} came back wrong"


async def _size(client: AsyncClient, key: str) -> int:
    return (await client.head("b", key)).size_bytes


async def test_replies_that_are_almost_right(seed: int) -> None:
    rng = random.Random(seed)
    cluster = in_process_cluster(4, 2)
    try:
        client = cluster.client()
        content = _content(rng)
        for key, value in content.items():
            await client.put("b", key, value)
        await client.put("b", "gone", b"what is deleted stays away")
        await client.delete("b", "gone")
        await client.flush()
        liars = set(rng.sample(sorted(cluster.stores), rng.choice([1, 2])))
        lie(cluster, liars, rng)
        reader = cluster.client()
        for key in rng.sample(sorted(content), len(content)):
            value = content[key]
            _check(await _refused(reader.get("b", key)), value, key)
            _check(await _refused(_size(reader, key)), len(value), key)
        first, last = _RANGE
        piece = await _refused(reader.get("b", "large", start=first, length=last - first))
        _check(piece, content["large"][first:last], "a range")
        gone = await _refused(reader.get("b", "gone"))
        assert isinstance(gone, CoffreError), "what was deleted came back"
        listed = await _refused(_collected(reader))
        if not isinstance(listed, CoffreError):
            assert listed == sorted(content), "a list is wrong"
        await _refused(reader.versions("b", "text"))
        written = await _write(reader, rng, content)
        cluster.network.heal()
        for client in (reader, cluster.client()):
            await _check_truth(client, content, written)
        await reader.put("b", "new", b"and it writes again")
        assert await reader.get("b", "new") == b"and it writes again"
    finally:
        await cluster.aclose()


async def _write(
    client: AsyncClient, rng: random.Random, content: dict[str, bytes]
) -> dict[str, set[bytes | None]]:
    """Write while nodes lie; what each key may hold afterwards (None: nothing)."""
    written: dict[str, set[bytes | None]] = {}
    for key in ("text", "new"):
        value = rng.randbytes(2_000)
        outcome = await _refused(client.put("b", key, value))
        written[key] = {value, content.get(key)} if isinstance(outcome, CoffreError) else {value}
    outcome = await _refused(client.delete("b", "one"))
    written["one"] = {None, content["one"]} if isinstance(outcome, CoffreError) else {None}
    return written


async def _check_truth(
    client: AsyncClient, content: dict[str, bytes], written: dict[str, set[bytes | None]]
) -> None:
    """Everybody tells the truth again."""
    expected: dict[str, set[bytes | None]] = {key: {value} for key, value in content.items()}
    expected |= {"gone": {None}, **written}
    for key, values in expected.items():
        seen = await _refused(client.get("b", key))
        if isinstance(seen, NotFound):
            seen = None
        assert seen in values, f"{key} is lost"
