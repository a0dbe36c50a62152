"""What a client is told when nodes are gone, or hang, or would not believe it: what is known is said."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, connect
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ConfigurationError, OutcomeUnknown, Unavailable
from coffre.cluster.identity import issue_operator, issue_tenant, read_authority, write_issued
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.integration.conftest import QUICK
from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
SMALL = ClusterShape(nodes=3, sites=1, k=2, m=1, partitions=16)


async def refused(cluster: LocalCluster, value: bytes, options: ClientOptions) -> str:
    async with await connect(cluster.client_config(), options=options) as client:
        with pytest.raises(Unavailable) as error:
            await client.put("b", "k", value)
    assert type(error.value) is Unavailable, error.value  # not that it is unknown, nor that it was too late
    return str(error.value)


async def listed(client: AsyncClient) -> object:
    return [found async for found in client.list("b")]


async def test_nodes_that_refuse_the_connection_have_nothing(tmp_path: Path) -> None:
    """Nothing was sent, so there is no doubt."""
    cluster = LocalCluster.create(tmp_path / "cluster", SMALL)
    try:
        for value in (b"small", bytes(3 << 20)):
            said = await refused(cluster, value, QUICK)
            assert "nothing was written" in said
        async with await connect(cluster.client_config(), options=QUICK) as client:
            with pytest.raises(Unavailable) as error:
                await client.delete("b", "k")
            assert not isinstance(error.value, OutcomeUnknown)
            with pytest.raises(Unavailable, match="no node answers"):
                await listed(client)
    finally:
        cluster.stop()


async def test_nodes_that_hang_leave_nothing_written(tmp_path: Path) -> None:
    options = ClientOptions(timeout=1.0, patience=0.2, stall_timeout=1.0)
    async with (
        LocalCluster.create(tmp_path / "cluster", SMALL) as cluster,
        await connect(cluster.client_config(), options=options) as client,
    ):
        await client.put("b", "before", b"1")
        cluster.kill(2, signal.SIGSTOP)
        for value in (b"small", bytes(3 << 20)):
            with pytest.raises(Unavailable) as error:
                await client.put("b", "k", value)
            assert type(error.value) is Unavailable, error.value
            assert "nothing was written" in str(error.value)
        for number in (1, 3):
            cluster.kill(number, signal.SIGSTOP)
        for reading in (listed(client), client.get("b", "before")):
            with pytest.raises(Unavailable):
                await reading
        for number in (1, 2, 3):
            cluster.kill(number, signal.SIGCONT)


def test_ones_own_files_are_looked_at_first(tmp_path: Path) -> None:
    """No node would answer who shows an expired certificate; it is not the nodes' fault."""
    long_ago = datetime.now(UTC) - timedelta(days=40)
    clock = ManualClock(unixtime_ms=int(long_ago.timestamp() * 1000))
    cluster = LocalCluster.create(tmp_path / "cluster", SMALL, clock)
    try:
        pki = cluster.directory / "pki"
        for name in ("clinic", "operator"):
            for suffix in ("crt", "key"):
                (pki / f"{name}.{suffix}").unlink()
        authority = read_authority(pki)
        write_issued(issue_tenant(authority, "clinic", clock, 10), pki)
        write_issued(issue_operator(authority, "operator", clock, 10), pki)
        with pytest.raises(ConfigurationError, match=r"clinic\.crt has expired"):
            asyncio.run(connect(cluster.client_config()))
        operator = ("--operator", str(cluster.operator_config()))
        for command in (
            ("doctor", *operator),
            ("cluster", "status", *operator),
            ("cluster", "nodes", *operator),
        ):
            done = subprocess.run(
                [COFFRE, *map(str, command)], capture_output=True, text=True, timeout=PATIENCE_SECONDS
            )
            assert done.returncode == 2, done.stdout
            assert "operator.crt has expired" in done.stderr
    finally:
        cluster.stop()
