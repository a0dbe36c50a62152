"""What `coffre cluster status` shows of a node that answers, and does not take writes."""

from __future__ import annotations

import io

import pytest
from coffre.cluster.admin.membership_report import node_table, reports_as_dicts
from coffre.cluster.health import Health, SurveyedNode
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.proto import coffre_pb2 as pb
from rich.console import Console

NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)

MAP = ClusterMap("test", 5, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")


def shown(status: pb.StatusReply) -> tuple[str, dict[str, object]]:
    report = SurveyedNode(NODE, Health.UP, status, "", 0.001, 0.0)
    out = io.StringIO()
    Console(file=out, width=200).print(node_table(MAP, [report], None))
    return out.getvalue(), reports_as_dicts(MAP, [report])[0]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (pb.StatusReply(writable=True), "up"),
        (pb.StatusReply(writable=False), "disk full !"),
        (pb.StatusReply(writable=False, cannot_write="its disk failed"), "disk failed !"),
        (pb.StatusReply(writable=True, index_damaged=True), "index damaged !"),
    ],
)
def test_a_node_that_takes_no_writes_is_not_simply_up(status: pb.StatusReply, text: str) -> None:
    table, row = shown(status)
    assert text in table
    assert (row["writable"], row["cannot_write"]) == (status.writable, status.cannot_write)
    assert row["index_damaged"] is status.index_damaged
