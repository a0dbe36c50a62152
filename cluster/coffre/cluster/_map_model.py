"""The cluster map: which nodes there are, where, and under which storage policies. docs/formats/map.md.

An instance of `ClusterMap` is always valid. A map travels and rests signed (coffre.cluster.map).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from coffre.cluster.errors import (
    ConfigurationError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    StaleMap,
    Unsupported,
)
from coffre.cluster.identity import Identity, NodeAttributes, Role, check_jurisdiction
from coffre.proto import coffre_pb2 as pb
from google.protobuf.message import DecodeError

__all__ = [
    "MAP_BYTES_MAX",
    "NODES_MAX",
    "POLICIES_MAX",
    "ClusterMap",
    "Domain",
    "MapNode",
    "NodeState",
    "Policy",
    "decode_map",
    "encode_map",
    "newer_map",
]

MAP_FORMAT = 1
MAP_BYTES_MAX = 64 << 20
NODES_MAX = 10_000
POLICIES_MAX = 64
COORDINATORS_MAX = 64
PARTITIONS_MAX = 1 << 16
SHARDS_MAX = 255
VERSIONS_KEPT_MAX = 1000
_INT64_MAX = (1 << 63) - 1
_NUMBER_MAX = (1 << 32) - 1
_POLICY_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.+-]{0,61}[a-z0-9])?")
_ADDRESS = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})"
)
_Item = TypeVar("_Item")


class NodeState(enum.IntEnum):
    """What a node is there for; the numbers are those of the wire (coffre.v1.NodeState)."""

    ACTIVE = 1
    DRAINING = 2  # keeps serving, gets nothing new
    REMOVED = 3  # its number is never given again


class Domain(enum.IntEnum):
    """The largest failure domain that may be lost; the numbers are those of the wire (coffre.v1.Domain)."""

    NODE = 1
    SERVER = 2
    SITE = 3


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidArgument(message)


@dataclass(frozen=True, slots=True)
class MapNode:
    """One node as the signer of the map states it; TLS proves that the node's certificate says the same."""

    number: int
    node_id: str
    address: str  # host:port
    server: str
    site: str
    operator: str
    jurisdiction: str  # ISO 3166-1 alpha-2
    capacity_bytes: int
    state: NodeState = NodeState.ACTIVE

    def __post_init__(self) -> None:
        _ = self.attributes  # checks them
        _require(1 <= self.number <= _NUMBER_MAX, f"{self.node_id}: a node's number is 1 to {_NUMBER_MAX}")
        found = _ADDRESS.fullmatch(self.address)
        valid = found is not None and 1 <= int(found["port"]) <= 65535
        _require(valid, f"{self.node_id}: {self.address!r} is not an address (host:port)")
        capacity = 1 <= self.capacity_bytes <= _INT64_MAX
        _require(capacity, f"{self.node_id}: the capacity is at least 1 byte, below 2^63")

    @property
    def attributes(self) -> NodeAttributes:
        """What the node's certificate must say."""
        return NodeAttributes(self.node_id, self.server, self.site, self.operator, self.jurisdiction)


@dataclass(frozen=True, slots=True)
class Policy:
    """How objects are coded, and where their shards may lie."""

    name: str
    k: int
    m: int
    jurisdictions: tuple[str, ...]  # at least one
    survives: Domain = Domain.SITE
    operator_cap: int = 0  # shards of one object with one operator; 0: k - 1 once there are several operators
    versions_kept: int = 1

    @property
    def n(self) -> int:
        """Shards of one object."""
        return self.k + self.m

    def __post_init__(self) -> None:
        named = _POLICY_NAME.fullmatch(self.name) is not None
        _require(
            named, f"{self.name!r} is not a policy name: a-z, 0-9, '-', '+' and '.', at most 63 characters"
        )
        what = f"policy {self.name}"
        _require(self.k >= 1 and self.m >= 1, f"{what}: k and m are at least 1")
        _require(self.m <= self.k, f"{what}: m is at most k, or losing m nodes could lose every manifest")
        _require(self.n <= SHARDS_MAX, f"{what}: k + m is at most {SHARDS_MAX}")
        _require(len(self.jurisdictions) >= 1, f"{what} must name at least one jurisdiction")
        for jurisdiction in self.jurisdictions:
            check_jurisdiction(jurisdiction)
        distinct = len(set(self.jurisdictions)) == len(self.jurisdictions)
        _require(distinct, f"{what} names a jurisdiction twice")
        below = 0 <= self.operator_cap < max(self.k, 1)
        _require(
            below, f"{what}: an operator with k = {self.k} shards could rebuild records; the cap is lower"
        )
        kept = 1 <= self.versions_kept <= VERSIONS_KEPT_MAX
        _require(kept, f"{what} keeps 1 to {VERSIONS_KEPT_MAX} versions")


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """One epoch of the cluster. Raises `InvalidArgument` when it contradicts itself."""

    cluster_id: str
    epoch: int
    partitions: int
    nodes: tuple[MapNode, ...]
    policies: tuple[Policy, ...]
    default_policy: str
    coordinators: tuple[
        int, ...
    ] = ()  # numbers of the nodes that serve Coordination; none: no conditional writes
    _by_number: dict[int, MapNode] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Identity(self.cluster_id, Role.OPERATOR, "any")  # checks the cluster id
        _require(1 <= self.epoch <= _INT64_MAX, "a map's epoch is 1 or above, below 2^63")
        _require(1 <= self.partitions <= PARTITIONS_MAX, f"a map has 1 to {PARTITIONS_MAX} partitions")
        _require(1 <= len(self.nodes) <= NODES_MAX, f"a map has 1 to {NODES_MAX} nodes")
        _require(1 <= len(self.policies) <= POLICIES_MAX, f"a map has 1 to {POLICIES_MAX} policies")
        present = [node for node in self.nodes if node.state is not NodeState.REMOVED]
        _distinct("node number", self.nodes, lambda node: node.number)
        _distinct("node id", self.nodes, lambda node: node.node_id)
        _distinct("address", present, lambda node: node.address)
        _distinct("policy", self.policies, lambda policy: policy.name)
        # A manifest says k and m, and no more; a node must know from them which rules its placement obeys.
        _distinct("policy with k+m", self.policies, lambda policy: f"{policy.k}+{policy.m}")
        known = any(policy.name == self.default_policy for policy in self.policies)
        _require(known, f"the default policy {self.default_policy!r} is not among the policies")
        _check_servers(present)
        object.__setattr__(self, "_by_number", {node.number: node for node in self.nodes})
        _require(
            len(self.coordinators) <= COORDINATORS_MAX, f"a map has at most {COORDINATORS_MAX} coordinators"
        )
        _distinct("coordinator", self.coordinators, lambda number: number)
        serving = {node.number for node in present}
        for number in self.coordinators:
            _require(number in serving, f"coordinator {number} is not a node of the map, or was removed")

    def node(self, number: int) -> MapNode:
        """The node of that number, `NotFound` if there never was one."""
        try:
            return self._by_number[number]
        except KeyError:
            raise NotFound(f"the cluster map (epoch {self.epoch}) has no node {number}") from None

    def policy(self, name: str | None = None) -> Policy:
        """The policy of that name, or the default one. Raises `NotFound`."""
        wanted = self.default_policy if name is None else name
        for policy in self.policies:
            if policy.name == wanted:
                return policy
        raise NotFound(f"the cluster map (epoch {self.epoch}) has no storage policy {wanted!r}")


def _distinct(what: str, items: Iterable[_Item], value_of: Callable[[_Item], Hashable]) -> None:
    seen: set[Hashable] = set()
    for item in items:
        value = value_of(item)
        _require(value not in seen, f"{what} {value} is in the map twice")
        seen.add(value)


def _check_servers(nodes: Iterable[MapNode]) -> None:
    site_of: dict[str, str] = {}
    for node in nodes:
        site = site_of.setdefault(node.server, node.site)
        _require(site == node.site, f"server {node.server} cannot be at two sites, {site} and {node.site}")


def newer_map(current: ClusterMap, candidate: ClusterMap) -> ClusterMap:
    """`candidate` when its epoch is higher, `current` when they are the same map.

    Raises `StaleMap` on a lower epoch, `IntegrityError` on another map of the same epoch or one that gives a
    number to another node, changes the partitions or forgets a node, `ConfigurationError` on another cluster.
    """
    if candidate.cluster_id != current.cluster_id:
        raise ConfigurationError(f"the map is of cluster {candidate.cluster_id}, not {current.cluster_id}")
    if candidate.epoch < current.epoch:
        raise StaleMap(f"the map offered has epoch {candidate.epoch}, below the current {current.epoch}")
    if candidate.epoch == current.epoch:
        if encode_map(candidate) != encode_map(current):
            raise IntegrityError(f"there are two different cluster maps of epoch {current.epoch}")
        return current
    if candidate.partitions != current.partitions:
        raise IntegrityError("the number of partitions is fixed for the life of a cluster")
    ids = {node.number: node.node_id for node in candidate.nodes}
    for node in current.nodes:
        if ids.get(node.number) != node.node_id:
            raise IntegrityError(
                f"the map of epoch {candidate.epoch} forgets node {node.number} ({node.node_id}) or gives "
                "its number to another; a node that left stays in the map as removed"
            )
    return candidate


# ------------------------------------------------------------------ bytes


def encode_map(cluster_map: ClusterMap) -> bytes:
    """The payload of a signed map: a serialized coffre.v1.ClusterMap."""
    message = pb.ClusterMap(
        format=MAP_FORMAT,
        cluster_id=cluster_map.cluster_id,
        epoch=cluster_map.epoch,
        partitions=cluster_map.partitions,
        default_policy=cluster_map.default_policy,
        coordinators=cluster_map.coordinators,
    )
    for node in cluster_map.nodes:
        message.nodes.add(
            number=node.number,
            node_id=node.node_id,
            address=node.address,
            server=node.server,
            site=node.site,
            operator=node.operator,
            jurisdiction=node.jurisdiction,
            capacity_bytes=node.capacity_bytes,
            state=pb.NodeState.ValueType(node.state),
        )
    for policy in cluster_map.policies:
        message.policies.add(
            name=policy.name,
            k=policy.k,
            m=policy.m,
            jurisdictions=policy.jurisdictions,
            survives=pb.Domain.ValueType(policy.survives),
            operator_cap=policy.operator_cap,
            versions_kept=policy.versions_kept,
        )
    return message.SerializeToString(deterministic=True)


def decode_map(payload: bytes) -> ClusterMap:
    """Read what `encode_map` wrote. Raises `IntegrityError`, `Unsupported` or `InvalidArgument`."""
    try:
        message = pb.ClusterMap.FromString(payload)
    except DecodeError:
        raise IntegrityError("the cluster map cannot be read") from None
    if message.format != MAP_FORMAT:
        raise Unsupported(f"cluster map format {message.format} is not known to this release")
    # Before anything is built: a map of a million nodes is refused by its size.
    _require(len(message.nodes) <= NODES_MAX, f"a map has 1 to {NODES_MAX} nodes")
    _require(
        len(message.coordinators) <= COORDINATORS_MAX, f"a map has at most {COORDINATORS_MAX} coordinators"
    )
    _require(len(message.policies) <= POLICIES_MAX, f"a map has 1 to {POLICIES_MAX} policies")
    return ClusterMap(
        message.cluster_id,
        message.epoch,
        message.partitions,
        tuple(_decode_node(node) for node in message.nodes),
        tuple(_decode_policy(policy) for policy in message.policies),
        message.default_policy,
        tuple(message.coordinators),
    )


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
