"""Placement of partitions that nobody asked for before, and checks, beside plain interpreted Python."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from coffre.bench.micro import INTERPRETER, Micro
from coffre.bench.scale_placement import JURISDICTION, Layout, synthetic_map
from coffre.cluster.map import Placement, Policy
from coffre.cluster.names import ObjectName, partition_of

__all__ = ["benchmarks"]

POLICY = Policy("4+2", 4, 2, (JURISDICTION,))


def primaries(nodes: int, calls: int) -> Micro:
    cluster_map = synthetic_map(Layout(nodes, 6 if nodes > 6 else 3, 3, 4096), POLICY)
    numbers = count()

    def place() -> None:
        placement = Placement(cluster_map, POLICY)
        for _ in range(calls):
            placement.primaries(next(numbers) % cluster_map.partitions)

    return Micro(f"primaries[{nodes}-{calls}]", INTERPRETER, place)


def benchmarks() -> Iterator[Micro]:
    """Of primaries, of checks that were not made before, and of names."""
    for nodes, calls in ((6, 50), (100, 8), (1000, 1)):
        yield primaries(nodes, calls)
    cluster_map = synthetic_map(Layout(100, 6, 3, 4096), POLICY)
    placements = [Placement(cluster_map, POLICY).primaries(partition) for partition in range(100)]

    def check() -> None:
        placement = Placement(cluster_map, POLICY)
        for primaries in placements:
            placement.check(primaries)

    yield Micro("check", INTERPRETER, check)
    names = [ObjectName("tenant", "records", f"patient/{number}/observation") for number in range(500)]

    def hash_names() -> None:
        for name in names:
            partition_of(name, 4096)

    yield Micro("partition_of", INTERPRETER, hash_names)
