"""What a change of the map moves, and how far it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coffre.cluster.map import ClusterMap, Electorates, Placement
from coffre.cluster.transport import Transport

__all__ = ["Course", "Move", "MoveReport", "MoveReports", "Movement", "RepairReports", "movement_between"]


@dataclass(frozen=True, slots=True)
class Course:
    """What moves of the buckets that go from one policy to one policy. Counts are shards of one object a partition.

    A shard moves when its node changes, so `moved` are the new primaries that were none before. `minimum` would have
    to move wherever else the same counts came from: what the nodes that gain have more than before.
    """

    before: str  # names of policies
    after: str
    buckets: int | None  # how many buckets with policies of their own; None: all others
    shards: int  # under the policy after
    moved: int
    minimum: int
    held: Mapping[int, int]  # before, by node; as the next two
    incoming: Mapping[int, int]
    outgoing: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Movement:
    """What moves between two maps."""

    courses: tuple[Course, ...]

    @property
    def moved(self) -> int:
        """How many shards do move, in shards of all partitions."""
        return sum(course.moved for course in self.courses)

    @property
    def minimum(self) -> int:
        """How many shards any placement would have to move, in shards of all partitions."""
        return sum(course.minimum for course in self.courses)

    def total(self, counts: Callable[[Course], Mapping[int, int]]) -> Counter[int]:
        """One of the counts by node, over all courses."""
        return sum((Counter(counts(course)) for course in self.courses), Counter())

    def bytes_per_shard(self, live_bytes: Mapping[int, int]) -> float | None:
        """What a shard of all objects of a partition has on average, from what nodes say that they hold.

        None when a bucket changes its policy, since nodes do not count bytes by bucket; or when nobody says anything.
        """
        held = self.total(lambda course: course.held)
        shards = sum(held[node] for node in live_bytes)
        if not shards or any(course.before != course.after for course in self.courses):
            return None
        return sum(live_bytes.values()) / shards


def movement_between(before: ClusterMap, after: ClusterMap) -> Movement:
    """Compare the placements of two maps in every partition. Raises `PolicyViolation`."""
    places = {(one.tenant, one.bucket) for one in (*before.bucket_policies, *after.bucket_policies)}
    own = Counter((before.policy_of(*place).name, after.policy_of(*place).name) for place in places)
    default = (before.default_policy, after.default_policy)
    courses = [_course(before, after, *default, None)]
    courses += [_course(before, after, *names, count) for names, count in sorted(own.items())]
    return Movement(tuple(courses))


def _course(before: ClusterMap, after: ClusterMap, old: str, new: str, buckets: int | None) -> Course:
    was, will = Placement(before, before.policy(old)), Placement(after, after.policy(new))
    held: Counter[int] = Counter()
    incoming: Counter[int] = Counter()
    outgoing: Counter[int] = Counter()
    for partition in range(after.partitions):
        # Partition by partition, so that neither map's orders are all in memory.
        then, now = set(was.primaries(partition)), set(will.primaries(partition))
        held.update(then)
        incoming.update(now - then)
        outgoing.update(then - now)
    return Course(
        old,
        new,
        buckets,
        after.partitions * will.policy.n,
        incoming.total(),
        (incoming - outgoing).total(),  # Counter's difference keeps what is above 0
        dict(sorted(held.items())),
        dict(sorted(incoming.items())),
        dict(sorted(outgoing.items())),
    )


# ------------------------------------------------------------------ a move under way


@dataclass(frozen=True, slots=True)
class MoveReport:
    """Partitions of which a node has everything that was complete before `epoch` (docs/repair.md)."""

    epoch: int
    partitions: frozenset[int]


class MoveReports(Protocol):
    """Where nodes say how far they have come with a move."""

    async def moved(self, node: int, timeout: float) -> MoveReport:
        """What the node of that number reports. Raises `CoffreError` when it does not answer in time."""


class RepairReports:
    """What the repair of each node says (docs/repair.md, "A round")."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def moved(self, node: int, timeout: float) -> MoveReport:
        reply = await self._transport.repair_status(node, timeout)
        return MoveReport(reply.moved_epoch, frozenset(reply.moved))


class Move:
    """The move that a map is in: which node must report which partitions.

    A partition whose sets are all equal has nothing to move: whatever was complete under a prior map is in the one set
    that every epoch consults. Shards of objects that are coded otherwise than their bucket's policy says move, too.
    """

    def __init__(self, cluster_map: ClusterMap) -> None:
        self.epoch = cluster_map.epoch
        self._expected: dict[int, set[int]] = {}
        if cluster_map.prior:
            electorates = Electorates(cluster_map)
            for partition in range(cluster_map.partitions):
                for electorate in electorates.in_partition(partition):
                    if electorate.is_moving:
                        for node in electorate.primaries:
                            self._expected.setdefault(node, set()).add(partition)
                for homes in electorates.homes_while_moving(partition).values():
                    if len(homes) > 1:
                        for node in homes[0]:
                            self._expected.setdefault(node, set()).add(partition)

    @property
    def nodes(self) -> Sequence[int]:
        """Who must report."""
        return sorted(self._expected)

    @property
    def total(self) -> int:
        """Reports that must come, of one partition by one node."""
        return sum(map(len, self._expected.values()))

    def expected(self, node: int) -> int:
        """How many partitions a node must report."""
        return len(self._expected.get(node, ()))

    def done(self, node: int, report: MoveReport | None) -> int:
        """How many of these it has reported; a report of another epoch is none."""
        if report is None or report.epoch != self.epoch:
            return 0
        return len(self._expected.get(node, set()) & report.partitions)

    def is_finished(self, reports: Mapping[int, MoveReport]) -> bool:
        """Whether every node has reported everything: only then may the prior maps go."""
        return all(self.done(node, reports.get(node)) == self.expected(node) for node in self._expected)
