"""Placement of partitions that nobody asked for before, and checks, beside plain interpreted Python."""

from __future__ import annotations

from itertools import count

import pytest
from coffre.bench.scale_placement import JURISDICTION, Layout, synthetic_map
from coffre.cluster.map import Placement, Policy
from coffre.cluster.names import ObjectName, partition_of
from micro_references import INTERPRETER, Beside

POLICY = Policy("4+2", 4, 2, (JURISDICTION,))


@pytest.mark.parametrize(("nodes", "calls"), [(6, 50), (100, 8), (1000, 1)])
def bench_primaries(beside: Beside, nodes: int, calls: int) -> None:
    cluster_map = synthetic_map(Layout(nodes, 6 if nodes > 6 else 3, 3, 4096), POLICY)
    numbers = count()

    def place() -> None:
        placement = Placement(cluster_map, POLICY)
        for _ in range(calls):
            placement.primaries(next(numbers) % cluster_map.partitions)

    beside(INTERPRETER, place)


def bench_check(beside: Beside) -> None:
    """Of placements that were not checked before."""
    cluster_map = synthetic_map(Layout(100, 6, 3, 4096), POLICY)
    placements = [Placement(cluster_map, POLICY).primaries(partition) for partition in range(100)]

    def check() -> None:
        placement = Placement(cluster_map, POLICY)
        for primaries in placements:
            placement.check(primaries)

    beside(INTERPRETER, check)


def bench_partition_of(beside: Beside) -> None:
    names = [ObjectName("tenant", "records", f"patient/{number}/observation") for number in range(500)]

    def hash_names() -> None:
        for name in names:
            partition_of(name, 4096)

    beside(INTERPRETER, hash_names)
