"""Clusters of up to a thousand nodes on paper: balance, movement and durability, in one seeded run.

The clusters are synthetic, the placement is the real one (coffre.cluster.map.placement), computed for every
partition. Objects fall into partitions by a hash, so the counts of 10^9 objects per partition are one draw from
a multinomial distribution: they are drawn as such, exactly, instead of hashing 10^9 names. How likely a
loss is lives in coffre.bench.scale_durability.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from hashlib import sha256
from random import Random

import numpy as np
from coffre.bench.pages import render
from coffre.bench.scale_durability import (
    EXACT_NODES_MAX,
    Estimate,
    FailureModel,
    Groups,
    exact_loss_rate,
    group_loss_rate,
    simulate,
)
from coffre.cluster.errors import InvalidArgument, PolicyViolation
from coffre.cluster.map import ClusterMap, MapNode, NodeState, Placement, Policy
from coffre.cluster.version import __version__
from numpy.typing import NDArray

__all__ = [
    "Balance",
    "Capacities",
    "Durability",
    "Layout",
    "Movement",
    "ScaleOptions",
    "ScaleResult",
    "assumptions",
    "balance",
    "movement_on_join",
    "movement_on_leave",
    "placed",
    "run_scale",
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


_DIGITS = 9  # of a figure in the result: libraries of mathematics differ in the last ones
MOVED_PARTITIONS_MAX = 4096  # partitions are placed independently: a part of them is a fair sample


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """Which clusters. `policies[0]` and `partitions[0]` are those of every case; the others vary one thing."""

    nodes: tuple[int, ...]
    policies: tuple[Policy, ...]
    partitions: tuple[int, ...]
    sites: int
    operators: int
    objects: int
    failures: FailureModel
    cycles: int
    seed: int


@dataclass(frozen=True, slots=True)
class Durability:
    """One cluster for one year. `exact` is the probability of a loss where the model can be solved, else None.

    `independent_*`: the Markov chain of one group, times the number of groups; nodes alone fail in it. For the
    probability of any loss that is an upper bound, for the expected number of objects it is the value.
    """

    nodes: int
    policy: str
    partitions: int
    site_losses_per_year: float
    repair_seconds: float  # of one node, when nothing else is missing
    estimate: Estimate
    loss_probability: float
    objects_lost_per_year: float
    independent_loss_probability: float
    independent_objects_lost_per_year: float
    exact_loss_probability: float | None


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """Everything that a run found."""

    options: ScaleOptions
    balances: tuple[Balance, ...]
    movements: tuple[Movement, ...]
    durabilities: tuple[Durability, ...]

    def content(self) -> dict[str, object]:
        """As JSON has it. Infinities are null, figures have nine significant digits."""
        rows = {
            "options": _plain(asdict(self.options)),
            "balance": _plain([asdict(one) | {"usable": one.usable} for one in self.balances]),
            "movement": _plain([asdict(one) for one in self.movements]),
            "durability": _plain([asdict(one) for one in self.durabilities]),
        }
        digest = sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        return {"version": __version__, "assumptions": assumptions(self.options), **rows, "digest": digest}


def run_scale(options: ScaleOptions, progress: Callable[[str], None]) -> ScaleResult:
    """Compute all cases. Raises `PolicyViolation` when a cluster is too small for a policy, `InvalidArgument`."""
    balances: list[Balance] = []
    movements: list[Movement] = []
    durabilities: list[Durability] = []
    main = options.policies[0]
    for nodes in options.nodes:
        layout = Layout(nodes, options.sites, options.operators, options.partitions[0])
        for policy in options.policies:
            progress(f"{nodes} nodes, {policy.name}: placement")
            table = placed(synthetic_map(layout, policy), policy)
            if policy is main:
                balances.append(_balance(options, layout, table))
                progress(f"{nodes} nodes, {policy.name}: movement")
                movements += _movements(layout, policy, table)
            progress(f"{nodes} nodes, {policy.name}: durability")
            durabilities += _durabilities(options, layout, policy, table)
        for other in _variants(layout, options):
            progress(f"{nodes} nodes, {other.partitions} partitions, {other.capacities.value}: placement")
            balances.append(_balance(options, other, placed(synthetic_map(other, main), main)))
    return ScaleResult(options, tuple(balances), tuple(movements), tuple(durabilities))


def _variants(layout: Layout, options: ScaleOptions) -> list[Layout]:
    mixed = replace(layout, capacities=Capacities.MIXED)
    return [mixed, *(replace(layout, partitions=count) for count in options.partitions[1:])]


def _balance(options: ScaleOptions, layout: Layout, table: NDArray[np.int64]) -> Balance:
    random = np.random.RandomState(options.seed)
    return balance(layout, options.policies[0], table, options.objects, random)


def _movements(layout: Layout, policy: Policy, table: NDArray[np.int64]) -> list[Movement]:
    sample = table[:MOVED_PARTITIONS_MAX]
    found = movement_on_join(layout, policy, sample), movement_on_leave(layout, policy, sample)
    return [one for one in found if one is not None]


def _durabilities(
    options: ScaleOptions, layout: Layout, policy: Policy, table: NDArray[np.int64]
) -> list[Durability]:
    groups = Groups(policy.k, policy.m, table, tuple(i % layout.sites for i in range(layout.nodes)))
    without = replace(options.failures, site_losses_per_year=0.0)
    models = [without] if options.failures == without else [without, options.failures]
    return [_durability(options, layout, policy, groups, model) for model in models]


def _durability(
    options: ScaleOptions, layout: Layout, policy: Policy, groups: Groups, model: FailureModel
) -> Durability:
    # A seed per case, so that a case says the same whatever else is in the run.
    case = f"{options.seed} {layout.nodes} {policy.name} {layout.partitions} {model.site_losses_per_year}"
    found = simulate(model, groups, options.cycles, Random(case))
    per_group = group_loss_rate(model, layout.nodes, policy.k, policy.m)
    exact = exact_loss_rate(model, groups) if layout.nodes <= EXACT_NODES_MAX else None
    return Durability(
        layout.nodes,
        policy.name,
        layout.partitions,
        model.site_losses_per_year,
        model.repair_seconds(1, layout.nodes, policy.k),
        found,
        found.loss_probability,
        found.groups_lost_per_year * options.objects / layout.partitions,
        -math.expm1(-per_group * layout.partitions),
        per_group * options.objects,
        None if exact is None else -math.expm1(-exact),
    )


def assumptions(options: ScaleOptions) -> list[str]:
    """What the figures rest on; shown beside them, always."""
    return render("assumptions.txt", options=options, model=options.failures).splitlines()


def _plain(value: object) -> object:
    """For JSON: enums by value, figures rounded, infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
