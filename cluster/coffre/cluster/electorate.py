"""Who decides about an object: the sets of primaries that a map consults, with their arithmetic.

docs/consistency.md says why.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from coffre.cluster.map import ClusterMap, Policy
from coffre.cluster.placement import Placement

__all__ = ["SHARDS_MAX", "Electorate", "Electorates", "Voters"]

SHARDS_MAX = 255  # of one object, under any policy
_CACHED = 1 << 16  # all partitions that a map can have


@dataclass(frozen=True, slots=True)
class Voters:
    """One set of primaries, in shard order, with the k and m of their policy."""

    nodes: tuple[int, ...]
    k: int
    m: int

    @property
    def write(self) -> int:
        """W: so many of the nodes establish a version."""
        return len(self.nodes) // 2 + 1

    @property
    def read(self) -> int:
        """R: so many answers meet every W."""
        return len(self.nodes) - self.write + 1


@dataclass(frozen=True, slots=True)
class Electorate:
    """All sets that are consulted about one partition, the newest first; mostly there is one.

    New shards go to the newest set, under its k and m. Collections of node numbers may name nodes of no set.
    """

    sets: tuple[Voters, ...]
    primaries: tuple[int, ...] = field(init=False)  # of the newest set
    everyone: frozenset[int] = field(init=False)
    k: int = field(init=False)
    m: int = field(init=False)
    k_min: int = field(init=False)  # of any set: no object can be read from fewer shards
    write: int = field(init=False)  # W of the newest set
    read: int = field(init=False)  # R of the newest set
    _bars: tuple[tuple[frozenset[int], int, int], ...] = field(init=False)  # nodes, W, R

    def __post_init__(self) -> None:
        newest = self.sets[0]
        for name, value in (
            ("primaries", newest.nodes),
            ("everyone", frozenset(node for voters in self.sets for node in voters.nodes)),
            ("k", newest.k),
            ("m", newest.m),
            ("k_min", min(voters.k for voters in self.sets)),
            ("write", newest.write),
            ("read", newest.read),
            ("_bars", tuple((frozenset(v.nodes), v.write, v.read) for v in self.sets)),
        ):
            object.__setattr__(self, name, value)

    @property
    def shards(self) -> int:
        """D: so many shards, on distinct nodes, must be synced before a put returns."""
        return self.k + 1

    @property
    def is_moving(self) -> bool:
        """Whether several sets are consulted."""
        return len(self.sets) > 1

    def primaries_of(self, n: int) -> tuple[int, ...]:
        """The nodes of the newest set that codes n shards; for a version from before all of them, any n."""
        for voters in self.sets:
            if len(voters.nodes) == n:
                return voters.nodes
        return (self.primaries * n)[:n]

    def is_established_by(self, nodes: Collection[int]) -> bool:
        """Whether a version that these nodes hold, or locked, reaches W in every set."""
        return all(len(voters.intersection(nodes)) >= write for voters, write, _ in self._bars)

    def may_be_established(self, nodes: Collection[int]) -> bool:
        """The same, of nodes that hold it or may hold it: without W in some set it was never acknowledged."""
        return self.is_established_by(nodes)

    def is_heard_from(self, nodes: Collection[int]) -> bool:
        """Whether the answers of these nodes meet every completed write: R in every set."""
        return all(len(voters.intersection(nodes)) >= read for voters, _, read in self._bars)

    def is_dead_by(self, aborted: Collection[int]) -> bool:
        """Whether these votes keep a version from W in some set for ever."""
        return any(len(voters.intersection(aborted)) >= read for voters, _, read in self._bars)


class Electorates:
    """The electorates of one map, which may still consult `prior` ones, newest first. Caches are bounded."""

    def __init__(self, cluster_map: ClusterMap, prior: Sequence[ClusterMap] = ()) -> None:
        self._maps = (cluster_map, *prior)
        self._placements = [
            {policy.name: Placement(some_map, policy) for policy in some_map.policies}
            for some_map in self._maps
        ]
        self._of = lru_cache(maxsize=_CACHED)(self._compute)

    def of(self, tenant: str, bucket: str, partition: int) -> Electorate:
        """Who decides about the objects of a bucket in a partition. Raises `PolicyViolation`."""
        return self._of(self._policies(tenant, bucket), partition)

    def placement(self, tenant: str, bucket: str) -> Placement:
        """The rules by which new shards of a bucket's objects are placed."""
        return self._placements[0][self._policies(tenant, bucket)[0]]

    def silent_max(self, tenant: str, bucket: str) -> int:
        """So many nodes may be silent, whichever they are, and every partition is still heard from."""
        policies = zip(self._maps, self._policies(tenant, bucket), strict=True)
        return min((some_map.policy(name).n - 1) // 2 for some_map, name in policies)

    def _policies(self, tenant: str, bucket: str) -> tuple[str, ...]:
        return tuple(some_map.default_policy for some_map in self._maps)

    def _compute(self, policies: tuple[str, ...], partition: int) -> Electorate:
        sets: list[Voters] = []
        seen: set[tuple[frozenset[int], int]] = set()
        for placements, name in zip(self._placements, policies, strict=True):
            placement = placements[name]
            policy: Policy = placement.policy
            nodes = placement.primaries(partition)
            if (frozenset(nodes), policy.k) not in seen:
                seen.add((frozenset(nodes), policy.k))
                sets.append(Voters(nodes, policy.k, policy.m))
        return Electorate(tuple(sets))
