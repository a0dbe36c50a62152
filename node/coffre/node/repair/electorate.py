"""The electorates of a map, with what a node's repair asks of them beside (docs/repair.md)."""

from __future__ import annotations

from coffre.cluster.map import ClusterMap, Electorate, Voters
from coffre.cluster.map import Electorates as ClusterElectorates

__all__ = ["Electorate", "Electorates", "Voters"]


class Electorates(ClusterElectorates):
    """Who decides about which objects, by one map."""

    def __init__(self, cluster_map: ClusterMap) -> None:
        super().__init__(cluster_map)
        self.map = cluster_map

    def understudies(self, tenant: str, bucket: str, partition: int) -> tuple[int, ...]:
        """The n nodes behind the primaries in a partition's order: the only ones that writers use as
        substitutes."""
        members = self.of(tenant, bucket, partition).everyone
        rules = self.placement(tenant, bucket)
        others = [node for node in rules.order(partition) if node not in members]
        return tuple(others[: rules.policy.n])

    def own_partitions(self, number: int) -> tuple[int, ...]:
        """The partitions that a node is a primary of, in any set of some bucket, or in which shards of objects that are
        coded otherwise belong to it."""
        return tuple(
            partition
            for partition in range(self.map.partitions)
            if any(number in electorate.everyone for electorate in self.in_partition(partition))
            or number in self.homes_in_partition(partition)
        )

    def is_home(self, number: int, tenant: str, bucket: str, partition: int) -> bool:
        """Whether shards of the bucket's objects may belong to a node because they are coded otherwise than its policy
        says."""
        codings = self.codings(tenant, bucket)
        return any(number in self.homes(k, m, partition) for k, m in codings)

    def versions_kept(self, tenant: str, bucket: str) -> int:
        """How many versions of an object the bucket's policy keeps."""
        return self.placement(tenant, bucket).policy.versions_kept

    def nodes(self) -> tuple[int, ...]:
        """Every node that may hold something."""
        return tuple(sorted(self.map.consulted))
