"""Clients and processes: what is forked refuses an inherited client at once, the ways of docs/client.md work, and an
interpreter ends whatever its clients are at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from coffre.dev.local_cluster import LocalCluster

from tests.patience import PATIENCE_SECONDS

PROGRAMS = Path(__file__).parent / "forking.py"


def found(cluster: LocalCluster, name: str) -> list[str]:
    """What a program of forking.py prints. It ends well, and says nothing else."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS), name, str(cluster.client_config())],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def test_what_is_inherited_is_refused_and_harms_nobody(running_cluster: LocalCluster) -> None:
    lines = found(running_cluster, "inherited")
    for name in ("get", "put", "list", "stream", "next", "thread"):
        line = lines.pop(0)
        assert line.startswith(f"{name} 0 InvalidArgument this client belongs to process "), line
        assert "connect after it, in each process" in line
    for name in ("exit", "close", "drop"):
        assert f"{name} 0 None" in lines
    assert "parent True 2097152" in lines
    own = [line for line in lines if line.startswith(("own", "after the close"))]
    assert len(own) == 2
    for line in own:
        assert "0 InvalidArgument this process (" in line
        assert "had used a client already" in line


def test_a_fork_while_others_are_in_calls(running_cluster: LocalCluster) -> None:
    lines = found(running_cluster, "busy")
    assert len(lines) == 10
    assert all(line.startswith("child 0 InvalidArgument this client belongs to process ") for line in lines)


def test_a_fork_within_an_event_loop(running_cluster: LocalCluster) -> None:
    refused, parent = found(running_cluster, "within_a_loop")
    assert refused.startswith("child this client belongs to process ")
    assert parent == "parent 0 True"


ALL = [b"%d" % number for number in range(8)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("forked_one_by_one", [f"worker 0 {ALL}"] * 3),
        ("forked_pool", [f"tasks {ALL}"]),
        ("spawned", [f"spawn {ALL}", f"forkserver {ALL}"]),
    ],
)
def test_the_ways_to_use_several_processes(
    running_cluster: LocalCluster, name: str, lines: list[str]
) -> None:
    assert found(running_cluster, name) == lines


@pytest.mark.parametrize("name", ["open_at_exit", "closed_at_exit"])
def test_an_interpreter_ends_with_its_clients_open(running_cluster: LocalCluster, name: str) -> None:
    assert found(running_cluster, name) == ["the end"]


def test_threads_go_on_after_the_main_one(running_cluster: LocalCluster) -> None:
    assert found(running_cluster, "threads_after_main") == [f"{5 << 20} {5 << 20}", "the end"]
