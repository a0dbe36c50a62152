"""A node as a process: health, reflection, configuration errors, logs, a directory of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import grpc
import pytest
from coffre.client import connect
from coffre.cluster.identity import channel_credentials, tls_name
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.server import STOP_GRACE_SECONDS
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
PACE_SECONDS = 0.05  # between two looks at what another process does, where nobody can be waited on


def open_channel(cluster: LocalCluster, number: int) -> grpc.aio.Channel:
    node = cluster.map.node(number)
    options = [("grpc.ssl_target_name_override", tls_name(cluster.map.cluster_id, node.attributes))]
    return grpc.aio.secure_channel(node.address, channel_credentials(cluster.operator_tls()), options)


async def test_health(running_cluster: LocalCluster) -> None:
    async with open_channel(running_cluster, 2) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "coffre.v1.Node"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection(running_cluster: LocalCluster) -> None:
    async with open_channel(running_cluster, 2) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for reply in stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_SECONDS):
            names = {service.name for service in reply.list_services_response.service}
            assert {"coffre.v1.Node", "grpc.health.v1.Health"} <= names
            break
        else:
            pytest.fail("no answer")


def run_node(config: Path) -> str:
    """Start a node that cannot start; return why, as the last line of its log says. Every line is JSON."""
    with (config.parent / "node.log").open("wb") as log:
        process = LocalCluster.start_process([COFFRE, "node", "run", "--config", str(config)], log)
    status = process.wait(timeout=PATIENCE_SECONDS)
    said = (config.parent / "node.log").read_text()
    *_, last = [json.loads(line) for line in said.splitlines()]
    assert status in (2, 6), said
    assert (last["event"], last["level"]) == ("cannot run", "critical")
    return str(last["reason"])


def changed(cluster: LocalCluster, directory: Path, old: str, new: str) -> Path:
    """Node 1's configuration with a change, below `directory`."""
    text = cluster.config(1).read_text().replace("../../", f"{cluster.directory}/")
    text = text.replace('map = "', f'map = "{cluster.directory}/')
    assert old in text
    path = directory / "node.toml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('data = "data"', "data = 3", "data must be"),
        ('data = "data"', "", "lacks data"),
        ('kind = "embedded"', 'kind = "paper"', "coordination.kind is one of embedded, etcd"),
        ('kind = "embedded"', 'kind = "etcd"', "unknown setting coordination.folder"),
        ('folder = "coordination"', "", "lacks coordination.folder"),
        ("[store]", "[store]\nspeed = 3", "unknown setting store.speed"),
        ("[store]", "[store]\nreserve_bytes = -1", "greater than zero"),
        ("node-1.crt", "node-2.crt", "key"),
        ("node-1", "clinic", "not a node's certificate"),
        ("cluster.map", "pki/ca.crt", "map"),
        ('log_level = "info"', 'log_level = "loud"', "log_level is one of"),
        ('data = "data"', "data = ", "not valid TOML"),
        ('listen = "127.0.0.1:', 'listen = "127.0.0.1', "is not host:port"),
    ],
)
def test_configuration_errors(
    running_cluster: LocalCluster, tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert words in run_node(changed(running_cluster, tmp_path, old, new))


def test_the_directory_and_the_port_are_its_own(running_cluster: LocalCluster, tmp_path: Path) -> None:
    data = running_cluster.data(1)
    text = running_cluster.config(1).read_text()
    port = running_cluster.map.node(1).address.rsplit(":", 1)[1]
    same_data = changed(running_cluster, tmp_path, 'data = "data"', f'data = "{data}"')
    assert "another process" in run_node(same_data).lower()
    assert text == running_cluster.config(1).read_text()
    same_port = changed(running_cluster, tmp_path, 'data = "data"', f'data = "{tmp_path / "other"}"')
    assert port in run_node(same_port)


async def test_a_node_that_listens_elsewhere_than_the_map_says_names_both(tmp_path: Path) -> None:
    async with LocalCluster.create(tmp_path / "cluster", ClusterShape(nodes=3, sites=1, k=2, m=1)) as cluster:
        cluster.kill(3, signal.SIGTERM)
        apart = cluster.listen_apart(3)
        cluster.launch(3)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "listens elsewhere" not in (said := cluster.log(3).read_text()):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(PACE_SECONDS)
        (line,) = [json.loads(line) for line in said.splitlines() if "listens elsewhere" in line]
        assert line["level"] == "warning"
        assert apart in line["reason"]
        assert cluster.map.node(3).address in line["reason"]


async def ended_in_order(cluster: LocalCluster, number: int) -> bool:
    transport = GrpcTransport(cluster.map, cluster.operator_tls())
    try:
        return (await transport.status(number, 10.0)).ended_in_order
    finally:
        await transport.close()


async def test_sigterm_ends_open_exchanges_and_answers_what_came(own_cluster: LocalCluster) -> None:
    """A client keeps its call to a node open for ever: the node must not wait for it, and must answer what it took."""
    async with await connect(own_cluster.client_config()) as client:
        await client.put("records", "before", b"1")
        await client.flush()
        puts = [asyncio.create_task(client.put("records", f"k{i}", b"%d" % i)) for i in range(200)]
        await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        begun = time.monotonic()
        await asyncio.to_thread(own_cluster.kill, 1, signal.SIGTERM)
        took = time.monotonic() - begun
        assert took < STOP_GRACE_SECONDS
        await asyncio.gather(*puts)
        await own_cluster.start([1])
        assert await ended_in_order(own_cluster, 1)
        own_cluster.kill(2)
        await own_cluster.start([2])
        assert not await ended_in_order(own_cluster, 2)
        assert await client.get_many("records", [f"k{i}" for i in range(200)]) == [
            b"%d" % i for i in range(200)
        ]
    events = [json.loads(line)["event"] for line in own_cluster.log(1).read_text().splitlines()]
    assert "stopped" in events
    assert "internal error" not in events


def test_logs_are_json(running_cluster: LocalCluster) -> None:
    events = [json.loads(line)["event"] for line in running_cluster.log(3).read_text().splitlines()]
    assert "serving" in events
