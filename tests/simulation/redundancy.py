"""What repair must have brought back once the faults have ended: every shard, equal digests, and nothing left over.

restoration.py asks for it in runs in which somebody repairs; test_redundancy.py tests the checks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coffre.cluster.map import Placement, Policy
from coffre.cluster.names import ObjectName, partition_of
from coffre.node.memory.rows import record_of
from coffre.node.store import Entry, State

from tests.simulation.world import BUCKET, TENANT, World, coding_of

__all__ = ["left_staged", "shortcomings", "uncollected"]


async def shortcomings(world: World) -> list[str]:
    """What is not as it should be, a line each; empty when nothing is."""
    policy = world.cluster_map.policy_of(TENANT, BUCKET)
    placement = Placement(world.cluster_map, policy)
    found: list[str] = []
    for name in sorted(
        {name for host in world.hosts.values() for name in host.store.names()}, key=ObjectName.context
    ):
        primaries = placement.primaries(partition_of(name, world.cluster_map.partitions))
        found += _of_object(world, name, primaries, policy)
    for partition in range(world.cluster_map.partitions):
        digests = {
            await world.hosts[number].store.partition_digest(partition)
            for number in placement.primaries(partition)
        }
        if len(digests) > 1:
            found.append(f"partition {partition}: {len(digests)} digests among its primaries")
    return found


def left_staged(world: World) -> list[str]:
    """Shards that belong to no version, a line for each node that has some."""
    return [
        f"node {host.number}: {host.store.staged} staged shards of nothing"
        for host in world.hosts.values()
        if host.store.staged
    ]


def uncollected(world: World) -> list[str]:
    """Tombstones that are left once the retention has passed, a line each.

    Those beside a vote against a version stay (docs/repair.md, "Tombstones"), and so do those of all other primaries.
    """
    found: list[str] = []
    names = {name for host in world.hosts.values() for name in host.store.names()}
    for name in sorted(names, key=ObjectName.context):
        rows = {number: host.store.versions(name) for number, host in world.hosts.items()}
        voted = any(entry.state is State.ABORTED for entries in rows.values() for entry in entries)
        holders = [number for number, entries in rows.items() if entries]
        if not voted and all(entry.tombstone for entries in rows.values() for entry in entries):
            found.append(f"{name.key}: nodes {holders} keep the tombstone of a deleted object")
    return found


def _of_object(world: World, name: ObjectName, primaries: tuple[int, ...], policy: Policy) -> Iterator[str]:
    held: dict[int, list[Entry]] = {
        number: [entry for entry in host.store.versions(name) if entry.state is not State.ABORTED]
        for number, host in world.hosts.items()
    }
    newest = max(
        (entry for entries in held.values() for entry in entries), key=lambda e: e.stamp, default=None
    )
    if newest is None:
        return
    for number, entries in held.items():
        if number not in primaries and entries:
            yield f"{name.key}: node {number} is no primary and holds {_told(entries)}"
        versions = [entry for entry in entries if entry.stamp == newest.stamp]
        if len(entries) > max(1, world.plan.versions_kept):
            yield f"{name.key}: node {number} keeps {len(entries)} versions"
        if number in primaries and not versions:
            yield f"{name.key}: node {number} does not have the newest version"
        for entry in versions:
            if entry.state is not State.SETTLED:
                yield f"{name.key}: node {number} does not know that the newest version is established"
            elif not entry.tombstone and coding_of(record_of(entry).accept) != (policy.k, policy.m):
                yield f"{name.key}: node {number} has the newest version otherwise than in {policy.name}"
    yield from _shards_lacking(world, name, held, policy)


def _shards_lacking(
    world: World, name: ObjectName, held: dict[int, list[Entry]], policy: Policy
) -> Iterator[str]:
    """Versions, the older ones that are kept too, of which not every shard is whole on some node."""
    every = [entry for entries in held.values() for entry in entries]
    for stamp in sorted({entry.stamp for entry in every if not entry.tombstone}):
        shards = {
            entry.shard_index
            for entry in every
            if entry.stamp == stamp and entry.shard_index is not None and _is_whole(entry)
        }
        if len(shards) < policy.n:
            yield f"{name.key}: {len(shards)} of {policy.n} shards of {stamp.hex()} are whole"


def _told(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{e.stamp.hex()} {e.state.name} shard {e.shard_index}" for e in entries)


def _is_whole(entry: Entry) -> bool:
    """Whether manifest and shard verify."""
    record = record_of(entry)
    shard = record.shard
    return not record.manifest_rotten and (
        shard is None or all(shard.cell(place) is not None for place in range(len(shard.cells)))
    )
