"""`coffre cluster status` and plans against real nodes: what they say of themselves is what an operator sees."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.client import connect

COFFRE = str(Path(sys.executable).with_name("coffre"))
OPERATOR_TOML = """\
map = "cluster.map"
authority = "pki/ca.crt"
certificate = "pki/operator.crt"
key = "pki/operator.key"
"""
OBJECT_BYTES = 200_000


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Six nodes, of which an object needs three."""
    made = LocalCluster.create(tmp_path / "cluster", ClusterShape(k=2, m=1))
    (made.directory / "operator.toml").write_text(OPERATOR_TOML)
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


async def test_an_operator_sees_the_nodes_and_what_a_change_would_move(cluster: LocalCluster) -> None:
    noise = random.Random(7)
    async with await connect(cluster.client_config()) as client:
        for number in range(60):
            await client.put("notes", f"record-{number}", noise.randbytes(OBJECT_BYTES))
        await client.flush()
    cluster.kill(6)
    await asyncio.to_thread(look_and_plan, cluster)


def look_and_plan(cluster: LocalCluster) -> None:

    nodes = read_json(cluster, "status")["nodes"]
    assert isinstance(nodes, list)
    assert [node["health"] for node in nodes[:5]] == ["up"] * 5
    assert nodes[5]["health"] == "down"
    assert all(abs(node["clock_ahead_seconds"]) < 30 for node in nodes[:5])
    held = sum(node["live_bytes"] for node in nodes[:5])
    assert held > 0
    node_id = cluster.map.node(1).node_id

    plan = read_json(cluster, "drain", node_id, "--dry-run")["plan"]
    assert isinstance(plan, dict)
    moved, estimate = plan["shards_moved"], plan["bytes_moved"]
    assert plan["shards_moved_min"] <= moved
    shares = {node["node_id"]: node for node in plan["nodes"]}
    assert shares[node_id]["shards_in"] == 0
    assert shares[node_id]["shards_out"] == moved
    # The node holds about as much for each of its partitions as the others do.
    assert estimate == pytest.approx(held * moved / plan["shards"], rel=0.4)

    assert run(cluster, "drain", node_id, "--yes").returncode == 0
    status = read_json(cluster, "status")
    assert (status["epoch"], status["prior_epochs"]) == (2, [1])
    refused = run(cluster, "remove", node_id, "--yes")
    assert refused.returncode == 1
    assert "its data is being moved" in refused.stderr
