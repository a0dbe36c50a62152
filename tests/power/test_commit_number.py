"""What a node tells others of its disk is on its disk: here with one that hangs in the last write of a commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
MEMBER = """
import asyncio, json, os, sys
from pathlib import Path
from coffre.cluster.clock import SystemClock
from coffre.node.disk import LmdbStore
from coffre.node.store import StoreOptions

HANG = Path(os.environ["HANG"])

async def main():
    store = await LmdbStore.open(Path(sys.argv[1]), StoreOptions(), SystemClock())
    await store.keep_note("a", b"1", sync=True)
    durable = (await store.identity()).commits
    HANG.touch()
    commit = asyncio.ensure_future(store.keep_note("b", b"2", sync=True))
    while not Path(f"{HANG}.reached").exists():
        await asyncio.sleep(0.001)
    told, seen = (await store.identity()).commits, (await store.note("b")).decode()
    under_way = not commit.done()
    HANG.unlink()
    await commit
    after = (await store.identity()).commits
    await store.close()
    print(json.dumps({"durable": durable, "told": told, "seen": seen, "under_way": under_way, "after": after}))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hang") / "hang.so"
    source = Path(__file__).with_name("hang.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def run(library: Path, directory: Path, how: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", MEMBER, str(directory / "node"), how],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library), "HANG": str(directory / "hang")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_commit_is_told_to_others_and_shown_to_readers_once_it_is_on_the_disk(
    library: Path, tmp_path: Path
) -> None:
    """Else a reset at that moment leaves a disk older than what peers have seen, and the node is refused for ever."""
    found = run(library, tmp_path, "go on")
    assert found["under_way"]
    assert found["told"] == found["durable"]
    assert found["seen"] == ""  # nor does anybody read, and count, a vote that the disk may lose
    assert found["after"] == int(str(found["durable"])) + 1
