"""A disk that is not the one it should be is noticed before anything is served, or written."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ConfigurationError, Unavailable
from coffre.cluster.identity import Identity, Role, TlsFiles
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.transport import GrpcTransport, LoopbackTransport
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.beginnings import check_beginnings
from coffre.node.config import NodeConfig, load_node_config
from coffre.node.disk import LmdbStore, StoreOwner
from coffre.node.following import WatchOptions
from coffre.node.repair import RepairOptions, check_unknown, witness
from coffre.node.store import StoreOptions
from coffre.proto import coffre_pb2 as pb

POLL_PACE_SECONDS = 0.1
A1, A2 = StoreOwner("test", "a1"), StoreOwner("test", "a2")
OPTIONS = StoreOptions(reserve_bytes=0, map_bytes=1 << 20)
NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
MAP = ClusterMap("test", 1, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")


async def served_by(path: Path, owner: StoreOwner | None) -> None:
    store = await LmdbStore.open(path, OPTIONS, ManualClock(), owner)
    await store.close()


def config(data: Path, *, require_mount: bool = False) -> NodeConfig:
    tls = TlsFiles(data / "ca.crt", data / "a1.crt", data / "a1.key")
    parts = OPTIONS, RepairOptions(), WatchOptions()
    return NodeConfig("", data, data / "map", tls, *parts, require_mount=require_mount)


# ------------------------------------------------------------------ whose store it is


async def test_a_store_is_served_by_the_node_that_made_it_alone(tmp_path: Path) -> None:
    await served_by(tmp_path / "disk1", A1)
    await served_by(tmp_path / "disk1", A1)
    for other in (A2, StoreOwner("another cluster", "a1")):
        with pytest.raises(ConfigurationError, match=r"belongs to node a1 of cluster test.*right disk"):
            await served_by(tmp_path / "disk1", other)
    await served_by(tmp_path / "disk1", A1)


async def test_a_copy_of_another_nodes_directory_is_not_served(tmp_path: Path) -> None:
    await served_by(tmp_path / "disk1", A1)
    shutil.copytree(tmp_path / "disk1", tmp_path / "disk2")
    with pytest.raises(ConfigurationError, match="copy of another node's directory is never served"):
        await served_by(tmp_path / "disk2", A2)


async def test_a_store_that_names_nobody_is_not_served(tmp_path: Path) -> None:
    await served_by(tmp_path, None)
    with pytest.raises(ConfigurationError, match="does not say which node"):
        await served_by(tmp_path, A1)


# ------------------------------------------------------------------ where it lies


async def test_a_disk_that_is_not_mounted_is_not_written(tmp_path: Path) -> None:
    data = tmp_path / "disk1"
    for path in (data, tmp_path):  # it is not there, or a folder of the disk of the system
        with pytest.raises(ConfigurationError, match=r"nothing is mounted at .*require_mount"):
            await check_beginnings(config(path, require_mount=True), MAP, NODE, new_cluster=False)
    assert not data.exists()
    await check_beginnings(config(Path("/"), require_mount=True), MAP, NODE, new_cluster=False)
    await check_beginnings(config(data), MAP, NODE, new_cluster=False)


@pytest.mark.parametrize(("text", "said"), [("", False), ("require_mount = true", True)])
def test_node_toml_says_whether_it_has_to_be_mounted(tmp_path: Path, text: str, said: bool) -> None:
    path = tmp_path / "node.toml"
    settings = 'listen = "x:1"\ndata = "d"\nmap = "m"\n'
    tls = '[tls]\nauthority = "a"\ncertificate = "c"\nkey = "k"\n'
    path.write_text(f"{settings}{text}\n{tls}")
    assert load_node_config(path).require_mount is said
    path.write_text(f'{settings}require_mount = "yes"\n{tls}')
    with pytest.raises(ConfigurationError, match="require_mount must be a bool"):
        load_node_config(path)


# ------------------------------------------------------------------ the first start


async def test_a_first_start_is_one(tmp_path: Path) -> None:
    await check_beginnings(config(tmp_path / "new"), MAP, NODE, new_cluster=True)
    with pytest.raises(ConfigurationError, match="map has epoch 2: start this node without --new-cluster"):
        await check_beginnings(config(tmp_path / "new"), replace(MAP, epoch=2), NODE, new_cluster=True)
    await served_by(tmp_path / "old", A1)
    with pytest.raises(ConfigurationError, match=r"holds a store already.*leave it out"):
        await check_beginnings(config(tmp_path / "old"), MAP, NODE, new_cluster=True)
    assert not (tmp_path / "new").exists()


async def test_a_node_that_somebody_has_seen_does_not_start_anew() -> None:
    """Its disk was swapped, or is not mounted: the empty one beside it remembers nothing that was promised."""
    cluster: InProcessCluster = in_process_cluster(2, 1)
    known = cluster.cluster_map
    me = known.node(1)
    transport = LoopbackTransport(
        Identity(known.cluster_id, Role.NODE, me.node_id, me.attributes), cluster.handlers
    )
    transport.down = {3}
    await check_unknown(transport, known, (2, 3))  # nobody who answers has; who is silent is not waited for
    await witness(cluster.stores[2], me.node_id, b"s" * 16, 1)
    cluster.handlers[2].serving = False  # it starts, too, and testifies
    with pytest.raises(ConfigurationError, match=f"{known.node(2).node_id} has seen this node before"):
        await check_unknown(transport, known, (2, 3))
    await cluster.aclose()


async def test_new_cluster_that_was_left_in_a_unit_is_refused(tmp_path: Path) -> None:
    """Real nodes: once more with the flag, and with it on an empty disk in place of the one that the others know."""
    shape = ClusterShape(nodes=2, sites=1, k=1, m=1, repair={"round_seconds": 0.3})
    cluster = LocalCluster.create(tmp_path / "cluster", shape)
    async with cluster:  # the first start of each has the flag
        await is_seen(cluster, 1, by=2)
        cluster.kill(1)
        with pytest.raises(Unavailable, match="holds a store already"):
            await start_anew(cluster, 1)
        shutil.rmtree(cluster.data(1))
        with pytest.raises(Unavailable, match="node-2 has seen this node before"):
            await start_anew(cluster, 1)
        assert not cluster.data(1).exists()


async def start_anew(cluster: LocalCluster, number: int) -> None:
    """Start a node with --new-cluster, whatever it was before."""
    launch = cluster.start_process
    cluster.start_process = lambda command, log: launch([*command, "--new-cluster"], log)
    try:
        await cluster.start([number])
    finally:
        cluster.start_process = launch


async def is_seen(cluster: LocalCluster, number: int, *, by: int) -> None:
    """Wait until a node has heard of another one's store."""
    pki, node_id = cluster.directory / "pki", cluster.map.node(number).node_id
    files = TlsFiles(pki / "ca.crt", pki / f"{node_id}.crt", pki / f"{node_id}.key")
    transport = GrpcTransport(cluster.map, files)
    try:
        async with asyncio.timeout(20):
            while True:
                if (await transport.digests(by, pb.DigestsRequest(epoch=1), 5.0)).witnessed_store_id:
                    return
                await asyncio.sleep(POLL_PACE_SECONDS)
    finally:
        await transport.close()
