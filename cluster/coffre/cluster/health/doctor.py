"""What is wrong with a cluster, or soon will be, from what its nodes say of themselves. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coffre.cluster.health.certificates import of_authority, of_end, of_tenants
from coffre.cluster.health.findings import Finding, Level, see_run_book
from coffre.cluster.health.space import of_space
from coffre.cluster.health.stores import of_coordination
from coffre.cluster.health.witnesses import Testimony, lonely_accusers, testimonies
from coffre.cluster.map import ClusterMap, NodeState
from coffre.proto import coffre_pb2 as pb

__all__ = ["Finding", "Level", "NodeReport", "OwnFiles", "examine"]

CLOCK_SKEW_MS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node said. `skew_ms`: its clock less the asker's, half a round trip taken off. `error`: why it said
    nothing."""

    status: pb.StatusReply | None = None
    repair: pb.RepairStatusReply | None = None
    skew_ms: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """What lies where the operator's own certificate does: when the certificates end, in Unix ms."""

    operator: str
    certificate_expires_ms: int
    authority_expires_ms: int
    tenants: Mapping[str, int]  # by name: of each the one that ends last


def examine(
    cluster_map: ClusterMap, reports: Mapping[int, NodeReport], now_ms: int, own: OwnFiles | None = None
) -> list[Finding]:
    """Findings, what matters most first."""
    findings: list[Finding] = []
    statuses = {n: report.status for n, report in reports.items() if report.status is not None}
    said = testimonies(statuses)
    for node in cluster_map.nodes:
        if node.state is NodeState.REMOVED:
            continue
        report = reports.get(node.number, NodeReport(error="it was not asked"))
        testimony = said.get(node.number)
        if report.status is None:
            text = f"does not answer at {node.address}: {report.error}{_of_outage(testimony)}"
            text += see_run_book("A node dies")
            findings.append(Finding(Level.ERROR, node.node_id, text))
            continue
        if testimony is not None:
            level = Level.WARNING if testimony.is_shared else Level.NOTE
            findings.append(Finding(level, node.node_id, f"is {testimony.text}"))
        findings += _of_status(node.node_id, report.status, cluster_map.epoch, now_ms)
        findings += of_space(node, report.status)
        ahead_seconds = report.status.clock_ahead_seconds
        if ahead_seconds:
            text = (
                f"its clock is {ahead_seconds:+.0f} s off most other nodes': it takes no new versions, and decides "
                "nothing by age, until it is set (NTP)"
            )
            findings.append(Finding(Level.ERROR, node.node_id, text))
        elif abs(report.skew_ms) > CLOCK_SKEW_MS_MAX:
            text = f"its clock is {report.skew_ms / 1000:+.1f} s off this machine's: set the clocks (NTP)"
            findings.append(Finding(Level.WARNING, node.node_id, text))
        if report.repair is not None:
            findings += _of_repair(node.node_id, report.repair)
    findings += [
        Finding(
            Level.NOTE,
            cluster_map.node(number).node_id,
            f"says that {count} nodes are not well which most others see well: look at its network",
        )
        for number, count in sorted(lonely_accusers(said).items())
    ]
    findings += of_coordination(cluster_map, statuses)
    findings += of_tenants(statuses, own.tenants if own is not None else {}, now_ms)
    if own is not None:
        remedy = "make a new key and request (coffre pki request operator NAME --renew)"
        mine = f"operator {own.operator}"
        findings += of_end(mine, "the certificate that you use", own.certificate_expires_ms, now_ms, remedy)
        findings += of_authority(own.authority_expires_ms, now_ms)
    findings += _of_census(cluster_map, reports)
    findings += _of_all(reports)
    return sorted(findings, key=lambda finding: -finding.level)


def _of_outage(testimony: Testimony | None) -> str:
    if testimony is None:
        return ""
    text = f"; {testimony.text}"
    if testimony.lost:
        text += (
            ": longer than an outage is waited for. Start it, or give its place to another (cluster replace)"
        )
    return text


def _of_status(node: str, status: pb.StatusReply, epoch: int, now_ms: int) -> list[Finding]:
    findings: list[Finding] = []
    if status.epoch != epoch:
        text = f"is at map epoch {status.epoch}, this operator's map at {epoch}"
        findings.append(Finding(Level.WARNING, node, text))
    if status.index_damaged:
        text = f"its index is damaged: replace this node{see_run_book('A disk fails')}"
        findings.append(Finding(Level.ERROR, node, text))
    if status.coordination_failure:
        text = (
            f"serves coordination that has ended: {status.coordination_failure}{see_run_book('A disk fails')}"
        )
        findings.append(Finding(Level.ERROR, node, text))
    if status.cannot_write:
        text = f"takes no writes: {status.cannot_write}{see_run_book('A disk fails')}"
        findings.append(Finding(Level.ERROR, node, text))
    if status.waiting:
        text = (
            "runs and does not serve: it waits for other nodes to say what they have seen of it. Start them"
        )
        findings.append(Finding(Level.ERROR, node, text))
    if status.serves_no_tenant:
        text = (
            "serves no tenant: it lost its record of who is suspended, and coordination has not told it yet"
        )
        findings.append(Finding(Level.ERROR, node, text))
    if status.damaged:
        text = f"has met damage {status.damaged} times since it started: look at its disk"
        findings.append(Finding(Level.WARNING, node, text))
    if expires_ms := status.certificate_expires_unixtime_ms:
        findings += of_end(
            node, "its certificate", expires_ms, now_ms, "renew it (coffre pki request node NAME --renew)"
        )
    return findings


def _of_repair(node: str, repair: pb.RepairStatusReply) -> list[Finding]:
    findings: list[Finding] = []
    lost = sum(need.objects for need in repair.queue if need.spare_shards < 0)
    bare = sum(need.objects for need in repair.queue if need.spare_shards == 0)
    if lost:
        text = f"lacks its shard of {lost} objects of which fewer than k good shards answer"
        findings.append(Finding(Level.ERROR, node, text))
    if bare:
        text = f"lacks its shard of {bare} objects at k+0: one more loss and they cannot be read"
        findings.append(Finding(Level.ERROR, node, text))
    if repair.paused:
        findings.append(Finding(Level.WARNING, node, "its repair is paused"))
    for parked in repair.parked:
        text = f"cannot repair {parked.objects} objects for now: {parked.reason}"
        findings.append(Finding(Level.WARNING, node, text))
    for violation in repair.violations:
        text = f"holds shards of {violation.objects} objects against the policy: {violation.reason}"
        findings.append(Finding(Level.WARNING, node, text))
    behind = repair.partitions - repair.partitions_in_step
    if behind and repair.rounds:
        text = f"{behind} of its {repair.partitions} partitions differ"
        findings.append(Finding(Level.NOTE, node, text))
    elif not repair.caught_up:  # rounds leave out what is young, so what was just missed is not known yet
        text = "has not yet compared all that was written before it, or another node, was back"
        findings.append(Finding(Level.NOTE, node, text))
    return findings


def _of_census(cluster_map: ClusterMap, reports: Mapping[int, NodeReport]) -> list[Finding]:
    """Each partition is counted by one node, the first of its primaries that answered."""
    counts: Counter[int] = Counter()
    repairs = [report.repair for report in reports.values() if report.repair is not None]
    for repair in repairs:
        counts.update({need.spare_shards: need.objects for need in repair.census})
    findings: list[Finding] = []
    if lost := sum(count for spare, count in counts.items() if spare < 0):
        text = f"of {lost} versions fewer than k shards answer: they cannot be read for now"
        findings.append(Finding(Level.ERROR, "cluster", text))
    if bare := counts[0]:
        text = f"{bare} versions are at k+0: one more loss and they cannot be read"
        findings.append(Finding(Level.ERROR, "cluster", text))
    counted = sum(repair.census_partitions for repair in repairs)
    if len(repairs) == len(reports) and counted < cluster_map.partitions:
        text = (
            f"{cluster_map.partitions - counted} of {cluster_map.partitions} partitions are not counted now"
        )
        findings.append(Finding(Level.NOTE, "cluster", text))
    return findings


def _of_all(reports: Mapping[int, NodeReport]) -> list[Finding]:
    versions = Counter(report.status.version for report in reports.values() if report.status is not None)
    if len(versions) > 1:
        text = "nodes run different releases: " + ", ".join(f"{v} ({n})" for v, n in versions.items())
        return [Finding(Level.NOTE, "cluster", text)]
    return []
