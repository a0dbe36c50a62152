"""Whether coordinators serve one store, and what doctor says when they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coffre.cluster.health import Level, NodeReport, examine, rival_stores
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.proto import coffre_pb2 as pb

NODES = tuple(MapNode(i, f"n{i}", f"127.0.0.1:{7000 + i}", f"s{i}", "x", "o", "FR", 10**9) for i in (1, 2, 3))
MAP = ClusterMap(
    "00112233445566aa", 4, 16, NODES, (Policy("1+1", 1, 1, ("FR",), Domain.NODE),), "1+1", (1, 2)
)
ALONE = replace(MAP, coordinators=(1,))


def served(kind: pb.CoordinationKind.ValueType, etcd: int = 0, trouble: str = "") -> pb.StatusReply:
    coordination = pb.ServedCoordination(kind=kind, etcd_cluster=etcd, trouble=trouble)
    return pb.StatusReply(epoch=4, writable=True, coordination=coordination)


NONE = served(pb.COORDINATION_KIND_NONE)
OWN = served(pb.COORDINATION_KIND_EMBEDDED)
ETCD, OTHER_ETCD = served(pb.COORDINATION_KIND_ETCD, 7), served(pb.COORDINATION_KIND_ETCD, 8)


@pytest.mark.parametrize(
    ("cluster_map", "statuses", "text"),
    [
        (MAP, {1: ETCD, 2: ETCD}, ""),
        (MAP, {1: ETCD}, ""),
        (MAP, {}, ""),
        (MAP, {1: ETCD, 2: served(pb.COORDINATION_KIND_ETCD)}, ""),  # it has not found out yet
        (MAP, {1: ETCD, 2: ETCD, 3: OWN}, ""),  # nobody uses that one
        (ALONE, {1: OWN, 2: OWN}, ""),
        (MAP, {1: OWN, 2: OWN}, "n1, n2 each have a coordination store of their own"),
        (MAP, {2: OWN}, "n2 has a coordination store of its own"),
        (MAP, {1: ETCD, 2: OWN}, "set-coordinators n2"),
        (MAP, {1: ETCD, 2: OTHER_ETCD}, "two etcds: that of n1 and that of n2"),
    ],
)
def test_which_stores_are_rivals(
    cluster_map: ClusterMap, statuses: dict[int, pb.StatusReply], text: str
) -> None:
    found = rival_stores(cluster_map, statuses)
    assert text in found
    assert bool(found) is bool(text)


@pytest.mark.parametrize(
    ("cluster_map", "statuses", "found"),
    [
        (MAP, {1: ETCD, 2: ETCD}, []),
        (replace(MAP, coordinators=()), {1: NONE}, []),
        (MAP, {1: OWN, 2: OWN}, [(Level.ERROR, "coordination", "never hear of")]),
        (MAP, {1: ETCD, 2: NONE}, [(Level.WARNING, "n2", "no [coordination]")]),
        (
            ALONE,
            {1: NONE},
            [(Level.ERROR, "n1", "no [coordination]"), (Level.ERROR, "coordination", "nobody serves")],
        ),
        (
            ALONE,
            {1: served(pb.COORDINATION_KIND_ETCD, 0, "etcd (10.0.1.1:2379) does not answer")},
            [(Level.ERROR, "n1", "etcd (10.0.1.1:2379)"), (Level.ERROR, "coordination", "nobody serves")],
        ),
        (ALONE, {2: NONE, 3: NONE}, [(Level.ERROR, "coordination", "the map names n1")]),
    ],
)
def test_what_doctor_says(
    cluster_map: ClusterMap, statuses: dict[int, pb.StatusReply], found: list[tuple[Level, str, str]]
) -> None:
    reports = {number: NodeReport(status) for number, status in statuses.items()}
    findings = [f for f in examine(cluster_map, reports, 0) if ": it was not asked" not in f.text]
    assert [(f.level, f.subject) for f in findings] == [(level, subject) for level, subject, _ in found]
    assert all(text in f.text for f, (_, _, text) in zip(findings, found, strict=True))
