"""A stolen certificate of a node: what it opens, and that nothing is left of it once it is renewed."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from coffre.client import connect
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import PermissionDenied
from coffre.cluster.identity import (
    NodeAttributes,
    TlsFiles,
    channel_credentials,
    server_credentials,
    tls_name,
)
from coffre.cluster.map import read_map
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coffre_pb2_grpc as pb_grpc
from coffre.proto import coordination_pb2 as cpb

from tests.integration.conftest import QUICK
from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
VICTIM, OTHER, COORDINATOR = 2, 3, 1
PACE_SECONDS = 0.02  # between two looks at what another process does, where nobody can be waited on


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes, of which an object needs two."""
    made = LocalCluster.create(tmp_path / "cluster", ClusterShape(nodes=3, k=2, m=1))
    async with made:
        yield made


@pytest.fixture
def stolen(cluster: LocalCluster, tmp_path: Path) -> TlsFiles:
    """A copy of the victim's certificate and key."""
    pki = cluster.directory / "pki"
    for suffix in ("crt", "key"):
        shutil.copy(pki / f"node-{VICTIM}.{suffix}", tmp_path / f"stolen.{suffix}")
    return TlsFiles(pki / "ca.crt", tmp_path / "stolen.crt", tmp_path / "stolen.key")


def coffre(*arguments: str) -> None:
    done = subprocess.run([COFFRE, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def issue_again(cluster: LocalCluster) -> Path:
    """The run-book's first half, in the one folder that all share: a new key, and the next generation."""
    pki, node = cluster.directory / "pki", cluster.map.node(VICTIM)
    old, new = pki / f"{node.node_id}.crt", pki / f"{node.node_id}.next.key"
    shutil.copy(old, pki / f"{node.node_id}.old.crt")
    coffre("pki", "request", "node", node.node_id, "--renew", "--dir", str(pki))
    places = ("--server", node.server, "--site", node.site, "--operator", node.operator)
    place = (*places, "--jurisdiction", node.jurisdiction, "--generation", "1")
    told = ("--expect", f"node/{node.node_id}", *place, "--replace", "--yes")
    coffre("pki", "sign", str(new.with_suffix(".csr")), "--dir", str(pki), *told)
    new.rename(old.with_suffix(".key"))
    # So that the cluster knows by which name to ask the victim whether it serves.
    later = dataclasses.replace(node, generation=1)
    nodes = tuple(later if one.number == VICTIM else one for one in cluster.map.nodes)
    cluster.map = dataclasses.replace(cluster.map, nodes=nodes)
    return pki / f"{node.node_id}.crt"


def opened_by(transport: GrpcTransport, epoch: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """Calls that a node's certificate opens on others."""
    rows = pb.PartitionRowsRequest(epoch=epoch, partition=0)
    return {
        "digests": lambda: transport.digests(OTHER, pb.DigestsRequest(epoch=epoch), 5.0),
        "rows": lambda: _drained(transport.partition_rows(OTHER, rows, 5.0)),
        "coordination": lambda: RemoteCoordination(transport).range("buckets/"),
    }


async def _drained(replies: AsyncIterator[object]) -> int:
    return len([reply async for reply in replies])


async def until_refused(call: Callable[[], Awaitable[object]]) -> None:
    """Until a call is refused; any other error is one."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await call()
            except PermissionDenied:
                return
            await asyncio.sleep(PACE_SECONDS)


async def until_logged(cluster: LocalCluster, words: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while words not in cluster.log(VICTIM).read_text():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(PACE_SECONDS)


async def test_a_stolen_certificate_opens_nothing_once_it_is_renewed(
    cluster: LocalCluster, stolen: TlsFiles
) -> None:
    thief = GrpcTransport(cluster.map, stolen)
    async with await connect(cluster.client_config(), options=QUICK) as client:
        await client.put("notes", "key", b"secret")
        for call in opened_by(thief, 1).values():
            await call()  # until then it is a node's, and nobody can tell
        revision = (await RemoteCoordination(thief).range("nodes/")).revision
        watching = thief.watch(COORDINATOR, cpb.WatchRequest(prefix="nodes/", revision=revision))
        listening = asyncio.create_task(_listen(watching))

        certificate = issue_again(cluster)
        operator = str(cluster.directory / "operator.toml")
        await asyncio.to_thread(coffre, "cluster", "renew", str(certificate), "--yes", "--operator", operator)
        for call in opened_by(thief, 2).values():
            await until_refused(call)
        cluster.kill(VICTIM)
        await cluster.start([VICTIM])
        with pytest.raises(PermissionDenied):  # at the next news, such as the victim's: it is back
            await asyncio.wait_for(listening, PATIENCE_SECONDS)

        renewed = GrpcTransport(
            thief.cluster_map, TlsFiles(stolen.authority, certificate, certificate.with_suffix(".key"))
        )
        for call in opened_by(renewed, 2).values():
            await call()
        await renewed.close()
        assert await client.get("notes", "key") == b"secret"
        await client.put("notes", "key", b"another")
    async with await connect(cluster.client_config(), options=QUICK) as client:
        assert {place.state for place in await client.locate("notes", "key")} == {"ok"}
    await thief.close()


async def _listen(watching: AsyncIterator[object]) -> None:
    async for _ in watching:
        pass


async def test_nobody_talks_to_who_stands_in_with_a_stolen_certificate(
    cluster: LocalCluster, stolen: TlsFiles
) -> None:
    """TLS is asked for the name of the generation that the map says."""
    operator = cluster.directory / "operator.toml"
    await asyncio.to_thread(
        coffre, "cluster", "renew", str(issue_again(cluster)), "--yes", "--operator", str(operator)
    )
    renewed, _ = read_map(cluster.directory / "cluster.map", stolen.authority)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(stolen))
    await server.start()
    try:
        now = renewed.node(VICTIM).attributes
        before = dataclasses.replace(now, generation=0)
        assert now.generation == 1
        # It has no service, so who talks to it is told that.
        assert await ending(cluster, port, before) is grpc.StatusCode.UNIMPLEMENTED
        assert await ending(cluster, port, now) is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(None)


async def ending(cluster: LocalCluster, port: int, attributes: NodeAttributes) -> grpc.StatusCode:
    pki = cluster.directory / "pki"
    files = TlsFiles(pki / "ca.crt", pki / "clinic.crt", pki / "clinic.key")
    options = [("grpc.ssl_target_name_override", tls_name(cluster.map.cluster_id, attributes))]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", channel_credentials(files), options) as channel:
        stub = pb_grpc.NodeStub(channel)
        try:
            await stub.GetMap(pb.GetMapRequest(), timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_node_waits_for_the_map_with_its_new_certificate(cluster: LocalCluster) -> None:
    """Restarted before the map is published: it says that it waits, and serves once it is."""
    operator = str(cluster.directory / "operator.toml")
    await asyncio.to_thread(coffre, "cluster", "restore-coordination", "--operator", operator)
    certificate = issue_again(cluster)
    cluster.kill(VICTIM)
    starting = asyncio.create_task(cluster.start([VICTIM]))
    await until_logged(cluster, "waiting for a map with this certificate")
    await asyncio.to_thread(coffre, "cluster", "renew", str(certificate), "--yes", "--operator", operator)
    await starting


async def test_a_renewal_is_not_taken_back(cluster: LocalCluster) -> None:
    certificate = issue_again(cluster)
    operator = str(cluster.directory / "operator.toml")
    await asyncio.to_thread(coffre, "cluster", "renew", str(certificate), "--yes", "--operator", operator)
    old = certificate.with_name(f"node-{VICTIM}.old.crt")
    command = [COFFRE, "cluster", "renew", str(old), "--yes", "--operator", operator]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode != 0
    assert "was shut out" in done.stderr
