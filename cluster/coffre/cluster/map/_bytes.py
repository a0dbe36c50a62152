"""The bytes of a cluster map: coffre.v1.ClusterMap, the payload of a signed map. docs/formats/map.md."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from coffre.cluster.errors import IntegrityError, InvalidArgument, Unsupported
from coffre.cluster.map._model import (
    BUCKET_POLICIES_MAX,
    NODES_MAX,
    POLICIES_MAX,
    PRIOR_MAX,
    BucketPolicy,
    ClusterMap,
    Domain,
    MapNode,
    NodeState,
    Policy,
)
from coffre.proto import coffre_pb2 as pb
from google.protobuf.message import DecodeError

__all__ = ["decode_map", "encode_map"]

MAP_FORMAT = 1
GENERATIONS_FORMAT = 2  # once a generation is not 0: who does not know of them would accept what is shut out
_Place = TypeVar("_Place", bound=Hashable)
_Item = TypeVar("_Item")


def encode_map(cluster_map: ClusterMap) -> bytes:
    """The payload of a signed map: a serialized coffre.v1.ClusterMap."""
    message = pb.ClusterMap(
        format=GENERATIONS_FORMAT if any(node.generation for node in cluster_map.nodes) else MAP_FORMAT,
        cluster_id=cluster_map.cluster_id,
        epoch=cluster_map.epoch,
        partitions=cluster_map.partitions,
        nodes=map(_node_message, cluster_map.nodes),
        policies=map(_policy_message, cluster_map.policies),
        default_policy=cluster_map.default_policy,
        coordinators=cluster_map.coordinators,
        prior=[_prior_message(cluster_map, prior) for prior in cluster_map.prior],
        bucket_policies=map(_bucket_message, cluster_map.bucket_policies),
    )
    return message.SerializeToString(deterministic=True)


def _node_message(node: MapNode) -> pb.MapNode:
    return pb.MapNode(
        number=node.number,
        node_id=node.node_id,
        address=node.address,
        server=node.server,
        site=node.site,
        operator=node.operator,
        jurisdiction=node.jurisdiction,
        capacity_bytes=node.capacity_bytes,
        state=pb.NodeState.ValueType(node.state),
        generation=node.generation,
    )


def _policy_message(policy: Policy) -> pb.MapPolicy:
    return pb.MapPolicy(
        name=policy.name,
        k=policy.k,
        m=policy.m,
        jurisdictions=policy.jurisdictions,
        survives=pb.Domain.ValueType(policy.survives),
        operator_cap=policy.operator_cap,
        versions_kept=policy.versions_kept,
    )


def _bucket_message(one: BucketPolicy) -> pb.BucketPolicy:
    return pb.BucketPolicy(tenant=one.tenant, bucket=one.bucket, policy=one.policy)


def _prior_message(newest: ClusterMap, prior: ClusterMap) -> pb.PriorMap:
    """The difference between the two, so that four prior maps of a thousand nodes fit wherever one map does."""
    nodes = {node.number: node for node in prior.nodes}
    before = {(one.tenant, one.bucket): one for one in prior.bucket_policies}
    now = {(one.tenant, one.bucket): one for one in newest.bucket_policies}
    message = pb.PriorMap(
        epoch=prior.epoch,
        nodes=[
            _node_message(nodes[node.number]) for node in newest.nodes if nodes.get(node.number, node) != node
        ],
        absent=[node.number for node in newest.nodes if node.number not in nodes],
        policies=map(_policy_message, prior.policies),
        default_policy=prior.default_policy,
    )
    for place in sorted(before.keys() | now.keys()):
        if before.get(place) != now.get(place):
            policy = before[place].policy if place in before else ""
            message.bucket_policies.add(tenant=place[0], bucket=place[1], policy=policy)
    return message


def decode_map(payload: bytes) -> ClusterMap:
    """Read what `encode_map` wrote. Raises `IntegrityError`, `Unsupported` or `InvalidArgument`."""
    try:
        message = pb.ClusterMap.FromString(payload)
    except DecodeError:
        raise IntegrityError("the cluster map cannot be read") from None
    if message.format not in (MAP_FORMAT, GENERATIONS_FORMAT):
        raise Unsupported(f"cluster map format {message.format} is not known to this release")
    # Before anything is built: a map of a million nodes is refused by its size.
    _check_counts(message.nodes, message.policies, message.bucket_policies)
    if len(message.prior) > PRIOR_MAX:
        raise InvalidArgument(f"a map has at most {PRIOR_MAX} prior maps")
    newest = ClusterMap(
        message.cluster_id,
        message.epoch,
        message.partitions,
        tuple(_decode_node(node) for node in message.nodes),
        tuple(_decode_policy(policy) for policy in message.policies),
        message.default_policy,
        tuple(message.coordinators),
        (),
        tuple(_decode_bucket(one) for one in message.bucket_policies),
    )
    return newest.with_prior(_decode_prior(newest, prior) for prior in message.prior)


def _check_counts(
    nodes: Sequence[pb.MapNode], policies: Sequence[pb.MapPolicy], buckets: Sequence[pb.BucketPolicy]
) -> None:
    for what, count, count_max in (
        ("nodes", len(nodes), NODES_MAX),
        ("policies", len(policies), POLICIES_MAX),
        ("policies of buckets", len(buckets), BUCKET_POLICIES_MAX),
    ):
        if count > count_max:
            raise InvalidArgument(f"a map has at most {count_max} {what}")


def _decode_prior(newest: ClusterMap, prior: pb.PriorMap) -> ClusterMap:
    _check_counts(prior.nodes, prior.policies, ())
    # A bucket may have had a policy then and have none now, and the other way round.
    if len(prior.bucket_policies) > 2 * BUCKET_POLICIES_MAX or len(prior.absent) > NODES_MAX:
        raise InvalidArgument(f"the prior map of epoch {prior.epoch} differs from the map in too much")
    absent = set(prior.absent)
    then = _each_once(prior.epoch, ((node.number, _decode_node(node)) for node in prior.nodes))
    unknown = (absent | then.keys()) - {node.number for node in newest.nodes}
    if unknown or absent & then.keys():
        raise InvalidArgument(f"the prior map of epoch {prior.epoch} names nodes that the map has not")
    buckets = {(one.tenant, one.bucket): one for one in newest.bucket_policies}
    changed = _each_once(prior.epoch, (((one.tenant, one.bucket), one) for one in prior.bucket_policies))
    for place, one in changed.items():
        if one.policy:
            buckets[place] = _decode_bucket(one)
        elif buckets.pop(place, None) is None:
            raise InvalidArgument(
                f"the prior map of epoch {prior.epoch} takes a policy from a bucket without"
            )
    return ClusterMap(
        newest.cluster_id,
        prior.epoch,
        newest.partitions,
        tuple(then.get(node.number, node) for node in newest.nodes if node.number not in absent),
        tuple(_decode_policy(policy) for policy in prior.policies),
        prior.default_policy,
        bucket_policies=tuple(buckets[place] for place in sorted(buckets)),
    )


def _each_once(epoch: int, items: Iterable[tuple[_Place, _Item]]) -> dict[_Place, _Item]:
    found: dict[_Place, _Item] = {}
    for place, item in items:
        if place in found:
            raise InvalidArgument(f"the prior map of epoch {epoch} says something twice")
        found[place] = item
    return found


def _decode_bucket(one: pb.BucketPolicy) -> BucketPolicy:
    return BucketPolicy(one.tenant, one.bucket, one.policy)


def _decode_node(node: pb.MapNode) -> MapNode:
    try:
        state = NodeState(node.state)
    except ValueError:
        raise Unsupported(f"node state {node.state} is not known to this release") from None
    return MapNode(
        node.number,
        node.node_id,
        node.address,
        node.server,
        node.site,
        node.operator,
        node.jurisdiction,
        node.capacity_bytes,
        state,
        node.generation,
    )


def _decode_policy(policy: pb.MapPolicy) -> Policy:
    try:
        survives = Domain(policy.survives)
    except ValueError:
        raise Unsupported(f"failure domain {policy.survives} is not known to this release") from None
    return Policy(
        policy.name,
        policy.k,
        policy.m,
        tuple(policy.jurisdictions),
        survives,
        policy.operator_cap,
        policy.versions_kept,
    )
