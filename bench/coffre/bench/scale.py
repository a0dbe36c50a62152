"""Clusters of up to a thousand nodes on paper: balance, movement and durability, in one seeded run.

What is computed lives in coffre.bench.scale_placement and coffre.bench.scale_durability; here is which cases, and
what a result consists of.
"""

from __future__ import annotations

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
from coffre.bench.scale_placement import (
    Balance,
    Capacities,
    Layout,
    Movement,
    balance,
    movement_on_join,
    movement_on_leave,
    placed,
    synthetic_map,
)
from coffre.cluster.map import Policy
from coffre.cluster.version import __version__
from numpy.typing import NDArray

__all__ = ["Durability", "ScaleOptions", "ScaleResult", "assumptions", "run_scale"]

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
