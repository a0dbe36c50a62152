"""Primaries that hold the same shard of a version: equal digests hide it, so rows are compared now and then."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from coffre.cluster.errors import CoffreError
from coffre.cluster.names import ObjectName
from coffre.node.repair.census import is_first
from coffre.node.repair.scene import Scene
from coffre.node.store import SETTLED, PartitionDigest, ShardStore, StoredVersion

__all__ = ["REPORTS_MAX", "report_duplicates"]

_log = logging.getLogger(__name__)
_SLOT_VERSIONS = 8192  # names of one slot are held in memory, with a number for each primary
REPORTS_MAX = 1000  # of one look at a partition; the rest is found by the next one


async def report_duplicates(store: ShardStore, scene: Scene, partition: int, digest: PartitionDigest) -> int:
    """Tell each later primary that holds a shard which an earlier one holds, too, to look for itself. How many.

    Only where this node is the first primary that answers, and all of them do; nobody is told to do anything else
    than to look, so a liar gains nothing.
    """
    electorates = scene.electorates.in_partition(partition)
    members = {node for electorate in electorates for node in electorate.primaries}
    moving = any(electorate.is_moving for electorate in electorates)
    if moving or not is_first(scene, partition) or not members - {scene.me} <= scene.digests.keys():
        return 0
    told = 0
    slots = max(-(-digest.versions // _SLOT_VERSIONS), 1)
    try:
        for slot in range(slots):
            for name, stamp, node, index in await _repeated(store, scene, partition, members, slot, slots):
                if told >= REPORTS_MAX:
                    return told
                await scene.asking.report(node, name, stamp, index)
                told += 1
    except CoffreError as error:
        _log.info("a partition is looked through later", extra={"error": type(error).__name__})
    return told


async def _repeated(
    store: ShardStore, scene: Scene, partition: int, members: set[int], slot: int, slots: int
) -> list[tuple[ObjectName, bytes, int, int]]:
    """Name, stamp, node and index of shards that an earlier primary holds, too. Raises `CoffreError`."""
    held: dict[ObjectName, dict[int, tuple[bytes, int]]] = {}
    async for rows in store.partition_rows(partition, slot=slot, slots=slots):
        for row in rows:
            _note(held, row.name, scene.me, row.versions)
    for node in sorted(members - {scene.me}):
        async for row in scene.asking.rows(node, partition, slot, slots):
            if row.name in held:
                _note(held, row.name, node, row.versions)
    return [
        (name, stamp, node, index)
        for name, by_node in held.items()
        for node, stamp, index in _later(scene.electorate(name, partition).primaries, by_node)
    ]


def _note(
    held: dict[ObjectName, dict[int, tuple[bytes, int]]],
    name: ObjectName,
    node: int,
    versions: Sequence[StoredVersion],
) -> None:
    """The newest settled version that a node holds with a shard."""
    settled = [v for v in versions if v.state == SETTLED]
    if settled:
        newest = max(settled, key=lambda version: version.stamp)
        if newest.shard_index is not None:
            held.setdefault(name, {})[node] = newest.stamp, newest.shard_index


def _later(
    primaries: Sequence[int], by_node: Mapping[int, tuple[bytes, int]]
) -> list[tuple[int, bytes, int]]:
    """Those that hold what an earlier primary holds of the newest version."""
    newest = max(stamp for stamp, _ in by_node.values())
    taken: set[int] = set()
    found: list[tuple[int, bytes, int]] = []
    for node in primaries:
        stamp, index = by_node.get(node, (b"", -1))
        if stamp != newest:
            continue
        if index in taken:
            found.append((node, stamp, index))
        taken.add(index)
    return found
