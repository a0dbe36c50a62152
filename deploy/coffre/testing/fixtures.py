"""A pytest plugin: `pytest_plugins = ["coffre.testing.fixtures"]` in a conftest.py brings these fixtures.

`coffre_cluster` is an empty `MemoryCluster` for each test; `coffre_client` is its client for code without event loop.
Tests with one take `coffre_cluster` and write `async with coffre_cluster.connect() as client`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from coffre.client import Client
from coffre.testing import MemoryCluster

__all__ = ["coffre_client", "coffre_cluster"]


@pytest.fixture
def coffre_cluster() -> Iterator[MemoryCluster]:
    """An empty cluster, 4+2 on six nodes."""
    with MemoryCluster() as cluster:
        yield cluster


@pytest.fixture
def coffre_client(coffre_cluster: MemoryCluster) -> Client:
    """A client of `coffre_cluster`; its tenant is `clinic`."""
    return coffre_cluster.connect_sync()
