"""A store that loses power at any moment keeps what it acknowledged, whatever of the rest had reached the disk.

kill -9 leaves the page cache alone, so it proves nothing about syncs. Here a process is recorded as it works on a real
store, and killed now and then; a model of the disk (disk.py) then says what may be left of its files if the power fails
after any of its calls, and a store is opened on that.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.node.disk import LmdbStore

from tests.amounts import amount
from tests.patience import PATIENCE_SECONDS
from tests.power.disk import Disk, Entry, Kind, read_entries
from tests.power.workload import COURSES, OPTIONS, Done, resume, states

ROOT = Path(__file__).parents[2]
RECORDER = Path(__file__).with_name("recorder.c")
KILLS = 2
MOMENTS = amount(12, 30)  # of each recorded run
GOES_ON = 0.2  # the part of them after which the store does the rest of its work, too


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-o",
        str(library),
        str(RECORDER),
    ]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


def record(recorder: Path, home: Path, seed: int, kills: list[dict[str, str]]) -> list[list[Entry]]:
    """What each of several processes did to one directory, one after the other; all but the last are killed."""
    (home / "disk").mkdir()
    runs: list[list[Entry]] = []
    for number, kill in enumerate([*kills, None]):
        log = home / f"record-{number}"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(recorder),
            "COFFRE_POWER_ROOT": str(home / "disk"),
            "COFFRE_POWER_LOG": str(log),
            "COFFRE_POWER_ACKS": str(home / "acks"),
            **(kill or {}),
        }
        command = [sys.executable, "-m", "tests.power.workload", str(home / "disk" / "node"), str(seed)]
        ended = subprocess.run(command, env=environment, cwd=ROOT, timeout=PATIENCE_SECONDS, check=False)
        assert ended.returncode == (-signal.SIGKILL if kill else 0)
        runs.append(list(read_entries(log)))
    return runs


async def look(node: Path, seed: int, done: Done, expected: list[list[list[object]]], goes_on: bool) -> None:
    """Open what the loss of power left: everything acknowledged is there, and it works."""
    store = await LmdbStore.open(node, OPTIONS, ManualClock())
    assert store.found is not None or not done.commits, "the store is gone"
    assert store.found is None or store.found.commits >= done.commits, "it would be told that it forgot"
    for course, known, count in zip(COURSES, expected, done.steps, strict=True):
        place = await resume(course, known, store, count)
        for step, after in (
            zip(course.steps(seed)[place:], known[place + 1 :], strict=True) if goes_on else ()
        ):
            await step(store)
            assert await course.content(store) == after
    await store.close()


async def lose_power(
    home: Path, runs: list[list[Entry]], seed: int, moments: int, rng: random.Random
) -> None:
    """Let the power fail after some of the calls, each time with other luck."""
    expected = [await states(course, seed) for course in COURSES]
    chosen = set(rng.sample(range(sum(map(len, runs))), moments))
    disk, done, number = Disk(home / "disk"), Done((0,) * len(COURSES), 0), 0
    for run in runs:
        disk.restart()
        for entry in run:
            disk.apply(entry)
            if entry.kind is Kind.ACK:
                done = Done.parse(entry.body)
            if number in chosen:
                left = home / "left"
                disk.write_out(left, rng, rng.choice([0.0, 0.5, 1.0]))
                await look(left / "node", seed, done, expected, rng.random() < GOES_ON)
                shutil.rmtree(left)
            number += 1
    assert done.steps == tuple(len(known) - 1 for known in expected)


async def work_and_lose_power(recorder: Path, home: Path, seed: int) -> None:
    rng = random.Random(seed)
    kills = [{"COFFRE_POWER_KILL": str(rng.randrange(30, 200))} for _ in range(KILLS)]
    await lose_power(home, record(recorder, home, seed, kills), seed, MOMENTS, rng)


@pytest.mark.parametrize("seed", range(amount(1, 2)))
async def test_a_loss_of_power_loses_nothing_acknowledged(tmp_path: Path, recorder: Path, seed: int) -> None:
    await work_and_lose_power(recorder, tmp_path, seed)


@pytest.mark.parametrize("directory", ["/volumes", "/index", "/large/01"])
async def test_a_directory_that_a_killed_process_made_is_kept(
    tmp_path: Path, recorder: Path, directory: str
) -> None:
    """The next process finds it there, and nobody has synced its name."""
    runs = record(recorder, tmp_path, 0, [{"COFFRE_POWER_KILL_AT": directory}])
    await lose_power(tmp_path, runs, 0, MOMENTS // 3, random.Random(directory))


def test_what_a_killed_process_left_is_synced_before_anybody_is_told(recorder: Path, tmp_path: Path) -> None:
    """Its last commit may be in the page cache alone: one that is told, and then lost, costs the node its name."""
    first, second = record(recorder, tmp_path, 0, [{"COFFRE_POWER_KILL": "200"}])
    assert first
    files: dict[int, bytes] = {}
    synced = False
    for entry in second:
        if entry.kind is Kind.OPEN:
            files[entry.fd] = entry.body
        synced |= entry.kind is Kind.SYNC_END and files.get(entry.fd, b"").endswith(b"/index/data.mdb")
        if entry.kind in (Kind.ACK, Kind.WRITE):
            break  # before anything of its own
    assert synced


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_many_losses_of_power(tmp_path: Path, recorder: Path) -> None:
    for seed in range(100, 100 + int(os.environ.get("COFFRE_SOAK_ROUNDS", "2000")) // 20):
        home = tmp_path / str(seed)
        home.mkdir()
        await work_and_lose_power(recorder, home, seed)
        shutil.rmtree(home)
