"""Clusters in this process, one per test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from hypothesis import settings

settings.register_profile("coffre", derandomize=True, deadline=None)
settings.load_profile("coffre")

SCHEMES = [(4, 2), (8, 3), (2, 1)]


@pytest.fixture
async def make_cluster() -> AsyncIterator[Callable[..., InProcessCluster]]:
    """Makes clusters that are closed with the test."""
    made: list[InProcessCluster] = []

    def make(k: int = 4, m: int = 2, **options: int) -> InProcessCluster:
        made.append(in_process_cluster(k, m, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        await cluster.aclose()


@pytest.fixture
def cluster(make_cluster: Callable[..., InProcessCluster]) -> InProcessCluster:
    """4+2 on six nodes."""
    return make_cluster(4, 2)


@pytest.fixture(params=SCHEMES, ids=lambda scheme: f"{scheme[0]}+{scheme[1]}")
def any_cluster(
    request: pytest.FixtureRequest, make_cluster: Callable[..., InProcessCluster]
) -> InProcessCluster:
    """Each scheme in turn, on k + m nodes."""
    k, m = request.param
    return make_cluster(k, m)
