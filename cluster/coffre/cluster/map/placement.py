"""Where the shards of a partition go: weighted rendezvous hashing under the caps of a storage policy.

Source of the score: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005: each node draws
``-weight / ln(u)``, u uniform in (0, 1) from a hash of (partition, node id), and the highest draws win. A
node's share is its weight's share; one that joins takes only what it wins, one that leaves gives away only
what it had. Hashes are integers, u is an exact double: every machine draws the same (docs/formats/map.md).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from coffre.cluster.errors import InvalidArgument, NotFound, PolicyViolation
from coffre.cluster.map._model import ClusterMap, Domain, MapNode, NodeState, Policy

__all__ = ["Placement", "score"]

_PERSON = b"coffre place v1"
_MANTISSA_BITS = 53
_PRIMARIES_CACHED = 1 << 16  # all partitions that a map can have
_ORDER_ENTRIES_CACHED = 1 << 22  # node numbers over all cached orders: about 32 MiB
_CHECKED_CACHED = 1 << 14


def score(partition: int, node_id: str, weight: int) -> float:
    """The draw of one node for one partition; higher is preferred."""
    digest = blake2b(partition.to_bytes(4, "big") + node_id.encode(), digest_size=8, person=_PERSON).digest()
    # The top 52 bits and a one below them: an odd 53-bit integer, so u is exact, and never 0 or 1.
    odd = (int.from_bytes(digest, "big") >> 12) << 1 | 1
    return -weight / math.log(odd / (1 << _MANTISSA_BITS))


@dataclass(frozen=True, slots=True)
class _Cap:
    """At most `limit` shards of one object in each group that `group_of` tells apart."""

    what: str  # site, server, operator
    limit: int
    group_of: Callable[[MapNode], str]


def _server(node: MapNode) -> str:
    return node.server


def _site(node: MapNode) -> str:
    return node.site


def _operator(node: MapNode) -> str:
    return node.operator


class Placement:
    """The placements of one policy on one map. Immutable; caches are bounded."""

    def __init__(self, cluster_map: ClusterMap, policy: Policy) -> None:
        self._map = cluster_map
        self._policy = policy
        self._nodes = {node.number: node for node in cluster_map.nodes}
        self._eligible = tuple(
            node
            for node in cluster_map.nodes
            if node.state is NodeState.ACTIVE and node.jurisdiction in policy.jurisdictions
        )
        self._caps = _caps(cluster_map, policy)
        orders = max(16, min(_PRIMARIES_CACHED, _ORDER_ENTRIES_CACHED // max(1, len(self._eligible))))
        self._order = lru_cache(maxsize=orders)(self._compute_order)
        self._primaries = lru_cache(maxsize=_PRIMARIES_CACHED)(self._compute_primaries)
        self._checked = lru_cache(maxsize=_CHECKED_CACHED)(self._check)

    @property
    def policy(self) -> Policy:
        """The storage policy that this placement follows."""
        return self._policy

    @property
    def rules(self) -> Hashable:
        """All that placements follow from: equal rules, equal placements."""
        nodes = (
            (node.number, node.node_id, node.server, node.site, node.operator, node.capacity_bytes)
            for node in self._eligible
        )
        caps = ((cap.what, cap.limit) for cap in self._caps)
        return self._policy.n, tuple(sorted(nodes)), tuple(caps)

    @property
    def operator_cap(self) -> int | None:
        """Shards of one object that one operator may have; None without a cap."""
        return next((cap.limit for cap in self._caps if cap.what == "operator"), None)

    def order(self, partition: int) -> tuple[int, ...]:
        """All nodes that may get new shards (active, jurisdiction allowed), the preferred first."""
        return self._order(partition)

    def primaries(self, partition: int) -> tuple[int, ...]:
        """The k + m node numbers of a partition, in order. `PolicyViolation` when the map is too small."""
        return self._primaries(partition)

    def substitutes(self, partition: int, placement: Sequence[int | None], shard_index: int) -> Iterator[int]:
        """Nodes that may take a shard in place of the one it was meant for, the preferred first.

        `placement` is where the shards are or go (None: nowhere yet); all nodes in it are left out, that of
        `shard_index` too. Raises `InvalidArgument` or `PolicyViolation`.
        """
        if len(placement) != self._policy.n or not 0 <= shard_index < self._policy.n:
            raise InvalidArgument(f"a placement of policy {self._policy.name} has {self._policy.n} shards")
        others = [number for i, number in enumerate(placement) if i != shard_index and number is not None]
        counts = [Counter(cap.group_of(self._known(number)) for number in others) for cap in self._caps]
        taken = {number for number in placement if number is not None}
        return (
            number
            for number in self.order(partition)
            if number not in taken and self._fits(self._nodes[number], counts)
        )

    def check(self, placement: Sequence[int]) -> None:
        """Raise `PolicyViolation` unless k + m distinct nodes keep every rule of the policy.

        Draining nodes are allowed: what lies on them lies there lawfully until it has moved.
        """
        self._checked(tuple(placement))

    def breach(self, held: Mapping[int, int]) -> str | None:
        """What is against the policy where shards really lie (shard index by node), or None.

        Several nodes may hold the same shard while one is handed over, so distinct shards are counted.
        """
        groups: dict[tuple[_Cap, str], set[int]] = {}
        for number, index in held.items():
            node = self._known(number)
            if node.jurisdiction not in self._policy.jurisdictions:
                return f"a shard lies in {node.jurisdiction}, where policy {self._policy.name} allows none"
            for cap in self._caps:
                groups.setdefault((cap, cap.group_of(node)), set()).add(index)
        for (cap, group), indexes in groups.items():
            if len(indexes) > cap.limit:
                return (
                    f"{len(indexes)} shards of an object lie in {cap.what} {group}; policy {self._policy.name} "
                    f"allows {cap.limit}"
                )
        return None

    # ---------------------------------------------------------------- computed once per argument

    def _compute_order(self, partition: int) -> tuple[int, ...]:
        if not 0 <= partition < self._map.partitions:
            raise InvalidArgument(f"partition {partition} is not among the map's {self._map.partitions}")
        ranked = sorted(
            (-score(partition, node.node_id, node.capacity_bytes), node.node_id, node.number)
            for node in self._eligible
        )
        return tuple(number for _, _, number in ranked)

    def _compute_primaries(self, partition: int) -> tuple[int, ...]:
        order = [self._nodes[number] for number in self.order(partition)]
        counts: list[Counter[str]] = [Counter() for _ in self._caps]
        chosen: set[int] = set()
        for node in order:
            if len(chosen) == self._policy.n:
                break
            if self._fits(node, counts):
                chosen.add(node.number)
                _count(counts, self._caps, node)
        while len(chosen) < self._policy.n:
            chosen = self._augment(order, chosen)
        return tuple(node.number for node in order if node.number in chosen)

    def _check(self, placement: tuple[int, ...]) -> None:
        policy = self._policy
        if len(placement) != policy.n:
            raise PolicyViolation(f"policy {policy.name} places {policy.n} shards, not {len(placement)}")
        if len(set(placement)) != len(placement):
            raise PolicyViolation("a placement puts two shards of one object on one node")
        nodes = [self._known(number) for number in placement]
        for node in nodes:
            if node.state is NodeState.REMOVED:
                raise PolicyViolation(f"node {node.node_id} was removed from the cluster")
            if node.jurisdiction not in policy.jurisdictions:
                raise PolicyViolation(
                    f"node {node.node_id} is in {node.jurisdiction}, and policy {policy.name} allows "
                    f"{', '.join(policy.jurisdictions)} alone"
                )
        for cap in self._caps:
            for group, count in Counter(map(cap.group_of, nodes)).items():
                if count > cap.limit:
                    raise PolicyViolation(
                        f"the placement puts {count} shards of one object in {cap.what} {group}; policy "
                        f"{policy.name} allows {cap.limit}"
                    )

    # ---------------------------------------------------------------- rules

    def _known(self, number: int) -> MapNode:
        try:
            return self._map.node(number)
        except NotFound as error:
            raise PolicyViolation(str(error)) from None

    def _fits(self, node: MapNode, counts: Sequence[Counter[str]]) -> bool:
        return all(
            count[cap.group_of(node)] < cap.limit for cap, count in zip(self._caps, counts, strict=True)
        )

    def _augment(self, order: Sequence[MapNode], chosen: set[int]) -> set[int]:
        """One more node than `chosen`, by the shortest chain of exchanges; `PolicyViolation` without one.

        The caps are at most two, one by place (site or server) and one by operator: nodes are edges between a
        place and an operator, and a choice is a b-matching, which grows along augmenting paths (Berge, 1957).
        So a placement is found whenever one exists.
        """
        place = _cap_or_none(self._caps, ("site", "server"))
        operator = _cap_or_none(self._caps, ("operator",))
        of_operator = Counter(operator.group_of(node) for node in order if node.number in chosen)
        of_place = Counter(place.group_of(node) for node in order if node.number in chosen)
        outside = [node for node in order if node.number not in chosen]
        inside = [node for node in order if node.number in chosen]
        came_from: dict[int, int | None] = {}
        queue: deque[MapNode] = deque()
        for node in outside:
            if of_operator[operator.group_of(node)] < operator.limit:
                came_from[node.number] = None
                queue.append(node)
        while queue:
            entering = queue.popleft()
            if of_place[place.group_of(entering)] < place.limit:
                return _exchange(chosen, came_from, entering.number)
            for leaving in inside:
                if leaving.number in came_from or place.group_of(leaving) != place.group_of(entering):
                    continue
                came_from[leaving.number] = entering.number
                for node in outside:
                    if node.number not in came_from and operator.group_of(node) == operator.group_of(leaving):
                        came_from[node.number] = leaving.number
                        queue.append(node)
        raise PolicyViolation(self._explain())

    def _explain(self) -> str:
        policy, n = self._policy, self._policy.n
        where = "/".join(policy.jurisdictions)
        what = f"policy {policy.name} cannot be kept: "
        if len(self._eligible) < n:
            return (
                f"{what}it needs {n} active nodes in {where}, and the map has {len(self._eligible)}; "
                f"add {n - len(self._eligible)}"
            )
        for cap in self._caps:
            groups = Counter(map(cap.group_of, self._eligible))
            room = sum(min(count, cap.limit) for count in groups.values())
            if room < n:
                return (
                    f"{what}at most {cap.limit} of an object's {n} shards may lie in one {cap.what}, and the "
                    f"{len(groups)} {cap.what}s in {where} have room for {room}; "
                    f"add nodes in another {cap.what}"
                )
        names = " and per ".join(f"{cap.what} ({cap.limit})" for cap in self._caps)
        return (
            f"{what}the caps per {names} together leave no {n} nodes; add a node that neither cap counts yet"
        )


def _caps(cluster_map: ClusterMap, policy: Policy) -> tuple[_Cap, ...]:
    caps: list[_Cap] = []
    # A server is at one site (the map makes sure), so the cap per site includes the cap per server.
    if policy.survives is Domain.SITE:
        caps.append(_Cap("site", policy.m, _site))
    elif policy.survives is Domain.SERVER:
        caps.append(_Cap("server", policy.m, _server))
    # Draining nodes count here: the cap must not fall away in silence when one of two operators leaves.
    operators = {
        node.operator
        for node in cluster_map.nodes
        if node.state is not NodeState.REMOVED and node.jurisdiction in policy.jurisdictions
    }
    if policy.operator_cap:
        caps.append(_Cap("operator", policy.operator_cap, _operator))
    elif len(operators) > 1:
        caps.append(_Cap("operator", policy.k - 1, _operator))
    return tuple(caps)


def _everything(node: MapNode) -> str:
    return ""


def _cap_or_none(caps: Iterable[_Cap], kinds: tuple[str, ...]) -> _Cap:
    """The cap of one of these kinds, or one that never bites."""
    return next((cap for cap in caps if cap.what in kinds), _Cap("", 1 << 30, _everything))


def _count(counts: Sequence[Counter[str]], caps: Sequence[_Cap], node: MapNode) -> None:
    for cap, count in zip(caps, counts, strict=True):
        count[cap.group_of(node)] += 1


def _exchange(chosen: set[int], came_from: dict[int, int | None], last: int) -> set[int]:
    """Flip every node on the path that ends at `last`: those outside come in, those inside go out."""
    path: set[int] = set()
    step: int | None = last
    while step is not None:
        path.add(step)
        step = came_from[step]
    return chosen ^ path
