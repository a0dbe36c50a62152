"""The cluster map: which nodes there are, where, and under which storage policies. docs/formats/map.md.

An instance of `ClusterMap` is always valid. A map travels and rests signed (coffre.cluster.map).
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from coffre.cluster.errors import InvalidArgument, NotFound
from coffre.cluster.identity import Identity, NodeAttributes, Role, check_jurisdiction
from coffre.cluster.names import check_bucket, check_tenant

__all__ = [
    "BUCKET_POLICIES_MAX",
    "MAP_BYTES_MAX",
    "NODES_MAX",
    "POLICIES_MAX",
    "PRIOR_MAX",
    "SHARDS_MAX",
    "BucketPolicy",
    "ClusterMap",
    "Domain",
    "MapNode",
    "NodeState",
    "Policy",
]

MAP_BYTES_MAX = 64 << 20
NODES_MAX = 10_000
POLICIES_MAX = 64
COORDINATORS_MAX = 64
BUCKET_POLICIES_MAX = 10_000
PRIOR_MAX = 4  # maps of earlier epochs that are still consulted
PARTITIONS_MAX = 1 << 16
SHARDS_MAX = 255  # of one object, under any policy
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
    generation: int = 0  # of its certificate: no other one is accepted

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
        return NodeAttributes(
            self.node_id, self.server, self.site, self.operator, self.jurisdiction, self.generation
        )


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
class BucketPolicy:
    """A bucket with a policy of its own."""

    tenant: str
    bucket: str
    policy: str  # the policy's name

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        check_bucket(self.bucket)


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """One epoch of the cluster. Raises `InvalidArgument` when it contradicts itself.

    `prior`: the maps of earlier epochs that are still consulted, the newest first, while data moves.
    `bucket_policies`: in rising order of tenant and bucket; every other bucket has the default policy.
    """

    cluster_id: str
    epoch: int
    partitions: int
    nodes: tuple[MapNode, ...]
    policies: tuple[Policy, ...]
    default_policy: str
    coordinators: tuple[int, ...] = ()  # numbers of the nodes that serve Coordination
    prior: tuple[ClusterMap, ...] = ()
    bucket_policies: tuple[BucketPolicy, ...] = ()
    _by_number: dict[int, MapNode] = field(init=False, repr=False, compare=False)
    _policy_names: dict[tuple[str, str], str] = field(init=False, repr=False, compare=False)

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
        names = {(one.tenant, one.bucket): one.policy for one in self.bucket_policies}
        object.__setattr__(self, "_policy_names", names)
        self._check_buckets()
        self._check_coordinators()
        self._check_prior()

    def _check_buckets(self) -> None:
        few = len(self.bucket_policies) <= BUCKET_POLICIES_MAX
        _require(few, f"a map has policies of at most {BUCKET_POLICIES_MAX} buckets")
        places = [(one.tenant, one.bucket) for one in self.bucket_policies]
        rising = all(before < after for before, after in itertools.pairwise(places))
        _require(rising, "the policies of buckets are in rising order of tenant and bucket, each once")
        known = {policy.name for policy in self.policies}
        for one in self.bucket_policies:
            named = f"the policy {one.policy!r} of bucket {one.tenant}/{one.bucket}"
            _require(one.policy in known, f"{named} is not among the policies")

    def _check_coordinators(self) -> None:
        few = len(self.coordinators) <= COORDINATORS_MAX
        _require(few, f"a map has at most {COORDINATORS_MAX} coordinators")
        _distinct("coordinator", self.coordinators, lambda number: number)
        for number in self.coordinators:
            node = self._by_number.get(number)
            there = node is not None and node.state is not NodeState.REMOVED
            _require(there, f"coordinator {number} is not a node of the map, or was removed")

    def _check_prior(self) -> None:
        _require(len(self.prior) <= PRIOR_MAX, f"a map has at most {PRIOR_MAX} prior maps")
        epoch = self.epoch
        for prior in self.prior:
            what = f"the prior map of epoch {prior.epoch}"
            _require(prior.epoch < epoch, f"{what} must come before epoch {epoch}")
            same = (prior.cluster_id, prior.partitions) == (self.cluster_id, self.partitions)
            _require(same, f"{what} is of another cluster, or has other partitions")
            plain = not prior.prior and not prior.coordinators
            _require(plain, f"{what} has prior maps or coordinators of its own")
            there = {node.number for node in prior.nodes}
            expected = [(node.number, node.node_id) for node in self.nodes if node.number in there]
            listed = [(node.number, node.node_id) for node in prior.nodes]
            _require(expected == listed, f"{what} lists nodes that the map has not, or has in another order")
            epoch = prior.epoch

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

    def policy_of(self, tenant: str, bucket: str) -> Policy:
        """The policy by which new objects of a bucket are coded and placed."""
        return self.policy(self._policy_names.get((tenant, bucket)))

    @property
    def policies_in_use(self) -> tuple[str, ...]:
        """Names of the default policy and of those of buckets, each once, the default first."""
        return tuple(dict.fromkeys((self.default_policy, *self._policy_names.values())))

    @property
    def consulted(self) -> frozenset[int]:
        """Numbers of the nodes that a set of primaries may name: not removed, in this map or in a prior one.

        A node that was lost is among them while data moves: it is silent, and counts as that.
        """
        maps = (self, *self.prior)
        return frozenset(
            node.number for one in maps for node in one.nodes if node.state is not NodeState.REMOVED
        )

    @property
    def lost(self) -> frozenset[int]:
        """Numbers of the nodes that were given up for lost, and are consulted while their data is made anew."""
        removed = {node.number for node in self.nodes if node.state is NodeState.REMOVED}
        return self.consulted & removed

    @property
    def departed(self) -> frozenset[int]:
        """Numbers of the nodes that were taken out before the oldest map that is consulted."""
        return frozenset(node.number for node in self.nodes) - self.consulted

    def with_prior(self, prior: Iterable[ClusterMap]) -> ClusterMap:
        """The same map, which consults these too."""
        return replace(self, prior=tuple(prior))

    def as_prior(self) -> ClusterMap:
        """What the next map keeps of this one, to consult it: itself alone."""
        return replace(self, coordinators=(), prior=())


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
