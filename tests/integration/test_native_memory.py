"""Memory outside Python, measured in processes of their own: reads that are left in mid-air leave nothing behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from coffre.dev.local_cluster import ClusterShape, LocalCluster

READS = 300
READS_GROWN_MIB_MAX = (
    60  # what is on its way at the end; with reads that are cancelled themselves it is above 100
)
STREAMS, GETS = 2_000, 5_000
GROWN_MIB_MAX = 20


async def grown_mib(*arguments: object) -> list[int]:
    """What `tests.integration.native_memory` prints."""
    command = (sys.executable, "-m", "tests.integration.native_memory", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return [int(word) for word in printed.split()]


async def test_reads_that_are_left_in_mid_air_leave_nothing() -> None:
    (grown,) = await grown_mib("reads", READS)
    assert grown < READS_GROWN_MIB_MAX


@pytest.mark.soak
async def test_streams_left_early_and_whole_gets_leave_nothing(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "cluster", ClusterShape())
    async with cluster:
        left, got = await grown_mib(cluster.client_config(), STREAMS, GETS)
    assert left <= GROWN_MIB_MAX
    assert got <= GROWN_MIB_MAX
