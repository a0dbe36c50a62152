"""How plans, moves and nodes are shown: tables for people, plain dicts for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffre.cluster.admin.leaving import may_be_removed
from coffre.cluster.health import Health, SurveyedNode, Testimony, testimonies
from coffre.cluster.map import ClusterMap, MapNode, NodeState
from coffre.cluster.membership import Movement, MoveProgress
from rich.table import Table

__all__ = [
    "Plan",
    "movement_table",
    "node_table",
    "plan_as_dict",
    "plan_lines",
    "progress_as_dict",
    "progress_line",
    "reports_as_dicts",
    "text_of_bytes",
    "text_of_seconds",
]

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_CLOCK_WARNING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command would do: the map now and then, and what moves between them."""

    current: ClusterMap
    proposed: ClusterMap
    movement: Movement
    bytes_per_shard: float | None

    @property
    def is_nothing(self) -> bool:
        """Whether the wish is true already."""
        return self.proposed is self.current

    @property
    def moved_bytes(self) -> int | None:
        """How many bytes will move, estimated from what the nodes hold; None when no node said."""
        return None if self.bytes_per_shard is None else round(self.bytes_per_shard * self.movement.moved)


def text_of_bytes(count: float) -> str:
    """Such as 1.5 TB."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def text_of_seconds(seconds: float | None) -> str:
    """Such as 2 h 05 min; 'unknown' for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# ------------------------------------------------------------------ plans


def plan_lines(plan: Plan) -> list[str]:
    """What changes, and how much moves."""
    current, proposed, movement = plan.current, plan.proposed, plan.movement
    lines = [f"map epoch {current.epoch} -> {proposed.epoch}", *_changes(current, proposed)]
    if not proposed.prior or proposed.prior == current.prior:
        return [*lines, "nothing moves"]
    shards = sum(course.shards for course in movement.courses)
    size = "of unknown size" if plan.moved_bytes is None else f"about {text_of_bytes(plan.moved_bytes)}"
    lines.append(
        f"moves {movement.moved} of {shards} shards of partitions ({movement.moved / shards:.1%}; at least "
        f"{movement.minimum} have to move), {size}"
        if movement.moved
        else "nothing moves"
    )
    lines += [
        f"{course.buckets} bucket(s) go from {course.before} to {course.after}; what was written keeps its coding"
        for course in movement.courses
        if course.before != course.after
    ]
    if current.prior:
        lines.append(
            f"{len(current.prior)} earlier change(s) are still being carried out; this one joins them"
        )
    return lines


def _changes(current: ClusterMap, proposed: ClusterMap) -> list[str]:
    before = {node.number: node for node in current.nodes}
    lines = [
        _node_change(before.get(node.number), node)
        for node in proposed.nodes
        if before.get(node.number) != node
    ]
    if current.coordinators != proposed.coordinators:
        lines.append(f"coordinators: {_coordinators(current)} -> {_coordinators(proposed)}")
    known = {policy.name for policy in current.policies}
    lines += [f"new policy {policy.name}" for policy in proposed.policies if policy.name not in known]
    places = {(one.tenant, one.bucket) for one in (*current.bucket_policies, *proposed.bucket_policies)}
    for place in sorted(places):
        old, new = current.policy_of(*place).name, proposed.policy_of(*place).name
        if old != new:
            lines.append(f"bucket {'/'.join(place)}: policy {old} -> {new}")
    return lines


def _coordinators(cluster_map: ClusterMap) -> str:
    return ", ".join(cluster_map.node(number).node_id for number in cluster_map.coordinators) or "none"


def _node_change(before: MapNode | None, node: MapNode) -> str:
    if before is None:
        where = f"{node.server}, {node.site}, {node.operator}, {node.jurisdiction}"
        return (
            f"node {node.node_id} joins at {node.address} ({where}) with {text_of_bytes(node.capacity_bytes)}"
        )
    parts = []
    if before.state != node.state:
        parts.append(f"{before.state.name.lower()} -> {node.state.name.lower()}")
    if before.capacity_bytes != node.capacity_bytes:
        old, new = text_of_bytes(before.capacity_bytes), text_of_bytes(node.capacity_bytes)
        parts.append(f"capacity {old} -> {new}")
    return f"node {node.node_id}: {', '.join(parts)}"


def movement_table(plan: Plan) -> Table:
    """Shards of partitions that come to and leave each node."""
    held = plan.movement.total(lambda course: course.held)
    incoming = plan.movement.total(lambda course: course.incoming)
    outgoing = plan.movement.total(lambda course: course.outgoing)
    table = Table("node", "shards now", "in", "out", "bytes in", "bytes out")
    for node in plan.proposed.nodes:
        come, go = incoming[node.number], outgoing[node.number]
        if come or go:
            sizes = [_estimate(plan, come), _estimate(plan, go)]
            table.add_row(node.node_id, str(held[node.number]), str(come), str(go), *sizes)
    return table


def _estimate(plan: Plan, shards: int) -> str:
    return "?" if plan.bytes_per_shard is None else text_of_bytes(plan.bytes_per_shard * shards)


def plan_as_dict(plan: Plan) -> dict[str, object]:
    """A plan for machines: `--json` of the commands that change the map. Bytes are bytes, not rounded."""
    incoming = plan.movement.total(lambda course: course.incoming)
    outgoing = plan.movement.total(lambda course: course.outgoing)
    names = {node.number: node.node_id for node in plan.proposed.nodes}
    return {
        "epoch": plan.current.epoch,
        "next_epoch": plan.proposed.epoch,
        "changes": _changes(plan.current, plan.proposed),
        "shards": sum(course.shards for course in plan.movement.courses),
        "shards_moved": plan.movement.moved,
        "shards_moved_min": plan.movement.minimum,
        "bytes_moved": plan.moved_bytes,
        "nodes": [
            {"node_id": names[number], "shards_in": incoming[number], "shards_out": outgoing[number]}
            for number in sorted(incoming.keys() | outgoing.keys())
        ],
    }


# ------------------------------------------------------------------ progress and nodes


def progress_line(progress: MoveProgress) -> str:
    """One line on how far a move has come, for people who wait."""
    share = progress.done / progress.total if progress.total else 1.0
    silent = f"; {len(progress.silent)} node(s) do not say" if progress.silent else ""
    return (
        f"epoch {progress.epoch}: {progress.done} of {progress.total} partitions moved ({share:.1%}), "
        f"{text_of_seconds(progress.seconds_left)} left{silent}"
    )


def progress_as_dict(progress: MoveProgress) -> dict[str, object]:
    """The same for machines: counts of partitions, seconds, and the nodes that do not say."""
    return {
        "epoch": progress.epoch,
        "partitions_moved": progress.done,
        "partitions_to_move": progress.total,
        "seconds_left": progress.seconds_left,
        "silent_nodes": list(progress.silent),
    }


def node_table(current: ClusterMap, reports: Sequence[SurveyedNode], progress: MoveProgress | None) -> Table:
    """One row for each node that was not removed."""
    moving = ("moved",) if progress is not None else ()
    leaving = any(report.node.state is NodeState.DRAINING for report in reports)
    table = Table(
        "node",
        "state",
        "health",
        "say the others",
        "version",
        "epoch",
        "used",
        "capacity",
        "shards",
        "clock",
        *moving,
        *(("may be removed",) if leaving else ()),
    )
    said = _testimonies(reports)
    for report in reports:
        node, status = report.node, report.status
        moved = []
        if progress is not None:
            done, expected = progress.by_node.get(node.number, (0, 0))
            moved = [f"{done}/{expected}" if expected else "-"]
        capacity = text_of_bytes(node.capacity_bytes)
        if status is None:
            cells = ["?", "?", "?", capacity, "?", "?"]
        else:
            used = f"{text_of_bytes(status.live_bytes)} ({status.live_bytes / node.capacity_bytes:.0%})"
            cells = [status.version, str(status.epoch), used, capacity, str(status.shards), _clock(report)]
        health = _health(report)
        testimony = said.get(node.number)
        others = "-" if testimony is None else testimony.text + (" !" if testimony.is_shared else "")
        removable = [may_be_removed(current, report)] if leaving else []
        table.add_row(node.node_id, node.state.name.lower(), health, others, *cells, *moved, *removable)
    return table


def _health(report: SurveyedNode) -> str:
    """How it answers; and of one that does, whether it takes writes."""
    status = report.status
    if status is not None and (status.cannot_write or status.index_damaged):
        return "disk failed !" if status.cannot_write else "index damaged !"
    if status is not None and not status.writable:
        return "disk full !"
    return report.health.value + ("" if report.health is Health.UP else " !")


def _testimonies(reports: Sequence[SurveyedNode]) -> dict[int, Testimony]:
    return testimonies({report.node.number: report.status for report in reports if report.status is not None})


def _clock(report: SurveyedNode) -> str:
    ahead = report.clock_ahead_seconds
    if ahead is None:
        return "?"
    return f"{ahead:+.1f} s" + (" !" if abs(ahead) > _CLOCK_WARNING_SECONDS else "")


def reports_as_dicts(current: ClusterMap, reports: Sequence[SurveyedNode]) -> list[dict[str, object]]:
    """What each node says of itself, for machines: one dict a node, in the order of `reports`."""
    rows: list[dict[str, object]] = []
    said = _testimonies(reports)
    for report in reports:
        node, status = report.node, report.status
        row: dict[str, object] = {
            "number": node.number,
            "node_id": node.node_id,
            "state": node.state.name.lower(),
            "health": report.health.value,
            "latency_seconds": report.latency_seconds,
            "clock_ahead_seconds": report.clock_ahead_seconds,
            "capacity_bytes": node.capacity_bytes,
            "error": report.error,
            "may_be_removed": may_be_removed(current, report) == "yes",
        }
        if status is not None:
            row |= {
                "version": status.version,
                "epoch": status.epoch,
                "live_bytes": status.live_bytes,
                "disk_bytes": status.disk_bytes,
                "free_bytes": status.free_bytes,
                "shards": status.shards,
                "writable": status.writable,
                "cannot_write": status.cannot_write,
                "index_damaged": status.index_damaged,
                "coordination_failure": status.coordination_failure,
            }
        if (testimony := said.get(node.number)) is not None:
            row["say_the_others"] = {
                "condition": testimony.condition,
                "witnesses": list(testimony.witnesses),
                "asked": testimony.asked,
                "seconds": testimony.seconds,
                "lost": testimony.lost,
            }
        rows.append(row)
    return rows
