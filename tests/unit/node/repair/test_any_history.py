"""After any history of writes, deletions, outages, rot and repairs in between: everything is whole, and nothing came
back."""

from __future__ import annotations

import os
import random

import pytest
from coffre.cluster.errors import CoffreError, NotFound
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import RepairOptions
from coffre.node.store import State

from tests.unit.node.repair.test_repairer import primaries

# Nobody writes while a node decides, so that it may decide at once.
AT_ONCE = RepairOptions(
    settling_seconds=-5.0, bytes_per_second=1 << 40, retention_seconds=-5.0, unfinished_seconds=-5.0
)
KEYS = [f"k{number}" for number in range(12)]
STEPS = 60
GONE = b""  # no object has no bytes here


async def step(
    cluster: InProcessCluster, rng: random.Random, possible: dict[str, set[bytes]], rotten: set[str]
) -> None:
    key, client = rng.choice(KEYS), cluster.client()
    kind = rng.choice(["put", "put", "put", "delete", "outage", "rot", "round", "walk"])
    down = cluster.network.down
    if kind == "outage":
        if down:
            down.clear()
        else:
            down |= set(rng.sample(sorted(cluster.stores), rng.choice([1, 1, 2, 3])))
    elif kind == "rot":
        if not down and key not in rotten:  # a put with a node down has k+1 shards, so one may rot
            rotten.add(key)
            await rot(cluster, rng.choice(sorted(cluster.stores)), key)
    elif kind in ("round", "walk"):
        number = rng.choice(sorted(set(cluster.stores) - down))
        repairer = cluster.repairer(number, AT_ONCE)
        await (repairer.round() if kind == "round" else repairer.walk())
    else:
        value = GONE if kind == "delete" else os.urandom(rng.choice([50, 700, 1_500_000]))
        try:
            if kind == "delete":
                await client.delete("b", key)
            else:
                await client.put("b", key, value)
            possible[key] = {value}
            rotten.discard(key)
        except CoffreError:
            possible[key] |= {value}
    await client.flush()


async def rot(cluster: InProcessCluster, number: int, key: str) -> None:
    store = cluster.stores[number]
    for version in await store.read(ObjectName("clinic", "b", key)):
        if version.state is not State.ABORTED and version.shard_index is not None and version.shard_bytes:
            store.flip_cell(ObjectName("clinic", "b", key), version.stamp)


async def heal(cluster: InProcessCluster) -> None:
    cluster.network.heal()
    repairers = [cluster.repairer(number, AT_ONCE) for number in cluster.stores]
    for _ in range(4):
        for repairer in repairers:
            repairer.scrub._options = RepairOptions(scrub_seconds=1e-9)
            await repairer.scrub.one_pass()
            repairer._queue.unpark()
            await repairer.round()
            await repairer.walk()


@pytest.mark.parametrize("seed", range(6))
async def test_everything_is_whole_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    cluster = in_process_cluster(4, 2, nodes=rng.choice([6, 7, 9]), versions_kept=1)
    possible: dict[str, set[bytes]] = {key: {GONE} for key in KEYS}
    rotten: set[str] = set()
    try:
        for _ in range(STEPS):
            await step(cluster, rng, possible, rotten)
        await heal(cluster)
        for key, values in possible.items():
            try:
                found = await cluster.client().get("b", key)
            except NotFound:
                found = GONE
            assert found in values, (seed, key)
            await check_shards(cluster, key, found)
    finally:
        await cluster.aclose()


async def check_shards(cluster: InProcessCluster, key: str, found: bytes) -> None:
    """Every primary has a shard of its own, and nobody else anything."""
    members = primaries(cluster, key)
    name = ObjectName("clinic", "b", key)
    indexes = set()
    for number, store in cluster.stores.items():
        versions = [v for v in await store.read(name, every=True) if v.state is not State.ABORTED]
        if number not in members or found == GONE:
            assert not [v for v in versions if not v.tombstone], (key, number)
            assert number in members or not versions
            continue
        (version,) = versions
        assert version.state is State.SETTLED
        assert version.shard_index is not None
        indexes.add(version.shard_index)
        chunks = [c async for c in store.read_cells(name, version.stamp, version.shard_index, 0, 0)]
        assert chunks
    assert found == GONE or indexes == set(range(len(members)))
