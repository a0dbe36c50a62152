"""What nodes have room for. Pure functions."""

from __future__ import annotations

from coffre.cluster.health.findings import Finding, Level, see_run_book
from coffre.cluster.map import MapNode
from coffre.proto import coffre_pb2 as pb

__all__ = ["of_space"]

DISK_FREE_MIN = 0.15
_RUN_BOOK = see_run_book("A disk fills")
CAPACITY_EXCESS_MAX = (
    1.05  # of the map's capacity over the disk's size: what file systems keep for themselves
)


def of_space(node: MapNode, status: pb.StatusReply) -> list[Finding]:
    """A disk that is full, fills, has refused something, or is smaller than the map says.

    The reserve is not free: only deletes may use it.
    """
    findings = [*_of_size(node, status), *_of_refusals(node.node_id, status)]
    room = max(status.free_bytes - status.reserve_bytes, 0)
    whole = status.disk_bytes + room
    if not status.writable and status.cannot_write:
        return findings  # that it is full is not what matters
    if not status.writable:
        text = f"its disk is full: it takes deletes alone{_RUN_BOOK}"
        findings.append(Finding(Level.ERROR, node.node_id, text))
    elif whole and room < whole * DISK_FREE_MIN:
        text = f"its disk is filling: {room / whole:.0%} free"
        if status.reserve_bytes:
            text += f", beside the reserve of {_size(status.reserve_bytes)}"
        findings.append(Finding(Level.WARNING, node.node_id, text + _RUN_BOOK))
    return findings


def _of_size(node: MapNode, status: pb.StatusReply) -> list[Finding]:
    disk = status.disk_size_bytes
    if not disk or node.capacity_bytes <= disk * CAPACITY_EXCESS_MAX:
        return []
    text = (
        f"the map counts on {_size(node.capacity_bytes)}, and its disk, or quota, has {_size(disk)}: it gets a share "
        f"that does not fit. Say what it has (coffre cluster set-capacity {node.node_id}), or give it a larger disk"
    )
    return [Finding(Level.WARNING, node.node_id, text)]


def _of_refusals(node: str, status: pb.StatusReply) -> list[Finding]:
    refusals = status.space_refusals
    if not refusals.count:
        return []
    minutes = max(status.unixtime_ms - refusals.last_unixtime_ms, 0) // 60_000
    text = (
        f"refused {refusals.count} large shards for lack of space since it started; the last, of "
        f"{_size(refusals.last_bytes)} or more, {minutes} min ago"
    )
    if status.free_bytes - status.reserve_bytes < refusals.last_bytes:
        return [Finding(Level.ERROR, node, f"{text}. It does not fit now either{_RUN_BOOK}")]
    return [Finding(Level.NOTE, node, f"{text}. It fits now")]


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"
