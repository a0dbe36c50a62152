"""What `coffre cluster status` shows of a node that answers, and does not take writes."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from coffre.cluster.admin.membership_report import Plan, node_table, plan_lines, reports_as_dicts
from coffre.cluster.health import Health, SurveyedNode
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.membership import movement_between, set_capacity
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


def test_where_every_node_holds_a_shard_of_everything_a_smaller_share_moves_nothing() -> None:
    entries = tuple(replace(NODE, number=i, node_id=f"a{i}", address=f"127.0.0.1:{i}") for i in (1, 2))
    pair = replace(MAP, nodes=entries)
    proposed = set_capacity(pair, "a1", 1 << 30)
    plan = Plan(pair, proposed, movement_between(pair, proposed), None)
    assert plan_lines(plan)[-1] == "nothing moves"
