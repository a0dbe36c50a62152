"""Repair among nodes that answer nonsense: it goes on, believes no two of them anything that would cost an object, and
makes everything whole when they tell the truth again."""

from __future__ import annotations

import asyncio
import random

from coffre.cluster.errors import CoffreError, NotFound
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import Repairer, RepairOptions

from tests.fuzz.lies import lie

_SECONDS = 30.0
_AT_ONCE = RepairOptions(
    settling_seconds=-5.0, bytes_per_second=1 << 40, retention_seconds=-5.0, unfinished_seconds=-5.0
)
_NODES = 8


async def _write(cluster: InProcessCluster, rng: random.Random) -> dict[str, bytes | None]:
    """Write, overwrite and delete, each time with one or two nodes down; what each key holds then (None: nothing)."""
    client = cluster.client()
    content: dict[str, bytes | None] = {}
    for number in range(12):
        key, size_bytes = f"k{number}", rng.choice([0, 1, 3_000, 3_000, 1_200_000])
        cluster.network.down = set(rng.sample(sorted(cluster.stores), rng.choice([0, 1, 1])))
        for _ in range(rng.choice([1, 1, 2])):
            content[key] = value = rng.randbytes(size_bytes)
            await client.put("b", key, value)
        if rng.random() < 0.2:
            await client.delete("b", key)
            content[key] = None
    cluster.network.down = set()
    await client.flush()
    return content


async def _rounds(repairers: list[Repairer], rng: random.Random, count: int) -> None:
    for _ in range(count):
        for repairer in rng.sample(repairers, len(repairers)):
            async with asyncio.timeout(_SECONDS):
                await repairer.round()
                await repairer.walk()


async def test_peers_that_are_almost_right(seed: int) -> None:
    rng = random.Random(seed)
    cluster = in_process_cluster(4, 2, nodes=_NODES)
    try:
        content = await _write(cluster, rng)
        repairers = [cluster.repairer(number, _AT_ONCE) for number in sorted(cluster.stores)]
        lie(cluster, set(rng.sample(sorted(cluster.stores), rng.choice([1, 2]))), rng)
        await _rounds(repairers, rng, 2)
        cluster.network.heal()
        await _rounds(repairers, rng, 3)
        cluster.network.down = set(rng.sample(sorted(cluster.stores), 2))
        client = cluster.client()
        for key, value in content.items():
            seen: bytes | CoffreError | None
            try:
                seen = await client.get("b", key)
            except NotFound:
                seen = None
            except CoffreError as error:
                seen = error
            assert seen == value, f"{key} is lost"
    finally:
        await cluster.aclose()
