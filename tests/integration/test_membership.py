"""`coffre cluster status` and plans against real nodes: what they say of themselves is what an operator sees."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.client import connect

COFFRE = str(Path(sys.executable).with_name("coffre"))
OBJECT_BYTES = 200_000


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Six nodes, of which an object needs three."""
    made = LocalCluster.create(tmp_path / "cluster", ClusterShape(k=2, m=1))
    async with made:
        yield made


def run(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [COFFRE, "cluster", *arguments, "--operator", str(cluster.directory / "operator.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def read_json(cluster: LocalCluster, *arguments: str) -> dict[str, object]:
    done = run(cluster, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


async def test_an_operator_changes_the_map_of_a_running_cluster(cluster: LocalCluster) -> None:
    noise = random.Random(7)
    async with await connect(cluster.client_config()) as client:
        for number in range(60):
            await client.put("notes", f"record-{number}", noise.randbytes(OBJECT_BYTES))
        await client.flush()
        await asyncio.to_thread(plan_and_drain, cluster, cluster.map.node(1).node_id)
        # The client is told of the new map by the nodes.
        await client.put("notes", "record-1", b"new")
        assert await client.get("notes", "record-1") == b"new"
        assert len(await client.get("notes", "record-2")) == OBJECT_BYTES


def plan_and_drain(cluster: LocalCluster, node_id: str) -> None:
    nodes = nodes_of(read_json(cluster, "status"))
    assert [node["health"] for node in nodes] == ["up"] * 6
    assert all(abs(node["clock_ahead_seconds"]) < 30 for node in nodes)
    held = sum(node["live_bytes"] for node in nodes)

    plan = read_json(cluster, "drain", node_id, "--dry-run")["plan"]
    assert isinstance(plan, dict)
    moved, estimate = plan["shards_moved"], plan["bytes_moved"]
    assert plan["shards_moved_min"] <= moved
    shares = {node["node_id"]: node for node in plan["nodes"]}
    assert (shares[node_id]["shards_in"], shares[node_id]["shards_out"]) == (0, moved)
    assert estimate == pytest.approx(held * moved / plan["shards"], rel=0.01)
    assert read_json(cluster, "status")["epoch"] == 1

    done = run(cluster, "drain", node_id, "--yes")
    assert done.returncode == 0, done.stderr
    assert "it is so already" in run(cluster, "drain", node_id, "--yes").stdout
    refused = run(cluster, "remove", node_id, "--yes")
    assert refused.returncode == 1
    assert "its data is being moved" in refused.stderr
    for _ in range(20):  # each look takes a while
        status = read_json(cluster, "status")
        assert (status["epoch"], status["prior_epochs"]) == (2, [1])
        if [node["epoch"] for node in nodes_of(status)] == [2] * 6:
            return
    pytest.fail("the nodes did not take the map that was published")


def nodes_of(status: dict[str, object]) -> list[dict[str, Any]]:
    nodes = status["nodes"]
    assert isinstance(nodes, list)
    return nodes


async def test_status_works_while_coordination_does_not(cluster: LocalCluster) -> None:
    """Node 1 serves it. Changes are refused then, since somebody else's might be missed."""
    cluster.kill(1)
    looked = await asyncio.to_thread(run, cluster, "status")
    assert looked.returncode == 0, looked.stderr
    assert "down" in looked.stdout
    assert "may not be the newest map" in looked.stderr
    refused = await asyncio.to_thread(
        run, cluster, "set-capacity", cluster.map.node(2).node_id, "1TB", "--yes"
    )
    assert refused.returncode == 5, refused.stderr
