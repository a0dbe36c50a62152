"""What a round of repair knows of the cluster, and the names that it is to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coffre.cluster.clock import Clock
from coffre.cluster.names import ObjectName
from coffre.node.following import PeerClocks
from coffre.node.repair.asking import Asking
from coffre.node.repair.electorate import Electorate, Electorates
from coffre.node.store import PartitionDigest

__all__ = ["Ahead", "Bare", "Scene", "Task"]

_BARE_MAX = 1 << 18
_AHEAD_MAX = 1 << 12


@dataclass(frozen=True, slots=True)
class Task:
    """A name to look at. `sources`: primaries that hold all of it as settled, so that k of them are enough to ask.
    `copy_of`: a node that holds the very shard that this one lacks: nobody else has to send a shard.
    `survivors`: how many good shards are left of its newest version, as far as rows say."""

    name: ObjectName
    partition: int
    survivors: int = 0
    sources: tuple[int, ...] = ()
    copy_of: int | None = None
    verify: bool = False  # something was reported of this node's own copy: read it before believing it
    report: tuple[bytes, int | None] | None = None  # what was reported: stamp and shard index


class Bare:
    """Stamps of versions of which this node was found to have no shard, and to need none: their objects are coded in
    another way than their buckets' policies say. Rows do not tell that, so each is looked at once a map. Bounded."""

    def __init__(self) -> None:
        self._stamps: dict[bytes, None] = {}

    def __contains__(self, stamp: object) -> bool:
        return stamp in self._stamps

    def add(self, stamp: bytes) -> None:
        """Remember a stamp; the oldest is forgotten when there are too many."""
        if len(self._stamps) >= _BARE_MAX:
            del self._stamps[next(iter(self._stamps))]
        self._stamps[stamp] = None


class Ahead:
    """Stamps from the future that this node has met, those first that it met before its clock was last compared.

    A machine may stand still, and both its clocks with it, when it has been told what time it is: then whatever it
    hears of is from the future. What it had met before it was told is ahead by the right time. Bounded.
    """

    def __init__(self) -> None:
        self._before: dict[bytes, None] = {}
        self._met: dict[bytes, None] = {}

    def __contains__(self, stamp: object) -> bool:
        return stamp in self._before

    def meet(self, stamp: bytes) -> None:
        """Remember a stamp until clocks are compared; not when there are too many."""
        if len(self._met) < _AHEAD_MAX:
            self._met[stamp] = None

    def compared(self) -> None:
        """This node's clock has been compared; of those met before, the latest are remembered."""
        kept = list(self._before | self._met)[-_AHEAD_MAX:]
        self._before, self._met = dict.fromkeys(kept), {}


@dataclass(frozen=True, slots=True)
class Scene:
    """The cluster as one round found it: who answered, and with what."""

    me: int
    electorates: Electorates
    asking: Asking
    digests: Mapping[int, Mapping[int, PartitionDigest]]  # by node and partition; of nodes that answered
    before_ms: int | None = None  # what the digests leave out
    fresh_ms: int | None = (
        None  # versions with later stamps were begun at this epoch; None: nothing is known of that
    )
    bare: Bare = field(default_factory=lambda: Bare())
    is_current: Callable[[], bool] = lambda: True  # whether this node still works on the map of this scene
    clocks: PeerClocks | None = None  # None: nobody else's clock matters
    # Whose clocks agree with this node's; None: everybody's. Others may still take what is old.
    punctual: frozenset[int] | None = None
    ahead: Ahead = field(default_factory=lambda: Ahead())

    def now_ms(self, clock: Clock) -> int | None:
        """What time it is, for decisions by age; None while this node's clock cannot be believed."""
        return clock.unixtime_ms() if self.clocks is None else self.clocks.now_ms()

    def electorate(self, name: ObjectName, partition: int) -> Electorate:
        """Who decides about an object, in the repairer's words."""
        return self.electorates.of(name.tenant, name.bucket, partition)

    def nodes_for(self, name: ObjectName, partition: int) -> tuple[list[int], frozenset[int]]:
        """Whom to ask for everything about a name, and which nodes that are no primaries may hold a shard of it."""
        members = self.electorate(name, partition).everyone
        understudies = set(self.electorates.understudies(name.tenant, name.bucket, partition))
        understudies |= self.electorates.keepers(name.tenant, name.bucket, partition) - members
        holders = {node for node, held in self.digests.items() if partition in held}
        wanted = (members | understudies | holders) - {self.me}
        # Who is silent may have been an understudy by an earlier map.
        silent = self.electorates.map.consulted - self.digests.keys()
        elsewhere = (wanted | silent) - members - {self.me}
        return sorted(node for node in wanted if node in self.digests), elsewhere

    def homes(self, partition: int) -> dict[tuple[int, int], tuple[int, ...]]:
        """Where shards belong, by k and m, for every policy of the map."""
        codings = [(policy.k, policy.m) for policy in self.electorates.map.policies]
        return {coding: self.electorates.homes(*coding, partition) for coding in codings}
