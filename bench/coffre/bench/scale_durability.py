"""How likely a cluster loses an object in a year: a Markov model, solved where that is possible, and simulated.

The model. Nodes fail for good at a constant rate, each on its own; a site is lost with all its nodes at another
constant rate. Each failed node comes back whole (its data rebuilt on spare room) after a time that is exponential
with the mean that `FailureModel` computes from detection and bandwidth. A group is a set of k+m nodes that
share a partition; its objects are lost when more than m of its nodes are missing at once.

The simulation runs cycles, from all nodes up until all are up again, or a loss. Losses are rare, so failures
are made more likely than they are, and every path is weighted by the ratio of its true probability to the one
it was drawn with (failure biasing: Lewis and Böhm, 1984; balanced over the kinds of failure: Shahabuddin, 1994;
and nodes that share a group with missing ones are preferred). Then the rate of losses is P(loss in a cycle) over the
mean length of a cycle (Goyal et al., 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from coffre.cluster.errors import InvalidArgument
from numpy.typing import NDArray

__all__ = [
    "EXACT_NODES_MAX",
    "Estimate",
    "FailureModel",
    "Groups",
    "exact_loss_rate",
    "group_loss_rate",
    "mean_years_to_loss",
    "simulate",
]

YEAR_SECONDS = 365.25 * 24 * 3600.0
EXACT_NODES_MAX = 10  # 2^10 states of the exact solution
_BIAS = 0.5  # probability of a failure as the next event, while fewer than m + 1 nodes are missing
_SITE_SHARE = 0.3  # of the failures that are drawn
_NEAR_SHARE = 0.7  # of the nodes drawn to fail are from a group that misses the most already
_WHOLE_MIN = 1e-3  # all nodes must be up at least this part of the time, or cycles do not end
_STEPS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class FailureModel:
    """What fails and what repairs. Rates per node and per site."""

    node_failures_per_year: float
    site_losses_per_year: float
    detection_seconds: float  # from a failure to the start of the rebuild
    repair_bytes_per_second: float  # that each node that is up gives to repair, sent and received
    node_bytes: float  # stored on one node

    def __post_init__(self) -> None:
        rates = (self.node_failures_per_year, self.repair_bytes_per_second, self.node_bytes)
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise InvalidArgument("failure rate, repair bandwidth and data per node are above 0")
        if not all(0 <= x < math.inf for x in (self.site_losses_per_year, self.detection_seconds)):
            raise InvalidArgument("the rate of site losses and the time to detection are at least 0")

    def repair_seconds(self, missing: int, nodes: int, k: int) -> float:
        """Mean time to rebuild one node while `missing` of `nodes` are rebuilt at once.

        Declustered: all nodes that are up share the work evenly. Each byte rebuilt reads k bytes and writes one.
        """
        traffic = missing * self.node_bytes * (k + 1)
        return self.detection_seconds + traffic / ((nodes - missing) * self.repair_bytes_per_second)

    def repairs_per_year(self, missing: int, nodes: int, k: int) -> float:
        """Rate at which any of the missing nodes is whole again; 0 when nobody is left to repair."""
        if not 0 < missing < nodes:
            return 0.0
        return missing * YEAR_SECONDS / self.repair_seconds(missing, nodes, k)


@dataclass(frozen=True, slots=True)
class Groups:
    """Which nodes share a partition, and where each node is: what a loss depends on."""

    k: int
    m: int
    members: NDArray[np.int64]  # one row of k + m node indexes per partition
    site_of: tuple[int, ...]  # of each node

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.site_of)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the simulation found. Errors are one standard error, relative to the value; inf when nothing was found.

    `groups_lost_per_year` is the expected number of partitions whose objects are lost.
    """

    cycles: int
    loss_cycles: int  # of the biased ones
    losses_per_year: float
    losses_error: float
    groups_lost_per_year: float
    groups_error: float

    @property
    def loss_probability(self) -> float:
        """That anything is lost within a year."""
        return -math.expm1(-self.losses_per_year)


# ------------------------------------------------------------------ solved


def mean_years_to_loss(failures_per_year: Sequence[float], repairs_per_year: Sequence[float]) -> float:
    """Mean time to absorption of a birth-death chain that starts with nothing missing.

    `failures_per_year[j]` leads from j missing nodes to j + 1, the last one to the loss; `repairs_per_year[j]`
    from j to j - 1 (entry 0 is not used). h_j, the mean time from j to j + 1, is 1 / failures_j +
    repairs_j / failures_j * h_(j-1), and their sum is the answer.
    """
    step = total = 0.0
    for j, failures in enumerate(failures_per_year):
        step = 1 / failures + (repairs_per_year[j] / failures * step if j else 0.0)
        total += step
    return total


def group_loss_rate(model: FailureModel, nodes: int, k: int, m: int) -> float:
    """Losses per year of one group, if nodes fail independently: 1 / MTTDL of k + m nodes.

    Repair is as fast as in a cluster of `nodes` where nothing outside the group is missing. Multiplied by
    the number of groups this is the expected number lost, and at least the probability of losing any.
    """
    failures = [(k + m - j) * model.node_failures_per_year for j in range(m + 1)]
    repairs = [model.repairs_per_year(j, nodes, k) for j in range(m + 1)]
    return 1 / mean_years_to_loss(failures, repairs)


def exact_loss_rate(model: FailureModel, groups: Groups) -> float:
    """1 / mean years to the first loss, with site losses, over all sets of missing nodes.

    Raises `InvalidArgument` above `EXACT_NODES_MAX` nodes.
    """
    nodes = groups.nodes
    if nodes > EXACT_NODES_MAX:
        raise InvalidArgument(f"the exact solution goes up to {EXACT_NODES_MAX} nodes")
    masks = {sum(1 << int(node) for node in row) for row in groups.members}
    alive = [
        state for state in range(1 << nodes) if all((state & mask).bit_count() <= groups.m for mask in masks)
    ]
    place = {state: row for row, state in enumerate(alive)}
    site_masks = [
        sum(1 << i for i, site in enumerate(groups.site_of) if site == one) for one in set(groups.site_of)
    ]
    matrix = np.zeros((len(alive), len(alive)))
    for state, row in place.items():
        missing = state.bit_count()
        repair = model.repairs_per_year(missing, nodes, groups.k) / max(1, missing)
        moves = [
            (state ^ 1 << i, repair if state >> i & 1 else model.node_failures_per_year) for i in range(nodes)
        ]
        moves += [(state | mask, model.site_losses_per_year) for mask in site_masks if state | mask != state]
        for target, rate in moves:
            matrix[row, row] += rate
            if target in place:
                matrix[row, place[target]] -= rate
    years = np.linalg.solve(matrix, np.ones(len(alive)))
    return float(1 / years[place[0]])


# ------------------------------------------------------------------ simulated


def simulate(model: FailureModel, groups: Groups, cycles: int, random: Random) -> Estimate:
    """Estimate the rate of losses from `cycles` plain cycles (their length) and as many biased ones.

    Raises `InvalidArgument` when repair does not keep up with failures: then there are no cycles.
    """
    if cycles < 2:
        raise InvalidArgument("at least two cycles are needed for an error")
    _check_load(model, groups)
    cluster = _Cluster(model, groups, random)
    lengths = np.array([cluster.cycle(biased=False).years for _ in range(cycles)])
    found = [cluster.cycle(biased=True) for _ in range(cycles)]
    first = np.array([one.weight if one.groups_lost else 0.0 for one in found])
    lost = first * np.array([one.groups_lost for one in found])
    losses, losses_error = _ratio(first, lengths)
    groups_lost, groups_error = _ratio(lost, lengths)
    return Estimate(cycles, int((first > 0).sum()), losses, losses_error, groups_lost, groups_error)


def _ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> tuple[float, float]:
    """Ratio of two independent means, and its relative standard error (delta method)."""
    top, bottom = float(numerators.mean()), float(denominators.mean())
    if top == 0:
        return 0.0, math.inf
    errors = [float(x.std(ddof=1)) / math.sqrt(len(x)) / float(x.mean()) for x in (numerators, denominators)]
    return top / bottom, math.hypot(*errors)


def _check_load(model: FailureModel, groups: Groups) -> None:
    """Stationary weight of the state with nothing missing, of the birth-death chain without site losses."""
    weight = total = 1.0
    for missing in range(1, groups.nodes):
        failures = (groups.nodes - missing + 1) * model.node_failures_per_year
        weight *= failures / model.repairs_per_year(missing, groups.nodes, groups.k)
        total += weight
        if total > 1 / _WHOLE_MIN:
            raise InvalidArgument(
                f"repair does not keep up: with {groups.nodes} nodes all are up less than {_WHOLE_MIN:.1%} of the "
                "time; this model needs more bandwidth, less data per node or fewer failures"
            )


@dataclass(frozen=True, slots=True)
class _Cycle:
    years: float  # until the first loss, or the end
    weight: float  # true probability of the path over the one it was drawn with
    groups_lost: int


class _Cluster:
    """The nodes that are missing, and how many of each group's; run from all up to all up."""

    def __init__(self, model: FailureModel, groups: Groups, random: Random) -> None:
        self._model, self._groups, self._random = model, groups, random
        self._sites = [
            tuple(i for i, site in enumerate(groups.site_of) if site == one)
            for one in sorted(set(groups.site_of))
        ]
        rows = np.repeat(np.arange(len(groups.members)), groups.members.shape[1])
        order = np.argsort(groups.members.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(groups.members.ravel(), minlength=groups.nodes))
        self._groups_of = np.split(rows[order], ends[:-1])
        self._count = np.zeros(len(groups.members), dtype=np.int16)
        self._missing: list[int] = []
        self._is_up = [True] * groups.nodes

    def cycle(self, *, biased: bool) -> _Cycle:
        """After the first loss a biased cycle goes on unbiased, to count what else is lost; a plain one ends."""
        years, weight = 0.0, 1.0
        lost = np.zeros(len(self._count), dtype=bool)
        any_lost = False
        for _ in range(_STEPS_MAX):
            years += 0.0 if any_lost else 1 / self._rates()[0]
            weight *= self._step(biased=biased and not any_lost)
            new = self._count > self._groups.m
            if new.any():
                any_lost = True
                lost |= new
            if not self._missing or (any_lost and not biased):
                self._restore()
                return _Cycle(years, weight, int(lost.sum()))
        raise InvalidArgument("repair does not keep up: a cycle has not ended")

    def _rates(self) -> tuple[float, float, float, float]:
        """Events per year: all, node failures, site losses, repairs."""
        missing, nodes = len(self._missing), self._groups.nodes
        node = (nodes - missing) * self._model.node_failures_per_year
        site = len(self._sites) * self._model.site_losses_per_year
        # A cluster that is missing whole has lost all; to end the cycle its nodes come back one by one.
        repair = self._model.repairs_per_year(missing, nodes, self._groups.k) if missing < nodes else 1.0
        return node + site + repair, node, site, repair

    def _step(self, *, biased: bool) -> float:
        """One event; returns its true probability over the one it was drawn with."""
        total, node, site, repair = self._rates()
        true = (node / total, site / total, repair / total)
        drawn = self._biased(true) if biased else true
        [kind] = self._random.choices(range(3), drawn)
        weight = true[kind] / drawn[kind]
        if kind == 0:
            node_drawn, node_weight = self._node(near=biased and bool(self._missing))
            self._fail(node_drawn)
            weight *= node_weight
        elif kind == 1:
            for one in self._random.choice(self._sites):
                if self._is_up[one]:
                    self._fail(one)
        else:
            self._repair(self._random.randrange(len(self._missing)))
        return weight

    def _biased(self, true: tuple[float, float, float]) -> tuple[float, float, float]:
        """Failures often enough that a loss is common, and not so often that a long way back gets absurd weights."""
        node, site, repair = true
        failing = node + site
        if repair:
            missing = len(self._missing)
            failing = max(failing, _BIAS if missing <= self._groups.m else _BIAS / missing)
        share = max(_SITE_SHARE, site / (node + site)) if site else 0.0
        return (failing * (1 - share), failing * share, 1 - failing)

    def _node(self, *, near: bool) -> tuple[int, float]:
        """A node that is up, and its true probability over the one it was drawn with; `near` to a loss if asked."""
        if not near:
            return self._any_up(), 1.0
        members = self._groups.members
        worst = int(self._count.max())
        candidates = np.flatnonzero(self._count == worst)
        if self._random.random() < _NEAR_SHARE:
            row = members[candidates[self._random.randrange(len(candidates))]]
            node = int(self._random.choice([one for one in row if self._is_up[one]]))
        else:
            node = self._any_up()
        of_node = int((self._count[self._groups_of[node]] == worst).sum())
        near_probability = of_node / len(candidates) / (members.shape[1] - worst)
        true = 1 / (self._groups.nodes - len(self._missing))
        return node, true / ((1 - _NEAR_SHARE) * true + _NEAR_SHARE * near_probability)

    def _any_up(self) -> int:
        while True:
            node = self._random.randrange(self._groups.nodes)
            if self._is_up[node]:
                return node

    def _fail(self, node: int) -> None:
        self._is_up[node] = False
        self._missing.append(node)
        self._count[self._groups_of[node]] += 1

    def _repair(self, place: int) -> None:
        node = self._missing[place]
        self._missing[place] = self._missing[-1]
        self._missing.pop()
        self._is_up[node] = True
        self._count[self._groups_of[node]] -= 1

    def _restore(self) -> None:
        while self._missing:
            self._repair(len(self._missing) - 1)
