"""What repair must have brought back once the faults have ended: every shard, equal digests, and nothing left over.

`Plan.repaired` turns these checks on. There is no repair yet, so no plan that is drawn does; test_redundancy.py tests
the checks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.placement import Placement
from coffre.node.memory_rows import record_of
from coffre.node.store import State
from coffre.node.votes import Entry

from tests.simulation.world import World

__all__ = ["shortcomings"]


async def shortcomings(world: World) -> list[str]:
    """What is not as it should be, a line each; empty when nothing is."""
    placement = Placement(world.cluster_map, world.policy)
    found: list[str] = []
    for name in sorted(
        {name for host in world.hosts.values() for name in host.store.names()}, key=ObjectName.context
    ):
        primaries = placement.primaries(partition_of(name, world.cluster_map.partitions))
        found += _of_object(world, name, primaries)
    for partition in range(world.cluster_map.partitions):
        digests = {
            await world.hosts[number].store.partition_digest(partition)
            for number in placement.primaries(partition)
        }
        if len(digests) > 1:
            found.append(f"partition {partition}: {len(digests)} digests among its primaries")
    for host in world.hosts.values():
        if host.store.staged:
            found.append(f"node {host.number}: {host.store.staged} staged shards of nothing")
    return found


def _of_object(world: World, name: ObjectName, primaries: tuple[int, ...]) -> Iterator[str]:
    held: dict[int, list[Entry]] = {
        number: [entry for entry in host.store.versions(name) if entry.state is not State.ABORTED]
        for number, host in world.hosts.items()
    }
    newest = max(
        (entry for entries in held.values() for entry in entries), key=lambda e: e.stamp, default=None
    )
    if newest is None:
        return
    shards: set[int] = set()
    for number, entries in held.items():
        versions = [entry for entry in entries if entry.stamp == newest.stamp]
        if len(entries) > max(1, world.plan.versions_kept):
            yield f"{name.key}: node {number} keeps {len(entries)} versions"
        if number in primaries and not versions:
            yield f"{name.key}: node {number} does not have the newest version"
        for entry in versions:
            if entry.state is not State.SETTLED:
                yield f"{name.key}: node {number} does not know that the newest version is established"
            if entry.shard_index is not None and _is_whole(entry):
                shards.add(entry.shard_index)
    if not newest.tombstone and len(shards) < world.policy.n:
        yield f"{name.key}: {len(shards)} of {world.policy.n} shards are whole"


def _is_whole(entry: Entry) -> bool:
    """Whether manifest and shard verify."""
    record = record_of(entry)
    shard = record.shard
    return not record.manifest_rotten and (
        shard is None or all(shard.cell(place) is not None for place in range(len(shard.cells)))
    )
