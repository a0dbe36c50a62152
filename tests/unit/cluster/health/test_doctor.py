"""Each thing that the doctor is to find, and that it finds nothing in a sound cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from coffre.cluster.admin.cli_errors import ExitCode
from coffre.cluster.admin.operator import find_operator_config, load_operator_config
from coffre.cluster.admin.operator_cli import doctor
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.health import Level, NodeReport, examine
from coffre.cluster.health.doctor import Finding, OwnFiles
from coffre.cluster.map import ClusterMap, Domain, MapNode, NodeState, Policy
from coffre.proto import coffre_pb2 as pb

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
GB = 10**9


def node(number: int, state: NodeState = NodeState.ACTIVE) -> MapNode:
    return MapNode(
        number, f"n{number}", f"127.0.0.1:{7000 + number}", f"s{number}", "x", "o", "FR", GB, state
    )


POLICY = Policy("1+1", 1, 1, ("FR",), Domain.NODE)
MAP = ClusterMap("00112233445566aa", 4, 16, (node(1), node(2), node(3, NodeState.REMOVED)), (POLICY,), "1+1")


def status(**changes: object) -> pb.StatusReply:
    reply = pb.StatusReply(
        epoch=4,
        version="0.1.0",
        writable=True,
        disk_bytes=10 * GB,
        free_bytes=90 * GB,
        unixtime_ms=NOW_MS,
        certificate_expires_unixtime_ms=NOW_MS + 300 * DAY_MS,
    )
    reply.MergeFrom(pb.StatusReply(**changes))  # type: ignore[arg-type]
    return reply


SOUND = NodeReport(
    status(),
    pb.RepairStatusReply(rounds=1, partitions=16, partitions_in_step=16, census_partitions=8, caught_up=True),
)


def of_first(report: NodeReport) -> list[Finding]:
    return examine(MAP, {1: report, 2: SOUND}, NOW_MS)


def repair(**changes: object) -> NodeReport:
    reply = pb.RepairStatusReply(**{"census_partitions": 8, "caught_up": True} | changes)  # type: ignore[arg-type]
    return NodeReport(status(), reply)


def test_a_sound_cluster_has_nothing() -> None:
    assert of_first(SOUND) == []


def refused(last_bytes: int) -> pb.SpaceRefusals:
    return pb.SpaceRefusals(count=2, last_unixtime_ms=NOW_MS - 5 * 60_000, last_bytes=last_bytes)


full = status()
full.writable = False
failed = status(cannot_write="its disk burns")
failed.writable = False
NEEDS = pb.RepairNeed(spare_shards=0, objects=7)


@pytest.mark.parametrize(
    ("report", "level", "text"),
    [
        (NodeReport(error="no route"), Level.ERROR, "does not answer at 127.0.0.1:7001: no route"),
        (NodeReport(full), Level.ERROR, "full"),
        (NodeReport(failed), Level.ERROR, "takes no writes: its disk burns"),
        (NodeReport(status(index_damaged=True)), Level.ERROR, "replace this node"),
        (NodeReport(status(coordination_failure="the disk of it")), Level.ERROR, "ended: the disk of it"),
        (NodeReport(status(disk_bytes=900 * GB)), Level.WARNING, "9% free"),
        (NodeReport(status(reserve_bytes=89 * GB)), Level.WARNING, "9% free, beside the reserve of 89.0 GB"),
        (
            NodeReport(status(disk_size_bytes=GB // 2)),
            Level.WARNING,
            "counts on 1.0 GB, and its disk, or quota, has 500.0 MB",
        ),
        (
            NodeReport(status(space_refusals=refused(9 * GB))),
            Level.NOTE,
            "refused 2 large shards for lack of space",
        ),
        (
            NodeReport(status(space_refusals=refused(91 * GB))),
            Level.ERROR,
            "the last, of 91.0 GB or more, 5 min ago. It does not",
        ),
        (NodeReport(status(waiting=True)), Level.ERROR, "does not serve"),
        (NodeReport(status(serves_no_tenant=True)), Level.ERROR, "serves no tenant"),
        (
            NodeReport(status(certificate_expires_unixtime_ms=NOW_MS - 2 * DAY_MS)),
            Level.ERROR,
            "expired, 2 days ago",
        ),
        (NodeReport(status(damaged=3)), Level.WARNING, "damage 3 times"),
        (NodeReport(status(epoch=5)), Level.WARNING, "epoch 5"),
        (NodeReport(status(certificate_expires_unixtime_ms=NOW_MS + 9 * DAY_MS)), Level.WARNING, "9 days"),
        (NodeReport(status(certificate_expires_unixtime_ms=NOW_MS + DAY_MS)), Level.ERROR, "1 days"),
        (NodeReport(status(), skew_ms=-5000), Level.WARNING, "-5.0 s"),
        (NodeReport(status(clock_ahead_seconds=3660), skew_ms=3.6e6), Level.ERROR, "takes no new versions"),
        (repair(queue=[NEEDS]), Level.ERROR, "7 objects at k+0"),
        (repair(queue=[pb.RepairNeed(spare_shards=-1, objects=2)]), Level.ERROR, "2 objects of which fewer"),
        (
            repair(violations=[pb.RepairParked(reason="3 in site x", objects=5)]),
            Level.WARNING,
            "5 objects against the policy: 3 in site x",
        ),
        (repair(paused=True), Level.WARNING, "paused"),
        (repair(parked=[pb.RepairParked(reason="why", objects=4)]), Level.WARNING, "4 objects for now: why"),
        (repair(rounds=1, partitions=16, partitions_in_step=9), Level.NOTE, "7 of its 16"),
        (repair(rounds=0, partitions=16, caught_up=False), Level.NOTE, "has not yet compared all"),
        (repair(rounds=3, caught_up=False), Level.NOTE, "has not yet compared all"),
    ],
)
def test_each_finding(report: NodeReport, level: Level, text: str) -> None:
    (finding,) = of_first(report)
    assert (finding.level, finding.subject) == (level, "n1")
    assert text in finding.text


def seen(
    number: int, condition: pb.PeerCondition.ValueType, seconds: float = 200, lost: bool = False
) -> pb.SeenPeer:
    return pb.SeenPeer(node_number=number, condition=condition, seconds=seconds, lost=lost)


FIVE = ClusterMap("00112233445566aa", 4, 16, tuple(map(node, range(1, 6))), (POLICY,), "1+1")


def of_five(peers: dict[int, list[pb.SeenPeer]], silent: int = 0) -> list[Finding]:
    reports = {
        number: NodeReport(status(peers_watched=4, peers=peers.get(number, [])), SOUND.repair)
        for number in range(1, 6)
    }
    if silent:
        reports[silent] = NodeReport(error="no route")
    return examine(FIVE, reports, NOW_MS)


def test_what_most_say_of_a_node_is_a_warning_about_it() -> None:
    accused = [seen(3, pb.PEER_CONDITION_FLAPPING)]
    assert of_five({1: accused, 2: accused, 4: [seen(3, pb.PEER_CONDITION_SLOW, 10)]}) == [
        Finding(Level.WARNING, "n3", "is flapping, say 3 of 4 nodes, for 3 min")
    ]


def test_one_witness_brands_nobody() -> None:
    accusations = [seen(number, pb.PEER_CONDITION_SLOW) for number in (1, 2, 4)]
    found = of_five({3: [*accusations, seen(3, pb.PEER_CONDITION_DOWN)]})
    assert {finding.level for finding in found} == {Level.NOTE}
    assert [finding.text for finding in found if finding.subject == "n3"] == [
        "says that 3 nodes are not well which most others see well: look at its network"
    ]


def test_an_outage_is_waited_for_and_then_called_lost() -> None:
    for lost in (False, True):
        accused = [seen(3, pb.PEER_CONDITION_DOWN, 3000, lost)]
        (finding,) = of_five({1: accused, 2: accused, 4: accused, 5: accused}, silent=3)
        assert finding.level is Level.ERROR
        assert "down, say 4 of 4 nodes, for 50 min" in finding.text
        assert ("cluster replace" in finding.text) is lost


def test_releases_that_differ() -> None:
    (finding,) = of_first(NodeReport(status(version="0.2.0")))
    assert (finding.level, finding.subject) == (Level.NOTE, "cluster")


def test_what_matters_most_comes_first() -> None:
    worse = repair(queue=[NEEDS], paused=True, rounds=1, partitions=3)
    assert [finding.level for finding in of_first(worse)] == [Level.ERROR, Level.WARNING, Level.NOTE]


def shows(**days: int) -> NodeReport:
    """A node that tenants have shown certificates to, which end in so many days."""
    met = [
        pb.SeenTenant(name=n, certificate_expires_unixtime_ms=NOW_MS + d * DAY_MS) for n, d in days.items()
    ]
    return NodeReport(status(tenants=met), SOUND.repair)


@pytest.mark.parametrize(
    ("first", "second", "files", "found"),
    [
        (shows(clinic=400), shows(clinic=400), {"clinic": 400, "lab": 300}, []),
        (
            shows(clinic=9),
            shows(clinic=400),
            {},
            [(Level.WARNING, "tenant clinic", "in 9 days: renew it where")],
        ),
        (SOUND, shows(clinic=2), {"clinic": 2}, [(Level.ERROR, "tenant clinic", "in 2 days")]),
        (SOUND, shows(clinic=2), {"clinic": 400}, [(Level.ERROR, "tenant clinic", "a newer one was signed")]),
        (
            SOUND,
            SOUND,
            {"lab": -5},
            [(Level.ERROR, "tenant lab", "expired, 5 days ago: renew it; or take")],
        ),
    ],
)
def test_every_tenants_certificate_that_can_be_seen(
    first: NodeReport, second: NodeReport, files: dict[str, int], found: list[tuple[Level, str, str]]
) -> None:
    ends = {name: NOW_MS + days * DAY_MS for name, days in files.items()}
    own = OwnFiles("alice", NOW_MS + 400 * DAY_MS, NOW_MS + 3000 * DAY_MS, ends)
    findings = examine(MAP, {1: first, 2: second}, NOW_MS, own)
    assert [(f.level, f.subject) for f in findings] == [(level, subject) for level, subject, _ in found]
    assert all(text in f.text for f, (_, _, text) in zip(findings, found, strict=True))


@pytest.mark.parametrize(
    ("own_days", "authority_days", "level", "subject", "text"),
    [
        (20, 3000, Level.WARNING, "operator alice", "the certificate that you use runs out in 20 days"),
        (1, 3000, Level.ERROR, "operator alice", "pki request operator"),
        (400, 100, Level.WARNING, "authority", "runs out in 100 days, and with it every certificate"),
        (400, 20, Level.ERROR, "authority", "runs out in 20 days"),
    ],
)
def test_the_operators_own_certificate_and_the_authoritys(
    own_days: int, authority_days: int, level: Level, subject: str, text: str
) -> None:
    own = OwnFiles("alice", NOW_MS + own_days * DAY_MS, NOW_MS + authority_days * DAY_MS, {})
    (finding,) = examine(MAP, {1: SOUND, 2: SOUND}, NOW_MS, own)
    assert (finding.level, finding.subject) == (level, subject)
    assert text in finding.text


@pytest.mark.parametrize("text", ["map = 1", "nonsense", 'map = "m"', 'color = "red"'])
def test_a_wrong_operator_toml_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"operator\.toml"):
        load_operator_config(path)


def test_no_operator_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COFFRE_OPERATOR_CONFIG", raising=False)
    with pytest.raises(ConfigurationError, match="operations"):
        find_operator_config(None)
    monkeypatch.setenv("COFFRE_OPERATOR_CONFIG", "elsewhere.toml")
    assert find_operator_config(None) == Path("elsewhere.toml")
    result = CliRunner().invoke(doctor, [])
    assert result.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "report",
    [
        NodeReport(error="no route"),
        NodeReport(full),
        NodeReport(failed),
        NodeReport(status(disk_bytes=900 * GB)),
        NodeReport(status(space_refusals=refused(91 * GB))),
        NodeReport(status(index_damaged=True)),
        NodeReport(status(coordination_failure="the disk of it")),
    ],
)
def test_what_has_a_run_book_names_it(report: NodeReport) -> None:
    page = (Path(__file__).parents[4] / "docs/operations.md").read_text("utf-8")
    (finding,) = of_first(report)
    named = re.search(r'\(docs/operations\.md, "([^"]+)"\)$', finding.text)
    assert named is not None, finding.text
    assert f"\n### {named[1]}\n" in page
