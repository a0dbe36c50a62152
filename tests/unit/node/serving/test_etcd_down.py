"""A coordinator whose etcd does not answer says so, names it, and does not call itself serving."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import EtcdCoordination
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.testing import make_members
from coffre.node.config import EtcdConfig, load_node_config
from coffre.node.following import MapHolder
from coffre.node.logs import JsonFormatter
from coffre.node.server import _say_ready
from coffre.node.serving.coordinator import StoreWatch
from coffre.proto import coffre_pb2 as pb

NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
MAP = ClusterMap("test", 1, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1", (1,))
NODE_TOML = """\
listen = "127.0.0.1:7400"
data = "data"
map = "cluster.map"

[tls]
authority = "ca.crt"
certificate = "a1.crt"
key = "a1.key"
"""


async def test_etcd_is_named_and_the_node_does_not_say_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    attributes = NodeAttributes("a1", "alpha", "rennes", "ovh", "FR")
    tls = make_members(tmp_path / "pki", "test", [attributes]).files("a1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
    (tmp_path / "node.toml").write_text(NODE_TOML)
    store = EtcdCoordination([endpoint], tls, "test", lambda count: bytes(count))
    try:
        watch = StoreWatch(1, MapHolder(MAP, b""), store, EtcdConfig((endpoint,), tls), ManualClock())
        await watch.look()
        await watch.look()  # says it once
        _say_ready(load_node_config(tmp_path / "node.toml"), NODE, 1, watch.trouble)
    finally:
        await store.close()
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [line["event"] for line in lines] == [
        "coordination is not served",
        "ready for objects alone, not for coordination",
    ]
    assert all(line["level"] == "error" for line in lines)
    assert all(f"etcd ({endpoint}) does not answer" in line["reason"] for line in lines)
    reply = pb.StatusReply()
    watch.tell(reply)
    assert reply.coordination.kind == pb.COORDINATION_KIND_ETCD
    assert endpoint in reply.coordination.trouble
