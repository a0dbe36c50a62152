"""Another node becomes the coordinator, while the old one lives, and when it is gone for good."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coffre.client import connect
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import AlreadyExists, Unavailable
from coffre.cluster.map import read_map
from coffre.cluster.membership import set_capacity
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.integration.conftest import QUICK
from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
SECTION = '\n[coordination]\nkind = "embedded"\nfolder = "coordination"\n'
PACE_SECONDS = 0.05  # between two looks at what another process does, where nobody can be waited on
FAST = {"round_seconds": 0.3, "settling_seconds": 0.2, "bytes_per_second": 1 << 33}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Five nodes, of which an object needs two; node 1 is the coordinator."""
    made = LocalCluster.create(
        tmp_path / "cluster", ClusterShape(nodes=5, sites=1, k=2, m=1, partitions=16, repair=FAST)
    )
    async with made:
        yield made


def coffre(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [COFFRE, *arguments, "--operator", str(cluster.operator_config())]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


async def done(cluster: LocalCluster, *arguments: str) -> str:
    finished = await asyncio.to_thread(coffre, cluster, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


async def refused(cluster: LocalCluster, *arguments: str) -> str:
    finished = await asyncio.to_thread(coffre, cluster, *arguments)
    assert finished.returncode != 0, finished.stdout
    return finished.stderr


async def prepare(cluster: LocalCluster, number: int) -> None:
    """Start a node again with a store of its own."""
    config = cluster.config(number)
    config.write_text(config.read_text() + SECTION)
    cluster.kill(number)
    await cluster.start([number])


async def until_all_have_epoch(cluster: LocalCluster, epoch: int) -> None:
    """Until every node says that it works on the map of that epoch."""
    transport = GrpcTransport(cluster.map, cluster.operator_tls())
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number in cluster.numbers:
            while (await transport.status(number, PATIENCE_SECONDS)).epoch != epoch:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(PACE_SECONDS)
    await transport.close()


async def until_a_watch_ends(cluster: LocalCluster) -> None:
    """Of the locks, say, on which nothing happens: at the coordinator that the map names now."""
    transport = GrpcTransport(cluster.map, cluster.operator_tls())
    coordination = RemoteCoordination(transport)
    revision = (await coordination.range("locks/")).revision
    with pytest.raises(Unavailable):
        async for _ in coordination.watch("locks/", revision):
            pass
    await transport.close()


async def test_the_role_goes_to_another_node_and_everybody_follows(cluster: LocalCluster) -> None:
    first = (cluster.directory / "cluster.map").read_bytes()
    async with await connect(cluster.client_config(), options=QUICK) as client:
        await client.put("b", "k", b"one", if_absent=True)
        said = await refused(cluster, "cluster", "set-coordinators", "node-2", "--yes")
        assert "node-2 serves no coordination" in said
        await prepare(cluster, 2)
        said = await refused(cluster, "cluster", "set-coordinators", "node-1", "node-2", "--yes")
        assert "begin with node-2 alone" in said
        said = await done(cluster, "cluster", "set-coordinators", "node-2", "--dry-run")
        assert "coordinators: node-1 -> node-2" in said
        assert "nothing moves" in said
        watching = asyncio.create_task(until_a_watch_ends(cluster))
        await done(cluster, "cluster", "set-coordinators", "node-2", "--yes")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await watching
        assert "it is so already" in await done(cluster, "cluster", "set-coordinators", "node-2", "--yes")
        await until_all_have_epoch(cluster, 2)
        said = await refused(cluster, "cluster", "restore-coordination")
        assert "there is nothing to restore" in said  # the new one got the map with its role

        # The old one lives, and nobody hangs on it: maps reach all, though no request tells of them.
        await done(cluster, "cluster", "set-capacity", "node-4", "2TB", "--yes")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while client.cluster_map.epoch < 4:  # noqa: ASYNC110 - a move begins and ends
                await asyncio.sleep(PACE_SECONDS)
        with pytest.raises(AlreadyExists):
            await client.put("b", "k", b"two", if_absent=True)
        await client.put("b", "k2", b"two", if_absent=True)

        added = await asyncio.to_thread(cluster.join, "node-6", "server-6", "site-1", "operator-1")
        cluster.kill(1)
        await done(cluster, "cluster", "replace", "node-1", f"{added}=1TB", "--lost", "--yes")
        assert await client.get("b", "k") == b"one"
        said = await refused(cluster, "cluster", "set-coordinators", "node-1", "--yes")
        assert "was removed" in said
        await an_old_file_is_brought_up_to_date(cluster, first)


async def quickly_done(cluster: LocalCluster, *command: str) -> str:
    """What a command prints, in a process that starts as nodes do here."""
    output = cluster.directory / "output"
    with output.open("wb") as log:
        process = cluster.start_process([COFFRE, *command], log)
    status = await asyncio.to_thread(process.wait, PATIENCE_SECONDS)
    assert status == 0, (command, output.read_text())
    return output.read_text()


async def an_old_file_is_brought_up_to_date(cluster: LocalCluster, old: bytes) -> None:
    """By every command: its coordinator is gone, and it does not know of the one that took over."""
    pki, file = cluster.directory / "pki", cluster.directory / "cluster.map"
    newest, _ = read_map(file, pki / "ca.crt")
    operator = ("--operator", str(cluster.operator_config()))
    for command in (
        ("doctor", "--json", *operator),
        ("repair", "status", "--json", *operator),
        ("scrub", "status", "--node", "node-6", *operator),
        ("cluster", "status", "--json", *operator),
        ("cluster", "drain", "node-5", "--dry-run", *operator),
        ("cluster", "nodes", *operator),
        ("cluster", "tenants", "list", *operator),
    ):
        file.write_bytes(old)
        said = await quickly_done(cluster, *command)
        assert "may not be the newest map" not in said, command
        assert read_map(file, pki / "ca.crt")[0] == newest, command

    planned = set_capacity(newest, "node-5", newest.node(5).capacity_bytes * 2)
    planned_file = cluster.directory / "planned.map"
    planned_file.write_bytes(cluster.sign(planned))
    file.write_bytes(old)
    said = await quickly_done(cluster, "cluster", "publish", str(planned_file), *operator)
    assert said == f"epoch {planned.epoch} is published\n"
    assert read_map(file, pki / "ca.crt")[0] == planned


@pytest.mark.long
async def test_a_coordinator_that_is_gone_for_good_is_replaced(cluster: LocalCluster) -> None:
    async with await connect(cluster.client_config(), options=QUICK) as client:
        await client.put("b", "k", b"one", if_absent=True)
        cluster.kill(1)
        await prepare(cluster, 2)
        lost = ("cluster", "set-coordinators", "node-2", "--coordination-lost", "--yes")
        cluster.kill(3)
        assert "node-3 must say which map they have" in await refused(cluster, *lost)
        await cluster.start([3])
        assert "carry it to every node" in await done(cluster, *lost)
        assert "it is so already" in await done(cluster, *lost)
        carried = (cluster.directory / "cluster.map").read_bytes()
        (cluster.config(2).parent / "cluster.map").write_bytes(carried)
        cluster.kill(2)
        await cluster.start([2])
        await done(cluster, "cluster", "restore-coordination")
        added = await asyncio.to_thread(cluster.join, "node-6", "server-6", "site-1", "operator-1")
        await done(cluster, "cluster", "replace", "node-1", f"{added}=1TB", "--lost", "--yes")
        with pytest.raises(AlreadyExists):
            await client.put("b", "k", b"two", if_absent=True)
        assert await client.get("b", "k") == b"one"


async def test_two_stores_of_two_nodes_are_refused_by_all_that_would_trust_them(tmp_path: Path) -> None:
    shape = ClusterShape(nodes=5, sites=1, k=2, m=1, partitions=16, repair=FAST, coordinators=(1, 2))
    async with LocalCluster.create(tmp_path / "cluster", shape) as cluster:
        known = str(cluster.directory / "cluster.map")
        for number in (1, 2):
            assert "a store of its own (embedded)" in cluster.log(number).read_text()
            assert '"serving"' not in cluster.log(number).read_text()
        for command in (
            ("publish", known),
            ("tenants", "suspend", "clinic"),
            ("tenants", "list"),
            ("nodes",),
        ):
            finished = await asyncio.to_thread(coffre, cluster, "cluster", *command)
            assert finished.returncode == 2, (command, finished.stdout)
            assert "node-1, node-2 each have a coordination store of their own" in finished.stderr
        for wish in (("drain", "node-5"), ("set-capacity", "node-4", "2TB")):
            assert "store of their own" in await refused(cluster, "cluster", *wish, "--yes")
        said = await done(cluster, "cluster", "status")
        assert "there are two coordination stores" in said
        finished = await asyncio.to_thread(coffre, cluster, "doctor")
        assert finished.returncode == 1
        assert "never hear of" in " ".join(finished.stdout.split())
        async with await connect(cluster.client_config(), options=QUICK) as client:
            await client.put("b", "plain", b"one")
            with pytest.raises(Unavailable, match="node-1, node-2"):
                await client.put("b", "k", b"one", if_absent=True)

            # Away for a moment, so that everybody else looks at the store of node-2, where the map will never be.
            cluster.kill(1)
            await cluster.start([1])
            await done(cluster, "cluster", "set-coordinators", "node-1", "--yes")
            await until_all_have_epoch(cluster, 2)
            assert (await asyncio.to_thread(coffre, cluster, "doctor")).returncode == 0
            await client.put("b", "k", b"one", if_absent=True)
