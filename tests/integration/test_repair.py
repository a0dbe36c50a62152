"""Real node processes make themselves whole: after a kill, after rot, after deletions that a node missed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import lmdb
import pytest
from coffre.client import ClientOptions, connect
from coffre.cluster.errors import NotFound, Unavailable
from coffre.cluster.identity import TlsFiles
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.repair.messages import unpack_digests
from coffre.node.store import PartitionDigest
from coffre.proto import coffre_pb2 as pb

from tests.patience import PATIENCE_SECONDS

OPTIONS = ClientOptions(timeout=3.0, patience=0.1, stall_timeout=2.0, hedge_delay=0.02)
QUICK = {"round_seconds": 0.3, "settling_seconds": 0.2, "bytes_per_second": 1 << 33}
POLL_PACE_SECONDS = 0.1  # of looking for a state that nobody announces
MIB = 1 << 20


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    shape = ClusterShape(
        partitions=32, repair=QUICK, capacity_bytes=1 << 30
    )  # no more than any disk has, or doctor warns
    async with LocalCluster.create(tmp_path / "cluster", shape) as cluster:
        yield cluster


def as_node(cluster: LocalCluster, number: int) -> GrpcTransport:
    """Calls with a node's own certificate."""
    pki, node_id = cluster.directory / "pki", cluster.map.node(number).node_id
    return GrpcTransport(
        cluster.map, TlsFiles(pki / "ca.crt", pki / f"{node_id}.crt", pki / f"{node_id}.key")
    )


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a state that the nodes reach by themselves."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await holds():
                return
            await asyncio.sleep(POLL_PACE_SECONDS)


async def digests(cluster: LocalCluster) -> list[dict[int, PartitionDigest]]:
    peer = as_node(cluster, 1)
    try:
        replies = await asyncio.gather(
            *(peer.digests(number, pb.DigestsRequest(epoch=1), 5.0) for number in cluster.numbers)
        )
    finally:
        await peer.close()
    return [unpack_digests(reply.digests) for reply in replies]


async def in_step(cluster: LocalCluster) -> bool:
    found = await digests(cluster)
    return all(digest == found[0] for digest in found)


async def read_all(cluster: LocalCluster, values: dict[str, bytes], number: int) -> None:
    """Read everything from node `number` and three others alone."""
    down = [other for other in cluster.numbers if other != number][:2]
    for other in down:
        await asyncio.to_thread(cluster.kill, other)
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        for key, value in values.items():
            assert await client.get("b", key) == value, key
    await cluster.start(down)


async def fill(cluster: LocalCluster, turn: str) -> dict[str, bytes]:
    values = {f"{turn}-{i}": os.urandom(20 + 53 * i) for i in range(60)}
    values |= {f"{turn}-large-{i}": os.urandom(2 * MIB + i) for i in range(3)}
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        for key, value in values.items():
            await client.put("b", key, value)
        await client.flush()
    return values


async def test_a_killed_node_catches_up_with_writes_and_deletions(cluster: LocalCluster) -> None:
    """Every shard comes back, and nothing that was deleted does."""
    values = await fill(cluster, "before")
    await asyncio.to_thread(cluster.kill, 4)
    values |= await fill(cluster, "away")
    gone = ["before-1", "before-2", "before-large-0", "away-3"]
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        for key in gone:
            await client.delete("b", key)
            del values[key]
        await client.put("b", "before-7", b"overwritten")
        values["before-7"] = b"overwritten"
        await client.flush()
    await cluster.start([4])
    await until(lambda: in_step(cluster))
    await read_all(cluster, values, 4)
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        listed = [entry async for entry in client.list("b")]
        assert {entry.key for entry in listed if not isinstance(entry, str)} == set(values)
        for key in gone:
            with pytest.raises(NotFound):
                await client.get("b", key)


async def test_shards_that_rot_are_rebuilt_when_a_reader_meets_them(cluster: LocalCluster) -> None:
    values = await fill(cluster, "k")
    for path in cluster.data(2).rglob("*"):
        if path.is_file() and (path.suffix == ".vol" or path.parent.parent.name == "large"):
            with path.open("r+b") as file:
                for offset in range(50, path.stat().st_size, 150):
                    file.seek(offset)
                    byte = file.read(1)[0]
                    file.seek(offset)
                    file.write(bytes([byte ^ 0x40]))
    operator = GrpcTransport(cluster.map, cluster.operator_tls())

    async def whole() -> bool:
        async with await connect(cluster.client_config(), options=OPTIONS) as client:
            for key, value in values.items():
                assert await client.get("b", key) == value
            states = [place.state for key in values for place in await client.locate("b", key)]
        queued = [(await operator.status(number, 5.0)).repair_queue for number in cluster.numbers]
        return set(states) == {"ok"} and not any(queued)

    try:
        await until(whole)
        status = await operator.repair_status(2, 5.0)
        assert status.restored_objects >= len(values)
    finally:
        await operator.close()
    await read_all(cluster, values, 2)


async def coffre(cluster: LocalCluster, *arguments: str) -> tuple[int, str]:
    """Run the command as an operator; exit status and output."""
    command = [str(Path(sys.executable).with_name("coffre")), *arguments]
    command += ["--operator", str(cluster.operator_config()), "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_what_an_operator_sees_and_does(cluster: LocalCluster) -> None:
    async def clean() -> bool:
        status, output = await coffre(cluster, "doctor")
        return (status, json.loads(output)) == (0, [])

    await until(clean)  # nodes that begin together have not compared themselves with all others yet
    status, output = await coffre(cluster, "repair", "pause", "--node", "node-3")
    assert json.loads(output)["node-3"]["paused"]
    _, output = await coffre(cluster, "repair", "start", "--mb-per-second", "7", "--node", "node-2")
    assert json.loads(output)["node-2"]["bytes_per_second"] == "7000000"
    await asyncio.to_thread(cluster.kill, 5)
    status, output = await coffre(cluster, "repair", "status")
    found = json.loads(output)
    assert (status, found["node-3"]["paused"], found["node-2"]["paused"]) == (0, True, False)
    assert "error" in found["node-5"]
    status, output = await coffre(cluster, "scrub", "status")
    assert json.loads(output)["node-1"]["scrub_damaged"] == "0"
    status, output = await coffre(cluster, "doctor")
    findings = {(level, about) for level, about, _ in json.loads(output)}
    assert status == 1
    assert {("error", "node-5"), ("warning", "node-3")} <= findings


async def test_a_node_that_lost_its_disk_does_not_come_back_under_its_name(cluster: LocalCluster) -> None:
    """Nor does one whose disk was rolled back; and a restart of all together is no loss."""
    await fill(cluster, "k")
    await until(lambda: in_step(cluster))
    await asyncio.to_thread(cluster.kill, 3)
    saved = cluster.directory / "saved"
    await asyncio.to_thread(shutil.copytree, cluster.data(3), saved)
    await cluster.start([3])
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        await client.put("b", "later", b"promised")
        await client.flush()

    async def told() -> bool:
        peer = as_node(cluster, 3)
        try:
            reply = await peer.digests(1, pb.DigestsRequest(epoch=1), 5.0)
        finally:
            await peer.close()
        return reply.witnessed_commits > saved_commits

    with lmdb.open(str(saved / "index"), readonly=True, lock=False, max_dbs=16) as index:
        saved_commits = index.info()["last_txnid"]
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        await client.put("b", "later-still", b"promised")
        await client.flush()
    await until(told)
    await asyncio.to_thread(cluster.kill, 3)
    current = cluster.directory / "current"
    cluster.data(3).rename(current)
    with pytest.raises(Unavailable, match="another disk"):
        await cluster.start([3])
    await asyncio.to_thread(shutil.rmtree, cluster.data(3))
    saved.rename(cluster.data(3))
    with pytest.raises(Unavailable, match="older than it was"):
        await cluster.start([3])
    await asyncio.to_thread(shutil.rmtree, cluster.data(3))
    current.rename(cluster.data(3))
    for number in cluster.numbers:
        if number != 3:
            await asyncio.to_thread(cluster.kill, number)
    await cluster.start()
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        assert await client.get("b", "later-still") == b"promised"


async def test_a_node_that_serves_stops_when_somebody_has_seen_more_of_it(cluster: LocalCluster) -> None:
    """Most nodes are restored from one backup: they testify to each other that all is well, until another one comes."""
    restored, rest = (1, 2, 3, 4), (5, 6)
    for number in cluster.numbers:
        await asyncio.to_thread(cluster.kill, number)
    for number in restored:
        await asyncio.to_thread(shutil.copytree, cluster.data(number), cluster.directory / f"saved-{number}")
    await cluster.start()
    await fill(cluster, "k")

    async def told() -> bool:
        commits = []
        for number in restored:
            peer = as_node(cluster, number)
            try:
                reply = await peer.digests(rest[0], pb.DigestsRequest(epoch=1), 5.0)
            finally:
                await peer.close()
            with lmdb.open(
                str(cluster.directory / f"saved-{number}" / "index"), readonly=True, lock=False, max_dbs=16
            ) as index:
                commits.append(reply.witnessed_commits > index.info()["last_txnid"] + 50)
        return all(commits)

    await fill(cluster, "l")
    await until(told)
    for number in cluster.numbers:
        await asyncio.to_thread(cluster.kill, number)
    for number in restored:
        await asyncio.to_thread(shutil.rmtree, cluster.data(number))
        (cluster.directory / f"saved-{number}").rename(cluster.data(number))
        config = cluster.config(
            number
        )  # each round is a commit, and there are to be fewer than were forgotten
        config.write_text(
            config.read_text("utf-8").replace("round_seconds = 0.3", "round_seconds = 3"), "utf-8"
        )
    await cluster.start(restored)  # nobody knows better
    cluster.launch(rest[0])

    async def ended() -> bool:
        return not any(cluster.running(number) for number in restored)

    await until(ended)
    for number in restored:
        assert "older than it was" in cluster.log(number).read_text("utf-8"), number
