"""Who votes on the versions of a partition: one set of primaries, and several while the map changes.

docs/consistency.md, "Words and arithmetic" and "Changing the map".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.placement import Placement

__all__ = ["Electorate", "Electorates", "Voters"]


@dataclass(frozen=True, slots=True)
class Voters:
    """One set of primaries, in the order of the partition, with the k and m of their policy."""

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
    everyone: frozenset[int] = field(init=False)  # of all sets
    k: int = field(init=False)  # of the newest set, as m, write and read
    m: int = field(init=False)
    k_min: int = field(init=False)  # of any set: no object can be read from fewer shards
    write: int = field(init=False)
    read: int = field(init=False)
    _bars: tuple[tuple[frozenset[int], int, int], ...] = field(init=False, repr=False)  # nodes, W, R

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
        """n nodes to look for the shards of a version of n shards: the newest set that codes so many.

        Without one (the version is from before all of them) they are only where to begin, and repeat.
        """
        for voters in self.sets:
            if len(voters.nodes) == n:
                return voters.nodes
        return (self.primaries * n)[:n]

    def is_established_by(self, nodes: Collection[int]) -> bool:
        """Whether a version that these nodes hold (or locked) reaches W in every set."""
        return all(len(voters.intersection(nodes)) >= write for voters, write, _ in self._bars)

    def may_be_established(self, holders_or_silent: Collection[int]) -> bool:
        """Whether it may have reached W in every set, if all who may hold it do.

        False: it was provably never seen, since in some set they are fewer than W.
        """
        return self.is_established_by(holders_or_silent)

    def is_heard_from(self, nodes: Collection[int]) -> bool:
        """Whether the answers of these nodes meet every completed write: R in every set."""
        return all(len(voters.intersection(nodes)) >= read for voters, _, read in self._bars)

    def is_dead_by(self, aborted: Collection[int]) -> bool:
        """Whether these votes keep a version from W for ever: R in any set."""
        return any(len(voters.intersection(aborted)) >= read for voters, _, read in self._bars)


class Electorates:
    """The electorates of one map. Objects are placed by the map's default policy, whatever their bucket."""

    def __init__(self, cluster_map: ClusterMap, placement: Placement) -> None:
        self.map = cluster_map
        self._placement = placement

    def of(self, tenant: str, bucket: str, partition: int) -> Electorate:
        """Who decides about the objects of a bucket in a partition. Raises `PolicyViolation`."""
        policy = self._placement.policy
        return Electorate((Voters(self._placement.primaries(partition), policy.k, policy.m),))

    def in_partition(self, partition: int) -> tuple[Electorate, ...]:
        """All electorates of a partition."""
        return (self.of("", "", partition),)

    def understudies(self, tenant: str, bucket: str, partition: int) -> tuple[int, ...]:
        """The n nodes behind the primaries in a partition's order: the only ones that writers use as
        substitutes."""
        members = self.of(tenant, bucket, partition).everyone
        others = [node for node in self._placement.order(partition) if node not in members]
        return tuple(others[: self._placement.policy.n])

    def own_partitions(self, number: int) -> tuple[int, ...]:
        """The partitions that a node is a primary of, in the newest set of some bucket."""
        return tuple(
            partition
            for partition in range(self.map.partitions)
            if any(number in electorate.primaries for electorate in self.in_partition(partition))
        )

    def versions_kept(self, tenant: str, bucket: str) -> int:
        return self._placement.policy.versions_kept

    def nodes(self) -> tuple[int, ...]:
        """Every node that may hold something."""
        return tuple(node.number for node in self.map.nodes if node.state is not NodeState.REMOVED)
