"""What a mutation does to the versions of one key: pure functions, shared by every store.

The entries of a key are a tuple, newest stamp first. docs/consistency.md says why the rules are what they
are; those that everything rests on: a vote never changes (but ABORTED where `overrule` says that it proves
nothing), the newest SETTLED version is never trimmed, nothing is taken between a conditional one and its base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from coffre.cluster.errors import CoffreError, Conflict, ResourceExhausted
from coffre.node.store.limits import kind_of
from coffre.node.store.seam import (
    ABORTED,
    ACCEPTED,
    LOCKED,
    SETTLED,
    Collect,
    Condemn,
    Drop,
    Forget,
    Lock,
    Refuse,
    State,
    StoredVersion,
)

__all__ = [
    "ENTRIES_MAX",
    "Entry",
    "MarkOf",
    "Verdict",
    "abort",
    "accept",
    "bare",
    "collect",
    "condemn",
    "decide_own",
    "down_to_settled",
    "drop",
    "forget",
    "is_wanted",
    "kinds",
    "lock",
    "promoted",
    "refuse",
    "replaces",
    "restore",
    "settle",
]

ENTRIES_MAX = 4096
VOTES_KEPT = 8  # votes on versions that are gone, per key

# A writer's mark, by the 8 bytes of its id: up to this stamp all that it wrote is established. Empty: none.
MarkOf = Callable[[bytes], bytes]


class Entry(NamedTuple):
    """One version of a key. `record` is where its manifest and small shard lie, opaque here; None when
    ABORTED.

    `was_locked`: the vote was LOCKED, which the state does not tell any more. With ABORTED the version itself is
    gone, replaced by a newer one; what is left is the vote, for a writer that comes to give it up.
    """

    stamp: bytes
    state: State
    tombstone: bool = False
    shard_index: int | None = None
    shard_bytes: int = 0
    record: Hashable = None
    placement: tuple[int, ...] = ()  # what a Settle brought; empty: as in the record
    conditional: bool = False  # decided on an older version: nothing may slip in between them
    condemned: bool = False  # a settled tombstone that every primary is known to have
    was_locked: bool = False


@dataclass(slots=True)
class Verdict:
    """What is to be done: the entries after it, those whose records are free now, and what to answer.

    `stored`: the proposal of an Accept became an entry, so its record is needed. `changed`: the entries
    differ.
    """

    entries: tuple[Entry, ...]
    changed: bool = False
    stored: bool = False
    freed: tuple[Entry, ...] = ()
    state: State | None = None
    error: CoffreError | None = None
    newest_stamp: bytes = b""
    has_shard: bool = False


def promoted(entries: tuple[Entry, ...], mark_of: MarkOf) -> tuple[Entry, ...]:
    """The entries as their writers' marks make them: ACCEPTED or LOCKED at or below the mark is SETTLED."""
    if len(entries) == 1:  # as of most keys
        entry = entries[0]
        if entry.state < SETTLED and entry.stamp <= mark_of(entry.stamp[8:]):
            return (tuple.__new__(Entry, (entry.stamp, SETTLED, *entry[2:-1], _was_locked(entry))),)
        return entries
    found: list[Entry] | None = None
    for place, entry in enumerate(entries):
        if entry.state < SETTLED and entry.stamp <= mark_of(entry.stamp[8:]):
            found = found or list(entries)
            found[place] = Entry(entry.stamp, SETTLED, *entry[2:-1], _was_locked(entry))
    return tuple(found) if found else entries


def accept(
    entries: tuple[Entry, ...],
    proposal: Entry,
    *,
    lock: bool,
    asked: int | None = None,
    base: bytes = b"",
    damaged: bool = False,
    overrule: bool = False,
) -> Verdict:
    """Take `proposal` (its state is not read) among `entries`, or refuse it with `Conflict`.

    `asked`: the shard that its sender will count as stored; another one that is held is none. `base`: of a conditional
    proposal, the stamp that it was decided on. `damaged`: the shard of the entry with this stamp does not verify, so
    one of the same index may replace it. `overrule`: a vote ABORTED on it is none.
    """
    if overrule:
        entries = tuple(e for e in entries if e[:2] != (proposal.stamp, ABORTED) or e.was_locked)
    if not entries:
        return _insert(entries, 0, proposal, LOCKED if lock else ACCEPTED)
    place, present = _find(entries, proposal.stamp)
    if present is not None:
        return _accept_again(entries, place, proposal, asked, lock=lock, damaged=damaged)
    refusal = _stands_in_the_way(entries, place, proposal, base, lock=lock)
    if refusal is not None:
        return refusal
    return _insert(entries, place, proposal, LOCKED if lock else ACCEPTED)


def _stands_in_the_way(
    entries: tuple[Entry, ...], place: int, proposal: Entry, base: bytes, *, lock: bool
) -> Verdict | None:
    """The refusal of a version that would be at `place`, or None.

    With `lock`, `newest_stamp` says that something newer is settled, so it is left out where nothing is.
    """
    newer = [entry for entry in entries[:place] if entry.state != ABORTED]
    if newer and (not lock or any(entry.state == SETTLED for entry in newer)):
        return Verdict(
            entries, error=Conflict("a newer version stands in the way"), newest_stamp=newer[0].stamp
        )
    if any(entry.conditional for entry in newer):
        return Verdict(entries, error=Conflict("a newer version was decided on an older one than this"))
    if proposal.conditional and any(entry.stamp > base for entry in entries if entry.state != ABORTED):
        return Verdict(entries, error=Conflict("there is a newer version than this one was decided on"))
    return None


def _accept_again(
    entries: tuple[Entry, ...], place: int, proposal: Entry, asked: int | None, *, lock: bool, damaged: bool
) -> Verdict:
    present = entries[place]
    if present.state == ABORTED:
        if present.was_locked:
            newest = next(entry.stamp for entry in entries if entry.state == SETTLED)
            return Verdict(entries, error=Conflict("this version was overwritten"), newest_stamp=newest)
        return Verdict(entries, state=ABORTED, error=Conflict("this version was given up"))
    state = LOCKED if lock and present.state == ACCEPTED else present.state
    gains = present.shard_index is None and proposal.shard_index is not None
    # If not, its writer lies: digests count the kind held first.
    same_kind = present.tombstone == proposal.tombstone
    if same_kind and (gains or (damaged and present.shard_index == proposal.shard_index)):
        entry = proposal._replace(
            state=state,
            placement=present.placement,
            conditional=present.conditional,
            condemned=present.condemned,
            was_locked=present.was_locked,
        )
        after, has_shard = _put(entries, place, entry), entry.shard_index is not None
        return Verdict(after, True, stored=True, freed=(present,), state=state, has_shard=has_shard)
    has_shard = present.shard_index is not None and asked in (None, present.shard_index)
    if state == present.state:
        return Verdict(entries, state=state, has_shard=has_shard)
    entry = present._replace(state=state)
    return Verdict(_put(entries, place, entry), changed=True, state=state, has_shard=has_shard)


def abort(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Vote ABORTED on `stamp`, unless the vote is cast already; the verdict's state tells what it is.

    No state: the version is gone, and so may be the vote.
    """
    place, present = _find(entries, stamp)
    marker = Entry(stamp, ABORTED)
    # An Accept of this stamp is refused for ever by a newer settled version: then there is nothing to remember.
    overtaken = any(entry.state == SETTLED for entry in entries[:place])
    if present is None:
        if overtaken:
            votes = [entry.stamp for entry in entries[place:] if _is_vote(entry)]
            full = sum(map(_is_vote, entries)) >= VOTES_KEPT
            return Verdict(entries, state=None if full and not votes else ABORTED)
        return _insert(entries, place, marker, ABORTED)
    if _is_vote(present):
        return Verdict(entries, state=LOCKED)
    if present.state != ACCEPTED:
        return Verdict(entries, state=present.state, has_shard=present.shard_index is not None)
    if overtaken:
        rest = entries[:place] + entries[place + 1 :]
        return Verdict(rest, changed=True, freed=(present,), state=ABORTED)
    return Verdict(_put(entries, place, marker), changed=True, freed=(present,), state=ABORTED)


def settle(
    entries: tuple[Entry, ...], stamp: bytes, placement: tuple[int, ...], versions_kept: int
) -> Verdict:
    """Note that `stamp` is established, and trim what is older than the newest established version."""
    place, present = _find(entries, stamp)
    if present is None or _is_vote(present):
        return Verdict(entries)
    if present.state == ABORTED:
        # Established on other nodes against this node's vote. The vote is spent; a newer Accept may bring the
        # version.
        return Verdict(entries[:place] + entries[place + 1 :], changed=True)
    has_shard = present.shard_index is not None
    known = present.state == SETTLED and placement in ((), present.placement)
    if len(entries) == 1 and known:
        return Verdict(entries, state=SETTLED, has_shard=has_shard)
    entry = Entry(
        stamp,
        SETTLED,
        present.tombstone,
        present.shard_index,
        present.shard_bytes,
        present.record,
        placement or present.placement,
        present.conditional,
        present.condemned,
        _was_locked(present),
    )
    if len(entries) == 1:
        return Verdict((entry,), True, state=SETTLED, has_shard=has_shard)
    # A mark may have settled it before, and trims nothing.
    kept, freed = _trim(_put(entries, place, entry), max(versions_kept, 1))
    if known and not freed and len(kept) == len(entries):
        return Verdict(entries, state=SETTLED, has_shard=has_shard)
    return Verdict(kept, changed=True, freed=freed, state=SETTLED, has_shard=has_shard)


# ------------------------------------------------------------------ what a node's own repair does


def restore(
    entries: tuple[Entry, ...], proposal: Entry, versions_kept: int, *, replace: bool = False
) -> Verdict:
    """Hold an established version as SETTLED, with the proposal's shard where it is missing or `replace` says so.

    An ABORTED vote against it is spent. Trimmed like a Settle; what would be trimmed at once is not stored.
    """
    place, present, fresh = *_find(entries, proposal.stamp), proposal._replace(state=SETTLED)
    if present is None:
        if len(entries) >= ENTRIES_MAX:
            return Verdict(entries, error=ResourceExhausted("this key has too many versions"))
        entry, after = fresh, (*entries[:place], fresh, *entries[place:])
    else:
        if present.state == ABORTED:
            entry = fresh._replace(was_locked=present.was_locked)
        elif present.tombstone != proposal.tombstone:
            return Verdict(entries, error=Conflict("this version is held here as another kind"))
        elif (replace and (proposal.shard_index is not None or present.shard_index is None)) or (
            present.shard_index is None and proposal.shard_index is not None
        ):
            entry = fresh._replace(condemned=present.condemned, was_locked=_was_locked(present))
        else:
            entry = present._replace(state=SETTLED, was_locked=_was_locked(present))
        after = _put(entries, place, entry)
    kept, trimmed = _trim(after, max(versions_kept, 1))
    stored = entry.record is proposal.record and entry in kept
    freed = tuple(gone for gone in trimmed if gone.record is not proposal.record)
    if present is not None and present.record is not None and entry.record is not present.record:
        freed = (*freed, present)
    return Verdict(
        kept,
        changed=kept != entries,
        stored=stored,
        freed=freed,
        state=SETTLED,
        has_shard=entry.shard_index is not None,
    )


def refuse(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Vote ABORTED on a version that is not held. Whoever never accepted may refuse for ever: no
    acknowledgement counts on it. A version that is held keeps its vote."""
    _, present = _find(entries, stamp)
    if present is not None:
        return Verdict(entries, state=present.state, has_shard=present.shard_index is not None)
    return abort(entries, stamp)


def lock(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Promise never to give up a version that is ACCEPTED: who accepted may promise that at any time."""
    place, present = _find(entries, stamp)
    if present is None:
        return Verdict(entries)
    has_shard = present.shard_index is not None
    if present.state != ACCEPTED:
        return Verdict(entries, state=present.state, has_shard=has_shard)
    after = _put(entries, place, present._replace(state=LOCKED))
    return Verdict(after, changed=True, state=LOCKED, has_shard=has_shard)


def drop(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Drop a version that is dead for ever: ABORTED votes decided it, so a LOCKED vote is one that lost.

    That one vote changes here from LOCKED to ABORTED cannot decide anything: it was decided before. SETTLED stays,
    whatever the caller believes.
    """
    place, present = _find(entries, stamp)
    if present is None:
        return Verdict(entries)
    if present.state in (SETTLED, ABORTED):
        return Verdict(entries, state=present.state, has_shard=present.shard_index is not None)
    overtaken = any(entry.state == SETTLED for entry in entries[:place])
    rest = (
        entries[:place] + entries[place + 1 :] if overtaken else _put(entries, place, Entry(stamp, ABORTED))
    )
    return Verdict(rest, changed=True, freed=(present,), state=ABORTED)


def forget(entries: tuple[Entry, ...], stamps: Collection[bytes]) -> Verdict:
    """Forget a name of which no more is held than `stamps`, all of them safe with the primaries."""
    held = tuple(entry for entry in entries if entry.state != ABORTED)
    if any(entry.stamp not in stamps for entry in held):
        return Verdict(entries, error=Conflict("another version came meanwhile"))
    return Verdict((), changed=bool(entries), freed=held)


def condemn(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Flag the tombstone that is a name's only version, and settled."""
    if not _is_alone(entries, stamp):
        return Verdict(entries, error=Conflict("the tombstone is not the only version of its name"))
    entry = entries[0]
    if not entry.tombstone or entry.state != SETTLED:
        return Verdict(entries, error=Conflict("only a settled tombstone is condemned"))
    after = (entry._replace(condemned=True), *entries[1:])
    return Verdict(after, changed=not entry.condemned, state=SETTLED)


def collect(entries: tuple[Entry, ...], stamp: bytes) -> Verdict:
    """Remove the condemned tombstone that is a name's only version, with the votes on older ones.

    Their writers are done: the retention is longer than any message may be under way.
    """
    if not _is_alone(entries, stamp) or not entries[0].condemned:
        return Verdict(entries, error=Conflict("the tombstone is not condemned, or not alone"))
    return Verdict((), changed=True, freed=entries[:1])


def _is_alone(entries: tuple[Entry, ...], stamp: bytes) -> bool:
    """Whether a version is the newest of its name, with nothing older than votes behind it."""
    return bool(entries) and entries[0].stamp == stamp and not kinds(entries[1:])


def decide_own(
    entries: tuple[Entry, ...], mutation: Refuse | Lock | Drop | Forget | Condemn | Collect
) -> Verdict:
    """What a mutation of the node's own repair does, `Restore` aside."""
    match mutation:
        case Refuse():
            return refuse(entries, mutation.stamp)
        case Lock():
            return lock(entries, mutation.stamp)
        case Drop():
            return drop(entries, mutation.stamp)
        case Forget():
            return forget(entries, mutation.stamps)
        case Condemn():
            return condemn(entries, mutation.stamp)
        case Collect():
            return collect(entries, mutation.stamp)


# ------------------------------------------------------------------ what they share


def kinds(entries: tuple[Entry, ...]) -> set[tuple[bytes, int]]:
    """What a partition's digest counts of a row: the stamp and kind of every version that is not ABORTED."""
    return {
        (entry.stamp, kind_of(entry.tombstone, entry.shard_index is not None))
        for entry in entries
        if entry.state != ABORTED
    }


def bare(entries: tuple[Entry, ...]) -> tuple[StoredVersion, ...]:
    """The entries without what their records say."""
    return tuple(
        StoredVersion(
            entry.state,
            entry.stamp,
            entry.tombstone,
            shard_index=entry.shard_index,
            condemned=entry.condemned,
        )
        for entry in entries
    )


def replaces(entries: tuple[Entry, ...], stamp: bytes, versions_kept: int) -> bool:
    """Whether a Settle of `stamp` would trim other entries, or bury the key."""
    if len(entries) == 1:
        return entries[0].tombstone
    verdict = settle(entries, stamp, (), versions_kept)
    return bool(verdict.freed) or len(verdict.entries) < len(entries)


def down_to_settled(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The entries down to and with the newest SETTLED one; all of them when there is none."""
    for position, entry in enumerate(entries):
        if entry.state == SETTLED:
            return entries[: position + 1]
    return entries


def _trim(entries: tuple[Entry, ...], versions_kept: int) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Split into what stays and the entries with records that go. A vote to keep stays when its version goes.

    What is not settled takes nobody's place among the versions kept: it may never be, and then one would be missing. A
    condemned tombstone below another settled version goes: others have collected it."""
    kept: list[Entry] = []
    freed: list[Entry] = []
    counted = votes = 0
    ended = False  # a settled tombstone was met: nothing older is a version of this object any more
    for entry in entries:
        if counted == 0 and entry.state != SETTLED:
            kept.append(entry)
        elif entry.state == ABORTED or ended or counted == versions_kept or (counted and entry.condemned):
            if entry.state != ABORTED:
                freed.append(entry)
            if _was_locked(entry) and votes < VOTES_KEPT:
                votes += 1
                kept.append(Entry(entry.stamp, ABORTED, was_locked=True))
        else:
            counted += entry.state == SETTLED
            kept.append(entry)
            ended = entry.tombstone and entry.state == SETTLED
    return tuple(kept), tuple(freed)


def _was_locked(entry: Entry) -> bool:
    return entry.was_locked or entry.state == LOCKED


def _is_vote(entry: Entry) -> bool:
    """Whether nothing but a vote to keep is left of a version."""
    return entry.state == ABORTED and entry.was_locked


def _insert(entries: tuple[Entry, ...], place: int, entry: Entry, state: State) -> Verdict:
    if len(entries) >= ENTRIES_MAX:
        return Verdict(
            entries, error=ResourceExhausted(f"a key has at most {ENTRIES_MAX} versions that are not settled")
        )
    if entry.state != state:
        entry = entry._replace(state=state)
    return Verdict(
        (*entries[:place], entry, *entries[place:]) if entries else (entry,),
        True,
        state != ABORTED,
        (),
        state,
        None,
        b"",
        entry.shard_index is not None,
    )


def _find(entries: tuple[Entry, ...], stamp: bytes) -> tuple[int, Entry | None]:
    """Where `stamp` is or would be, and the entry when it is there."""
    for place, entry in enumerate(entries):
        if entry.stamp <= stamp:
            return place, entry if entry.stamp == stamp else None
    return len(entries), None


def _put(entries: tuple[Entry, ...], place: int, entry: Entry) -> tuple[Entry, ...]:
    return (*entries[:place], entry, *entries[place + 1 :])


def is_wanted(entries: tuple[Entry, ...], stamp: bytes) -> bool:
    """Whether a version may still need repair: it is held, or unknown here with nothing newer settled."""
    place, present = _find(entries, stamp)
    if present is not None:
        return present.state != ABORTED
    return not any(entry.state == SETTLED for entry in entries[:place])
