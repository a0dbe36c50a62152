"""`coffre bench figures` on a real cluster: a row, its JSON, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from coffre.bench.figures._nodes import paused
from coffre.dev.local_cluster import LocalCluster

from tests.patience import PATIENCE_SECONDS


def nodes_below(directory: Path) -> list[str]:
    """Command lines of processes that have to do with a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            if str(directory) in line:
                found.append(line)
    return found


QUICK = ("get_4k_c64", "get_p99_paused_node", "index_lookup_p99_10m")  # load, a fault, an index alone
OTHERS = (
    "put_4k_c1_latency",
    "put_many_fhir",
    "get_many_fhir",
    "put_256m",
    "range_64k_latency",
    "node_memory_1g",
    "disk_per_fhir_record",
    "list_1000_of_1m",
    "index_start_10m",
)


@pytest.mark.parametrize("figure", [*QUICK, *(pytest.param(each, marks=pytest.mark.long) for each in OTHERS)])
def test_one_figure_on_a_real_cluster(figure: str, tmp_path: Path) -> None:
    output, directory = tmp_path / "out" / "figures.json", tmp_path / "clusters"
    ended = subprocess.run(
        [
            str(Path(sys.executable).with_name("coffre")),
            *("bench", "figures", "--quick", "--only", figure),
            *("--dir", str(directory), "--output", str(output)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert figure in ended.stdout
    (row,) = json.loads(output.read_text())["rows"]
    assert row["id"] == figure
    assert row["value"] > 0
    assert row["ratio"] == pytest.approx(row["value"] / row["reference"])
    assert not directory.exists()
    assert not nodes_below(directory)


@pytest.mark.first
@pytest.mark.long
def test_figures_of_repair(tmp_path: Path) -> None:
    output, directory = tmp_path / "out" / "repair.json", tmp_path / "clusters"
    ended = subprocess.run(
        [
            str(Path(sys.executable).with_name("coffre")),
            *("bench", "repair", "--quick", "--dir", str(directory), "--output", str(output)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {row["id"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == [
        "rebuild_large",
        "rebuild_large_ceiling",
        "rebuild_small",
        "get_p99_during_repair",
        "join_moved",
        "idle_anti_entropy_cpu",
    ]
    assert all(row["value"] > 0 for row in rows.values())
    assert not directory.exists()
    assert not nodes_below(directory)


def state_of(pid: int) -> str:
    """R, S, T for stopped, ...: proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_paused_node_serves_again_whatever_happens_meanwhile(own_cluster: LocalCluster) -> None:
    async def fail_meanwhile() -> None:
        async with paused(own_cluster, 3):
            assert state_of(own_cluster.pid(3)) == "T"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_meanwhile()
    assert state_of(own_cluster.pid(3)) != "T"
    await own_cluster.wait_ready(3)
