"""Which map may follow which: so that no set of primaries is dropped that may hold what others lack.

The argument is in docs/consistency.md, "Changing the map"; the rules are those of docs/formats/map.md.
"""

from __future__ import annotations

from coffre.cluster.errors import ConfigurationError, IntegrityError, StaleMap
from coffre.cluster.map._model import ClusterMap
from coffre.cluster.map.placement import Placement

__all__ = ["newer_map", "same_placements"]


def same_placements(one: ClusterMap, other: ClusterMap) -> bool:
    """Whether every object has the same primaries, in the same order, under both maps themselves."""
    if (one.default_policy, one.bucket_policies) != (other.default_policy, other.bucket_policies):
        return False
    return all(
        Placement(one, one.policy(name)).rules == Placement(other, other.policy(name)).rules
        for name in one.policies_in_use
    )


def newer_map(current: ClusterMap, candidate: ClusterMap) -> ClusterMap:
    """`candidate` when its epoch is higher, `current` when they are the same map.

    Raises `StaleMap` on a lower epoch, `IntegrityError` on another map of the same epoch or one that cannot follow
    (docs/formats/map.md, "Which map holds"), `ConfigurationError` on another cluster.
    """
    if candidate.cluster_id != current.cluster_id:
        raise ConfigurationError(f"the map is of cluster {candidate.cluster_id}, not {current.cluster_id}")
    if candidate.epoch < current.epoch:
        raise StaleMap(f"the map offered has epoch {candidate.epoch}, below the current {current.epoch}")
    if candidate.epoch == current.epoch:
        if candidate != current:
            raise IntegrityError(f"there are two different cluster maps of epoch {current.epoch}")
        return current
    if candidate.partitions != current.partitions:
        raise IntegrityError("the number of partitions is fixed for the life of a cluster")
    _check_members(current, candidate)
    _check_prior(current, candidate)
    return candidate


def _check_members(current: ClusterMap, candidate: ClusterMap) -> None:
    ids = {node.number: node.node_id for node in candidate.nodes}
    for node in current.nodes:
        if ids.get(node.number) != node.node_id:
            raise IntegrityError(
                f"the map of epoch {candidate.epoch} forgets node {node.number} ({node.node_id}) or gives "
                "its number to another; a node that left stays in the map as removed"
            )
    generations = {node.number: node.generation for node in candidate.nodes}
    for node in current.nodes:
        if generations[node.number] < node.generation:
            raise IntegrityError(
                f"the map of epoch {candidate.epoch} takes back a certificate of {node.node_id} that was shut out"
            )
    codings = {policy.name: (policy.k, policy.m) for policy in candidate.policies}
    for policy in current.policies:
        if codings.get(policy.name) != (policy.k, policy.m):
            raise IntegrityError(
                f"the map of epoch {candidate.epoch} forgets policy {policy.name} or changes its k and m; objects "
                "may be coded with it"
            )


def _check_prior(current: ClusterMap, candidate: ClusterMap) -> None:
    what = f"the map of epoch {candidate.epoch}"
    if candidate.epoch == current.epoch + 1:
        if same_placements(current, candidate):
            if candidate.prior and candidate.prior != current.prior:
                raise IntegrityError(f"{what} drops some prior maps of epoch {current.epoch}, and not all")
        elif candidate.prior != (current.as_prior(), *current.prior):
            raise IntegrityError(
                f"{what} moves data, and does not consult all that epoch {current.epoch} does"
            )
        return
    consulted = {prior.epoch: prior for prior in candidate.prior}
    if any(epoch <= current.epoch for epoch in consulted):
        for prior in current.prior:
            if consulted.get(prior.epoch) != prior:
                raise IntegrityError(f"{what} drops or changes the prior map of epoch {prior.epoch}")
        if consulted.get(current.epoch, current.as_prior()) != current.as_prior():
            raise IntegrityError(f"{what} has another map of epoch {current.epoch} as a prior one")
