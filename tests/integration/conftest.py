"""Clusters of real node processes for the integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, connect
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.nursery import Nursery

QUICK = ClientOptions(timeout=3.0, patience=0.2, stall_timeout=3.0)


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    """Nodes start from what has been imported once, and the passphrases of clusters that are made here cost nothing."""
    nursery = Nursery()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalCluster, "start_process", staticmethod(nursery.spawn))
        patch.setattr("coffre.client.keys._SCRYPT_N", 2)
        yield
    nursery.close()


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Six nodes that no test harms, shared by the session."""
    shape = ClusterShape(tenants=("clinic", "lab"), versions_kept=3)
    cluster = LocalCluster.create(tmp_path_factory.mktemp("shared") / "cluster", shape)
    try:
        asyncio.run(cluster.start())
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def client(running_cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of the shared cluster."""
    async with await connect(running_cluster.client_config(), options=QUICK) as connected:
        yield connected


@pytest.fixture
async def own_cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Six nodes of the test's own, to be killed and damaged."""
    cluster = LocalCluster.create(tmp_path / "cluster", ClusterShape())
    async with cluster:
        yield cluster
