"""Who decides about an object: the sets of primaries that a map consults, with their arithmetic.

docs/consistency.md has the words and the argument: "Words and arithmetic", "Changing the map".
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from coffre.cluster.errors import PolicyViolation
from coffre.cluster.map.placement import Placement
from coffre.cluster.map.signed import SHARDS_MAX, ClusterMap

__all__ = ["SHARDS_MAX", "Electorate", "Electorates", "Voters"]

_CACHED = 1 << 16  # all partitions that a map can have


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

    New shards go to the newest set, under its k and m. Collections of node numbers may name nodes of no set. `oldest`:
    the set that every epoch since consults, the last of `sets` unless given.
    """

    sets: tuple[Voters, ...]
    oldest: Voters | None = None
    primaries: tuple[int, ...] = field(init=False)  # of the newest set
    everyone: frozenset[int] = field(init=False)  # of all sets
    k: int = field(init=False)  # of the newest set, as m, write and read
    m: int = field(init=False)
    write: int = field(init=False)
    read: int = field(init=False)
    _bars: tuple[tuple[frozenset[int], int, int], ...] = field(init=False, repr=False)  # nodes, W, R
    _base: tuple[frozenset[int], int, int] = field(init=False, repr=False)  # the same of the oldest set

    def __post_init__(self) -> None:
        newest, oldest = self.sets[0], self.oldest or self.sets[-1]
        for name, value in (
            ("_base", (frozenset(oldest.nodes), oldest.write, oldest.read)),
            ("primaries", newest.nodes),
            ("everyone", frozenset(node for voters in self.sets for node in voters.nodes)),
            ("k", newest.k),
            ("m", newest.m),
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

    def is_established_by(self, nodes: Collection[int]) -> bool:
        """Whether a version that these nodes hold (or locked) reaches W in every set."""
        return all(len(voters.intersection(nodes)) >= write for voters, write, _ in self._bars)

    def may_be_established(self, holders_or_silent: Collection[int]) -> bool:
        """Whether it may have reached W wherever it had to, if all who may hold it do.

        An earlier epoch did not consult the newer sets, so only the oldest one, which all of them consulted, can prove
        that a version was never seen: that fewer than W of it may hold it.
        """
        nodes, write, _ = self._base
        return len(nodes.intersection(holders_or_silent)) >= write

    def is_kept(self, lost: Collection[int], locked: Collection[int], aborted: Collection[int]) -> bool:
        """Whether the oldest set keeps a version from being dead, for ever: it is LOCKED on W of it, or may have been
        with the votes that were lost with their nodes, and everybody else has given a final vote."""
        nodes, *_ = self._base
        known = nodes.intersection(locked)
        if self.is_locked_for_ever(locked):
            return True
        if not known or nodes.isdisjoint(lost) or not nodes.issubset({*lost, *locked, *aborted}):
            return False
        return not self.is_dead_by(aborted) and self.may_be_established({*lost, *known})

    def is_locked_for_ever(self, locked: Collection[int]) -> bool:
        """Whether W of the oldest set have LOCKED a version, whatever others voted: the others' votes prove nothing."""
        nodes, write, _ = self._base
        return len(nodes.intersection(locked)) >= write

    def stands(self, lost: Collection[int], locked: Collection[int], aborted: Collection[int]) -> bool:
        """Whether a version that `is_kept` is LOCKED on W of every set, with the votes that were lost."""
        promised = {*lost, *locked}
        kept = self.is_kept(lost, locked, aborted)
        return kept and all(len(nodes.intersection(promised)) >= write for nodes, write, _ in self._bars)

    @property
    def decisive(self) -> frozenset[int]:
        """The nodes of the oldest set: their votes ABORTED prove something, those of others do not."""
        return self._base[0]

    def decides_since(self, begun: Electorate) -> bool:
        """Whether the oldest set was consulted by an electorate of before, and so about all that was written then."""
        return self._base in begun._bars

    def is_heard_from(self, nodes: Collection[int]) -> bool:
        """Whether the answers of these nodes meet every completed write: R in every set."""
        return all(len(voters.intersection(nodes)) >= read for voters, _, read in self._bars)

    def is_dead_by(self, aborted: Collection[int]) -> bool:
        """Whether these votes kept a version from W for ever, at whichever epoch it was begun: R in the oldest set."""
        nodes, _, read = self._base
        return len(nodes.intersection(aborted)) >= read


class Electorates:
    """The electorates of one map and of the prior ones that it consults. Caches are bounded."""

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._maps = (cluster_map, *cluster_map.prior)
        self._placements: dict[tuple[int, str], Placement] = {}  # by place in _maps, and policy
        self._default = tuple(one.default_policy for one in self._maps)
        # Names of policies, one for each map: a bucket's course.
        self._own: dict[tuple[str, str], tuple[str, ...]] = {}  # of buckets with a policy of their own
        for one in self._maps:
            for bucket in one.bucket_policies:
                place = (bucket.tenant, bucket.bucket)
                self._own[place] = tuple(of.policy_of(*place).name for of in self._maps)
        self._courses = tuple(dict.fromkeys((self._default, *self._own.values())))
        self._policies = {(policy.k, policy.m): policy.name for policy in cluster_map.policies}
        self._of = lru_cache(maxsize=_CACHED)(self._compute)

    def of(self, tenant: str, bucket: str, partition: int) -> Electorate:
        """Who decides about the objects of a bucket in a partition. Raises `PolicyViolation`."""
        return self._of(self._own.get((tenant, bucket), self._default), partition)

    def in_partition(self, partition: int) -> tuple[Electorate, ...]:
        """All electorates of a partition: that of the default policies, and those of buckets with their own."""
        return tuple(dict.fromkeys(self._of(course, partition) for course in self._courses))

    def placement(self, tenant: str, bucket: str) -> Placement:
        """The rules by which new shards of a bucket's objects are placed."""
        return self._placement(0, self._own.get((tenant, bucket), self._default)[0])

    def homes(self, k: int, m: int, partition: int) -> tuple[int, ...]:
        """Where the shards of a partition's objects that are coded so belong, whatever codes their bucket now: the
        primaries by the policy of that k and m. Empty when the map has none, or too few nodes are left for it."""
        name = self._policies.get((k, m))
        if name is None:
            return ()
        try:
            return self._placement(0, name).primaries(partition)
        except PolicyViolation:
            return ()

    def rules(self, k: int, m: int) -> Placement | None:
        """The rules by which shards of objects are placed that are coded so; None when the map has no such policy."""
        name = self._policies.get((k, m))
        return None if name is None else self._placement(0, name)

    def codings(self, tenant: str, bucket: str) -> tuple[tuple[int, int], ...]:
        """The k and m that objects of a bucket may have beside those of its policy; none for a bucket that never had a
        policy of its own. A map does not say which ones its objects do have."""
        if (tenant, bucket) not in self._own:
            return ()
        own = self._own[tenant, bucket][0]
        return tuple(coding for coding, name in self._policies.items() if name != own)

    def keepers(self, tenant: str, bucket: str, partition: int) -> frozenset[int]:
        """Nodes that may hold shards of a bucket's objects that are coded otherwise than its policy says: the homes of
        these, and who stood in for them."""
        found: set[int] = set()
        for k, m in self.codings(tenant, bucket):
            homes = self.homes(k, m, partition)
            if homes:
                order = self._placement(0, self._policies[k, m]).order(partition)
                others = (node for node in order if node not in homes)
                found.update(homes, islice(others, k + m))
        return frozenset(found)

    def homes_in_partition(self, partition: int) -> frozenset[int]:
        """The homes of all objects in a partition that may be coded otherwise than their bucket's policy says."""
        codings = {coding for place in self._own for coding in self.codings(*place)}
        return frozenset(node for k, m in codings for node in self.homes(k, m, partition))

    def homes_while_moving(self, partition: int) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        """By k and m, where shards of objects that may be coded otherwise than their bucket's policy says belong by the
        newest map, and belonged by prior ones: places that differ, the newest first. Shards may be at any of them."""
        found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for k, m in {coding for place in self._own for coding in self.codings(*place)}:
            name = self._policies[k, m]
            for place, one in enumerate(self._maps):
                if any(policy.name == name for policy in one.policies):
                    with suppress(PolicyViolation):
                        homes = self._placement(place, name).primaries(partition)
                        if homes not in found.setdefault((k, m), []):
                            found[k, m].append(homes)
        return found

    def silent_max(self, tenant: str, bucket: str) -> int:
        """So many nodes may be silent, whichever they are, and every partition is still heard from."""
        policies = zip(self._maps, self._own.get((tenant, bucket), self._default), strict=True)
        return min(one.policy(name).n // 2 for one, name in policies)  # n - R

    def _placement(self, place: int, policy: str) -> Placement:
        found = self._placements.get((place, policy))
        if found is None:
            one = self._maps[place]
            found = self._placements[place, policy] = Placement(one, one.policy(policy))
        return found

    def _compute(self, policies: tuple[str, ...], partition: int) -> Electorate:
        sets: dict[tuple[frozenset[int], int], Voters] = {}
        for place, name in enumerate(policies):
            placement = self._placement(place, name)
            nodes, policy = placement.primaries(partition), placement.policy
            oldest = sets.setdefault((frozenset(nodes), policy.k), Voters(nodes, policy.k, policy.m))
        return Electorate(tuple(sets.values()), oldest)
