"""Placement on clusters that nobody has yet: how even it is, and what moves when one node comes or goes.

The clusters are synthetic, the placement is the real one (coffre.cluster.map.placement), computed for every
partition. Objects fall into partitions by a hash, so the counts of 10^9 objects per partition are one draw from
a multinomial distribution: they are drawn as such, exactly, instead of hashing 10^9 names.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

import numpy as np
from coffre.cluster.errors import InvalidArgument, PolicyViolation
from coffre.cluster.map import ClusterMap, MapNode, NodeState, Placement, Policy
from numpy.typing import NDArray

__all__ = [
    "Balance",
    "Capacities",
    "Layout",
    "Movement",
    "balance",
    "movement_on_join",
    "movement_on_leave",
    "placed",
    "synthetic_map",
]

JURISDICTION = "FR"
_CAPACITY_BYTES = 8 * 10**12
_MIXED = (1, 2, 4)  # the classes of node size, as multiples


class Capacities(enum.Enum):
    """How large the nodes of a synthetic cluster are."""

    EQUAL = "equal"
    MIXED = "mixed"  # one, two and four times 8 TB in turn, the same at each site


@dataclass(frozen=True, slots=True)
class Layout:
    """A synthetic cluster: node i is at site i mod `sites`, run by operator i mod `operators`."""

    nodes: int
    sites: int
    operators: int
    partitions: int
    capacities: Capacities = Capacities.EQUAL

    def __post_init__(self) -> None:
        if min(self.nodes, self.sites, self.operators, self.partitions) < 1:
            raise InvalidArgument("a synthetic cluster has at least one of everything")
        if self.sites % self.operators:
            raise InvalidArgument("the number of sites is a multiple of the number of operators")


@dataclass(frozen=True, slots=True)
class Balance:
    """How full the nodes are, relative to their capacity and to the mean of the cluster.

    `partitions_max_over_mean`: were all partitions equally large. `objects_max_over_mean`: with the drawn numbers
    of objects. `object_spread` is the relative standard deviation that objects alone (not partitions) give
    the node with the smallest share. The cluster is full when its fullest node is.
    """

    layout: Layout
    policy: str
    objects: int
    shards_min: int  # partitions' shards on a node
    shards_max: int
    partitions_max_over_mean: float
    partitions_min_over_mean: float
    objects_max_over_mean: float
    object_spread: float

    @property
    def usable(self) -> float:
        """The part of all capacity that is used when the first node is full."""
        return 1 / self.objects_max_over_mean


@dataclass(frozen=True, slots=True)
class Movement:
    """What one change moves, as fractions of all shards.

    `minimum` is what has to move whatever the algorithm: the shards that the newcomer has now, or that the leaver
    had. `fair` is the share of the node's capacity. `by_rank` is what would move if shard i had to lie on the
    i-th primary; nothing asks for that, since a manifest says where each shard lies.
    """

    change: str  # join, leave
    layout: Layout
    policy: str
    partitions: int  # how many were looked at
    moved: float
    minimum: float
    fair: float
    by_rank: float


def synthetic_map(layout: Layout, policy: Policy) -> ClusterMap:
    """The map of such a cluster. The first nodes of a larger layout are those of a smaller one."""
    nodes = tuple(_node(number, layout) for number in range(layout.nodes))
    return ClusterMap("scale", 1, layout.partitions, nodes, (policy,), policy.name)


def _node(index: int, layout: Layout) -> MapNode:
    factor = _MIXED[index // layout.sites % len(_MIXED)] if layout.capacities is Capacities.MIXED else 1
    return MapNode(
        index + 1,
        f"node-{index:05}",
        f"node-{index:05}.invalid:7000",
        f"server-{index:05}",
        f"site-{index % layout.sites:03}",
        f"operator-{index % layout.operators:03}",
        JURISDICTION,
        factor * _CAPACITY_BYTES,
    )


def placed(cluster_map: ClusterMap, policy: Policy, partitions: int | None = None) -> NDArray[np.int64]:
    """Index (number - 1) of each primary: one row per partition, in order of rank.

    `partitions`: the first so many alone. Raises `PolicyViolation` when the map is too small.
    """
    placement = Placement(cluster_map, policy)
    count = cluster_map.partitions if partitions is None else min(partitions, cluster_map.partitions)
    table = np.empty((count, policy.n), dtype=np.int64)
    for partition in range(count):
        table[partition] = placement.primaries(partition)
    return table - 1


def balance(
    layout: Layout, policy: Policy, table: NDArray[np.int64], objects: int, random: np.random.RandomState
) -> Balance:
    """How evenly `table` (from `placed`) fills the nodes of `layout` with `objects` objects of one size.

    `random` is the generator whose streams NumPy has frozen: the same seed gives the same figures for ever.
    """
    capacity = np.array([node.capacity_bytes for node in synthetic_map(layout, policy).nodes], dtype=float)
    shards = np.bincount(table.ravel(), minlength=layout.nodes)
    per_partition = random.multinomial(objects, np.full(len(table), 1 / len(table)))
    held = np.bincount(
        table.ravel(), weights=np.repeat(per_partition, policy.n).astype(float), minlength=layout.nodes
    )
    fill, drawn = (counts / capacity / (counts.sum() / capacity.sum()) for counts in (shards, held))
    share = shards.min() / len(table)  # of all objects, those that have a shard on the smallest node
    return Balance(
        layout,
        policy.name,
        objects,
        int(shards.min()),
        int(shards.max()),
        float(fill.max()),
        float(fill.min()),
        float(drawn.max()),
        math.sqrt((1 - share) / (objects * share)) if share else math.inf,
    )


def movement_on_join(layout: Layout, policy: Policy, before: NDArray[np.int64]) -> Movement:
    """One more node joins, in the next place of the layout. `before` may be the first partitions alone."""
    larger = synthetic_map(replace(layout, nodes=layout.nodes + 1), policy)
    return _movement("join", layout, policy, before, larger, layout.nodes)


def movement_on_leave(layout: Layout, policy: Policy, before: NDArray[np.int64]) -> Movement | None:
    """The middle node is removed; None when the others cannot keep the policy without it."""
    whole = synthetic_map(layout, policy)
    leaver = layout.nodes // 2
    nodes = tuple(
        replace(node, state=NodeState.REMOVED) if node.number == leaver + 1 else node for node in whole.nodes
    )
    try:
        return _movement("leave", layout, policy, before, replace(whole, epoch=2, nodes=nodes), leaver)
    except PolicyViolation:
        return None


def _movement(
    change: str, layout: Layout, policy: Policy, before: NDArray[np.int64], new: ClusterMap, node: int
) -> Movement:
    after = placed(new, policy, len(before))
    kept = (before[:, :, None] == after[:, None, :]).any(axis=1)
    of_node = int((after == node).sum() + (before == node).sum())  # in one of the two it is not
    total_bytes = sum(one.capacity_bytes for one in new.nodes)  # with the newcomer, or with the leaver
    return Movement(
        change,
        layout,
        policy.name,
        len(before),
        float((~kept).mean()),
        of_node / before.size,
        new.nodes[node].capacity_bytes / total_bytes,
        float((before != after).mean()),
    )
