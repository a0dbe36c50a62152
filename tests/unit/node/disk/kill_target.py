"""A process that writes to a store until it is killed; it prints a line for each acknowledged mutation, and
before each settle and mark.

Arguments: directory, seed. For each round number on its standard input it forks such a process, prints
"ready" and its id, and "killed" when it is dead. Each key is written by one task, in order of its stamps.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from coffre.cluster.clock import SystemClock
from coffre.node.disk import LmdbStore
from coffre.node.store import Abort, StoreOptions

from tests.unit.node.store.store_cases import accept, adopt, cells, mark, name, settle, stamp, written

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=32 << 10)


def cell_of(key: str, number: int) -> bytes:
    return f"{key} {number} ".encode() * 40


def say(kind: str, key: str, number: int) -> None:
    sys.stdout.write(f"{kind}\t{key}\t{number}\n")
    sys.stdout.flush()


async def work(store: LmdbStore, rng: random.Random, task: int, base: int) -> None:
    writer_id = task
    for step in range(1, 100_000):
        key, number = f"key {task} {rng.randrange(8)}", written(base + step, writer_id)
        kind = rng.choice(["put", "put", "put", "lock", "delete", "abort", "large"])
        if kind == "abort":
            (outcome,) = await store.apply([Abort(name(key), 7, stamp(number))])
            writer_id += 100  # what it gave up must not lie below one of its marks
        elif kind == "large":
            data_id = number.to_bytes(16, "big")
            writer = await store.stage("tenant", data_id, 1)
            await writer.write(cells(20))
            await writer.commit()
            (outcome,) = await store.apply([adopt(number, key, data_id, shard=cells(20))])
        else:
            mutation = accept(
                number, key, cell=cell_of(key, number), lock=kind == "lock", tombstone=kind == "delete"
            )
            (outcome,) = await store.apply([mutation])
        assert outcome.error is None, outcome
        say(kind, key, number)
        if kind != "abort" and rng.random() < 0.7:
            say("settle", key, number)
            await store.apply([settle(number, key)])
        elif kind != "abort" and rng.random() < 0.5:
            say("mark", key, number)
            await store.apply([mark(number)])


async def write_until_killed(path: Path, seed: int, turn: int) -> None:
    store = await LmdbStore.open(path, OPTIONS, SystemClock())
    sys.stdout.write(f"ready {os.getpid()}\n")
    sys.stdout.flush()

    async def reclaim() -> None:
        pace_seconds = 0.005
        while True:
            if not await store.reclaim():
                await asyncio.sleep(pace_seconds)

    rng = random.Random(f"{seed} {turn}")
    tasks = [work(store, random.Random(rng.random()), task, turn * 100_000) for task in range(6)]
    await asyncio.gather(reclaim(), *tasks)


def main() -> None:
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(write_until_killed(path, seed, int(line)))
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
