"""Both stores, given the same random batches, answer the same and hold the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.node.disk import LmdbStore
from coffre.node.disk.rows import decode_row
from coffre.node.memory import MemoryStore
from coffre.node.store import ShardStore, StoreOptions, is_buried

from tests.unit.node.store.twin_cases import answers, content, mutation

BATCHES = 60


async def counts(store: ShardStore) -> tuple[int, int, int]:
    status = await store.status()
    return status.objects, status.shards, status.repair_queue


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_batches_leave_the_same(tmp_path: Path, seed: int) -> None:
    """A deleted key's row is among the graves, any other among the objects, and none in both."""
    rng = random.Random(seed)
    options = StoreOptions(versions_kept=1 + seed % 2, reserve_bytes=0, map_bytes=1 << 20, volume_bytes=4096)
    memory = MemoryStore(ManualClock(), options)
    disk = await LmdbStore.open(tmp_path, options, ManualClock())
    for turn in range(BATCHES):
        batch = [mutation(rng) for _ in range(rng.choice([1, 2, 5, 30]))]
        assert answers(await disk.apply(batch)) == answers(await memory.apply(batch)), turn
        assert await content(disk) == await content(memory), turn
        assert await counts(disk) == await counts(memory), turn
        with disk._parts.index.reading() as txn:
            index = disk._parts.index
            rows, graves = (
                {bytes(key) for key, _ in txn.cursor(db=db)} for db in (index.objects, index.graves)
            )
            assert not rows & graves
            assert {bytes(key)[2:] for key, _ in txn.cursor(db=index.partitions)} == rows | graves
            for key in rows | graves:
                assert is_buried(decode_row(key, index.row(txn, key) or b"").entries) == (key in graves)
        if turn % 10 == 0:
            while await disk.reclaim():
                pass
            await disk.close()
            disk = await LmdbStore.open(tmp_path, options, ManualClock())
            assert await content(disk) == await content(memory), turn
    await disk.close()
    await memory.close()
