"""`coffre.testing`: what tests of applications get, used as they use it."""

from __future__ import annotations

import asyncio
import doctest
import subprocess
import sys
from pathlib import Path

import coffre.testing
import pytest
from coffre.client import ObjectInfo
from coffre.cluster.errors import InvalidArgument, NotFound, Unavailable
from coffre.testing import MemoryCluster

from tests.patience import PATIENCE_SECONDS


def test_the_example_is_true() -> None:
    tried = doctest.testmod(coffre.testing)
    assert (tried.failed, tried.attempted) == (0, 2)


async def test_clients_of_a_cluster_share_it_and_tenants_do_not_meet() -> None:
    async with MemoryCluster() as cluster:
        one, other, lab = cluster.connect(), cluster.connect(), cluster.connect("lab")
        info = await one.put("records", "k", b"x", if_absent=True)
        assert (await other.head("records", "k")).version == info.version
        with pytest.raises(NotFound):
            await lab.get("records", "k")
    async with MemoryCluster() as another:
        with pytest.raises(NotFound):
            await another.connect().get("records", "k")


async def test_nodes_stop_and_start() -> None:
    async with MemoryCluster(k=2, m=1) as cluster:
        client = cluster.connect()
        await client.put("b", "k", b"x")
        await client.flush()
        cluster.stop(1, 2)
        with pytest.raises(Unavailable):
            await client.get("b", "k")
        cluster.start(1)
        assert await client.get("b", "k") == b"x"
        cluster.start()
        await client.put("b", "k", b"y")
        with pytest.raises(InvalidArgument, match="there is no node 9"):
            cluster.stop(9)


def test_without_an_event_loop() -> None:
    with MemoryCluster(versions_kept=2) as cluster:
        client = cluster.connect_sync()
        client.put("b", "k", b"one")
        client.put("b", "k", b"two")
        assert len(client.versions("b", "k")) == 2
        assert [each.key for each in client.list("b") if isinstance(each, ObjectInfo)] == ["k"]
        with pytest.raises(InvalidArgument, match="one event loop"):
            cluster.connect_sync()
        with pytest.raises(InvalidArgument, match="one event loop"):
            asyncio.run(use(cluster))


async def use(cluster: MemoryCluster) -> None:
    cluster.connect()


def test_the_plugin_in_somebody_s_own_tests(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["coffre.testing.fixtures"]\n')
    (tmp_path / "test_theirs.py").write_text(
        "def test_one(coffre_client):\n"
        "    coffre_client.put('b', 'k', b'x')\n"
        "    assert coffre_client.get('b', 'k') == b'x'\n\n"
        "def test_each_has_its_own(coffre_client, coffre_cluster):\n"
        "    assert list(coffre_client.list('b')) == []\n"
        "    coffre_cluster.stop(1)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
