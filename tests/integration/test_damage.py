"""Damage on disk: flipped bytes, truncated volumes, full disks. A reader never gets wrong bytes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, connect
from coffre.cluster.errors import CoffreError, NotFound, ResourceExhausted
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.amounts import amount
from tests.patience import PATIENCE_SECONDS

OPTIONS = ClientOptions(timeout=3.0, patience=0.1, stall_timeout=2.0, hedge_delay=0.02)
FLIPS = amount(20, 60)
MIB = 1 << 20


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[tuple[LocalCluster, dict[str, bytes]]]:
    """A cluster with small, packed and streamed objects, which leaves damage as it is."""
    shape = ClusterShape(repair={"paused": True})
    async with LocalCluster.create(tmp_path / "cluster", shape) as cluster:
        yield cluster, await fill(cluster)


async def fill(cluster: LocalCluster) -> dict[str, bytes]:
    values = {f"small-{i}": os.urandom(700) for i in range(20)}
    values |= {f"packed-{i}": os.urandom(100_000) for i in range(3)}
    values["large"] = os.urandom(2 * MIB + 77)
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        for key, value in values.items():
            await client.put("b", key, value)
        await client.flush()
    return values


async def read_all(cluster: LocalCluster, values: dict[str, bytes]) -> None:
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        for key, value in values.items():
            assert await client.get("b", key) == value, key


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


async def test_a_flipped_byte_is_never_returned(filled: tuple[LocalCluster, dict[str, bytes]]) -> None:
    """One byte of one node's files at a time, while it serves. A node may die of it; the others go on."""
    cluster, values = filled
    chance = random.Random(3)
    for _ in range(FLIPS):
        number = chance.choice(cluster.numbers)
        files = [p for p in cluster.data(number).rglob("*") if p.is_file() and p.stat().st_size]
        path = chance.choice(files)
        offset = chance.randrange(path.stat().st_size)
        flip(path, offset)
        await read_all(cluster, values)
        if not cluster.running(number):
            flip(path, offset)
            await cluster.start([number])
        else:
            flip(path, offset)


async def test_two_nodes_with_every_volume_damaged(filled: tuple[LocalCluster, dict[str, bytes]]) -> None:
    """All shards of two nodes are hit at once: everything is decoded around them, and reported."""
    cluster, values = filled
    for number in (1, 5):
        for path in cluster.data(number).rglob("*"):
            if (path.is_file() and path.suffix == ".vol") or path.parent.parent.name == "large":
                for offset in range(50, path.stat().st_size, 150):
                    flip(path, offset)
    await read_all(cluster, values)
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        states = [place.state for place in await client.locate("b", "small-0")]
    assert states.count("ok") == 4
    operator = GrpcTransport(cluster.map, cluster.operator_tls())
    assert (await operator.status(1, 5.0)).repair_queue > 0
    await operator.close()


async def test_truncated_volume(filled: tuple[LocalCluster, dict[str, bytes]]) -> None:
    cluster, values = filled
    for number in (2, 3):
        cluster.kill(number, signal.SIGKILL)
        volumes = sorted(cluster.data(number).rglob("*.vol"))
        os.truncate(volumes[0], volumes[0].stat().st_size // 2)
    await cluster.start((2, 3))
    await read_all(cluster, values)


async def fill_up(client: AsyncClient, size_bytes: int, limit: int) -> dict[str, bytes]:
    """Put until a disk is full; return what was acknowledged."""
    stored: dict[str, bytes] = {}
    for number in range(limit):
        value = os.urandom(size_bytes)
        try:
            await client.put("b", f"key-{number}", value)
        except ResourceExhausted:
            return stored
        stored[f"key-{number}"] = value
    raise AssertionError("the disk never filled")


async def test_full_disk(tmp_path: Path) -> None:
    """Puts are refused, reads go on, deletes make room again."""
    store = {"capacity_bytes": 24 * MIB, "reserve_bytes": 8 * MIB, "volume_bytes": 2 * MIB}
    async with (
        LocalCluster.create(tmp_path / "cluster", ClusterShape(store=store)) as cluster,
        await connect(cluster.client_config(), options=OPTIONS) as client,
    ):
        stored = await fill_up(client, 500_000, 1000)
        assert len(stored) > 20
        with pytest.raises(ResourceExhausted):
            await client.put("b", "large", os.urandom(40 * MIB))
        for key, value in stored.items():
            assert await client.get("b", key) == value
        gone = list(stored)[: len(stored) * 3 // 4]
        for key in gone:
            await client.delete("b", key)
        await client.flush()
        again = await put_again(client)
        assert await client.get("b", "again") == again
        for key in gone:
            with pytest.raises(NotFound):
                await client.get("b", key)
        for key in stored.keys() - set(gone):
            assert await client.get("b", key) == stored[key]


async def put_again(client: AsyncClient) -> bytes:
    """Put as soon as the nodes have reclaimed what was deleted; they do it in the background."""
    value = os.urandom(500_000)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await client.put("b", "again", value)
                return value
            except ResourceExhausted:
                pace_seconds = 0.2
                await asyncio.sleep(pace_seconds)


async def test_all_disks_gone_is_one_clear_error(own_cluster: LocalCluster) -> None:
    own_cluster.stop()
    async with await connect(own_cluster.client_config(), options=OPTIONS) as client:
        with pytest.raises(CoffreError, match="nodes answer"):
            await client.get("b", "key")
