"""What a node does with itself about one name, from what it and others hold of it: the table of docs/repair.md.

Pure functions. Whatever they return is a vote that is this node's own to give, safe at any time and in any order.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from coffre.cluster.versions import unixtime_ms_of
from coffre.node.repair.view import Tally, View
from coffre.node.store import ABORTED, ACCEPTED, LOCKED, SETTLED, Entry, StoredVersion, votes

__all__ = [
    "Action",
    "Step",
    "bare_stamps",
    "choose_index",
    "decide",
    "is_dead",
    "is_lost",
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
    OVERRULE = "overrule"  # the same, whatever this node voted: at this map alone
    LOCK = "lock"
    REFUSE = "refuse"
    GIVE_UP = "give up"  # vote ABORTED though it is held: only on what its writer cannot have acknowledged
    DROP = "drop"


class Action(NamedTuple):
    """What to do with one version here, and what to do it with."""

    step: Step
    stamp: bytes


def decide(view: View) -> list[Action]:
    """What to do, the newest version first. Empty: nothing, or wait for others."""
    actions: list[Action] = []
    stamps = sorted({v.stamp for versions in view.answers.values() for v in versions}, reverse=True)
    for place, stamp in enumerate(stamps):
        tally = Tally(view, stamp)
        own = view.own_version(stamp)
        if tally.established:
            return actions + _established(view, stamps[place:], tally)
        if tally.settled:
            continue  # somebody says so against all others: no vote is given on such grounds
        if tally.dead:
            if own is None and view.is_voter:
                actions.append(Action(Step.REFUSE, stamp))
            elif own is not None and own.state != ABORTED:
                actions.append(Action(Step.DROP, stamp))
        elif not view.is_voter:
            continue
        elif tally.is_kept and tally.vote_may_change and (own is None or own.state == ABORTED):
            actions.append(Action(Step.OVERRULE, stamp))
        elif own is not None and own.state == ABORTED:
            continue
        elif view.is_ahead(stamp):
            # Left by a client whose clock was wrong. Only who never had it refuses it: its writer may count on others.
            if own is None and tally.too_few_hold and view.had_met(stamp):
                actions.append(Action(Step.REFUSE, stamp))
        elif not view.is_old(stamp):
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
        tally = Tally(view, stamp)
        if tally.established:
            return False
        decided = (
            tally.settled
            or tally.dead
            or tally.is_kept
            or tally.can_stand
            or not tally.held
            or tally.tombstone
        )
        if not decided and view.is_old(stamp):
            return True
    return False


def bare_stamps(view: View) -> list[bytes]:
    """Settled versions of which this node should have no shard, as whoever coded their objects placed them."""
    if len(view.homes) < 2:
        return []
    stamps = {v.stamp for versions in view.answers.values() for v in versions if v.state == SETTLED}
    tallies = {stamp: Tally(view, stamp) for stamp in stamps}
    return [stamp for stamp, tally in tallies.items() if not tally.tombstone and view.me not in tally.homes]


def is_lost(view: View) -> bool:
    """Whether the newest version that is not dead is one that nobody can read any more, nor give up."""
    for stamp in sorted({v.stamp for versions in view.answers.values() for v in versions}, reverse=True):
        tally = Tally(view, stamp)
        if tally.is_lost or tally.established:
            return tally.is_lost
    return False


def is_dead(view: View, stamp: bytes) -> bool:
    """Whether the answers show that a version is dead."""
    return Tally(view, stamp).dead


def is_never_acknowledged(view: View, stamp: bytes) -> bool:
    """Whether the answers show that nobody was ever told of a version."""
    return Tally(view, stamp).never_acknowledged


def _established(view: View, stamps: Sequence[bytes], newest: Tally) -> list[Action]:
    """What to do about the newest established version, the first of `stamps`, and what is below it."""
    actions = _hold(view, stamps[0], newest)
    kept, ended = 1, newest.tombstone
    for stamp in stamps[1:]:
        tally = Tally(view, stamp)
        own = view.own_version(stamp)
        if tally.settled or tally.promised:
            if not ended and kept < view.versions_kept:
                kept += 1
                ended = tally.tombstone
                if own is None or own.state != SETTLED or tally.lacks:
                    actions += _hold(view, stamp, tally)
        elif own is not None and own.state != ABORTED and (tally.dead or _is_over(view, stamp, tally)):
            actions.append(Action(Step.DROP, stamp))
        elif own is None or own.state == ABORTED or ended or kept == view.versions_kept:
            continue
        elif view.is_old(stamp) and tally.can_stand:  # somebody may have been told of it
            if tally.lacks:  # locked nodes are to have k shards, and some may lie with substitutes alone
                actions.append(Action(Step.TAKE, stamp))
            elif own.state == ACCEPTED:
                actions.append(Action(Step.LOCK, stamp))
    return actions


def _is_over(view: View, stamp: bytes, tally: Tally) -> bool:
    """A version below an established one, of which it is certain that nobody was ever told of it."""
    return view.is_old(stamp) and tally.never_acknowledged


def _hold(view: View, stamp: bytes, tally: Tally) -> list[Action]:
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
            condemned=v.condemned,
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
    ahead_ms: int | None = None,
    changing: bool = False,
    complete: Container[bytes] = (),
) -> bool:
    """Whether the rows of this node and of another primary differ in something that this node may have to act on.

    `old_ms`: versions that are not settled and younger are their writers' business, up to `ahead_ms`. `changing`: while
    the map changes, votes against versions count, too. `complete`: stamps of versions of which this node has no shard,
    by right.
    """
    mine = {version.stamp: version for version in own}
    settled = max((v.stamp for v in own if v.state == SETTLED), default=b"")
    theirs = {version.stamp: version for version in other}

    def is_due(stamp: bytes) -> bool:
        written_ms = unixtime_ms_of(stamp)
        return written_ms <= old_ms or (ahead_ms is not None and written_ms > ahead_ms)

    for stamp, version in theirs.items():
        held = mine.get(stamp)
        if changing and version.state == ABORTED and held is None and stamp > settled:
            return True
        if version.state == ABORTED or (version.condemned and not changing):
            continue
        if held is None or (held.state == ABORTED and version.state >= LOCKED):
            old = version.state == SETTLED or is_due(stamp)
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
        unsettled = version.state < SETTLED and is_due(stamp)
        if version.state < SETTLED and stamp in theirs and theirs[stamp].state == ABORTED:
            return True  # it may be dead: then it goes now, since conditional writes do not get past it
        if unsettled or (stamp < newest_theirs and stamp not in theirs):
            return True
    return False
