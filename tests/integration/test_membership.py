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
from coffre.client import connect
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
OBJECT_BYTES = 200_000
PACE_SECONDS = 0.02
QUICK = {"round_seconds": 0.3, "settling_seconds": 0.2, "bytes_per_second": 1 << 33}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Six nodes, of which an object needs three."""
    made = LocalCluster.create(
        tmp_path / "cluster", ClusterShape(k=2, m=1, partitions=16, coordinators=(2,), repair=QUICK)
    )
    async with made:
        yield made


def run(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [COFFRE, "cluster", *arguments, "--operator", str(cluster.directory / "operator.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def read_json(cluster: LocalCluster, *arguments: str) -> dict[str, object]:
    done = run(cluster, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


async def test_nodes_join_and_leave_while_everything_is_read_and_written(cluster: LocalCluster) -> None:
    """A drain, a removal and a join: each command returns when all has moved; no read fails, no write is lost."""
    noise = random.Random(7)
    values = {f"record-{number}": noise.randbytes(OBJECT_BYTES) for number in range(40)}
    values["large"] = noise.randbytes(2_500_000)
    stop = asyncio.Event()
    async with await connect(cluster.client_config()) as client:
        for key, value in values.items():
            await client.put("notes", key, value)

        async def use() -> int:
            used = 0
            while not stop.is_set():
                key = noise.choice(sorted(values))
                assert await client.get("notes", key) == values[key]
                written, changing = b"%d" % used, f"changing-{used % 100}"
                await client.put("notes", changing, written)
                assert await client.get("notes", changing) == written
                used += 1
                await asyncio.sleep(PACE_SECONDS)
            return used

        using = asyncio.create_task(use())
        try:
            left, joined = cluster.map.node(1).node_id, cluster.map.node(6).node_id
            await asyncio.to_thread(drain, cluster, joined)
            await asyncio.to_thread(remove, cluster, joined)
            await asyncio.to_thread(replace_by_new, cluster, left)
        finally:
            stop.set()
        assert await using > 20
        assert client.cluster_map.epoch > 4
    async with await connect(cluster.client_config()) as client:  # with the map that the operator has now
        for key, value in values.items():
            assert await client.get("notes", key) == value
            places = await client.locate("notes", key)
            assert {place.state for place in places} == {"ok"}, (key, places)
            assert not {left, joined} & {place.node_id for place in places}


def drain(cluster: LocalCluster, node_id: str) -> None:
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
    assert estimate == pytest.approx(held * moved / plan["shards"], rel=0.05)
    assert read_json(cluster, "status")["epoch"] == 1

    done = run(cluster, "drain", node_id, "--yes")
    assert done.returncode == 0, done.stderr
    assert "everything has moved" in done.stdout + done.stderr
    assert "it is so already" in run(cluster, "drain", node_id, "--yes").stdout
    status = read_json(cluster, "status")
    assert (status["epoch"], status["prior_epochs"]) == (3, [])


def remove(cluster: LocalCluster, node_id: str) -> None:
    """Once what it held for others was handed over, which takes it a moment."""
    done = run(cluster, "remove", node_id, "--yes", "--wait")
    assert done.returncode == 0, done.stderr
    assert node_id not in {node["node_id"] for node in nodes_of(read_json(cluster, "status"))}


def replace_by_new(cluster: LocalCluster, node_id: str) -> None:
    number = cluster.map.node(1).number
    cluster.kill(number)
    added = cluster.join("node-7", "server-7", "site-1", "operator-1")
    done = run(cluster, "replace", node_id, f"{added}=1TB", "--lost", "--yes")
    assert done.returncode == 0, done.stderr
    status = read_json(cluster, "status")
    assert status["prior_epochs"] == []


def nodes_of(status: dict[str, object]) -> list[dict[str, Any]]:
    nodes = status["nodes"]
    assert isinstance(nodes, list)
    return nodes


async def test_status_works_while_coordination_does_not(cluster: LocalCluster) -> None:
    """Node 2 serves it. Changes are refused then, since somebody else's might be missed."""
    cluster.kill(2)
    looked = await asyncio.to_thread(run, cluster, "status")
    assert looked.returncode == 0, looked.stderr
    assert "down" in looked.stdout
    assert "may not be the newest map" in looked.stderr
    refused = await asyncio.to_thread(
        run, cluster, "set-capacity", cluster.map.node(3).node_id, "1TB", "--yes"
    )
    assert refused.returncode == 5, refused.stderr


@pytest.mark.long
async def test_a_bucket_gets_another_coding_while_it_is_used(cluster: LocalCluster) -> None:
    """set-policy and `bucket recode` as an operator and a tenant type them; a node joins in between, and one leaves."""
    noise = random.Random(11)
    values = {f"record-{number}": noise.randbytes(20_000) for number in range(30)}
    values["large"] = noise.randbytes(2_500_000)
    async with await connect(cluster.client_config()) as client:
        for key, value in values.items():
            await client.put("images", key, value)
        before = {key: await client.head("images", key) for key in values}
        done = await asyncio.to_thread(run, cluster, "set-policy", "clinic/images", "4+2", "--new", "--yes")
        assert done.returncode == 0, done.stderr
        assert "everything has moved" in done.stdout + done.stderr
        assert (await client.get("images", "large")) == values["large"]
        left = cluster.map.node(6).node_id
        added = await asyncio.to_thread(cluster.join, "node-7", "server-7", "site-3", "operator-6")
        done = await asyncio.to_thread(run, cluster, "replace", left, f"{added}=1TB", "--yes")
        assert done.returncode == 0, done.stderr
        await asyncio.to_thread(remove, cluster, left)  # what is coded 2+1 was handed over
        dry = await asyncio.to_thread(recode, cluster, "images", "--dry-run")
        assert f"{len(values)} objects" in dry
        said = await asyncio.to_thread(recode, cluster)
        assert f"{len(values)} of {len(values)} objects" in said
        for key, value in values.items():
            assert await client.get("images", key) == value
            assert len(await client.locate("images", key)) == 6
            assert await client.head("images", key) == before[key]
        again = json.loads(await asyncio.to_thread(recode, cluster, "--json"))
        assert again["images"]["objects"] == 0


def recode(cluster: LocalCluster, *arguments: str) -> str:
    command = [COFFRE, "--config", str(cluster.client_config()), "bucket", "recode", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout
