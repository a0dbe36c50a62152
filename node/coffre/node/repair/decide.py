"""What a node does with itself about one name, from what it and others hold of it: the table of docs/repair.md.

Pure functions. Whatever they return is a vote that is this node's own to give, safe at any time and in any order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coffre.cluster.versions import unixtime_ms_of
from coffre.node import votes
from coffre.node.repair.electorate import Electorate
from coffre.node.store import ABORTED, ACCEPTED, LOCKED, SETTLED, StoredVersion
from coffre.node.votes import Entry

__all__ = [
    "Action",
    "Step",
    "View",
    "choose_index",
    "decide",
    "is_dead",
    "is_never_acknowledged",
    "is_pending",
    "needs_look",
]


class Step(enum.Enum):
    """What to do with a version."""

    RESTORE = "restore"  # it is established: hold it as settled, with this node's shard
    SETTLE = "settle"  # it is established and here: say so, which trims
    TAKE = "take"  # it will be established: accept it with `lock`, with this node's shard
    LOCK = "lock"
    REFUSE = "refuse"
    DROP = "drop"


class Action(NamedTuple):
    step: Step
    stamp: bytes


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one name. `answers`: all versions that each node holds which answered, this one too; nodes
    that are not in it are silent. `silent_elsewhere`: how many nodes that are no primaries, and may hold a
    shard, did not answer."""

    me: int
    electorate: Electorate
    answers: Mapping[int, Sequence[StoredVersion]]
    now_ms: int
    versions_kept: int = 1
    silent_elsewhere: int = 0
    unfinished_seconds: float = 3600.0

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
        self._electorate = view.electorate
        found = view.held(stamp)
        self.aborted = {node for node, version in found.items() if version.state == ABORTED}
        self.held = {node: version for node, version in found.items() if version.state != ABORTED}
        self.tombstone = any(version.tombstone for version in self.held.values())
        self.condemned = any(version.condemned for version in self.held.values())
        self.settled = any(version.state == SETTLED for version in self.held.values())
        self._locked = {node for node, version in self.held.items() if version.state >= LOCKED}

    @property
    def _can_be_settled(self) -> bool:
        """Whether, with all who are silent, W primaries of some set may hold it."""
        return any(
            len(self.held.keys() & set(voters.nodes)) + len(self._silent(voters.nodes)) >= voters.write
            for voters in self._electorate.sets
        )

    @property
    def _k(self) -> int:
        """Shards that are enough to read it, whichever set coded it."""
        return max(voters.k for voters in self._electorate.sets)

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
        return self.condemned or (self.settled and self._can_be_settled) or self.promised

    @property
    def promised(self) -> bool:
        """LOCKED on W of every set, and k shards on locked nodes."""
        by_votes = self._electorate.is_established_by(self._locked)
        return by_votes and (self.tombstone or self._shards_of(self._locked) >= self._k)

    @property
    def dead(self) -> bool:
        """ABORTED on R of some set, or on so many that fewer than k nodes could ever hold a shard."""
        if self._electorate.is_dead_by(self.aborted):
            return True
        if self._electorate.is_moving or not self.held or self.tombstone:
            return False
        left = set(self._electorate.primaries) - self.aborted
        return len(left) + self._elsewhere() < self._electorate.k

    def _elsewhere(self) -> int:
        """Nodes that are no primaries and hold a shard, or may."""
        members = self._electorate.everyone
        with_shard = [n for n, v in self.held.items() if n not in members and v.shard_index is not None]
        return len(with_shard) + self._view.silent_elsewhere

    @property
    def never_acknowledged(self) -> bool:
        """Provably neither acknowledged by its writer nor returned by a reader; a damaged copy counts as whole."""
        everyone = self._electorate.everyone
        if not self._electorate.may_be_established(self.held.keys() | self._silent(everyone)):
            return True
        if self._electorate.is_moving or not self.held or self.tombstone:
            return False
        members = self._electorate.primaries
        silent = self._silent(members)
        here = [n for n in members if n in self.held and self._may_have_shard(n)]
        possible = len(here) + len(silent) + self._elsewhere()
        locked = len(self._locked & set(members)) + len(silent)
        few = locked < self._electorate.write or possible < self._electorate.k
        return possible < self._electorate.shards and few

    def _may_have_shard(self, node: int) -> bool:
        version = self.held[node]
        return version.shard_index is not None or version.damaged

    @property
    def can_stand(self) -> bool:
        """Whether it may have been acknowledged, by what answered alone, and k shards are left: votes can keep it.

        New primaries, which lack what was complete before the map changed, take it for that.
        """
        held = self._electorate.may_be_established(self.held.keys())
        return held and (self.tombstone or self.shards >= self._k)


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
        if tally.settled:
            continue  # somebody says so against all others: no vote is given on such grounds
        if tally.dead:
            if own is None:
                actions.append(Action(Step.REFUSE, stamp))
            elif own.state != ABORTED:
                actions.append(Action(Step.DROP, stamp))
        elif unixtime_ms_of(stamp) > oldest_ms or (own is not None and own.state == ABORTED):
            continue
        elif tally.can_stand:
            if own is None or _lacks(own):
                actions.append(Action(Step.TAKE, stamp))
            elif own.state == ACCEPTED:
                actions.append(Action(Step.LOCK, stamp))
        elif tally.never_acknowledged and own is None:
            actions.append(Action(Step.REFUSE, stamp))  # whoever holds it waits until R have refused it
    return actions


def is_dead(view: View, stamp: bytes) -> bool:
    """Whether the answers show that a version is dead."""
    return _Tally(view, stamp).dead


def is_never_acknowledged(view: View, stamp: bytes) -> bool:
    """Whether the answers show that nobody was ever told of a version."""
    return _Tally(view, stamp).never_acknowledged


def _lacks(own: StoredVersion) -> bool:
    """Whether a primary's copy is not all that it should be."""
    return own.damaged or (own.shard_index is None and not own.tombstone)


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
                if own is None or own.state != SETTLED or _lacks(own):
                    actions += _hold(view, stamp, tally)
        elif own is not None and own.state != ABORTED and (tally.dead or _is_over(view, stamp, tally)):
            actions.append(Action(Step.DROP, stamp))
        elif not ended and kept < view.versions_kept and _is_old(view, stamp) and tally.can_stand:
            # Somebody may have been told of it. Those who hold it count it among the versions kept, so all must.
            kept += 1
            ended = tally.tombstone
            if own is not None and own.state == ACCEPTED:
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
    if own is None or own.state == ABORTED or _lacks(own):
        # A condemned tombstone is on its way out: every primary had it.
        return [] if tally.condemned and own is None else [Action(Step.RESTORE, stamp)]
    entries = tuple(
        Entry(v.stamp, v.state, v.tombstone, v.shard_index, 0, None if v.state == ABORTED else v.stamp)
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


def is_pending(versions: Sequence[StoredVersion]) -> bool:
    """Whether something above the newest settled version is not decided yet."""
    for version in versions:
        if version.state == SETTLED:
            return False
        if version.state != ABORTED:
            return True
    return False


def needs_look(
    own: Sequence[StoredVersion], other: Sequence[StoredVersion], old_ms: int, *, changing: bool = False
) -> bool:
    """Whether the rows of this node and of another primary differ in something that this node may have to act on.

    `old_ms`: versions that are not settled and younger are their writers' business. `changing`: while the map changes,
    votes against versions count, too.
    """
    mine = {version.stamp: version for version in own}
    settled = max((v.stamp for v in own if v.state == SETTLED), default=b"")
    theirs = {version.stamp: version for version in other}
    for stamp, version in theirs.items():
        held = mine.get(stamp)
        if changing and version.state == ABORTED and held is None and stamp > settled:
            return True
        if version.state == ABORTED or version.condemned:
            continue
        if held is None or (held.state == ABORTED and version.state >= LOCKED):
            old = version.state == SETTLED or unixtime_ms_of(stamp) <= old_ms
            if old and (stamp > settled or version.state == SETTLED):
                return True
        elif held.state != ABORTED and held.state < SETTLED == version.state:
            return True
    newest_theirs = max((v.stamp for v in other if v.state == SETTLED), default=b"")
    for stamp, version in mine.items():
        if version.state == ABORTED:
            continue
        if version.shard_index is None and not version.tombstone:
            return True
        unsettled = version.state < SETTLED and unixtime_ms_of(stamp) <= old_ms
        if unsettled or (stamp < newest_theirs and stamp not in theirs):
            return True
    return False
