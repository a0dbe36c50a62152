"""A process that works on a store until it has done everything, or is killed; recorder.c looks on.

Arguments: directory, seed. It acknowledges each step when the store has said that it is durable: a line with how many
steps of each course are done, and the store's number of commits. Started again, it goes on where the store is.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.clock import ManualClock
from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c, hash_of_shard
from coffre.node.disk import LmdbStore
from coffre.node.memory import MemoryStore
from coffre.node.store import Abort, Accept, Mutation, Settle, ShardStore, State, StoredCell, StoreOptions

from tests.unit.node.store.twin_cases import content, mutation

__all__ = ["COURSES", "OPTIONS", "Course", "Done", "resume", "states"]

OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20, volume_bytes=4096)
_BATCHES = 24
_SHARDS = 8
_SHARD_PARTITION = 5  # `mutation` uses others
_Step = Callable[[ShardStore], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Course:
    """Steps that follow each other, and all that a store shows of them."""

    steps: Callable[[int], Sequence[_Step]]
    content: Callable[[ShardStore], Awaitable[list[object]]]


@dataclass(frozen=True, slots=True)
class Done:
    """What was acknowledged: steps of each course, and commits."""

    steps: tuple[int, ...]
    commits: int

    @classmethod
    def parse(cls, raw: bytes) -> Done:
        *steps, commits = map(int, raw.split())
        return cls(tuple(steps), commits)

    def __bytes__(self) -> bytes:
        return b"%b\n" % " ".join(map(str, (*self.steps, self.commits))).encode()


# ---------------------------------------------------------------- small shards


def _small_steps(seed: int) -> list[_Step]:
    def step(batch: Sequence[Mutation], collects: bool) -> _Step:
        async def run(store: ShardStore) -> None:
            await store.apply(batch)
            while collects and await store.reclaim():
                pass

        return run

    rng = random.Random(f"{seed} small")
    batches = [[mutation(rng) for _ in range(rng.choice([1, 2, 5, 30]))] for _ in range(_BATCHES)]
    return [step(batch, rng.random() < 0.2) for batch in batches]


# ---------------------------------------------------------------- large shards


def _large_steps(seed: int) -> list[_Step]:
    """Shards are staged, taken, established or given up again; older versions go, and their files with them."""
    rng = random.Random(f"{seed} large")
    steps: list[_Step] = []
    for number in range(1, _SHARDS + 1):
        name, stamp = (
            ObjectName("w", "scans", f"scan {rng.randrange(2)}"),
            bytes(8) + number.to_bytes(8, "big"),
        )
        data = [rng.randbytes(rng.choice([100, 30_000])) for _ in range(rng.choice([1, 3, 60]))]
        accept = Accept(
            name, _SHARD_PARTITION, stamp, False, stamp, b"manifest", b"m" * 16, (1, 2), 1, staged=True,
            shard_hash=hash_of_shard(map(blake3_128, data)),
        )  # fmt: skip
        after: Mutation = (Abort if rng.random() < 0.3 else Settle)(name, _SHARD_PARTITION, stamp)
        steps += [_stage(accept.data_id, data), _apply(accept), _apply(after)]
        if isinstance(after, Abort):
            steps.append(_drop(accept.data_id))
    return steps


def _stage(data_id: bytes, data: Sequence[bytes]) -> _Step:
    async def run(store: ShardStore) -> None:
        writer = await store.stage("w", data_id, 1)
        try:
            for segment, cell in enumerate(data):
                await writer.write([StoredCell(segment, crc32c(cell), cell)])
            await writer.commit()
        finally:
            await writer.discard()

    return run


def _apply(mutation: Mutation) -> _Step:
    async def run(store: ShardStore) -> None:
        (outcome,) = await store.apply([mutation])
        assert outcome.error is None, outcome.error

    return run


def _drop(data_id: bytes) -> _Step:
    async def run(store: ShardStore) -> None:
        await store.drop_staged("w", data_id, 1)

    return run


async def _large_content(store: ShardStore) -> list[object]:
    found: list[object] = []
    async for rows in store.partition_rows(_SHARD_PARTITION):
        for row in rows:
            for version in await store.read(row.name, every=True):
                found.append((row.name, version))
                if version.state != State.ABORTED and version.shard_index is not None:
                    chunks = store.read_cells(row.name, version.stamp, version.shard_index, 0, 0)
                    found += [(cell.segment, cell.crc, bytes(cell.data)) async for c in chunks for cell in c]
    return found


COURSES = (Course(_small_steps, content), Course(_large_steps, _large_content))


# ---------------------------------------------------------------- states


async def states(course: Course, seed: int) -> list[list[object]]:
    """What a store shows of a course after no step, after one, and so on: by the store's twin."""
    twin = MemoryStore(ManualClock(), OPTIONS)
    found = [await course.content(twin)]
    for step in course.steps(seed):
        await step(twin)
        found.append(await course.content(twin))
    return found


async def resume(
    course: Course, expected: Sequence[list[object]], store: ShardStore, acknowledged: int
) -> int:
    """How many steps of a course a store has: those acknowledged, or one more. Raises `AssertionError`."""
    shown = await course.content(store)
    assert shown in expected[acknowledged : acknowledged + 2], "the store lost, or shows, what it must not"
    return acknowledged if shown == expected[acknowledged] else acknowledged + 1


async def _work(directory: Path, seed: int, acks: int, last: Done) -> None:
    expected = [await states(course, seed) for course in COURSES]
    store = await LmdbStore.open(directory, OPTIONS, ManualClock())
    done = [
        await resume(course, known, store, count)
        for course, known, count in zip(COURSES, expected, last.steps, strict=True)
    ]

    async def acknowledge() -> None:
        os.write(acks, bytes(Done(tuple(done), (await store.identity()).commits)))

    async def follow(place: int, course: Course) -> None:
        for step in course.steps(seed)[done[place] :]:
            await step(store)
            done[place] += 1
            await acknowledge()

    await acknowledge()
    await asyncio.gather(*(follow(place, course) for place, course in enumerate(COURSES)))
    await store.close()


def main() -> None:
    directory, seed, acks = Path(sys.argv[1]), int(sys.argv[2]), Path(os.environ["COFFRE_POWER_ACKS"])
    lines = acks.read_bytes().splitlines() if acks.exists() else []
    last = Done.parse(lines[-1]) if lines else Done((0,) * len(COURSES), 0)
    descriptor = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(_work(directory, seed, descriptor, last))


if __name__ == "__main__":
    main()
