"""Who votes on the versions of a partition: one set of primaries, and several while the map changes.

docs/consistency.md, "Words and arithmetic" and "Changing the map".
"""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.placement import Placement

__all__ = ["Electorate", "Electorates"]


@dataclass(frozen=True, slots=True)
class Electorate:
    """The sets of primaries that are consulted for a partition, the newest first. All have k + m nodes."""

    sets: tuple[tuple[int, ...], ...]
    k: int
    m: int

    @property
    def primaries(self) -> tuple[int, ...]:
        """The newest set, in order: where shards go."""
        return self.sets[0]

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def write(self) -> int:
        """W: manifests that make a version established."""
        return self.n // 2 + 1

    @property
    def read(self) -> int:
        """R: answers that meet every W."""
        return self.n - self.write + 1

    @property
    def shards(self) -> int:
        """D: synced shards before a put returns."""
        return self.k + 1

    @property
    def everyone(self) -> frozenset[int]:
        return frozenset(node for members in self.sets for node in members)

    @property
    def is_changing(self) -> bool:
        """Whether prior sets are still consulted: then nothing is forgotten or collected."""
        return len(self.sets) > 1


class Electorates:
    """The electorates of one map. Objects are placed by the map's default policy."""

    def __init__(self, cluster_map: ClusterMap, placement: Placement) -> None:
        self.map = cluster_map
        self._placement = placement

    def of(self, partition: int) -> Electorate:
        """Raises `PolicyViolation` when the policy cannot be kept on this map."""
        policy = self._placement.policy
        return Electorate((self._placement.primaries(partition),), policy.k, policy.m)

    def understudies(self, partition: int) -> tuple[int, ...]:
        """The n nodes behind the primaries in a partition's order: the only ones that writers use as
        substitutes."""
        members = self.of(partition).everyone
        others = [node for node in self._placement.order(partition) if node not in members]
        return tuple(others[: self._placement.policy.n])

    def own_partitions(self, number: int) -> tuple[int, ...]:
        """The partitions that a node is a primary of, in the newest set."""
        return tuple(p for p in range(self.map.partitions) if number in self.of(p).primaries)

    @property
    def versions_kept(self) -> int:
        return self._placement.policy.versions_kept

    def nodes(self) -> tuple[int, ...]:
        """Every node that may hold something."""
        return tuple(node.number for node in self.map.nodes if node.state is not NodeState.REMOVED)
