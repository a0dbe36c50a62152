"""Both stores, given the same random batches, answer the same and hold the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.names import ObjectName
from coffre.codec import crc32c
from coffre.node.lmdb_store import LmdbStore
from coffre.node.memory_store import MemoryStore
from coffre.node.store import (
    Abort,
    Accept,
    Collect,
    Condemn,
    Drop,
    DropRepair,
    Forget,
    Lock,
    Mark,
    Mutation,
    Outcome,
    QueueRepair,
    Refuse,
    Restore,
    Settle,
    ShardStore,
    StoredVersion,
    StoreOptions,
)

KEYS = ["a", "c/d", "x" * 401]
BATCHES = 60


def name_of(rng: random.Random) -> tuple[ObjectName, int]:
    key = rng.randrange(len(KEYS))
    return ObjectName(rng.choice(["t", "u"]), "bucket", KEYS[key]), key


def stamp_of(rng: random.Random) -> bytes:
    return rng.randrange(1, 9).to_bytes(8, "big") + rng.randrange(2).to_bytes(8, "big")


def mutation(rng: random.Random) -> Mutation:
    (name, partition), stamp = name_of(rng), stamp_of(rng)
    kind = rng.choice(
        ["accept"] * 6
        + ["settle"] * 3
        + ["abort"] * 2
        + ["mark", "queue", "drop", "restore", "restore", "forget", "own", "own"]
    )
    if kind == "settle":
        return Settle(name, partition, stamp, rng.choice([(), (4, 5)]))
    if kind == "abort":
        return Abort(name, partition, stamp)
    if kind == "mark":
        return Mark(name.tenant, stamp)
    if kind == "queue":
        return QueueRepair(name, partition, stamp, rng.choice([None, 0, 1]))
    if kind == "drop":
        return DropRepair(name, partition, stamp, rng.choice([None, 0, 1]))
    if kind == "own":
        own: list[type[Refuse | Lock | Drop | Condemn | Collect]] = [Refuse, Lock, Drop, Condemn, Collect]
        return rng.choice(own)(name, partition, stamp)
    if kind == "forget":
        return Forget(name, partition, tuple(stamp_of(rng) for _ in range(8)))
    tombstone = rng.random() < 0.15
    shard_index = None if tombstone else rng.choice([None, 0, 1])
    cell = b"" if shard_index is None else rng.randbytes(rng.randrange(90))
    manifest = b"manifest of " + stamp + bytes((tombstone,))
    lock = rng.random() < 0.3
    base = rng.choice([None, None, b"", (stamp[7] // 2).to_bytes(8, "big") + bytes(8)])
    accept = Accept(
        name, partition, stamp, tombstone, stamp, manifest, b"m" * 16, (1, 2, 3), shard_index, cell,
        crc32c(cell), lock=lock, base=base,
    )  # fmt: skip
    return Restore(accept, rng.random() < 0.5) if kind == "restore" else accept


def answers(outcomes: Sequence[Outcome]) -> list[object]:
    return [(o.state, type(o.error), o.newest_stamp, o.has_shard, o.replaces) for o in outcomes]


async def content(store: ShardStore) -> list[object]:
    """All that a store shows, with nothing of how it keeps it."""
    found: list[object] = []
    versions: dict[ObjectName, tuple[StoredVersion, ...]] = {}
    for partition in range(3):
        found.append(await store.partition_digest(partition))
        versions |= {row.name: row.versions async for rows in store.partition_rows(partition) for row in rows}
    for tenant in ("t", "u"):
        found.append([entry.key for entry in (await store.list(tenant, "bucket", "")).entries])
    for name in sorted(versions, key=ObjectName.context):
        every = await store.read(name, every=True, want_cell=True)
        assert [v.stamp for v in every] == [v.stamp for v in versions[name]]
        found += [name, every, await store.read(name)]
    found.append(sorted([repr(repair) async for repair in store.repair_queue()]))
    status = await store.status()
    found.append((status.objects, status.shards, status.repair_queue))
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_batches_leave_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    options = StoreOptions(versions_kept=1 + seed % 2, reserve_bytes=0, map_bytes=1 << 20, volume_bytes=4096)
    memory = MemoryStore(ManualClock(), options)
    disk = await LmdbStore.open(tmp_path, options, ManualClock())
    for turn in range(BATCHES):
        batch = [mutation(rng) for _ in range(rng.choice([1, 2, 5, 30]))]
        assert answers(await disk.apply(batch)) == answers(await memory.apply(batch)), turn
        assert await content(disk) == await content(memory), turn
        with disk._parts.index.reading() as txn:
            index = disk._parts.index
            assert txn.stat(index.partitions)["entries"] == txn.stat(index.objects)["entries"]
        if turn % 10 == 0:
            while await disk.reclaim():
                pass
            await disk.close()
            disk = await LmdbStore.open(tmp_path, options, ManualClock())
            assert await content(disk) == await content(memory), turn
    await disk.close()
    await memory.close()
