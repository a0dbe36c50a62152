"""docs/client.md, "Processes": the application and the tasks that it shows, served by the real gunicorn and Celery."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from coffre.client import connect_sync
from coffre.dev.local_cluster import LocalCluster

from tests.integration.blocks import ROOT, blocks_of
from tests.patience import PATIENCE_SECONDS

PAGE = ROOT / "docs" / "client.md"
PROCESSES = [
    block for block in blocks_of(PAGE) if block.language == "python" and block.chapter.endswith("Processes")
]
NAMED = re.compile(r"`((?:gunicorn|celery) [^`]*shop:[^`]*)`")
# Who has answered, which the page's application does not say.
SIGNED = """
import os

_answer = app


def app(environ, start_response):
    return _answer(environ, lambda status, headers: start_response(status, [*headers, ("Worker", str(os.getpid()))]))
"""
# Where one side writes is where the other one reads.
ASK = """
import shop

shop.tasks.conf.broker_transport_options = {"data_folder_in": "data_out", "data_folder_out": "data_in"}
asked = [shop.size_of.delay(key) for key in ("one", "two", "three") * 4]
print([each.get(timeout=100, interval=0.05) for each in asked])
"""


def command_of(program: str) -> list[str]:
    """As the page says it."""
    (found,) = [text for text in NAMED.findall(PAGE.read_text("utf-8")) if text.startswith(f"{program} ")]
    name, *arguments = shlex.split(found)
    return [str(Path(sys.executable).with_name(name)), *arguments]


@pytest.fixture
def shop(running_cluster: LocalCluster, tmp_path: Path) -> Path:
    """A folder with shop.py, and three records to serve."""
    text = "\n\n".join(block.text for block in PROCESSES if "multiprocessing" not in block.text)
    (tmp_path / "shop.py").write_text(text)
    for name in ("data_in", "data_out", "results"):  # of Celery, whose broker here is a folder
        (tmp_path / name).mkdir()
    with connect_sync(running_cluster.client_config()) as client:
        for key in ("one", "two", "three"):
            client.put("records", key, key.encode())
    return tmp_path


@contextmanager
def served(shop: Path, cluster: LocalCluster, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that logs into server.log, and ends well when it is told to."""
    with (shop / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=shop,
            env=environment(shop, cluster),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert status == 0, said(shop)
    assert "Traceback" not in said(shop)


def environment(shop: Path, cluster: LocalCluster) -> dict[str, str]:
    return {
        **os.environ,
        "COFFRE_CONFIG": str(cluster.client_config()),
        "CELERY_BROKER_URL": "filesystem://",
        "CELERY_RESULT_BACKEND": f"file://{shop / 'results'}",
    }


def said(shop: Path) -> str:
    return (shop / "server.log").read_text()


def until_said(shop: Path, process: subprocess.Popen[bytes], words: str) -> re.Match[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := re.search(words, said(shop))) is None:
        assert process.poll() is None, said(shop)
        assert time.monotonic() < deadline, said(shop)
        pace_seconds = 0.05
        time.sleep(pace_seconds)
    return found


def ask(port: int, key: str) -> int:
    """The number of the process that answers with the record."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", f"/{key}")
        reply = connection.getresponse()
        assert reply.read() == key.encode()
        return int(reply.headers["Worker"])
    finally:
        connection.close()


def until_answered(port: int, workers: int, but: frozenset[int] = frozenset()) -> frozenset[int]:
    """Ask until so many have answered."""
    seen: set[int] = set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(seen - but) < workers:
        assert time.monotonic() < deadline, seen
        seen |= {ask(port, key) for key in ("one", "two", "three")}
    return frozenset(seen)


def test_gunicorn(shop: Path, running_cluster: LocalCluster) -> None:
    """The master imports the application and forks; each worker connects, so does one that takes another's place."""
    with (shop / "shop.py").open("a") as module:
        module.write(SIGNED)
    command = [*command_of("gunicorn"), "--bind", "127.0.0.1:0", "--no-control-socket"]
    with served(shop, running_cluster, *command) as master:
        port = int(until_said(shop, master, r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        workers = until_answered(port, 2)
        assert master.pid not in workers
        os.kill(min(workers), signal.SIGKILL)
        until_answered(port, 1, but=workers)


@pytest.mark.long
def test_celery(shop: Path, running_cluster: LocalCluster) -> None:
    """Each child of the pool connects when it begins, and takes task after task."""
    with served(shop, running_cluster, *command_of("celery"), "--loglevel", "info"):
        asked = subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=shop,
            env=environment(shop, running_cluster),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert asked.stdout == f"{[3, 3, 5] * 4}\n", asked.stderr + said(shop)
    assert len(re.findall(r"shop\.size_of\[.*succeeded", said(shop))) == 12
