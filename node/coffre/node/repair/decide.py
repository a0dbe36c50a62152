"""What a node does with itself about one name, from what it and others hold of it: the table of docs/repair.md.

Pure functions. Whatever they return is a vote that is this node's own to give, safe at any time and in any order.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from coffre.cluster.versions import unixtime_ms_of
from coffre.node import votes
from coffre.node.repair.electorate import Electorate
from coffre.node.repair.rebuild import best_manifest
from coffre.node.store import ABORTED, ACCEPTED, LOCKED, SETTLED, StoredVersion
from coffre.node.votes import Entry

__all__ = [
    "Action",
    "Step",
    "View",
    "bare_stamps",
    "choose_index",
    "decide",
    "is_dead",
    "is_never_acknowledged",
    "is_pending",
    "needs_look",
    "other_indexes",
    "wants_everyone",
]


class Step(enum.Enum):
    """What to do with a version."""

    RESTORE = "restore"  # it is established: hold it as settled, with this node's shard
    SETTLE = "settle"  # it is established and here: say so, which trims
    TAKE = "take"  # it will be established: accept it with `lock`, with this node's shard
    LOCK = "lock"
    REFUSE = "refuse"
    GIVE_UP = "give up"  # vote ABORTED though it is held: only on what its writer cannot have acknowledged
    DROP = "drop"


class Action(NamedTuple):
    step: Step
    stamp: bytes


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one name. `answers`: all versions that each node holds which answered, this one too; nodes
    that are not in it are silent. `silent_elsewhere`: how many nodes that are no primaries, and may hold a
    shard, did not answer. `homes`: by k and m, where the shards of versions that are coded so belong; without any they
    belong to the primaries. `consulted`: every node that the map consults; while it changes, each of them may hold a
    shard, and without them shards are not counted. `lost`: those of them that are gone for good. `departed`: how many
    nodes were taken out before."""

    me: int
    electorate: Electorate
    answers: Mapping[int, Sequence[StoredVersion]]
    now_ms: int
    versions_kept: int = 1
    silent_elsewhere: int = 0
    unfinished_seconds: float = 3600.0
    homes: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    consulted: frozenset[int] = frozenset()
    departed: int = 0
    lost: frozenset[int] = frozenset()

    @property
    def is_voter(self) -> bool:
        """Whether this node has a say here, as primary of any set; else it looks at the name only for shards that
        belong to it."""
        return self.me in self.electorate.everyone

    @property
    def is_primary(self) -> bool:
        """Whether everything of the name should be here."""
        return self.me in self.electorate.primaries

    def homes_of(self, coding: tuple[int, int] | None) -> tuple[int, ...]:
        """The nodes that should have a shard each of a version of this k and m; None: it is not known."""
        if coding is None or not self.homes:
            return self.electorate.primaries
        return self.homes.get(coding, ())

    def coding_of(self, stamp: bytes) -> tuple[int, int] | None:
        """The k and m of a version, as most of those that hold its manifest have it."""
        if len(self.homes) < 2:  # there is but one
            return next(iter(self.homes), None)
        sealed = best_manifest(self.held(stamp).values(), stamp)
        return None if sealed is None else (sealed.manifest.k, sealed.manifest.m)

    def held(self, stamp: bytes) -> dict[int, StoredVersion]:
        """Who answered that it holds a version, or voted against it."""
        return {
            node: version
            for node, versions in self.answers.items()
            for version in versions
            if version.stamp == stamp
        }

    @property
    def own(self) -> Sequence[StoredVersion]:
        return self.answers[self.me]

    def own_version(self, stamp: bytes) -> StoredVersion | None:
        return next((version for version in self.own if version.stamp == stamp), None)


class _Tally:
    """The votes on one version."""

    def __init__(self, view: View, stamp: bytes) -> None:
        self._view = view
        self._stamp = stamp
        self._electorate = view.electorate
        found = view.held(stamp)
        self.aborted = {node for node, version in found.items() if version.state == ABORTED}
        self.held = {node: version for node, version in found.items() if version.state != ABORTED}
        self.tombstone = any(version.tombstone for version in self.held.values())
        self.condemned = any(version.condemned for version in self.held.values())
        self.settled = any(version.state == SETTLED for version in self.held.values())
        self._locked = {node for node, version in self.held.items() if version.state >= LOCKED}
        coding = None if self.tombstone else view.coding_of(stamp)
        self.homes = view.homes_of(coding)
        every = [voters.k for voters in view.electorate.sets] + [k for k, _ in view.homes]
        # Shards that are certainly enough to read it, and fewer than which certainly are not.
        self._k_most, self._k_least = (max(every), min(every)) if coding is None else (coding[0], coding[0])

    @property
    def lacks(self) -> bool:
        """Whether this node's copy is missing, or not all that it should be."""
        own = self.held.get(self._view.me)
        if own is None:
            return self._view.is_primary or self._view.me in self.homes
        return own.damaged or (own.shard_index is None and not own.tombstone and self._view.me in self.homes)

    @property
    def can_be_settled(self) -> bool:
        """Whether, with all who are silent, W primaries of some set may hold it."""
        return any(
            len(self.held.keys() & set(voters.nodes)) + len(self._silent(voters.nodes)) >= voters.write
            for voters in self._electorate.sets
        )

    def _silent(self, members: Iterable[int]) -> set[int]:
        return set(members) - self._view.answers.keys()

    def _shards_of(self, nodes: Iterable[int]) -> int:
        """Distinct good shards on these nodes."""
        versions = [self.held[node] for node in nodes if node in self.held]
        return len({v.shard_index for v in versions if v.shard_index is not None and not v.damaged})

    @property
    def shards(self) -> int:
        return self._shards_of(self.held)

    @property
    def established(self) -> bool:
        """SETTLED somewhere, or LOCKED on W of every set and k shards on locked nodes.

        What is settled was on W primaries of some set, and none of them drops it before a newer one is settled, so a
        claim that fewer than W can hold is a lie. A condemned tombstone is one that others have dropped already.
        """
        return self.condemned or (self.settled and self.can_be_settled) or self.promised or self._is_kept

    @property
    def _is_kept(self) -> bool:
        """LOCKED on W of the oldest set if the votes that were lost with their nodes are counted, when everybody else
        has given a final vote, and locked nodes have k shards: it may have been returned, and nobody can decide it."""
        lost, electorate = self._view.lost, self._electorate
        if not electorate.is_moving or self.dead:
            return False
        left = self.tombstone or self._shards_of(self._locked) >= self._k_most
        return left and electorate.is_kept_after_loss(lost, self._locked, self.aborted)

    @property
    def promised(self) -> bool:
        """LOCKED on W of every set, and k shards on locked nodes."""
        by_votes = self._electorate.is_established_by(self._locked)
        return by_votes and (self.tombstone or self._shards_of(self._locked) >= self._k_most)

    @property
    def dead(self) -> bool:
        """ABORTED on R of some set, or on so many that fewer than k nodes could ever hold a shard."""
        if self._electorate.is_dead_by(self.aborted):
            return True
        if self._electorate.is_moving or not self.held or self.tombstone:
            return False
        left = self._keepers - self.aborted
        return len(left) + self._elsewhere() < self._k_least

    @property
    def _keepers(self) -> set[int]:
        """Nodes at which shards of it belong by the newest map."""
        return {*self._electorate.primaries, *self.homes}

    def _elsewhere(self) -> int:
        """Nodes that are none of these and hold a shard, or may."""
        members = self._electorate.everyone.union(self.homes)
        with_shard = [n for n, v in self.held.items() if n not in members and v.shard_index is not None]
        return len(with_shard) + self._view.silent_elsewhere

    @property
    def never_acknowledged(self) -> bool:
        """Provably neither acknowledged by its writer nor returned by a reader; a damaged copy counts as whole."""
        electorate = self._electorate
        silent = self._silent(electorate.everyone)
        if not electorate.may_be_established(self.held.keys() | silent):
            return True
        if not self._counts_shards:
            return False
        unlocked = not electorate.may_be_established(self._locked | silent)
        few = self._possible_shards + self._view.departed < self._k_least + 1
        if electorate.is_moving:
            return unlocked and (few or self.is_unreadable)
        return self.is_unreadable or (unlocked and few)

    @property
    def is_unreadable(self) -> bool:
        """An object of which there are fewer than k shards, whoever is silent: no reader can complete it any more."""
        return self._counts_shards and self._possible_shards < self._k_least

    @property
    def _counts_shards(self) -> bool:
        """Whether how many shards there may be proves anything: while the map changes it takes every node."""
        knows_all = not self._electorate.is_moving or bool(self._view.consulted)
        return knows_all and bool(self.held) and not self.tombstone

    @property
    def _possible_shards(self) -> int:
        """Distinct ones, damaged ones too, and one for each node that is silent and may hold a shard."""
        known = {v.shard_index for v in self.held.values() if v.shard_index is not None}
        unknown = sum(v.shard_index is None and v.damaged for v in self.held.values())
        if self._electorate.is_moving:
            named = {node for version in self.held.values() for node in version.placement}
            return len(known) + unknown + len(self._silent({*self._view.consulted, *self._keepers, *named}))
        return len(known) + unknown + len(self._silent(self._keepers)) + self._view.silent_elsewhere

    @property
    def can_be_given_up(self) -> bool:
        """Whether who holds it may vote ABORTED. Others' votes alone decide it, too, unless there are too few of them:
        on what nobody can complete, and while the map changes."""
        return self.never_acknowledged and (self.is_unreadable or self._electorate.is_moving)

    @property
    def is_unlocked_recoding(self) -> bool:
        """Whether it is a version that somebody coded anew, and nobody who answers has locked: then nobody was told of
        it, and anybody may give it up (docs/recoding.md)."""
        if self._locked:
            return False
        sealed = best_manifest(self.held.values(), self._stamp)
        return sealed is not None and bool(sealed.manifest.recodes)

    @property
    def can_stand(self) -> bool:
        """Whether it may have been acknowledged, by what answered alone, and k shards are left: votes can keep it.

        New primaries, which lack what was complete before the map changed, take it for that.
        """
        held = self._electorate.may_be_established(self.held.keys())
        return held and (self.tombstone or self.shards >= self._k_most)


def decide(view: View) -> list[Action]:
    """What to do, the newest version first. Empty: nothing, or wait for others."""
    actions: list[Action] = []
    stamps = sorted({v.stamp for versions in view.answers.values() for v in versions}, reverse=True)
    oldest_ms = view.now_ms - int(view.unfinished_seconds * 1000)
    for place, stamp in enumerate(stamps):
        tally = _Tally(view, stamp)
        own = view.own_version(stamp)
        if tally.established:
            return actions + _established(view, stamps[place:], tally)
        if tally.settled or not view.is_voter:
            continue  # somebody says so against all others: no vote is given on such grounds
        if tally.dead:
            if own is None:
                actions.append(Action(Step.REFUSE, stamp))
            elif own.state != ABORTED:
                actions.append(Action(Step.DROP, stamp))
        elif unixtime_ms_of(stamp) > oldest_ms or (own is not None and own.state == ABORTED):
            continue
        elif tally.is_unlocked_recoding:
            actions.append(Action(Step.REFUSE if own is None else Step.GIVE_UP, stamp))
        elif tally.can_stand:
            if tally.lacks:
                actions.append(Action(Step.TAKE, stamp))
            elif own is not None and own.state == ACCEPTED:
                actions.append(Action(Step.LOCK, stamp))
        elif tally.never_acknowledged and own is None:
            actions.append(Action(Step.REFUSE, stamp))
        elif own is not None and own.state == ACCEPTED and tally.can_be_given_up:
            actions.append(Action(Step.GIVE_UP, stamp))
        # Else whoever holds it waits until R have refused it.
    return actions


def wants_everyone(view: View) -> bool:
    """Whether something can be decided only by the answers of every node, since the map changes: then all are asked."""
    if not view.electorate.is_moving:
        return False
    for stamp in sorted({v.stamp for versions in view.answers.values() for v in versions}, reverse=True):
        tally = _Tally(view, stamp)
        if tally.established:
            return False
        decided = tally.settled or tally.dead or tally.can_stand or not tally.held or tally.tombstone
        if not decided and _is_old(view, stamp):
            return True
    return False


def bare_stamps(view: View) -> list[bytes]:
    """Settled versions of which this node should have no shard, as whoever coded their objects placed them."""
    if len(view.homes) < 2:
        return []
    stamps = {v.stamp for versions in view.answers.values() for v in versions if v.state == SETTLED}
    tallies = {stamp: _Tally(view, stamp) for stamp in stamps}
    return [stamp for stamp, tally in tallies.items() if not tally.tombstone and view.me not in tally.homes]


def is_dead(view: View, stamp: bytes) -> bool:
    """Whether the answers show that a version is dead."""
    return _Tally(view, stamp).dead


def is_never_acknowledged(view: View, stamp: bytes) -> bool:
    """Whether the answers show that nobody was ever told of a version."""
    return _Tally(view, stamp).never_acknowledged


def _established(view: View, stamps: Sequence[bytes], newest: _Tally) -> list[Action]:
    """What to do about the newest established version, the first of `stamps`, and what is below it."""
    actions = _hold(view, stamps[0], newest)
    kept, ended = 1, newest.tombstone
    for stamp in stamps[1:]:
        tally = _Tally(view, stamp)
        own = view.own_version(stamp)
        if tally.settled or tally.promised:
            if not ended and kept < view.versions_kept:
                kept += 1
                ended = tally.tombstone
                if own is None or own.state != SETTLED or tally.lacks:
                    actions += _hold(view, stamp, tally)
        elif own is not None and own.state != ABORTED and (tally.dead or _is_over(view, stamp, tally)):
            actions.append(Action(Step.DROP, stamp))
        elif own is None or own.state != ACCEPTED or ended or kept == view.versions_kept:
            continue
        elif _is_old(view, stamp) and tally.can_stand:  # somebody may have been told of it
            actions.append(Action(Step.LOCK, stamp))
    return actions


def _is_over(view: View, stamp: bytes, tally: _Tally) -> bool:
    """A version below an established one, of which it is certain that nobody was ever told of it."""
    return _is_old(view, stamp) and tally.never_acknowledged


def _is_old(view: View, stamp: bytes) -> bool:
    return unixtime_ms_of(stamp) <= view.now_ms - int(view.unfinished_seconds * 1000)


def _hold(view: View, stamp: bytes, tally: _Tally) -> list[Action]:
    """Bring an established version, or note that it is established."""
    own = view.own_version(stamp)
    if tally.lacks:
        # A condemned tombstone is on its way out: every primary had it. But not who becomes one now, and the others
        # wait for that one. While the map changes nobody condemns or collects, so what is taken stays.
        wanted = not tally.condemned or own is not None
        joins = view.electorate.is_moving and tally.can_be_settled
        return [Action(Step.RESTORE, stamp)] if wanted or joins else []
    if own is None or own.state == ABORTED:
        return []  # neither its manifest nor a shard of it belongs here
    entries = tuple(
        Entry(
            v.stamp,
            v.state,
            v.tombstone,
            v.shard_index,
            record=None if v.state == ABORTED else v.stamp,
            was_locked=v.was_locked,  # such a vote stays where others are trimmed
        )
        for v in view.own
    )
    settled = votes.settle(entries, stamp, (), view.versions_kept)
    return [Action(Step.SETTLE, stamp)] if settled.changed else []


def choose_index(
    me: int, primaries: Sequence[int], placement: Sequence[int], held: Mapping[int, int | None]
) -> int | None:
    """The shard that `me` should have of a version, which it has none of; None when all are taken.

    `held`: what the primaries that answered hold; those that are silent are taken to hold what the placement
    (node by shard index) says. Every node computes the same from the same answers.
    """
    named = {node: index for index, node in enumerate(placement)}
    taken = {index for node, index in held.items() if index is not None and node != me and node in primaries}
    taken |= {named[node] for node in primaries if node not in held and node in named}
    lacking = [n for n in primaries if n == me or (n not in named if n not in held else held[n] is None)]
    free = [index for index in range(len(primaries)) if index not in taken]
    for node in lacking:
        if named.get(node) in free:
            if node == me:
                return named[node]
            free.remove(named[node])
    others = [node for node in lacking if node not in named or named[node] in taken]
    chosen = dict(zip(others, free, strict=False))
    return chosen.get(me)


def other_indexes(view: View, stamp: bytes) -> dict[int, int]:
    """By primary, the shard that it should hold instead of its own, which an earlier primary holds, too.

    Only while all primaries answer that they hold the version as settled, each with a good shard: who has none takes
    a free one first. Every node computes the same from the same answers.
    """
    electorate = view.electorate
    if electorate.is_moving:
        return {}
    held = view.held(stamp)
    taken: set[int] = set()
    repeating: list[int] = []
    for node in electorate.primaries:
        version = held.get(node)
        if version is None or version.state != SETTLED or version.damaged or version.shard_index is None:
            return {}
        if version.shard_index in taken:
            repeating.append(node)
        taken.add(version.shard_index)
    free = (index for index in range(len(electorate.primaries)) if index not in taken)
    return dict(zip(repeating, free, strict=False))


def is_pending(versions: Sequence[StoredVersion]) -> bool:
    """Whether something above the newest settled version is not decided yet."""
    for version in versions:
        if version.state == SETTLED:
            return False
        if version.state != ABORTED:
            return True
    return False


def needs_look(
    own: Sequence[StoredVersion],
    other: Sequence[StoredVersion],
    old_ms: int,
    *,
    changing: bool = False,
    complete: Container[bytes] = (),
) -> bool:
    """Whether the rows of this node and of another primary differ in something that this node may have to act on.

    `old_ms`: versions that are not settled and younger are their writers' business. `changing`: while the map changes,
    votes against versions count, too. `complete`: stamps of versions of which this node has no shard, by right.
    """
    mine = {version.stamp: version for version in own}
    settled = max((v.stamp for v in own if v.state == SETTLED), default=b"")
    theirs = {version.stamp: version for version in other}
    for stamp, version in theirs.items():
        held = mine.get(stamp)
        if changing and version.state == ABORTED and held is None and stamp > settled:
            return True
        if version.state == ABORTED or (version.condemned and not changing):
            continue
        if held is None or (held.state == ABORTED and version.state >= LOCKED):
            old = version.state == SETTLED or unixtime_ms_of(stamp) <= old_ms
            old = old and (held is not None or stamp not in complete)
            if old and (stamp > settled or version.state == SETTLED):
                return True
        elif held.state != ABORTED and held.state < SETTLED == version.state:
            return True
    newest_theirs = max((v.stamp for v in other if v.state == SETTLED), default=b"")
    for stamp, version in mine.items():
        if version.state == ABORTED:
            continue
        if version.shard_index is None and not version.tombstone and stamp not in complete:
            return True
        unsettled = version.state < SETTLED and unixtime_ms_of(stamp) <= old_ms
        if version.state < SETTLED and stamp in theirs and theirs[stamp].state == ABORTED:
            return True  # it may be dead: then it goes now, since conditional writes do not get past it
        if unsettled or (stamp < newest_theirs and stamp not in theirs):
            return True
    return False
