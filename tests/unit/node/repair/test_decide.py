"""The table of docs/repair.md row by row, and what must hold of any answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import hypothesis.strategies as st
import pytest
from coffre.node.repair.decide import (
    Step,
    choose_index,
    decide,
    is_dead,
    is_never_acknowledged,
    is_pending,
    needs_look,
    other_indexes,
    wants_everyone,
)
from coffre.node.repair.electorate import Electorate, Voters
from coffre.node.repair.scene import Ahead
from coffre.node.repair.view import View
from coffre.node.store import State, StoredVersion
from hypothesis import given, settings

A, L, S, X = State.ACCEPTED, State.LOCKED, State.SETTLED, State.ABORTED
NOW_MS = 1_700_000_000_000
SIX = Electorate((Voters((1, 2, 3, 4, 5, 6), 4, 2),))  # W 4, R 3, D 5
ELEVEN = Electorate((Voters(tuple(range(1, 12)), 8, 3),))  # W 6, R 6, D 9
MOVING = Electorate((Voters((1, 2, 3, 4, 5, 7), 4, 2), Voters((1, 2, 3, 4, 5, 6), 4, 2)))
NODES = tuple(range(1, 13))
MOVED_FAR = Electorate((Voters((5, 6, 7, 8, 9, 10), 4, 2), Voters((1, 2, 3, 4, 5, 6), 4, 2)))


def stamp(number: int, *, young: bool = False) -> bytes:
    when_ms = NOW_MS - (1000 if young else 7_200_000) + number
    return when_ms.to_bytes(6, "big") + bytes(10)


def held(
    number: int, state: State, shard: int | None = 0, *, young: bool = False, tombstone: bool = False
) -> StoredVersion:
    if state is X:
        return StoredVersion(X, stamp(number, young=young))
    return StoredVersion(
        state, stamp(number, young=young), tombstone, shard_index=None if tombstone else shard
    )


def view(
    answers: Mapping[int, Sequence[StoredVersion]], electorate: Electorate = SIX, **options: int
) -> View:
    return View(1, electorate, {1: (), **answers}, NOW_MS, **options)  # type: ignore[arg-type]


def steps(seen: View) -> list[tuple[Step, bytes]]:
    return [(action.step, action.stamp) for action in decide(seen)]


def each(nodes: Sequence[int], number: int, state: State, **options: bool) -> dict[int, list[StoredVersion]]:
    """Node `n` holds shard n - 1."""
    return {node: [held(number, state, node - 1, **options)] for node in nodes}


# ------------------------------------------------------------------ settled, locked


def test_settled_anywhere_is_taken() -> None:
    assert steps(view(each([4], 1, S))) == [(Step.RESTORE, stamp(1))]
    assert steps(view(each([4], 1, S, young=True))) == [(Step.RESTORE, stamp(1, young=True))]


def test_a_claim_that_cannot_be_true_is_not_believed() -> None:
    """Settled was on W primaries; here all others answered, and one of them says so."""
    real = {node: [held(1, S, node - 1)] for node in range(1, 7)}
    liar = held(9, S, tombstone=True)
    assert steps(view({**real, 4: [liar]})) == []
    assert steps(view({**real, 4: [held(9, S, 3, young=True), held(1, S, 3)]})) == []
    three = {node: [liar, *real[node]] for node in (4, 5, 6)}
    assert steps(view({**real, **three})) == []
    assert steps(view({1: real[1], 2: real[2], **three})) == [(Step.RESTORE, stamp(9))]  # node 3 may have it


def test_settled_against_the_node_s_own_vote() -> None:
    assert steps(view({**each([4], 1, S), 1: [held(1, X)]})) == [(Step.RESTORE, stamp(1))]


def test_a_version_held_whole_is_only_settled() -> None:
    answers = {**each([4], 2, S), 1: [held(2, A), held(1, S)]}
    assert steps(view(answers)) == [(Step.SETTLE, stamp(2))]
    assert steps(view({**each([4], 2, S), 1: [held(2, S)]})) == []
    assert steps(view({**each([4], 2, S), 1: [held(2, S), held(1, S)]})) == [(Step.SETTLE, stamp(2))]


def test_a_vote_to_keep_that_outlived_its_version_is_nothing_to_trim() -> None:
    """A Settle leaves it where it is: what always seems to need one has no turn for anything else."""
    kept = held(1, X)._replace(was_locked=True)
    assert steps(view({**each([4], 2, S), 1: [held(2, S), kept]})) == []
    assert steps(view({**each([4], 2, S), 1: [held(2, S), held(1, X)]})) == [(Step.SETTLE, stamp(2))]


def test_a_shard_that_lacks_or_rots_is_brought() -> None:
    for own in (held(1, S, None), held(1, S)._replace(damaged=True)):
        assert steps(view({**each([4], 1, S), 1: [own]})) == [(Step.RESTORE, stamp(1))]


@pytest.mark.parametrize(("locked", "shards", "taken"), [(4, 4, True), (3, 4, False), (4, 3, False)])
def test_votes_establish_with_k_shards_on_locked_nodes(locked: int, shards: int, taken: bool) -> None:
    answers = each(range(2, 2 + locked), 1, L, young=True)
    for node in list(answers)[shards:]:
        answers[node] = [held(1, L, None, young=True)]
    answers |= {node: each([node], 1, A, young=True)[node] for node in range(2, 7) if node not in answers}
    assert (steps(view(answers)) == [(Step.RESTORE, stamp(1, young=True))]) is taken


def test_two_copies_of_one_shard_are_one_shard() -> None:
    answers = each([2, 3, 4, 5], 1, L, young=True)
    answers[5] = [held(1, L, 1, young=True)]
    assert steps(view(answers)) == []


def test_a_locked_tombstone_needs_no_shards() -> None:
    answers = each([2, 3, 4, 5], 1, L, tombstone=True)
    assert steps(view(answers)) == [(Step.RESTORE, stamp(1))]


def test_who_becomes_a_primary_pulls_a_condemned_tombstone() -> None:
    """The others cannot collect it before it has it, too, and a leaving node keeps it for as long."""
    dying, gone = held(1, S, tombstone=True)._replace(condemned=True), held(1, S, tombstone=True)
    answers = {1: [dying], 2: [dying], 3: [gone], 4: [gone], 5: [gone], 6: [dying]}
    assert steps(while_moving(answers, me=7)) == [(Step.RESTORE, stamp(1))]
    liar: dict[int, list[StoredVersion]] = {**{node: [] for node in (1, 3, 4, 5, 6)}, 2: [dying]}
    assert steps(while_moving(liar, me=7)) == []
    assert needs_look([], [dying], NOW_MS, changing=True)


def test_a_condemned_tombstone_is_not_pulled() -> None:
    dying = held(1, S, tombstone=True)._replace(condemned=True)
    assert steps(view({2: [dying], 3: [dying]})) == []


def test_what_is_below_the_newest_established_is_nobody_s_business() -> None:
    answers = {2: [held(2, S)], 3: [held(1, A)], 1: [held(2, S)]}
    assert steps(view(answers)) == []


def test_kept_versions_are_brought_too() -> None:
    answers = {2: [held(4, S), held(3, S), held(2, S), held(1, S)], 1: [held(4, S)]}
    assert steps(view(answers, versions_kept=3)) == [(Step.RESTORE, stamp(3)), (Step.RESTORE, stamp(2))]
    assert steps(view(answers)) == []
    ended = {2: [held(4, S), held(3, S, tombstone=True), held(2, S)], 1: [held(4, S)]}
    assert steps(view(ended, versions_kept=3)) == [(Step.RESTORE, stamp(3))]


# ------------------------------------------------------------------ dead


def test_r_votes_kill() -> None:
    dead = each([4, 5, 6], 1, X)
    assert steps(view(dead)) == [(Step.REFUSE, stamp(1))]
    assert steps(view({**dead, 1: [held(1, X)]})) == []
    for state in (A, L):
        assert steps(view({**dead, 1: [held(1, state)]})) == [(Step.DROP, stamp(1))]


def test_r_minus_one_votes_do_not_kill() -> None:
    answers = {**each([5, 6], 1, X), **each([1, 2, 3, 4], 1, A)}
    assert steps(view(answers)) == [(Step.LOCK, stamp(1))]


def test_too_few_nodes_left_for_k_shards_is_dead() -> None:
    five = {**each(range(7, 11), 1, X), **each(range(1, 7), 1, A), 11: [held(1, X)]}
    assert steps(view(five, ELEVEN)) == [(Step.DROP, stamp(1))]
    assert steps(view({**five, 12: [held(1, A, 6)], 13: [held(1, A, 7)]}, ELEVEN)) == [(Step.LOCK, stamp(1))]
    assert steps(view(five, ELEVEN, silent_elsewhere=2)) == []


# ------------------------------------------------------------------ unfinished


def test_a_young_version_is_its_writer_s() -> None:
    assert steps(view(each([2], 1, A, young=True))) == []
    assert steps(view(each([1, 2, 3, 4, 5, 6], 1, A, young=True))) == []


def test_an_old_version_that_nobody_can_have_acknowledged_is_refused() -> None:
    answers = {**each([2, 3, 4], 1, A), 5: [], 6: []}
    assert steps(view(answers)) == [(Step.REFUSE, stamp(1))]
    holder = {**each([1, 2, 3], 1, A), 4: [], 5: [], 6: []}
    assert steps(view(holder)) == [(Step.GIVE_UP, stamp(1))]  # no reader can complete it
    assert steps(view(holder, silent_elsewhere=1)) == []  # it waits for R votes


def test_a_version_that_nobody_can_complete_is_given_up_by_who_holds_it() -> None:
    """W hold it, so the votes of the others alone never kill it."""
    shards = {1: 0, 2: 1, 3: 2, 4: None}
    answers = {node: [held(1, A, shard)] for node, shard in shards.items()}
    assert steps(view({**answers, 5: [], 6: []})) == [(Step.GIVE_UP, stamp(1))]
    assert steps(view({**answers, 5: []})) == []  # the silent one may have the fourth shard
    assert steps(view({**answers, 1: [held(1, L, 0)], 5: [], 6: []})) == []  # a promise is kept


def test_a_node_that_was_taken_out_may_have_had_a_shard() -> None:
    """1, 2, 3, 4 and a substitute took it; the substitute is gone, and 4 does not answer for now."""
    answers = {**each([1, 2, 3], 1, A), 5: [], 6: []}
    assert steps(view(answers)) == []
    assert steps(View(5, SIX, answers, NOW_MS)) == [(Step.REFUSE, stamp(1))]  # four shards at most
    assert steps(View(5, SIX, answers, NOW_MS, departed=1)) == []


def test_the_same_shard_twice_is_one() -> None:
    """As when a node answered so late that a substitute took its shard, too."""
    shards = {1: 0, 2: 1, 3: 2, 4: 2}
    answers = {node: [held(1, A, shard)] for node, shard in shards.items()}
    assert steps(view({**answers, 5: [], 6: []})) == [(Step.GIVE_UP, stamp(1))]
    assert steps(view({**answers, 5: [], 6: [], 7: [held(1, A, 1)]})) == [(Step.GIVE_UP, stamp(1))]
    assert steps(view({**answers, 5: [], 6: [], 7: [held(1, A, 4)]})) == [(Step.LOCK, stamp(1))]
    five = {node: [held(1, A, shard)] for node, shard in {2: 0, 3: 1, 4: 2, 5: 3, 6: 3}.items()}
    assert steps(view(five)) == [(Step.TAKE, stamp(1))]  # four are enough to read it


def test_silent_nodes_may_hold_it() -> None:
    assert steps(view({**each([2, 3, 4], 1, A), 5: []}, silent_elsewhere=1)) == []
    assert steps(view({**each([2, 3, 4], 1, A), 5: []})) == [(Step.REFUSE, stamp(1))]  # four shards at most
    assert steps(view({**each([1, 2, 3], 1, A), 4: [], 5: []})) == []


def test_an_old_version_on_w_is_kept() -> None:
    answers = each([2, 3, 4, 5], 1, A)
    assert steps(view({**answers, 6: []})) == [(Step.TAKE, stamp(1))]
    assert steps(view({**answers, 1: [held(1, A)]})) == [(Step.LOCK, stamp(1))]
    assert steps(view({**answers, 1: [held(1, A, None)]})) == [(Step.TAKE, stamp(1))]
    assert steps(view({**answers, 1: [held(1, X)]})) == []
    assert steps(view({**answers, 1: [held(1, L, 0)]})) == []


def test_without_k_shards_nothing_is_promised() -> None:
    answers = {node: [held(1, A, None if node > 3 else node)] for node in range(1, 7)}
    assert steps(view(answers, silent_elsewhere=3)) == []


def test_w_manifests_and_too_few_shards_are_a_version_that_nobody_was_told_of() -> None:
    """8+3: six nodes hold manifest and shard, and no node can hold a seventh."""
    answers = {**each(range(2, 8), 1, A), **{node: [] for node in range(8, 12)}}
    assert steps(view(answers, ELEVEN)) == [(Step.REFUSE, stamp(1))]
    assert steps(view(answers, ELEVEN, silent_elsewhere=3)) == []


# ------------------------------------------------------------------ while the map changes


def test_established_needs_w_in_every_set() -> None:
    answers = each([2, 3, 4, 7], 1, L, young=True)  # three of the old set
    assert steps(view(answers, MOVING)) == []
    assert steps(view(each([2, 3, 4, 5], 1, L, young=True), MOVING)) == [(Step.RESTORE, stamp(1, young=True))]


def test_dead_in_any_set_is_dead() -> None:
    assert steps(view(each([4, 5, 6], 1, X), MOVING)) == [(Step.REFUSE, stamp(1))]
    assert steps(view(each([4, 5, 7], 1, X), MOVING)) == [(Step.REFUSE, stamp(1))]
    assert steps(view({**each([5, 6, 7], 1, X), **each([1, 2], 1, A)}, MOVING)) == []


ALL = frozenset(range(1, 9))  # 8 was a substitute, or may have been


def left(
    shards: Mapping[int, int | None], *empty: int, state: State = A, placement: tuple[int, ...] = ()
) -> dict[int, list[StoredVersion]]:
    """A version that a dead writer left: by node, its shard; and nodes that answer that they have nothing."""
    found = {node: [held(1, state, shard)._replace(placement=placement)] for node, shard in shards.items()}
    return found | {node: [] for node in empty}


def while_moving(
    answers: Mapping[int, Sequence[StoredVersion]],
    me: int = 1,
    departed: int = 0,
    consulted: frozenset[int] = ALL,
    lost: Collection[int] = (),
) -> View:
    everything = {me: (), **answers}
    return View(me, MOVING, everything, NOW_MS, consulted=consulted, departed=departed, lost=frozenset(lost))


def test_too_few_shards_on_all_nodes_are_given_up_while_the_map_changes() -> None:
    """W primaries of before hold it, of which the leaving one has the manifest alone."""
    answers = left({1: 0, 2: 1, 3: 2, 6: None}, 4, 5, 7, 8)
    for departed in (0, 3):
        assert steps(while_moving(answers, departed=departed)) == [(Step.GIVE_UP, stamp(1))]
        assert steps(while_moving(answers, me=6, departed=departed)) == [(Step.GIVE_UP, stamp(1))]
        assert steps(while_moving(answers, me=7, departed=departed)) == [(Step.REFUSE, stamp(1))]


def test_while_the_map_changes_nobody_counts_shards_without_asking_everyone() -> None:
    answers = left({1: 0, 2: 1, 3: 2, 6: None}, 7)
    assert steps(while_moving({**answers, 4: [], 5: []}, consulted=frozenset())) == []
    assert wants_everyone(while_moving(answers))
    assert not wants_everyone(view(answers))
    below = {**left({1: 0, 2: 1}), 4: [held(2, S, 3)]}  # the others are silent, and may know it, too
    assert not wants_everyone(while_moving(below))
    young = {node: [held(1, A, node - 1, young=True)] for node in (1, 2, 3)}
    assert not wants_everyone(while_moving(young))


def test_a_silent_node_may_hold_the_shard_that_is_missing() -> None:
    one = left({1: 0, 2: 1, 3: 2, 6: None}, 4, 5, 7)  # 8 is silent: at most k shards, fewer than D
    assert steps(while_moving(one)) == [(Step.GIVE_UP, stamp(1))]
    assert steps(while_moving(one, departed=1)) == []
    assert steps(while_moving(left({1: 0, 2: 1, 3: 2, 6: None}, 4, 5))) == []
    assert steps(while_moving(left({1: 0, 2: 1, 6: None}, 3, 4, 5), departed=1)) == [(Step.GIVE_UP, stamp(1))]


def test_a_lost_node_counts_while_it_is_consulted() -> None:
    """6 was lost and replaced by 7; with it W may hold the version."""
    answers = left({1: 0, 2: 1, 3: 2}, 4, 5, 7, 8)
    assert steps(while_moving(answers)) == [(Step.GIVE_UP, stamp(1))]
    assert steps(while_moving(answers, departed=1)) == []


def test_what_a_lost_node_may_have_held_is_kept_while_it_can_be_read() -> None:
    """With 6, which is lost, W of the oldest set held it: it may have been acknowledged, and nobody else decides it."""
    answers = left({1: 0, 2: 1, 3: 2, 8: 3}, 4, 5, 7)
    assert steps(while_moving(answers)) == []  # 6 may come back
    for me, step in ((1, Step.LOCK), (4, Step.TAKE), (7, Step.TAKE)):
        assert steps(while_moving(answers, me=me, lost=(6,))) == [(step, stamp(1))]
    # 5 refused it, or may have: perhaps the vote of 6 told its writer that nothing was written.
    given_up = {**answers, 5: [held(1, X)]}
    assert steps(while_moving(given_up, lost=(6,))) == [(Step.GIVE_UP, stamp(1))]
    assert steps(while_moving(given_up, lost=(6,), me=7)) == [(Step.REFUSE, stamp(1))]
    silent = {node: given_up[node] for node in given_up if node != 4}  # it may have locked it
    assert steps(while_moving(silent, lost=(6,))) == []
    locked = {**given_up, **each([1, 2, 3], 1, L)}  # by W, with 6
    for me in (1, 4, 7):
        assert steps(while_moving(locked, lost=(6,), me=me)) == []
    assert steps(while_moving({node: answers[node] for node in answers if node != 5}, lost=(6,))) == []
    refused = {**answers, 4: [held(1, X)], 5: [held(1, X)], 3: [held(1, X)]}
    assert steps(while_moving(refused, lost=(6,))) == [(Step.DROP, stamp(1))]
    assert (
        steps(while_moving(left({1: 0, 2: 1, 3: 2}, 4, 5, 7, 8), lost=(6,), departed=1)) == []
    )  # three shards


def test_what_may_stand_by_votes_that_were_lost_stands() -> None:
    """LOCKED on 1, 2 and 3 of the oldest set, refused by 4 and 5, and the vote of 6 is lost: nobody can decide it."""
    votes = {**each([1, 2, 3], 1, L), 8: [held(1, L, 3)], 4: [held(1, X)], 5: [held(1, X)], 7: []}
    assert steps(while_moving(votes)) == []  # 6 is away, and may come back
    assert steps(while_moving(votes, lost=(6,))) == []  # too few in the newest set
    assert steps(while_moving(votes, lost=(6,), me=5)) == []
    for vote in ([], [held(1, X)]):  # that it refused it proves nothing: it is not of the oldest set
        assert steps(while_moving({**votes, 7: vote}, lost=(6,), me=7)) == [(Step.OVERRULE, stamp(1))]
    promised = {**votes, 7: [held(1, L, None)]}
    assert steps(while_moving(promised, lost=(6,))) == [(Step.SETTLE, stamp(1))]
    assert steps(while_moving(promised, lost=(6,), me=5)) == [(Step.RESTORE, stamp(1))]
    assert steps(while_moving(promised, lost=(6,), me=7)) == [(Step.RESTORE, stamp(1))]
    assert steps(while_moving({**votes, 8: []}, lost=(6,))) == []  # three shards are left
    assert steps(while_moving({**votes, 8: [held(1, A, 3)]}, lost=(6,))) == []  # it may yet vote against it
    assert steps(while_moving({**votes, 5: []}, lost=(6,), me=5)) != [
        (Step.RESTORE, stamp(1))
    ]  # it has a vote
    assert steps(while_moving({**votes, 3: [held(1, X)]}, lost=(6,), me=7)) == [(Step.REFUSE, stamp(1))]
    alone = {**each([1, 2], 1, L), **{node: [held(1, X)] for node in (4, 5)}, 3: [held(1, A, 2)]}
    assert steps(while_moving(alone, lost=(6,))) == []


def test_what_the_oldest_set_keeps_stands_against_the_votes_of_newer_ones() -> None:
    """LOCKED on W of the oldest set, where it can never be dead, and refused by R of the newest one."""
    kept = each([1, 2, 3, 4], 1, L)
    far = {node: [held(1, X)] for node in (7, 8, 9, 10)}

    def moved(me: int, answers: Mapping[int, Sequence[StoredVersion]]) -> View:
        return View(me, MOVED_FAR, answers, NOW_MS)

    answers = {**kept, 5: [], 6: [], **far}
    assert steps(moved(1, answers)) == []
    assert steps(moved(7, answers)) == [(Step.OVERRULE, stamp(1))]
    assert steps(moved(5, {**answers, 5: [held(1, X)]})) == [(Step.OVERRULE, stamp(1))]  # nor its vote
    assert steps(moved(5, answers)) == [(Step.OVERRULE, stamp(1))]
    young = {
        node: [held(1, votes[0].state, votes[0].shard_index, young=True)] for node, votes in kept.items()
    }
    young |= {node: [held(1, X, young=True)] for node in far}
    assert steps(moved(7, young)) == [(Step.OVERRULE, stamp(1, young=True))]
    assert steps(moved(7, {**answers, 4: [held(1, A, 3)]})) == []  # it may yet vote against it
    bare = {node: [held(1, L, None)] for node in (1, 2, 3, 4)}
    assert steps(moved(7, {**answers, **bare})) == []  # nobody could read it
    promised = {**answers, **{node: [held(1, L, None)] for node in (5, 7, 8, 9)}}
    assert steps(moved(1, promised)) == [(Step.SETTLE, stamp(1))]
    assert steps(moved(10, promised)) == [(Step.RESTORE, stamp(1))]


def test_who_has_no_vote_drops_what_is_dead_and_decides_nothing_else() -> None:
    """A home of an older coding that once stood in for a primary: a move would wait for it to hear of that."""
    homes = {(4, 2): (1, 2, 3, 4, 5, 6), (2, 1): (7, 8, 9)}

    def outside(answers: Mapping[int, Sequence[StoredVersion]]) -> View:
        return View(9, SIX, {**dict.fromkeys(range(1, 7), ()), **answers}, NOW_MS, homes=homes)

    refused = {node: [held(1, X)] for node in (1, 2, 3)}
    assert steps(outside({**refused, 9: [held(1, A, 3)]})) == [(Step.DROP, stamp(1))]
    assert steps(outside({**refused, 9: ()})) == []
    assert steps(outside({1: [held(1, X)], 9: [held(1, A, 3)]})) == []
    assert steps(outside({**each([1, 2, 3, 4], 1, A), 9: [held(1, A, 4)]})) == []


def test_a_node_that_a_placement_names_may_hold_a_shard() -> None:
    shards = {1: 0, 2: 1, 3: 2, 6: None}
    assert steps(while_moving(left(shards, 4, 5, 7, 8), departed=1)) == [(Step.GIVE_UP, stamp(1))]
    named = left(shards, 4, 5, 7, 8, placement=(1, 2, 3, 99, 4, 5))
    assert steps(while_moving(named, departed=1)) == []


def test_a_promise_is_kept_while_the_map_changes() -> None:
    answers = left({1: 0, 2: 1, 3: 2, 6: None}, 4, 5, 7, 8)
    assert steps(while_moving({**answers, 1: [held(1, L, 0)]})) == []
    locked = left({2: 1, 3: 2, 4: 3, 6: None}, 5, 7, 8, state=L)  # somebody may have returned it
    assert steps(while_moving(locked)) == []


def test_what_fewer_than_w_of_the_oldest_set_can_hold_is_given_up_while_the_map_changes() -> None:
    """Most of those who could refuse it may be primaries no more, and are not asked to look."""
    answers = left({1: 0, 2: 1, 3: 2, 7: 5}, 4, 5, 6)
    assert steps(while_moving(answers)) == [(Step.GIVE_UP, stamp(1))]
    assert steps(while_moving({node: said for node, said in answers.items() if node != 6})) == []


def test_a_primary_of_before_votes_on_what_it_holds_and_takes_nothing() -> None:
    enough = left({1: 0, 2: 1, 3: 2, 4: 3, 6: None}, 5, 7, 8)
    assert steps(while_moving(enough, me=6)) == [(Step.LOCK, stamp(1))]
    assert steps(while_moving(left({1: 0, 2: 1, 3: 2, 4: 3}, 5, 7, 8), me=6)) == []
    settled = each([1, 2, 3, 4], 1, S)
    assert steps(while_moving({**settled, 6: [held(1, A, None)]}, me=6)) == [(Step.SETTLE, stamp(1))]
    assert steps(while_moving(settled, me=6)) == []
    dead = {**each([3, 4, 5], 1, X), 6: [held(1, A, None)]}
    assert steps(while_moving(dead, me=6)) == [(Step.DROP, stamp(1))]


@st.composite
def acknowledged(draw: st.DrawFn) -> tuple[Electorate, dict[int, list[StoredVersion]], int]:
    """What all nodes have of an old version that its writer, or a reader, was told of; and how many nodes departed.

    One shard at most went with a node that had departed before the oldest prior map.
    """
    electorate = draw(st.sampled_from([SIX, MOVING, MOVED_FAR]))
    oldest = electorate.sets[-1].nodes
    on = dict.fromkeys(draw(st.permutations(oldest))[:4], A)
    by_reader = draw(st.booleans())
    if by_reader:
        on = dict.fromkeys(on, L)
    places = [*on, *draw(st.permutations([node for node in NODES if node not in on]))]
    count = 4 if by_reader else 5
    if not by_reader:
        places = draw(st.permutations(places))
    departed = draw(st.integers(0, 2))
    gone = draw(st.integers(0, 1)) if departed and electorate.is_moving and not by_reader else 0
    shards = dict(zip(places, draw(st.permutations(range(6)))[: count - gone], strict=False))
    found: dict[int, list[StoredVersion]] = {}
    for node in NODES:
        found[node] = []
        if node in on or node in shards:
            state = on.get(node, draw(st.sampled_from([A, L])))
            version = held(1, state, shards.get(node))
            if draw(st.integers(0, 9)) == 0:
                version = version._replace(
                    damaged=True, shard_index=draw(st.sampled_from([None, version.shard_index]))
                )
            found[node] = [version]
    return electorate, found, departed


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(acknowledged(), st.sets(st.sampled_from(NODES)), st.sampled_from(NODES))
def test_nothing_acknowledged_is_given_up(
    truth: tuple[Electorate, dict[int, list[StoredVersion]], int], silent: set[int], me: int
) -> None:
    """Whoever is silent, whoever looks, and whatever rots."""
    electorate, every, departed = truth
    answers = {node: held for node, held in every.items() if node == me or node not in silent}
    elsewhere = len(set(NODES) - electorate.everyone - answers.keys())
    consulted = frozenset(NODES) if electorate.is_moving else frozenset()
    seen = View(me, electorate, answers, NOW_MS, 1, elsewhere, consulted=consulted, departed=departed)
    assert not {action.step for action in decide(seen)} & {Step.REFUSE, Step.GIVE_UP, Step.DROP}
    assert not is_never_acknowledged(seen, stamp(1))
    assert not is_dead(seen, stamp(1))


# ------------------------------------------------------------------ any answers

states = st.sampled_from([A, L, S, X])


@st.composite
def any_view(draw: st.DrawFn) -> View:
    electorate = draw(st.sampled_from([SIX, MOVING]))
    nodes = sorted(electorate.everyone | {8})
    answers: dict[int, list[StoredVersion]] = {}
    for node in nodes:
        if node != 1 and draw(st.booleans()):
            continue
        versions = []
        for number in (3, 2, 1):
            if draw(st.booleans()):
                shard = draw(st.sampled_from([None, node % 6, 0]))
                versions.append(held(number, draw(states), shard, young=draw(st.booleans())))
        answers[node] = sorted(versions, key=lambda version: version.stamp, reverse=True)
    return View(1, electorate, answers, NOW_MS, draw(st.sampled_from([1, 2])), draw(st.integers(0, 2)))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(any_view())
def test_no_answers_lead_to_a_vote_that_is_not_the_node_s_own(seen: View) -> None:
    actions = decide(seen)
    assert len({action.stamp for action in actions}) == len(actions)
    claimed = {v.stamp for versions in seen.answers.values() for v in versions if v.state is S}
    newest_settled = max((number for number in claimed if _may_be_on_w(seen, number)), default=b"")
    for step, number in actions:
        own = seen.own_version(number)
        votes = list(seen.held(number).values())
        found = seen.held(number)
        if step is Step.REFUSE:
            # Only what this node never accepted, only above all that is settled, and never what W may hold.
            assert own is None
            assert number > newest_settled
            assert number not in claimed
            dead = _aborted_on_r(seen, number)
            assert dead or _fewer_than_w(seen, number) or not _shards_enough(seen, found)
        if step is Step.DROP:
            assert own is not None
            assert own.state in (A, L)
            assert not any(v.state is S for v in votes)
        if step in (Step.LOCK, Step.TAKE):
            assert own is None or own.state is not X
            assert not _aborted_on_r(seen, number)
        if step is Step.RESTORE:
            assert any(v.state is not X for v in votes)


def _aborted_on_r(seen: View, number: bytes) -> bool:
    aborted = {node for node, v in seen.held(number).items() if v.state is X}
    return any(len(aborted & set(members.nodes)) >= seen.electorate.read for members in seen.electorate.sets)


def _fewer_than_w(seen: View, number: bytes) -> bool:
    holders = {node for node, v in seen.held(number).items() if v.state is not X}
    silent = seen.electorate.everyone - seen.answers.keys()
    return any(
        len((holders | silent) & set(members.nodes)) < seen.electorate.write
        for members in seen.electorate.sets
    )


def _may_be_on_w(seen: View, number: bytes) -> bool:
    """Whether W nodes of some set may hold it."""
    holders = {node for node, v in seen.held(number).items() if v.state is not X}
    possible = holders | (seen.electorate.everyone - seen.answers.keys())
    return any(
        len(possible & set(members.nodes)) >= seen.electorate.write for members in seen.electorate.sets
    )


def _shards_enough(seen: View, found: Mapping[int, StoredVersion]) -> bool:
    """Whether D nodes may hold a shard."""
    with_shard = {node for node, v in found.items() if v.state is not X and v.shard_index is not None}
    silent = seen.electorate.everyone - seen.answers.keys()
    return len(with_shard | silent) + seen.silent_elsewhere >= seen.electorate.shards


# ------------------------------------------------------------------ which shard, which names


def test_a_primary_keeps_the_shard_that_the_placement_names() -> None:
    primaries = (1, 2, 3, 4, 5, 6)
    assert choose_index(3, primaries, primaries, {1: 0, 2: 1, 3: None}) == 2
    assert choose_index(3, primaries, (1, 2, 9, 4, 5, 6), {1: 0, 2: 1, 3: None, 4: 3, 5: 4, 6: 5}) == 2


def test_primaries_without_a_shard_take_the_free_ones_in_order() -> None:
    primaries, placement = (5, 2, 7, 4, 1, 6), (5, 2, 3, 4, 8, 6)
    answered = {5: 0, 2: 1, 7: None, 4: 3, 1: None, 6: 5}
    assert choose_index(7, primaries, placement, answered) == 2
    assert choose_index(1, primaries, placement, answered) == 4


@given(st.permutations(range(1, 9)), st.data())
def test_all_compute_the_same_and_no_two_the_same_shard(order: list[int], data: st.DataObject) -> None:
    primaries, placement = order[:6], data.draw(st.permutations(range(1, 9)))[:6]
    holders = data.draw(st.lists(st.sampled_from(primaries), unique=True, max_size=5))
    indexes = data.draw(st.permutations(range(6)))
    answered: dict[int, int | None] = dict.fromkeys(primaries)
    answered |= dict(zip(holders, indexes, strict=False))
    lacking = [node for node in primaries if answered[node] is None]
    chosen = [choose_index(node, primaries, placement, answered) for node in lacking]
    assert None not in chosen
    taken = {index for index in answered.values() if index is not None}
    assert sorted([*taken, *(i for i in chosen if i is not None)]) == list(range(6))


OLD_MS = NOW_MS - 3_600_000


@pytest.mark.parametrize(
    ("own", "other", "looks"),
    [
        ([], [held(1, S)], True),
        ([held(1, S)], [held(1, S, 3)], False),
        ([held(1, S)], [], False),
        ([held(1, A)], [held(1, S)], True),
        ([held(1, S, None)], [held(1, S)], True),
        ([held(1, S)], [held(1, S, None)], False),
        ([held(2, S), held(1, S)], [held(2, S)], True),
        ([held(2, S)], [held(2, S), held(1, A)], False),
        ([], [held(1, A)], True),
        ([], [held(1, A, young=True)], False),
        ([held(1, A, young=True)], [], False),
        ([held(1, A)], [], True),
        ([held(1, X)], [held(1, A)], False),
        ([held(1, X)], [held(1, L)], True),
        ([held(1, X)], [held(1, S)], True),
        ([held(2, S)], [held(2, S), held(1, S)], True),
        ([], [held(1, S, tombstone=True)._replace(condemned=True)], False),
        ([], [held(1, X)], False),
    ],
)
def test_which_rows_are_looked_at(own: list[StoredVersion], other: list[StoredVersion], looks: bool) -> None:
    assert needs_look(own, other, OLD_MS) is looks


def test_while_the_map_changes_votes_against_versions_are_looked_at() -> None:
    assert needs_look([], [held(1, X)], OLD_MS, changing=True)
    assert not needs_look([held(2, S)], [held(1, X)], OLD_MS, changing=True)
    assert not needs_look([held(1, X)], [held(1, X)], OLD_MS, changing=True)


@pytest.mark.parametrize(
    ("versions", "pending"),
    [
        ([], False),
        ([held(2, S), held(1, A)], False),
        ([held(2, A), held(1, S)], True),
        ([held(3, X), held(2, L)], True),
        ([held(3, X)], False),
    ],
)
def test_what_is_not_decided_yet(versions: list[StoredVersion], pending: bool) -> None:
    assert is_pending(versions) is pending


# ------------------------------------------------------------------ shards that are there twice


def holding(shards: Mapping[int, int | None], me: int, electorate: Electorate = SIX) -> View:
    return View(me, electorate, {node: [held(1, S, shard)] for node, shard in shards.items()}, NOW_MS)


def test_the_later_of_two_holders_takes_what_is_missing() -> None:
    shards = {1: 0, 2: 1, 3: 2, 4: 2, 5: 1, 6: 5}  # 3 and 4 are missing
    for me in shards:
        assert other_indexes(holding(shards, me), stamp(1)) == {4: 3, 5: 4}


def test_nobody_changes_its_shard_unless_all_primaries_hold_one() -> None:
    shards: dict[int, int | None] = {1: 0, 2: 1, 3: 2, 4: 2, 5: 4, 6: 5}
    assert other_indexes(holding(shards, 4), stamp(1)) == {4: 3}
    silent = {node: shard for node, shard in shards.items() if node != 6}
    assert other_indexes(holding(silent, 4), stamp(1)) == {}
    assert other_indexes(holding({**shards, 6: None}, 4), stamp(1)) == {}
    assert other_indexes(holding({**shards, 7: 3}, 4, MOVING), stamp(1)) == {}
    damaged = holding(shards, 4)
    answers = {**damaged.answers, 5: [held(1, S, 4)._replace(damaged=True)]}
    assert other_indexes(View(4, SIX, answers, NOW_MS), stamp(1)) == {}
    unsettled = {**damaged.answers, 5: [held(1, L, 4)]}
    assert other_indexes(View(4, SIX, unsettled, NOW_MS), stamp(1)) == {}


# ------------------------------------------------------------------ versions below the newest, where several are kept


def both(state: State, shard: int) -> list[StoredVersion]:
    """A settled version, and one below it in this state."""
    return [held(2, S, shard), held(1, state, shard)]


def test_a_kept_version_is_known_as_settled_by_all() -> None:
    """Its digest is the same either way, so nobody else would tell; and what is held for others waits for it."""
    for state in (A, L):
        answers = {4: both(S, 3), 1: both(state, 0)}
        assert steps(view(answers, versions_kept=2)) == [(Step.SETTLE, stamp(1))]


def test_a_version_below_a_settled_one_that_may_be_acknowledged_is_kept_by_all() -> None:
    accepted = {node: both(A, node - 1) for node in range(1, 6)}
    lacking = {6: [held(2, S, 5), held(0, S, 5)]}
    assert steps(view({**accepted, **lacking}, versions_kept=2)) == [
        (Step.LOCK, stamp(1)),
        (Step.RESTORE, stamp(0)),  # which goes when the one above it is settled, and not before
    ]
    locked = {node: both(L, node - 1) for node in range(2, 6)}
    assert steps(view({**accepted, **locked, **lacking}, versions_kept=2)) == [(Step.SETTLE, stamp(1))]
    behind = {**locked, 1: [held(2, S, 0), held(0, S, 0)]}
    assert steps(view(behind, versions_kept=2)) == [(Step.RESTORE, stamp(1))]


def test_of_a_version_below_a_settled_one_locked_nodes_take_the_shards_that_substitutes_have() -> None:
    """LOCKED on W, whose shards are fewer than k: nobody could settle it, and substitutes kept it for ever."""
    locked: dict[int, list[StoredVersion]] = {node: both(L, node - 1) for node in range(1, 4)}
    locked[4] = [held(2, S, 3), held(1, L, None)]
    gone = {node: [held(2, S, node - 1)] for node in (5, 6)}
    substitutes = {7: [held(1, A, 4)], 8: [held(1, A, 5)]}
    answers = {**locked, **gone, **substitutes}

    def of(me: int, answers: Mapping[int, Sequence[StoredVersion]]) -> list[tuple[Step, bytes]]:
        return steps(View(me, SIX, answers, NOW_MS, versions_kept=2))

    for state in (A, L):
        own = [held(2, S, 3), held(1, state, None)]
        assert of(4, {**answers, 4: own}) == [(Step.TAKE, stamp(1))]
    assert of(1, answers) == []
    assert of(5, answers) == []
    assert of(4, {**locked, **gone, 7: [held(1, A, 4)]}) == [(Step.TAKE, stamp(1))]
    assert of(4, {**locked, **gone}) == [
        (Step.DROP, stamp(1))
    ]  # three shards: nobody can have been told of it
    taken = {**answers, 4: both(L, 3)}
    assert of(4, taken) == [(Step.SETTLE, stamp(1))]
    assert of(5, taken) == [(Step.RESTORE, stamp(1))]


def test_of_a_version_below_a_settled_one_nobody_decides_while_it_is_young() -> None:
    young = {
        node: [held(2, S, node - 1, young=True), held(1, A, node - 1, young=True)] for node in range(1, 6)
    }
    assert steps(view(young, versions_kept=2)) == []


# ------------------------------------------------------------------ clocks


def test_nothing_is_old_while_this_nodes_clock_cannot_be_believed() -> None:
    never, stands = each([2], 1, A), each([2, 3, 4, 5, 6], 1, A)
    for some, step in ((never, Step.REFUSE), (stands, Step.TAKE)):
        answers: dict[int, Sequence[StoredVersion]] = {**dict.fromkeys(range(1, 7), ()), **some}
        assert steps(View(1, SIX, answers, NOW_MS)) == [(step, stamp(1))]
        assert steps(View(1, SIX, answers, None)) == []


def test_what_a_node_with_another_time_does_not_hold_it_may_still_get() -> None:
    answers: dict[int, Sequence[StoredVersion]] = {
        **dict.fromkeys(range(1, 7), ()),
        **each([2, 3], 1, A),
    }
    all_agree, two_do_not = frozenset(range(1, 7)), frozenset({2, 3, 4, 5})
    assert steps(View(1, SIX, answers, NOW_MS, punctual=all_agree)) == [(Step.REFUSE, stamp(1))]
    assert steps(View(4, SIX, answers, NOW_MS, punctual=frozenset({2, 3}))) == []
    assert steps(View(1, SIX, answers, NOW_MS, punctual=two_do_not)) == [(Step.REFUSE, stamp(1))]
    assert steps(View(1, SIX, answers, NOW_MS, punctual=frozenset({2, 3}))) == []


def future(state: State, seconds: int = 600) -> StoredVersion:
    return StoredVersion(state, (NOW_MS + seconds * 1000).to_bytes(6, "big") + bytes(10), shard_index=0)


@pytest.mark.parametrize("state", [A, L])
def test_a_leftover_from_the_future_is_refused_by_those_who_lack_it_and_then_dropped(state: State) -> None:
    left = future(state)
    answers: dict[int, Sequence[StoredVersion]] = {**dict.fromkeys(range(1, 7), ()), 2: [left]}
    assert steps(View(1, SIX, answers, NOW_MS)) == [(Step.REFUSE, left.stamp)]
    assert (
        steps(View(2, SIX, answers, NOW_MS)) == []
    )  # who holds it does not go first: its writer may count on it
    refused = StoredVersion(X, left.stamp)
    answers |= {node: [refused] for node in (1, 3)}
    assert steps(View(2, SIX, answers, NOW_MS)) == []
    answers[4] = [refused]
    assert steps(View(2, SIX, answers, NOW_MS)) == [(Step.DROP, left.stamp)]


def test_what_may_stand_is_nobodys_to_refuse_however_far_ahead_it_is() -> None:
    left = future(A)
    answers: dict[int, Sequence[StoredVersion]] = {1: (), 2: [left], 3: [left]}
    assert steps(View(1, SIX, answers, NOW_MS)) == []  # three are silent
    answers = {**dict.fromkeys(range(1, 7), ()), **{node: [left] for node in (2, 3, 4, 5)}}
    assert steps(View(1, SIX, answers, NOW_MS)) == []
    soon = future(A, 179)
    assert steps(View(1, SIX, {**dict.fromkeys(range(1, 7), ()), 2: [soon]}, NOW_MS)) == []
    assert steps(View(1, SIX, {**dict.fromkeys(range(1, 7), ()), 2: [left]}, None)) == []


def test_what_is_ahead_is_refused_when_it_was_met_before_clocks_were_compared() -> None:
    """Simulator seed 207: a machine stood still for weeks in its round, and both its clocks with it."""
    left, met = future(A), Ahead()
    answers: dict[int, Sequence[StoredVersion]] = {**dict.fromkeys(range(1, 7), ()), 2: [left]}
    assert steps(View(1, SIX, answers, NOW_MS, met=met)) == []
    met.meet(left.stamp)
    assert steps(View(1, SIX, answers, NOW_MS, met=met)) == []
    met.compared()
    assert steps(View(1, SIX, answers, NOW_MS, met=met)) == [(Step.REFUSE, left.stamp)]
    met.compared()  # it is remembered: a partition that is written is not looked at in every round
    assert steps(View(1, SIX, answers, NOW_MS, met=met)) == [(Step.REFUSE, left.stamp)]


def test_a_leftover_from_the_future_is_looked_at() -> None:
    left = [future(A)]
    assert needs_look((), left, 0, ahead_ms=NOW_MS + 60_000)
    assert needs_look(left, (), 0, ahead_ms=NOW_MS + 60_000)
    assert not needs_look((), left, 0, ahead_ms=NOW_MS + 700_000)
    assert not needs_look((), left, 0)
