"""The next map: what a wish about members and policies makes of the current one, or why it cannot be.

Pure functions. Each gives the map of the next epoch, with the prior maps that must be consulted while data moves
(docs/consistency.md, "Changing the map"), or the current map itself when the wish is true already. Signing and
publishing is for others (coffre.cluster.changes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from coffre.cluster.errors import Conflict, InvalidArgument, NotFound, PolicyViolation
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.map import (
    PRIOR_MAX,
    BucketPolicy,
    ClusterMap,
    Electorates,
    MapNode,
    NodeState,
    Placement,
    Policy,
    newer_map,
    same_placements,
)

__all__ = [
    "add_node",
    "drain_node",
    "find_node",
    "finish_move",
    "remove_node",
    "renew_node",
    "replace_node",
    "set_capacity",
    "set_coordinators",
    "set_policy",
]


def find_node(cluster_map: ClusterMap, node_id: str) -> MapNode:
    """The node of that name. Raises `NotFound`."""
    for node in cluster_map.nodes:
        if node.node_id == node_id:
            return node
    raise NotFound(f"the cluster map (epoch {cluster_map.epoch}) has no node {node_id!r}")


def add_node(
    current: ClusterMap, attributes: NodeAttributes, address: str, capacity_bytes: int
) -> ClusterMap:
    """With one more node, or with one that was draining and stays after all."""
    return _next(current, nodes=_added(current, current.nodes, attributes, address, capacity_bytes))


def drain_node(current: ClusterMap, node_id: str) -> ClusterMap:
    """With everything moved away from a node, which serves on until it is removed."""
    return _next(current, nodes=_leaving(current.nodes, find_node(current, node_id), NodeState.DRAINING))


def replace_node(
    current: ClusterMap,
    node_id: str,
    attributes: NodeAttributes,
    address: str,
    capacity_bytes: int,
    *,
    lost: bool = False,
) -> ClusterMap:
    """With another node in place of one, in one move. `lost`: the old one will never answer again."""
    old = find_node(current, node_id)
    if old.node_id == attributes.node_id:
        raise InvalidArgument(
            f"{node_id} cannot replace itself: what it voted would be forgotten; take a certificate with another name"
        )
    if lost:
        _check_no_coordinator(current, old)
    leaving = _leaving(current.nodes, old, NodeState.REMOVED if lost else NodeState.DRAINING)
    proposed = _next(current, nodes=_added(current, leaving, attributes, address, capacity_bytes))
    if lost:
        _check_enough_left(proposed)
    return proposed


def remove_node(
    current: ClusterMap, node_id: str, *, shards_held: int | None, lost: bool = False
) -> ClusterMap:
    """Without a node. `shards_held`: what it says it still holds, None when it does not answer.

    Raises `PolicyViolation` unless it was drained and holds nothing, or is `lost`: gone for good, with what it held.
    Even then enough must be left of every partition to read it.
    """
    node = find_node(current, node_id)
    if node.state is NodeState.REMOVED:
        return current
    if not lost:
        _check_drained(current, node, shards_held)
    _check_no_coordinator(current, node)
    proposed = _next(current, nodes=_leaving(current.nodes, node, NodeState.REMOVED))
    _check_enough_left(proposed)
    return proposed


def renew_node(current: ClusterMap, attributes: NodeAttributes) -> ClusterMap:
    """With a certificate of a later generation for a node: the ones before open nothing any more."""
    node = find_node(current, attributes.node_id)
    if node.state is NodeState.REMOVED:
        raise InvalidArgument(f"{node.node_id} was removed from the cluster")
    if replace(node.attributes, generation=attributes.generation) != attributes:
        raise InvalidArgument(
            f"the certificate says another server, site, operator or jurisdiction of {node.node_id} than the map"
        )
    if attributes.generation < node.generation:
        raise InvalidArgument(
            f"{node.node_id} has certificates of generation {node.generation}; generation {attributes.generation} was "
            "shut out, and does not come back"
        )
    return _next(current, nodes=_with(current.nodes, replace(node, generation=attributes.generation)))


def set_capacity(current: ClusterMap, node_id: str, capacity_bytes: int) -> ClusterMap:
    """With another capacity of a node, and so another share of the shards."""
    node = find_node(current, node_id)
    if node.state is NodeState.REMOVED:
        raise InvalidArgument(f"{node_id} was removed from the cluster")
    return _next(current, nodes=_with(current.nodes, replace(node, capacity_bytes=capacity_bytes)))


def set_coordinators(current: ClusterMap, node_ids: Sequence[str]) -> ClusterMap:
    """With these nodes, in this order, to serve coordination. Nothing moves.

    Whether each of them serves a store, and the same one, is for others to see (coffre.cluster.handover).
    """
    nodes = [find_node(current, node_id) for node_id in node_ids]
    if not nodes:
        raise InvalidArgument("a cluster that has coordination has at least one coordinator")
    if gone := [node.node_id for node in nodes if node.state is NodeState.REMOVED]:
        raise InvalidArgument(f"{', '.join(gone)} was removed from the cluster")
    return _next(current, coordinators=tuple(node.number for node in nodes))


def set_policy(
    current: ClusterMap, tenant: str, bucket: str, name: str, new_policy: Policy | None = None
) -> ClusterMap:
    """With another policy for new objects of a bucket; `new_policy` when the map has none of that name yet."""
    policies = current.policies
    known = {policy.name: policy for policy in policies}
    if name not in known:
        if new_policy is None or new_policy.name != name:
            raise NotFound(f"the cluster map (epoch {current.epoch}) has no storage policy {name!r}")
        policies = (*policies, new_policy)
    elif new_policy is not None and new_policy != known[name]:
        raise InvalidArgument(f"policy {name} is in the map with other rules; policies are not changed")
    buckets = {(one.tenant, one.bucket): one for one in current.bucket_policies}
    # A bucket that had a policy of its own stays in the list: its objects may be coded by that one (docs/recoding.md).
    if name != current.default_policy or (tenant, bucket) in buckets:
        buckets[tenant, bucket] = BucketPolicy(tenant, bucket, name)
    return _next(
        current, policies=policies, bucket_policies=tuple(buckets[place] for place in sorted(buckets))
    )


def finish_move(current: ClusterMap) -> ClusterMap:
    """Without the prior maps. Only for who knows that every partition has moved (coffre.cluster.moves)."""
    if not current.prior:
        return current
    return _checked(current, replace(current, epoch=current.epoch + 1, prior=()))


# ------------------------------------------------------------------ the next epoch


def _next(current: ClusterMap, **changes: Any) -> ClusterMap:
    """The next epoch with these fields; `Any`: what `dataclasses.replace` takes."""
    if all(getattr(current, name) == value for name, value in changes.items()):
        return current
    proposed = replace(current, epoch=current.epoch + 1, **changes)
    for name in proposed.policies_in_use:
        # Whether a placement exists is the same for every partition: the caps alone decide.
        Placement(proposed, proposed.policy(name)).primaries(0)
    _check_older_codings(current, proposed)
    if not same_placements(current, proposed):
        if len(current.prior) == PRIOR_MAX:
            raise Conflict(
                f"{PRIOR_MAX} changes are still being carried out; wait for them (coffre cluster apply), then try again"
            )
        proposed = proposed.with_prior((current.as_prior(), *current.prior))
    return _checked(current, proposed)


def _check_older_codings(current: ClusterMap, proposed: ClusterMap) -> None:
    """Raise `PolicyViolation` when shards of objects that may be coded by a policy of before would have no place."""
    if not current.bucket_policies:
        return
    for policy in current.policies:
        if policy.name not in proposed.policies_in_use and _has_places(current, policy):
            try:
                Placement(proposed, policy).primaries(0)
            except PolicyViolation as error:
                raise PolicyViolation(
                    f"objects may still be coded by policy {policy.name}; code them anew first "
                    f"(coffre bucket recode): {error}"
                ) from None


def _has_places(cluster_map: ClusterMap, policy: Policy) -> bool:
    try:
        Placement(cluster_map, policy).primaries(0)
    except PolicyViolation:
        return False
    return True


def _checked(current: ClusterMap, proposed: ClusterMap) -> ClusterMap:
    return newer_map(current, proposed)  # what a member would refuse is never signed


def _with(nodes: Iterable[MapNode], changed: MapNode) -> tuple[MapNode, ...]:
    return tuple(changed if node.number == changed.number else node for node in nodes)


def _leaving(nodes: tuple[MapNode, ...], node: MapNode, state: NodeState) -> tuple[MapNode, ...]:
    return _with(nodes, replace(node, state=max(node.state, state)))  # ACTIVE < DRAINING < REMOVED


def _added(
    current: ClusterMap,
    nodes: tuple[MapNode, ...],
    attributes: NodeAttributes,
    address: str,
    capacity_bytes: int,
) -> tuple[MapNode, ...]:
    number = max(node.number for node in nodes) + 1
    before = next((node for node in nodes if node.node_id == attributes.node_id), None)
    wanted = MapNode(
        before.number if before is not None else number,
        attributes.node_id,
        address,
        attributes.server,
        attributes.site,
        attributes.operator,
        attributes.jurisdiction,
        capacity_bytes,
        generation=attributes.generation,
    )
    if before is None:
        return (*nodes, wanted)
    if before.state is NodeState.REMOVED:
        raise InvalidArgument(
            f"{before.node_id} was removed, and no node comes back under its name; take another name"
        )
    if replace(before, state=NodeState.ACTIVE) != wanted:
        raise InvalidArgument(
            f"{before.node_id} is in the map (epoch {current.epoch}) with another address, capacity or certificate"
        )
    return _with(nodes, wanted)


# ------------------------------------------------------------------ what must not be lost


def _check_no_coordinator(current: ClusterMap, node: MapNode) -> None:
    if node.number in current.coordinators:
        raise InvalidArgument(
            f"{node.node_id} is a coordinator; give that role to another node first (coffre cluster "
            "set-coordinators)"
        )


def _check_drained(current: ClusterMap, node: MapNode, shards_held: int | None) -> None:
    what = f"{node.node_id} cannot be removed: "
    if node.state is NodeState.ACTIVE:
        raise PolicyViolation(f"{what}it is in use; drain it first, or say --lost if it is gone for good")
    if current.prior:
        raise PolicyViolation(f"{what}its data is being moved; wait for it (coffre cluster apply)")
    if shards_held is None:
        raise PolicyViolation(
            f"{what}it does not answer, so nobody can say that it holds nothing; say --lost if it is gone for good"
        )
    if shards_held:
        raise PolicyViolation(
            f"{what}it still holds {shards_held} shards for others; they are handed over in time (--wait)"
        )


def _check_enough_left(proposed: ClusterMap) -> None:
    """Raise `PolicyViolation` when a partition would be left without R nodes of a set, or k nodes to read from.

    Shards of objects that are coded otherwise than their bucket's policy says count, too.
    """
    gone = {node.number for node in proposed.nodes if node.state is NodeState.REMOVED}
    electorates = Electorates(proposed)
    short = 0
    for partition in range(proposed.partitions):
        for electorate in electorates.in_partition(partition):
            left = [len(set(voters.nodes) - gone) for voters in electorate.sets]
            if any(
                count < max(voters.k, voters.read)
                for count, voters in zip(left, electorate.sets, strict=True)
            ):
                short += 1
                break
        else:
            places = electorates.homes_while_moving(partition)
            short += any(len(set(homes) - gone) < k for (k, _), every in places.items() for homes in every)
    if short:
        raise PolicyViolation(
            f"of {short} partitions too few nodes would be left to read what they hold: more than m of their primaries "
            "were removed before their data had moved; bring one back, or finish the move first"
        )
