"""What `drain`, `remove --wait` and `status` say of a node that leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.cluster.admin import leaving, membership_cli
from coffre.cluster.admin.access import Access
from coffre.cluster.admin.cli import cluster as commands
from coffre.cluster.admin.leaving import await_empty, holding_line
from coffre.cluster.admin.operator import OperatorConfig
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import PolicyViolation, Unavailable
from coffre.cluster.identity import Identity, Role, TlsFiles
from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.membership import MapPublisher, RepairReports
from coffre.cluster.transport import LoopbackTransport
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.proto import coffre_pb2 as pb


class _Publisher(MapPublisher):
    """A map that a test changes."""

    def __init__(self, current: ClusterMap) -> None:
        self.map = current
        self.fails = 0

    async def current(self) -> ClusterMap:
        if self.fails:
            self.fails -= 1
            raise Unavailable("coordination does not answer")
        return self.map

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        raise AssertionError("nothing is published here")


class _Transport(LoopbackTransport):
    """Nodes that say how many shards they hold, the first number of a list until one is left."""

    def __init__(self, cluster: InProcessCluster) -> None:
        super().__init__(Identity(cluster.cluster_map.cluster_id, Role.OPERATOR, "alice"), cluster.handlers)
        self.held: dict[int, list[int | None]] = {}

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        reply = await super().status(node, timeout)
        if node in self.held:
            left = self.held[node]
            held = left.pop(0) if len(left) > 1 else left[0]
            if held is None:
                raise Unavailable("it does not answer")
            reply.shards = held
        return reply


class _Clock(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def draining(state: NodeState = NodeState.DRAINING) -> tuple[Access, _Publisher, _Transport]:
    """A cluster in this process whose fourth node leaves."""
    cluster = in_process_cluster(2, 1, nodes=4)
    nodes = cluster.cluster_map.nodes
    current = replace(cluster.cluster_map, nodes=(*nodes[:3], replace(nodes[3], state=state)))
    publisher, transport = _Publisher(current), _Transport(cluster)
    config = OperatorConfig(current, TlsFiles(Path(), Path(), Path()), Path("cluster.map"))
    access = Access(config, _Clock(), transport, publisher, RepairReports(transport), True)  # type: ignore[arg-type]
    return access, publisher, transport


async def test_a_node_is_waited_for_until_it_holds_nothing() -> None:
    access, publisher, transport = draining()
    transport.held[4] = [12, 12, 12, 12, 12, 12, 3, 3, 3, None, 3, 3, 3, 0]
    publisher.fails = 1
    said: list[str] = []
    await await_empty(access, "n4", said.append)
    assert said == [
        "coordination does not answer",
        "n4 still holds 12 shards for others, and hands them over in time",
        "n4 still holds 3 shards for others, and hands them over in time",
        "n4 does not answer",
        "n4 still holds 3 shards for others, and hands them over in time",
    ]
    assert transport.held[4] == [0]


async def test_a_node_in_use_is_not_waited_for() -> None:
    access, publisher, transport = draining(NodeState.ACTIVE)
    with pytest.raises(PolicyViolation, match="in use"):
        await await_empty(access, "n4", lambda line: None)
    access, publisher, transport = draining()
    transport.held[4] = [1]

    def taken_back(line: str) -> None:
        nodes = publisher.map.nodes
        publisher.map = replace(publisher.map, nodes=(*nodes[:3], replace(nodes[3], state=NodeState.ACTIVE)))

    with pytest.raises(PolicyViolation, match="in use"):
        await await_empty(access, "n4", taken_back)


async def test_a_node_that_was_removed_holds_nothing() -> None:
    access, _, _ = draining(NodeState.REMOVED)
    assert await holding_line(access, "n4") == ""
    await await_empty(access, "n4", lambda line: pytest.fail(line))
    access, _, transport = draining()
    transport.held[4] = [0]
    assert await holding_line(access, "n4") == ""


def run(monkeypatch: pytest.MonkeyPatch, access: Access, *arguments: str) -> Result:
    @asynccontextmanager
    async def opened(config: Path | None, *, coordination_lost: bool = False) -> AsyncIterator[Access]:
        yield access

    monkeypatch.setattr(membership_cli, "open_access", opened)
    return CliRunner().invoke(commands, list(arguments))


@pytest.mark.parametrize(("held", "shown"), [(12, "no, holds 12"), (0, "yes"), (None, "?")])
def test_status_says_whether_a_node_may_be_removed(
    monkeypatch: pytest.MonkeyPatch, held: int | None, shown: str
) -> None:
    access, _, transport = draining()
    transport.held[4] = [held]
    said = run(monkeypatch, access, "status")
    assert said.exit_code == 0, said.output
    [line] = [line for line in said.stdout.splitlines() if "n4" in line and "draining" in line]
    assert "may be removed" in said.stdout
    assert line.rstrip(" │").endswith(shown)
    machine = json.loads(run(monkeypatch, access, "status", "--json").stdout)
    assert [node["may_be_removed"] for node in machine["nodes"]] == [False, False, False, held == 0]


def test_status_of_a_cluster_that_nobody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    access, _, _ = draining(NodeState.ACTIVE)
    assert "may be removed" not in run(monkeypatch, access, "status").stdout


def test_remove_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "POLL_SECONDS", 0.0)
    access, _, transport = draining()
    transport.held[4] = [2, 2, 2, 0]
    said = run(monkeypatch, access, "remove", "n4", "--wait", "--yes")
    assert "n4 still holds 2 shards for others" in said.stderr
    assert "node n4: draining -> removed" in said.stdout
    transport.held[4] = [2]
    early = run(monkeypatch, access, "remove", "n4", "--yes")
    assert early.exit_code == 1
    assert "--wait" in early.stderr
    assert run(monkeypatch, access, "remove", "n4", "--wait", "--lost", "--yes").exit_code == 2
    assert run(monkeypatch, access, "drain", "n4", "--wait", "--no-wait", "--yes").exit_code == 2


def test_a_drain_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    access, _, transport = draining()
    transport.held[4] = [7]
    said = run(monkeypatch, access, "drain", "n4", "--yes")  # it is drained already
    assert said.exit_code == 0, said.output
    assert "n4 still holds 7 shards for others" in said.stderr
    assert "coffre cluster remove n4 --wait" in said.stderr
    transport.held[4] = [7, 7, 7, 7, 7, 7, 0]
    waited = run(monkeypatch, access, "drain", "n4", "--yes", "--wait")
    assert waited.exit_code == 0, waited.output
    assert "n4 holds nothing any more" in waited.stdout
