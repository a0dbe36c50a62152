"""`coffre bench load` and `failure` on real clusters: what they count, find, and leave behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from coffre.client import AsyncClient, connect
from coffre.dev.local_cluster import LocalCluster

from tests.patience import PATIENCE_SECONDS


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `coffre bench`."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("coffre")), "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of all classes together, by operation."""
    return {row["operation"]: row for row in json.loads(path.read_text())["rows"] if row["kind"] == "all"}


async def test_load_on_a_running_cluster(
    running_cluster: LocalCluster, client: AsyncClient, tmp_path: Path
) -> None:
    """An open loop of two processes; the nodes are asked what it cost them, and nothing stays."""
    output, report = tmp_path / "load.json", tmp_path / "load.html"
    tls = running_cluster.operator_tls()
    ended = run(
        *("load", "--config", running_cluster.client_config(), "--operator", tls.certificate, tls.key),
        *("--workload", "fixed", "--mix", "put=4,get=4,range=1,head=1,list=1,delete=1", "--objects", 20),
        *("--rate", 60, "--processes", 2, "--ramp", 1, "--duration", 3, "--bucket", "load", "--check"),
        *("--output", output, "--report", report),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(output.read_text())
    assert result["data_errors"] == 0
    assert result["errors"] == {}
    assert result["cluster"] | {"cluster_id": ""} == {
        "cluster_id": "",
        "epoch": 1,
        "nodes": 6,
        "sites": 3,
        "operators": 3,
        "policy": "4-2",
        "k": 4,
        "m": 2,
    }
    usage = result["usage"]
    assert usage["after"]["answering"] == 6
    assert usage["after"]["syncs"] > usage["before"]["syncs"]
    assert len(usage["client_cpu_s"]) == 2
    rows = rows_of(output)
    assert {"put", "get"} <= set(rows)
    done = sum(row["done"] for row in rows.values())
    assert 120 <= done + result["not_started"] <= 240  # 180 expected of the Poisson process
    assert result["check"]["checked"] >= rows["put"]["done"]
    assert "Every byte read was as it must be" in report.read_text("utf-8")
    assert (await client.list_page("load")).objects == ()


async def test_damage_makes_the_command_fail(
    running_cluster: LocalCluster, client: AsyncClient, tmp_path: Path
) -> None:
    """Somebody overwrites what the load generator has stored, between its storing and its reading."""
    command = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("coffre")), "bench", "load"),
        *("--config", str(running_cluster.client_config()), "--bucket", "damaged", "--workload", "fixed"),
        *("--mix", "get=1", "--objects", "1", "--duration", "4", "--keep"),
        *("--output", str(tmp_path / "load.json")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        while not (page := await client.list_page("damaged")).objects:
            assert command.returncode is None
        await client.put("damaged", page.objects[0].key, bytes(4096))
        said, _ = await asyncio.wait_for(command.communicate(), 60)
    finally:
        if command.returncode is None:
            command.kill()
            await command.wait()
    assert command.returncode == 1, said
    assert b"WrongBytes" in said
    assert json.loads((tmp_path / "load.json").read_text())["data_errors"] > 0


async def test_a_cluster_that_goes_down_leaves_a_result(own_cluster: LocalCluster, tmp_path: Path) -> None:
    """Three of six nodes die under load: puts and gets fail, cleaning fails, and the result says so."""
    output = tmp_path / "load.json"
    command = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("coffre")), "bench", "load"),
        *("--config", str(own_cluster.client_config()), "--workload", "fixed", "--mix", "put=1,get=1"),
        *("--objects", "5", "--duration", "3", "--in-flight", "4", "--output", str(output)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with await connect(own_cluster.client_config()) as watcher:
            while not any("/process-0/" in each.key for each in (await watcher.list_page("bench")).objects):
                assert command.returncode is None
        for number in (1, 2, 3):
            own_cluster.kill(number)
        said, _ = await asyncio.wait_for(command.communicate(), 80)
    finally:
        if command.returncode is None:
            command.kill()
            await command.wait()
    assert command.returncode == 0, said  # unavailable is not lost
    assert b"not all was deleted below bench/load-" in said
    result = json.loads(output.read_text())
    assert result["errors"].keys() <= {"Unavailable", "OutcomeUnknown", "DeadlineExceeded"}
    assert result["errors"]["Unavailable"] > 0
    assert result["data_errors"] == 0


@pytest.mark.long
def test_failure_marks_what_it_did_and_loses_nothing(tmp_path: Path) -> None:
    output, report, directory = tmp_path / "f.json", tmp_path / "f.html", tmp_path / "clusters"
    ended = run(
        *("failure", "--workload", "fixed", "--mix", "put=1,get=1", "--objects", 10, "--rate", 60),
        *("--phase", 1, "--ramp", 0, "--dir", directory, "--output", output, "--report", report),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(output.read_text())
    phases = [event["phase"] for event in result["events"]]
    assert phases == ["steady", "killed", "brought back", "paused", "resumed", "slowed", "left alone"]
    times = [event["at_s"] for event in result["events"]]
    assert times == sorted(times)
    assert "SIGKILL to node-" in result["events"][1]["what"]
    assert result["data_errors"] == 0
    assert result["check"]["checked"] > 100
    text = report.read_text("utf-8")
    assert all(f">{phase}</text>" in text for phase in phases)
    assert not directory.exists()


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = run("load", "--config", tmp_path / "client.toml")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cannot read" in ended.stderr
