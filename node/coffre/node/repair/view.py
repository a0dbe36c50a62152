"""What a node knows of one name when it decides about it, and what the votes on a version prove (docs/repair.md)."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coffre.cluster.versions import unixtime_ms_of
from coffre.node.following import AHEAD_MS_MAX
from coffre.node.repair.electorate import Electorate
from coffre.node.repair.rebuild import best_manifest
from coffre.node.store import ABORTED, LOCKED, SETTLED, StoredVersion

__all__ = ["Tally", "View"]


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one name. `answers`: all versions that each node holds which answered, this one too; nodes
    that are not in it are silent. `silent_elsewhere`: how many nodes that are no primaries, and may hold a
    shard, did not answer. `homes`: by k and m, where the shards of versions that are coded so belong; without any they
    belong to the primaries. `consulted`: every node that the map consults; while it changes, each of them may hold a
    shard, and without them shards are not counted. `lost`: those of them that are gone for good. `departed`: how many
    nodes were taken out before. `now_ms`: what time it is; None: nothing is old, since this node's clock cannot be
    believed. `punctual`: nodes whose clocks agree with this one's; what others do not hold they may still get, however
    old it is. None: everybody's do. `met`: stamps that this node had met before its clock was compared; None: all."""

    me: int
    electorate: Electorate
    answers: Mapping[int, Sequence[StoredVersion]]
    now_ms: int | None
    versions_kept: int = 1
    silent_elsewhere: int = 0
    unfinished_seconds: float = 3600.0
    homes: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    consulted: frozenset[int] = frozenset()
    departed: int = 0
    lost: frozenset[int] = frozenset()
    punctual: frozenset[int] | None = None
    met: Container[bytes] | None = None

    def is_old(self, stamp: bytes) -> bool:
        """Whether a version is so old that its writer can do nothing more for it."""
        return self.now_ms is not None and unixtime_ms_of(stamp) <= self.now_ms - int(
            self.unfinished_seconds * 1000
        )

    def is_ahead(self, stamp: bytes) -> bool:
        """Whether a version is from so far in the future that no node with a right clock took it."""
        return self.now_ms is not None and unixtime_ms_of(stamp) > self.now_ms + AHEAD_MS_MAX

    def had_met(self, stamp: bytes) -> bool:
        """Whether this node knew of a version before it was told what time it is."""
        return self.met is None or stamp in self.met

    @property
    def heard(self) -> Collection[int]:
        """Nodes whose answers show what they do not hold, and will not come to hold however old it is."""
        if self.punctual is None:
            return self.answers.keys()
        return self.answers.keys() & (self.punctual | {self.me})

    @property
    def is_voter(self) -> bool:
        """Whether this node has a say here, as primary of any set; else it looks at the name only for shards that
        belong to it."""
        return self.me in self.electorate.everyone

    @property
    def is_primary(self) -> bool:
        """Whether everything of the name should be here."""
        return self.me in self.electorate.primaries

    @property
    def is_decisive(self) -> bool:
        """Whether this node is of the oldest set."""
        return self.me in self.electorate.decisive

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
        """The versions that this node has, newest first."""
        return self.answers[self.me]

    def own_version(self, stamp: bytes) -> StoredVersion | None:
        """This node's version of that stamp, or None."""
        return next((version for version in self.own if version.stamp == stamp), None)


class Tally:
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
        return set(members).difference(self._view.heard)

    def _shards_of(self, nodes: Iterable[int]) -> int:
        """Distinct good shards on these nodes."""
        versions = [self.held[node] for node in nodes if node in self.held]
        return len({v.shard_index for v in versions if v.shard_index is not None and not v.damaged})

    @property
    def shards(self) -> int:
        """How many different shards the nodes that were heard hold."""
        return self._shards_of(self.held)

    @property
    def established(self) -> bool:
        """SETTLED somewhere, or LOCKED on W of every set and k shards on locked nodes.

        What is settled was on W primaries of some set, and none of them drops it before a newer one is settled, so a
        claim that fewer than W can hold is a lie. A condemned tombstone is one that others have dropped already.
        """
        return self.condemned or (self.settled and self.can_be_settled) or self.promised or self._stands

    @property
    def _stands(self) -> bool:
        """LOCKED on W of every set if the votes that were lost with their nodes are counted."""
        return self.is_kept and self._electorate.stands(self._view.lost, self._locked, self.aborted)

    @property
    def is_kept(self) -> bool:
        """It can never be dead by the votes of the oldest set, and locked nodes have k shards: it may have been
        returned, and others may change their votes against it."""
        electorate = self._electorate
        kept = electorate.is_moving and electorate.is_kept(self._view.lost, self._locked, self.aborted)
        return kept and self._locked_can_be_read

    @property
    def vote_may_change(self) -> bool:
        """Whether a vote ABORTED of this node proves nothing about a version that is kept: it is not of the oldest set,
        or W of that have locked it, and none of these with a vote that was lost."""
        return not self._view.is_decisive or self._electorate.is_locked_for_ever(self._locked)

    @property
    def promised(self) -> bool:
        """LOCKED on W of every set, and k shards on locked nodes."""
        return self._electorate.is_established_by(self._locked) and self._locked_can_be_read

    @property
    def _locked_can_be_read(self) -> bool:
        return self.tombstone or self._shards_of(self._locked) >= self._k_most

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
    def too_few_hold(self) -> bool:
        """Whether, with all who are silent, fewer than W of the oldest set hold it."""
        electorate = self._electorate
        return not electorate.may_be_established(self.held.keys() | self._silent(electorate.everyone))

    @property
    def never_acknowledged(self) -> bool:
        """Provably neither acknowledged by its writer nor returned by a reader; a damaged copy counts as whole."""
        electorate = self._electorate
        silent = self._silent(electorate.everyone)
        if self.too_few_hold:
            return True
        unlocked = not electorate.may_be_established(self._locked | silent)
        # Its writer gave it up, and could be told of it by LOCKED votes alone.
        if self.aborted and unlocked and self._all_but_lost_answer:
            return True
        if not self._counts_shards:
            return False
        few = self._possible_shards + self._view.departed < self._k_least + 1
        if electorate.is_moving:
            return unlocked and (few or self.is_unreadable)
        return self.is_unreadable or (unlocked and few)

    @property
    def is_unreadable(self) -> bool:
        """An object of which there are fewer than k shards, whoever is silent: no reader can complete it any more."""
        return self._counts_shards and self._possible_shards < self._k_least

    @property
    def is_lost(self) -> bool:
        """An object that nobody can read any more, nor give up: by votes that never change it may have been read."""
        electorate = self._electorate
        stands = electorate.is_established_by(self._locked) or (
            electorate.is_moving and electorate.is_kept(self._view.lost, self._locked, self.aborted)
        )
        if not (stands and not self.settled and self._counts_shards):
            return False
        gone = len(self._silent_keepers & self._view.lost) if electorate.is_moving else 0
        return self._possible_shards - gone < self._k_least

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
            return len(known) + unknown + len(self._silent_keepers)
        return len(known) + unknown + len(self._silent(self._keepers)) + self._view.silent_elsewhere

    @property
    def _silent_keepers(self) -> set[int]:
        """Nodes that do not answer, and may hold a shard, while the map changes."""
        named = {node for version in self.held.values() for node in version.placement}
        return self._silent({*self._view.consulted, *self._keepers, *named})

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
        """Whether it may have been acknowledged, by what answered or is lost, and k shards are left: votes can keep it.

        New primaries, which lack what was complete before the map changed, take it for that.
        """
        held = self._electorate.may_be_established(self.held.keys()) or self._may_stand_with_lost
        return held and (self.tombstone or self.shards >= self._k_most)

    @property
    def _may_stand_with_lost(self) -> bool:
        """Whether W of the oldest set may have held it, with nodes that are lost. No, where anybody refused it or may
        have: its writer was perhaps told, with the votes that are lost, that nothing was written."""
        lost = self._view.lost - self._view.answers.keys()
        may_stand = self._electorate.may_be_established(self.held.keys() | lost)
        return may_stand and not self.aborted and self._all_but_lost_answer

    @property
    def _all_but_lost_answer(self) -> bool:
        """Whether every node of the oldest set does that can."""
        return self._electorate.decisive.issubset({*self._view.heard, *self._view.lost})
