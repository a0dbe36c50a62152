"""The rules of a node's votes, one by one and as properties of any run."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from coffre.cluster.errors import Conflict, ResourceExhausted
from coffre.node.store import Entry, State, votes
from coffre.node.store.votes import ENTRIES_MAX
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

A, L, S, X = State.ACCEPTED, State.LOCKED, State.SETTLED, State.ABORTED


def stamp(number: int) -> bytes:
    """Even numbers are of one writer, odd ones of another."""
    return number.to_bytes(8, "big") + (number % 2).to_bytes(8, "big")


def entry(number: int, state: State = A, *, shard: int | None = 0, tombstone: bool = False) -> Entry:
    if state is X:
        return Entry(stamp(number), X)
    return Entry(stamp(number), state, tombstone, None if tombstone else shard, 0, f"record {number}")


def shape(entries: tuple[Entry, ...]) -> list[tuple[int, State]]:
    return [(int.from_bytes(e.stamp[:8], "big"), e.state) for e in entries]


def marks(*numbers: int) -> votes.MarkOf:
    held = {stamp(number)[8:]: stamp(number) for number in numbers}
    return lambda writer: held.get(writer, b"")


@pytest.mark.parametrize(
    ("held", "lock", "refused"),
    [
        ([(9, A)], False, True),
        ([(9, L)], False, True),
        ([(9, S)], False, True),
        ([(9, X)], False, False),
        ([(9, A)], True, False),
        ([(9, L)], True, False),
        ([(9, S)], True, True),
        ([(9, A), (7, S)], True, True),
        ([(9, X), (7, A)], False, True),
        ([(3, S)], False, False),
        ([(3, S)], True, False),
    ],
)
def test_what_stands_in_the_way_of_an_accept(
    held: list[tuple[int, State]], lock: bool, refused: bool
) -> None:
    entries = tuple(entry(number, state) for number, state in held)
    verdict = votes.accept(entries, entry(5), lock=lock)
    if refused:
        assert isinstance(verdict.error, Conflict)
        assert verdict.newest_stamp == max(e.stamp for e in entries if e.state is not X)
        assert verdict.entries == entries
        assert not verdict.stored
    else:
        assert verdict.error is None
        assert verdict.stored
        assert (5, L if lock else A) in shape(verdict.entries)


@pytest.mark.parametrize("lock", [False, True])
@pytest.mark.parametrize(
    ("held", "base", "refused"),
    [
        ([], 0, False),
        ([(3, S)], 3, False),
        ([(3, A)], 3, False),  # its base was read on others
        ([(3, S), (1, A)], 3, False),
        ([(4, A), (3, S)], 3, True),
        ([(4, L)], 3, True),
        ([(4, S)], 3, True),
        ([(4, X), (3, S)], 3, False),
        ([(3, S)], 0, True),
        ([(3, S)], 2, True),
        ([(6, A), (3, S)], 3, True),
        ([(6, X), (3, S)], 3, False),
    ],
)
def test_a_conditional_version_is_refused_where_anything_newer_than_its_base_is(
    held: list[tuple[int, State]], base: int, refused: bool, lock: bool
) -> None:
    entries = tuple(entry(number, state) for number, state in held)
    proposal = entry(5)._replace(conditional=True)
    verdict = votes.accept(entries, proposal, lock=lock, base=stamp(base) if base else b"")
    assert isinstance(verdict.error, Conflict) is refused
    assert (5 in dict(shape(verdict.entries))) is not refused
    assert verdict.error is not None or next(e for e in verdict.entries if e.stamp == stamp(5)).conditional
    if refused and lock:  # its writer may believe it is overwritten only where something newer is settled
        assert (verdict.newest_stamp > stamp(5)) == any(n > 5 and state is S for n, state in held)


@pytest.mark.parametrize("state", [A, L, S])
@pytest.mark.parametrize("lock", [False, True])
def test_nothing_slips_in_before_a_conditional_version(state: State, lock: bool) -> None:
    held = (entry(5, state)._replace(conditional=True), entry(3, S))
    verdict = votes.accept(held, entry(4), lock=lock)
    assert isinstance(verdict.error, Conflict)
    assert verdict.newest_stamp == (b"" if lock and state is not S else stamp(5))
    given_up = votes.accept((entry(5, X), entry(3, S)), entry(4), lock=lock)
    assert given_up.stored
    assert votes.accept(held, entry(6), lock=lock).stored
    assert votes.accept(held, entry(5), lock=True).state in (
        L,
        S,
    )  # it is there: its vote is all that changes


def test_a_conditional_version_stays_one() -> None:
    entries = votes.accept((), entry(5, shard=None)._replace(conditional=True), lock=False).entries
    for verdict in (
        votes.accept(entries, entry(5), lock=False),
        votes.accept(entries, entry(5), lock=True),
        votes.settle(entries, stamp(5), (), 1),
        votes.settle(entries, stamp(5), (4, 5), 1),
    ):
        assert [e.conditional for e in verdict.entries] == [True]
    assert votes.promoted(entries, marks(5))[0].conditional


@pytest.mark.parametrize("damaged", [False, True])
def test_a_shard_of_the_same_index_is_replaced_only_when_damaged(damaged: bool) -> None:
    fresh = Entry(stamp(1), A, False, 0, 0, "fresh")
    verdict = votes.accept((entry(1, S),), fresh, lock=False, damaged=damaged)
    assert verdict.state is S
    assert verdict.has_shard
    assert verdict.stored is damaged
    assert verdict.entries[0].record == ("fresh" if damaged else "record 1")
    assert verdict.freed == ((entry(1, S),) if damaged else ())
    other = Entry(stamp(1), A, False, 3, 0, "fresh")
    assert not votes.accept((entry(1, S),), other, lock=False, damaged=damaged).stored


def test_a_vote_against_a_version_is_changed_only_where_it_proves_nothing() -> None:
    fresh, below = Entry(stamp(2), A, False, 0, 0, "fresh"), entry(1, S)
    refused = (Entry(stamp(2), X), below)
    assert votes.accept(refused, fresh, lock=True).state is X
    taken = votes.accept(refused, fresh, lock=True, overrule=True)
    assert (taken.state, taken.stored, taken.freed) == (L, True, ())
    assert taken.entries == (fresh._replace(state=L), below)
    other = (Entry(stamp(3), X), below)  # of another version
    assert votes.accept(other, fresh, lock=True, overrule=True).entries == (
        Entry(stamp(3), X),
        fresh._replace(state=L),
        below,
    )
    over = (entry(4, S), Entry(stamp(2), X, was_locked=True))  # it was kept, and overwritten since
    verdict = votes.accept(over, fresh, lock=True, overrule=True)
    assert (verdict.newest_stamp, verdict.stored) == (stamp(4), False)
    newer = (entry(4, S), Entry(stamp(2), X))
    verdict = votes.accept(newer, fresh, lock=True, overrule=True)
    assert (verdict.newest_stamp, verdict.stored, verdict.changed) == (stamp(4), False, False)


def test_a_version_does_not_change_its_kind() -> None:
    deletion = entry(1, tombstone=True)
    verdict = votes.accept((deletion,), Entry(stamp(1), A, False, 0, 0, "fresh"), lock=False)
    assert not verdict.changed
    assert not verdict.has_shard
    verdict = votes.accept((deletion,), Entry(stamp(1), A, False, None, 0, "fresh"), lock=True, damaged=True)
    assert (verdict.stored, verdict.entries) == (False, (deletion._replace(state=L),))


@pytest.mark.parametrize(
    ("held", "kept", "left"),
    [
        ([(4, A), (3, A), (2, A), (1, S)], 1, [(4, A), (3, S)]),
        ([(4, X), (3, A), (2, X), (1, S)], 1, [(4, X), (3, S)]),
        ([(4, A), (3, A), (2, X), (1, S)], 2, [(4, A), (3, S), (1, S)]),
        ([(4, S), (3, A), (2, A)], 2, [(4, S), (3, S)]),
        ([(4, S), (3, A), (2, A)], 1, [(4, S)]),
        ([(3, A), (2, L), (1, X)], 3, [(3, S), (2, L)]),
        # What is not settled, and may never be, pushes out nothing that is.
        ([(5, S), (4, A), (3, S), (2, S)], 2, [(5, S), (4, A), (3, S)]),
        ([(3, A), (2, A), (1, S)], 2, [(3, S), (2, A), (1, S)]),
    ],
)
def test_settle_trims(held: list[tuple[int, State]], kept: int, left: list[tuple[int, State]]) -> None:
    entries = tuple(entry(number, state) for number, state in held)
    verdict = votes.settle(entries, stamp(3), (), kept)
    assert shape(verdict.entries) == left
    assert {e.record for e in verdict.freed} == {
        e.record for e in entries if e.state is not X and e.stamp not in {k.stamp for k in verdict.entries}
    }


def test_a_tombstone_that_settles_late_still_ends_the_history() -> None:
    held = (entry(3, S), entry(2, A, tombstone=True), entry(1, S))
    assert shape(votes.settle(held, stamp(2), (), 5).entries) == [(3, S), (2, S)]


@pytest.mark.parametrize(
    ("held", "marked", "found"),
    [
        ([(4, A), (3, A), (2, L), (1, A)], (4,), [(4, S), (3, A), (2, S), (1, A)]),
        ([(4, A), (3, A), (2, L), (1, A)], (2, 1), [(4, A), (3, A), (2, S), (1, S)]),
        ([(4, X), (2, S), (1, L)], (4, 3), [(4, X), (2, S), (1, S)]),
        ([(4, A)], (3, 2), [(4, A)]),
        ([(4, A)], (4,), [(4, S)]),
        ([(4, L)], (6,), [(4, S)]),
        ([(4, X)], (6,), [(4, X)]),
        ([(4, A), (3, A)], (), [(4, A), (3, A)]),
        ([], (3,), []),
    ],
)
def test_marks_promote(
    held: list[tuple[int, State]], marked: tuple[int, ...], found: list[tuple[int, State]]
) -> None:
    entries = tuple(entry(number, state) for number, state in held)
    after = votes.promoted(entries, marks(*marked))
    assert shape(after) == found
    for e, now in zip(entries, after, strict=True):
        assert now == e._replace(state=now.state, was_locked=e.state == L != now.state)
    assert (after is entries) == (shape(entries) == found)


@pytest.mark.parametrize(
    ("held", "number", "kept", "expected"),
    [
        ([(3, A)], 3, 1, False),
        ([(3, A), (2, S)], 3, 1, True),
        ([(3, A), (2, X)], 3, 2, True),
        ([(3, A), (2, S)], 3, 2, False),
        ([(3, A), (2, A), (1, S)], 3, 2, False),
        ([(3, A), (2, S), (1, S)], 3, 2, True),
        ([(4, X), (3, A)], 3, 1, False),
        ([(4, S), (3, A)], 3, 2, False),
    ],
)
def test_what_a_version_replaces(
    held: list[tuple[int, State]], number: int, kept: int, expected: bool
) -> None:
    entries = tuple(entry(number, state) for number, state in held)
    assert votes.replaces(entries, stamp(number), kept) is expected


def test_a_settle_after_a_mark_trims() -> None:
    marked = votes.promoted((entry(3, A), entry(2, A), entry(1, X)), marks(3))
    verdict = votes.settle(marked, stamp(3), (), 1)
    assert (verdict.changed, shape(verdict.entries)) == (True, [(3, S)])
    assert verdict.freed == (entry(2, A),)
    assert not votes.settle(verdict.entries, stamp(3), (), 1).changed


def test_the_limit() -> None:
    full = tuple(entry(number, X) for number in range(ENTRIES_MAX, 0, -1))
    assert isinstance(votes.accept(full, entry(9999), lock=True).error, ResourceExhausted)
    assert isinstance(votes.abort(full, stamp(9999)).error, ResourceExhausted)
    assert votes.abort(full, stamp(5)).error is None


stamps = st.integers(1, 8)
BASES = {3: 0, 5: 2, 7: 5, 8: 5}  # the conditional ones among them, and what each was decided on


def is_vote(held: Entry) -> bool:
    """What is left of a version that was locked here and then replaced."""
    return held.state is X and held.was_locked


@pytest.mark.parametrize("known_by", ["nothing", "a settle", "its repair", "its shard", "another shard"])
def test_a_vote_to_keep_outlives_its_version(known_by: str) -> None:
    """A reader completed 5, and 7 has replaced it: the writer of 5 must not learn that nobody can have seen it."""
    first = entry(5, shard=None if known_by == "its shard" else 0)
    entries = votes.accept((first,), first, lock=True).entries
    if known_by == "a settle":
        entries = votes.settle(entries, stamp(5), (), 1).entries
    elif (
        known_by != "nothing"
    ):  # the node's own repair finds that it is established, before anybody settles it
        brought = entry(5, shard=1 if known_by == "another shard" else 0)
        replace = known_by == "another shard"
        entries = votes.restore(entries, brought, 1, replace=replace).entries
        assert [e.shard_index for e in entries] == [brought.shard_index]
    entries = votes.accept(entries, entry(7), lock=False).entries
    assert votes.replaces(entries, stamp(7), 1)
    verdict = votes.settle(entries, stamp(7), (), 1)
    assert [freed.stamp for freed in verdict.freed] == [stamp(5)]
    entries = verdict.entries
    assert not votes.replaces(entries, stamp(7), 1)
    assert votes.abort(entries, stamp(5)).state is L
    assert votes.abort(entries, stamp(4)).state is X
    again = votes.accept(entries, entry(5), lock=True)
    assert isinstance(again.error, Conflict)
    assert again.newest_stamp == stamp(7)


def test_a_condemned_tombstone_goes_below_another_settled_version_and_not_before() -> None:
    condemned = entry(5, S, tombstone=True)._replace(condemned=True)
    newer = entry(7)
    for held in ((condemned,), (newer, condemned)):
        assert votes.settle(held, stamp(5), (), 2).entries == held
        assert votes.settle(held, stamp(5), (1, 2), 2).entries[-1].condemned
        again = entry(5, tombstone=True)._replace(record="again")
        restored = votes.restore(held, again, 2, replace=True)
        assert [(e.stamp, e.condemned) for e in restored.entries] == [(e.stamp, e.condemned) for e in held]
    verdict = votes.settle((newer, condemned), stamp(7), (), 2)
    assert shape(verdict.entries) == [(7, S)]
    assert verdict.freed == (condemned,)


def test_a_few_votes_are_kept_and_a_forgotten_one_is_not_guessed() -> None:
    entries: tuple[Entry, ...] = ()
    for number in range(1, votes.VOTES_KEPT + 4):
        entries = votes.accept(entries, entry(number), lock=True).entries
        entries = votes.settle(entries, stamp(number), (), 1).entries
    assert len(entries) == 1 + votes.VOTES_KEPT
    said = [votes.abort(entries, stamp(number)).state for number in range(1, votes.VOTES_KEPT + 4)]
    assert said == [None, None, *[L] * votes.VOTES_KEPT, S]


class VotesMachine(RuleBasedStateMachine):
    """Any run of mutations: no vote changes, and what is established stays."""

    entries: tuple[Entry, ...]

    @initialize(kept=st.integers(1, 3))
    def start(self, kept: int) -> None:
        self.kept = kept
        self.entries = ()
        self.locked: set[bytes] = set()
        self.aborted: set[bytes] = set()
        self.settled: set[bytes] = set()  # by a Settle: what is older was trimmed
        self.marked: set[bytes] = set()
        self.live: set[object] = set()
        self.record = 0

    def take(self, verdict: votes.Verdict, proposal: Entry | None = None) -> None:
        before = {e.record for e in self.entries if e.record is not None}
        after = {e.record for e in verdict.entries if e.record is not None}
        freed = {e.record for e in verdict.freed}
        assert freed == before - after
        assert after - before == ({proposal.record} if proposal is not None and verdict.stored else set())
        assert verdict.changed == (verdict.entries != self.entries)
        self.entries = verdict.entries

    @rule(number=stamps, lock=st.booleans(), shard=st.sampled_from([None, 0, 1]), tombstone=st.booleans())
    def accept(self, number: int, lock: bool, shard: int | None, tombstone: bool) -> None:
        self.record += 1
        conditional, base = number in BASES, BASES.get(number, 0)
        index = None if tombstone else shard
        proposal = Entry(stamp(number), A, tombstone, index, 0, self.record, (), conditional)
        verdict = votes.accept(self.entries, proposal, lock=lock, base=stamp(base) if base else b"")
        self.take(verdict, proposal)
        if verdict.error is None:
            assert proposal.stamp not in self.aborted
            assert verdict.state in ((L, S) if lock else (A, L, S))
        if verdict.state is L:
            self.locked.add(proposal.stamp)

    @rule(number=stamps)
    def abort(self, number: int) -> None:
        held = {e.stamp: L if is_vote(e) else e.state for e in self.entries}
        verdict = votes.abort(self.entries, stamp(number))
        self.take(verdict)
        if stamp(number) in held:
            assert verdict.state is (held[stamp(number)] if held[stamp(number)] in (L, S) else X)
        else:
            # Trimmed or never seen: only below an established version is the vote not remembered.
            assert verdict.state is X
            assert verdict.changed or stamp(number) < max(self.settled | self.marked)
        if verdict.state is X:
            assert stamp(number) not in self.locked, "a vote to keep has changed"
            self.aborted.add(stamp(number))

    @rule(number=stamps)
    def mark(self, number: int) -> None:
        """Entries are promoted before they are decided on; doing it at once is the same."""
        self.entries = votes.promoted(self.entries, marks(number))
        for e in self.entries:
            if e.stamp <= stamp(number) and e.stamp[8:] == stamp(number)[8:] and e.state is not X:
                assert e.state is S
                self.marked.add(e.stamp)

    @rule(number=stamps)
    def settle(self, number: int) -> None:
        verdict = votes.settle(self.entries, stamp(number), (), self.kept)
        self.take(verdict)
        if verdict.state is S:
            self.settled.add(stamp(number))
        self.aborted.discard(stamp(number))  # the marker is spent, or was trimmed long ago

    @rule(number=stamps, shard=st.sampled_from([None, 0, 1]), replace=st.booleans())
    def restore(self, number: int, shard: int | None, replace: bool) -> None:
        """What is established lies between no other one and its base."""
        held = {place for place, state in shape(self.entries) if state is not X}
        for place in (held | {number}) & BASES.keys():
            if any(BASES[place] < between < place for between in held | {number}):
                return
        self.record += 1
        proposal = Entry(stamp(number), A, False, shard, 0, self.record, (), number in BASES)
        verdict = votes.restore(self.entries, proposal, self.kept, replace=replace)
        self.take(verdict, proposal)
        if verdict.state is S:
            self.settled.add(stamp(number))
            self.aborted.discard(stamp(number))

    @invariant()
    def ordered_and_whole(self) -> None:
        if not hasattr(self, "settled"):
            return
        order = [e.stamp for e in self.entries]
        assert order == sorted(set(order), reverse=True)
        if self.settled:
            newest = max(self.settled)
            older = [e for e in self.entries if e.stamp < newest and not is_vote(e)]
            assert sum(e.state is S for e in older) < self.kept
            assert self.kept > 1 or not older
            assert all(e.state is not X for e in older)
        if self.settled | self.marked:
            newest = max(self.settled | self.marked)
            assert [e.state for e in self.entries if e.stamp == newest] == [S]
        held = [number for number, state in shape(self.entries) if state is not X]
        for number in BASES.keys() & set(held):
            assert not [between for between in held if BASES[number] < between < number]
        for e in self.entries:
            if e.stamp in self.locked:
                assert e.state in (L, S) or is_vote(e)
            if e.stamp in self.aborted:
                assert e.state is X


TestVotesMachine = VotesMachine.TestCase
TestVotesMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)


@given(st.lists(st.tuples(st.sampled_from("alsx"), stamps), max_size=30))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_every_mutation_twice_is_as_once(run: list[tuple[str, int]]) -> None:
    entries: tuple[Entry, ...] = ()
    for kind, number in run:
        for again in (False, True):
            if kind in "al":
                verdict = votes.accept(entries, entry(number), lock=kind == "l")
            elif kind == "s":
                verdict = votes.settle(entries, stamp(number), (), 1)
            else:
                verdict = votes.abort(entries, stamp(number))
            assert not (again and verdict.changed)
            entries = verdict.entries
