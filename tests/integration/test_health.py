"""Real node processes that are slow, or stop again and again: readers hardly notice, and the operator is told who."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from coffre.bench.load.failure import DelayProxy
from coffre.client import AsyncClient, ClientOptions, connect
from coffre.cluster.clock import SystemClock
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.patience import PATIENCE_SECONDS

OPTIONS = ClientOptions(timeout=3.0, patience=0.1, stall_timeout=3.0, hedge_delay=0.5)
WATCH = {"ask_seconds": 0.3, "flap_window_seconds": 30.0}
SLOW_SECONDS = 0.2
AWAY_PACE_SECONDS, BACK_PACE_SECONDS = (
    1.5,
    1.0,
)  # of a node that keeps going away: the test is the weather, not a wait
VICTIM = 4
POLL_PACE_SECONDS = 0.2  # of looking for a state that nobody announces


async def coffre(cluster: LocalCluster, *arguments: str) -> object:
    """What a command prints for machines."""
    command = [str(Path(sys.executable).with_name("coffre")), *arguments]
    command += ["--operator", str(cluster.operator_config()), "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return json.loads(output)


async def said_of_the_victim(cluster: LocalCluster) -> tuple[str, int]:
    """What the other nodes say of it, and how many do."""
    status = await coffre(cluster, "cluster", "status")
    assert isinstance(status, dict)
    accused = {node["number"]: node["say_the_others"] for node in status["nodes"] if "say_the_others" in node}
    shared = {number: said for number, said in accused.items() if 2 * len(said["witnesses"]) > said["asked"]}
    assert set(shared) <= {VICTIM}, "most others never accuse anybody else"
    return (shared[VICTIM]["condition"], len(shared[VICTIM]["witnesses"])) if shared else ("", 0)


async def until_said(cluster: LocalCluster, condition: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await said_of_the_victim(cluster))[0] == condition:
                return
            await asyncio.sleep(POLL_PACE_SECONDS)


async def reads(client: AsyncClient, values: dict[str, bytes], count: int) -> list[float]:
    """Seconds of each, one after the other."""
    taken: list[float] = []
    keys = list(values)
    for turn in range(count):
        key = keys[turn % len(keys)]
        began = time.perf_counter()
        assert await client.get("b", key) == values[key]
        taken.append(time.perf_counter() - began)
    return taken


async def written(client: AsyncClient) -> dict[str, bytes]:
    values = {f"k{i}": os.urandom(2000 + i) for i in range(60)}
    for key, value in values.items():
        await client.put("b", key, value)
    await client.flush()
    return values


@asynccontextmanager
async def behind_proxy(directory: Path) -> AsyncIterator[tuple[LocalCluster, DelayProxy]]:
    cluster = LocalCluster.create(directory / "cluster", ClusterShape(watch=WATCH))
    apart = cluster.listen_apart(VICTIM)
    async with DelayProxy(cluster.map.node(VICTIM).address, apart, SystemClock()) as proxy, cluster:
        yield cluster, proxy


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[LocalCluster, DelayProxy]]:
    async with behind_proxy(tmp_path) as found:
        yield found


async def test_a_slow_node_is_not_waited_for_and_told_until_it_is_well(
    proxied: tuple[LocalCluster, DelayProxy],
) -> None:
    """Hedges are far away here, so only who is set aside is not waited for."""
    cluster, proxy = proxied
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        values = await written(client)
        await until_said(cluster, "")
        proxy.delay_s = SLOW_SECONDS
        await reads(client, values, 60)  # it finds out
        late = sorted(await reads(client, values, 300))
        assert late[-3] < SLOW_SECONDS, "99 % are as fast as without it"
        await until_said(cluster, "slow")
        await client.put("b", "while-slow", b"x" * 3000)
        await client.flush()
        assert {place.state for place in await client.locate("b", "while-slow")} == {"ok"}, (
            "writes go there, too"
        )
        proxy.delay_s = 0.0
        await until_said(cluster, "")
        peer = client._views.current.peers[VICTIM]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while peer.is_set_aside:
                await reads(client, values, 5)
                await asyncio.sleep(POLL_PACE_SECONDS)


@pytest.mark.long
async def test_a_node_that_stops_again_and_again_is_told(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "cluster", ClusterShape(watch=WATCH))
    async with cluster, await connect(cluster.client_config(), options=OPTIONS) as client:
        values = await written(client)
        await until_said(cluster, "")
        for _ in range(4):
            cluster.kill(VICTIM, signal.SIGSTOP)
            taken = sorted(await reads(client, values, 100))
            await asyncio.sleep(AWAY_PACE_SECONDS)
            cluster.kill(VICTIM, signal.SIGCONT)
            await reads(client, values, 20)
            await asyncio.sleep(BACK_PACE_SECONDS)
        assert taken[-3] < OPTIONS.hedge_delay, "99 % of the reads do not meet it"
        await until_said(cluster, "flapping")
        findings = await coffre(cluster, "doctor")
        assert isinstance(findings, list)
        assert any(about == f"node-{VICTIM}" and "flapping" in text for _, about, text in findings)
        await until_said(cluster, "")  # the window passes, and it is trusted again
