"""A store that is killed at any moment keeps what it acknowledged, and shows nothing half-written."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import ConfigurationError
from coffre.node.disk import LmdbStore
from coffre.node.store import State

from tests.patience import PATIENCE_SECONDS
from tests.unit.node.disk.kill_target import OPTIONS, cell_of
from tests.unit.node.store.store_cases import cells, name, stamp

ROOT = Path(__file__).parents[4]
ROUNDS = 30
SEED = 20261124


class Target:
    """The forking process of kill_target.py."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.unit.node.disk.kill_target", str(path), str(SEED)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def run_and_kill(self, turn: int, delay: float) -> list[tuple[str, str, int]]:
        """What a process acknowledged before it was killed `delay` seconds after it was ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{turn}\n")
        self.process.stdin.flush()
        word, child = self.process.stdout.readline().split()
        assert word == "ready"
        timer = threading.Timer(delay, os.kill, (int(child), signal.SIGKILL))
        timer.start()
        found = []
        while (line := self.process.stdout.readline()) != "killed\n":
            kind, key, number = line.split("\t")
            found.append((kind, key, int(number)))
        timer.join()
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE_SECONDS)
        self.process.stdout.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path / "node")
    yield target
    target.close()


class Established:
    """What may show as settled: what a process was about to settle, or to mark, when it was killed."""

    def __init__(self) -> None:
        self._settled: set[tuple[str, int]] = set()
        self._marks: dict[int, int] = {}
        self.by_mark = 0

    def note(self, kind: str, key: str, number: int) -> None:
        if kind == "settle":
            self._settled.add((key, number))
        else:
            writer = number % (1 << 64)
            self._marks[writer] = max(self._marks.get(writer, 0), number)

    def check(self, key: str, number: int) -> None:
        if (key, number) not in self._settled:
            assert number <= self._marks.get(number % (1 << 64), 0), f"nobody settled {key!r} {number}"
            self.by_mark += 1


async def check(path: Path, acknowledged: dict[str, dict[int, str]], established: Established) -> None:
    store = await LmdbStore.open(path, OPTIONS, SystemClock())
    status = await store.status()
    assert status.damaged == 0
    rows = {row.name.key: row.versions async for rows in store.partition_rows(7) for row in rows}
    listed = {e.key for e in (await store.list("tenant", "bucket", "")).entries}
    shards = 0
    for key, versions in rows.items():
        held = {int.from_bytes(v.stamp, "big"): v for v in versions}
        newest_settled = max((n for n, v in held.items() if v.state is State.SETTLED), default=0)
        for number, kind in acknowledged.get(key, {}).items():
            if number >= newest_settled:
                assert number in held, f"{kind} of {key!r} {number} is lost (seed {SEED})"
                assert (held[number].state is State.ABORTED) == (kind == "abort")
                assert (held[number].state is State.ACCEPTED) <= (kind != "lock")
        newest = next((v for v in versions if v.state is not State.ABORTED), None)
        deleted = newest is None or (newest.tombstone and newest.state is State.SETTLED)
        assert (key in listed) != deleted
        for number, version in held.items():
            if version.state is State.SETTLED:
                established.check(key, number)
            if version.state is State.ABORTED or version.tombstone:
                continue
            shards += 1
            chunks = [c async for chunk in store.read_cells(name(key), stamp(number), 1, 0, 0) for c in chunk]
            (held_whole,) = await store.read(name(key), stamp=version.stamp)
            assert not held_whole.damaged
            if held_whole.manifest == b"manifest":
                assert chunks == cells(20)
            else:
                assert [c.data for c in chunks] == [cell_of(key, number)]
    assert set(acknowledged) <= set(rows)
    status = await store.status()
    assert (status.objects, status.shards, status.damaged) == (len(rows), shards, 0)
    digest = await store.partition_digest(7)
    assert digest.versions == sum(v.state is not State.ABORTED for vs in rows.values() for v in vs)
    await store.close()


async def test_kills_at_random_moments(tmp_path: Path, target: Target) -> None:
    rng = random.Random(SEED)
    acknowledged: dict[str, dict[int, str]] = {}
    established = Established()
    total = 0
    for turn in range(ROUNDS):
        for kind, key, number in target.run_and_kill(turn, rng.uniform(0.005, 0.15)):
            if kind in ("settle", "mark"):
                established.note(kind, key, number)
                continue
            acknowledged.setdefault(key, {})[number] = kind
            total += 1
        await check(tmp_path / "node", acknowledged, established)
    assert established.by_mark > ROUNDS, "no version was settled by a mark"
    assert total > ROUNDS * 5
    numbers = [int(path.stem) for path in (tmp_path / "node" / "volumes").iterdir()]
    assert max(numbers) > 2 * len(numbers), "no kill met a reclaim that had emptied a volume"


async def test_a_second_process_is_told_to_go(tmp_path: Path) -> None:
    store = await LmdbStore.open(tmp_path / "node", OPTIONS, SystemClock())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.unit.node.disk.kill_target",
        tmp_path / "node",
        "1",
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    _, errors = await asyncio.wait_for(process.communicate(b"1\n"), 30)
    assert b"ConfigurationError" in errors
    assert b"in use by another process" in errors
    with pytest.raises(ConfigurationError, match="in use"):
        await LmdbStore.open(tmp_path / "node", OPTIONS, SystemClock())
    await store.close()
    again = await LmdbStore.open(tmp_path / "node", OPTIONS, SystemClock())
    await again.close()
