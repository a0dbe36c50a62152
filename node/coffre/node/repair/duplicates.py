"""Primaries that hold the same shard of a version: equal digests hide it, so rows are compared now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from coffre.cluster.errors import CoffreError
from coffre.cluster.names import ObjectName
from coffre.node.repair.asking import slots_of
from coffre.node.repair.census import is_first
from coffre.node.repair.scene import Scene
from coffre.node.store import SETTLED, PartitionDigest, ShardStore, StoredVersion

__all__ = ["REPORTS_MAX", "report_duplicates"]

_log = logging.getLogger(__name__)
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
    slots = slots_of(digest.versions)
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
    held: dict[ObjectName, dict[bytes, dict[int, int]]] = {}
    async for rows in store.partition_rows(partition, slot=slot, slots=slots):
        for row in rows:
            held[row.name] = {stamp: {scene.me: index} for stamp, index in _shards(row.versions)}
    for node in sorted(members - {scene.me}):
        async for row in scene.asking.rows(node, partition, slot, slots):
            mine = held.get(row.name, {})
            for stamp, index in _shards(row.versions):
                if stamp in mine:
                    mine[stamp][node] = index
    return [
        (name, stamp, node, index)
        for name, versions in held.items()
        for stamp, by_node in versions.items()
        for node, index in _later(scene.electorate(name, partition).primaries, by_node)
    ]


def _shards(versions: Sequence[StoredVersion]) -> Iterator[tuple[bytes, int]]:
    """The settled versions that a node holds with a shard: each that is kept, not the newest alone."""
    for version in versions:
        if version.state == SETTLED and version.shard_index is not None:
            yield version.stamp, version.shard_index


def _later(primaries: Sequence[int], by_node: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Those that hold what an earlier primary holds of a version, and what that is."""
    taken: set[int] = set()
    for node in primaries:
        index = by_node.get(node)
        if index is None:
            continue
        if index in taken:
            yield node, index
        taken.add(index)
