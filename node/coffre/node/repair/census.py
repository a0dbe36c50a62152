"""How many versions have how many good shards: from the digests and rows of a round, with no scan of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from coffre.cluster.names import ObjectName
from coffre.node.repair.scene import Scene
from coffre.node.store import ABORTED, SETTLED, PartitionDigest, StoredVersion

__all__ = ["Census", "count_name", "is_first"]


def is_first(scene: Scene, partition: int) -> bool:
    """Whether this node is the first primary of a partition that answers."""
    primaries = scene.electorates.in_partition(partition)[0].primaries
    return scene.me == next((n for n in primaries if n == scene.me or n in scene.digests), None)


class Census:
    """Counts by partition, of those that this node is the first primary of that answered.

    So each partition is counted by one node, as far as nodes agree about who answers. Memory: one small count for each.
    """

    def __init__(self) -> None:
        self._counts: dict[int, Mapping[int, int]] = {}

    def clear(self) -> None:
        """The map changed."""
        self._counts.clear()

    def is_ours(self, scene: Scene, partition: int) -> bool:
        """Whether this node counts a partition; if not, what it counted before is another's to say."""
        # Where policies code in several ways, neither digests nor rows say which k is a version's.
        newest = scene.electorates.map
        codings = {(policy.k, policy.m) for one in (newest, *newest.prior) for policy in one.policies}
        if len(codings) > 1 or not is_first(scene, partition):
            self._counts.pop(partition, None)
            return False
        return True

    def note_alike(self, scene: Scene, partition: int, digest: PartitionDigest, empty: int) -> None:
        """All primaries that answer hold the same versions, each with its shard, but for so many that hold none."""
        if not self.is_ours(scene, partition):
            return
        spare = min(
            len([n for n in electorate.primaries if n == scene.me or n in scene.digests])
            - empty
            - electorate.k
            for electorate in scene.electorates.in_partition(partition)
        )
        self._counts[partition] = {spare: digest.versions} if digest.versions else {}

    def note_rows(self, partition: int, counts: Mapping[int, int]) -> None:
        """What rows said, name by name, of a partition that this node counts."""
        self._counts[partition] = dict(counts)

    def by_spare_shards(self) -> Mapping[int, int]:
        """Versions by their good shards beyond k."""
        total: Counter[int] = Counter()
        for counts in self._counts.values():
            total.update(counts)
        return total

    @property
    def partitions(self) -> int:
        """How many partitions are counted."""
        return len(self._counts)


def count_name(
    scene: Scene,
    name: ObjectName,
    partition: int,
    own: Sequence[StoredVersion],
    theirs: Sequence[tuple[Sequence[int], Sequence[StoredVersion]]],
) -> int | None:
    """The shards beyond k of the newest settled version of a name; None when there is none.

    `theirs`: what nodes that hold the same hold of it. Primaries alone are counted: a substitute's shard is one more.
    """
    electorate = scene.electorate(name, partition)
    held = [([scene.me], own), *theirs]
    newest = max((v.stamp for _, versions in held for v in versions if v.state == SETTLED), default=None)
    if newest is None:
        return None
    holders = {
        node: v.shard_index
        for nodes, versions in held
        for v in versions
        if v.stamp == newest and v.state != ABORTED and (v.tombstone or v.shard_index is not None)
        for node in nodes
    }
    if not electorate.is_moving:
        return len(holders.keys() & set(electorate.primaries)) - electorate.k
    # Rows are of each node then, so indexes are known: the same shard may lie at its old and its new place.
    indexes = {index for index in holders.values() if index is not None}
    return (len(indexes) or len(holders)) - electorate.k
