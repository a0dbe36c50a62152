"""The arithmetic of quorums over several sets of primaries (docs/consistency.md, "Changing the map")."""

from __future__ import annotations

import dataclasses
from itertools import combinations, permutations

from coffre.cluster.map import (
    BucketPolicy,
    ClusterMap,
    Domain,
    Electorate,
    Electorates,
    MapNode,
    Placement,
    Policy,
    Voters,
)
from hypothesis import given
from hypothesis import strategies as st

NODES = range(1, 13)


@st.composite
def voters(draw: st.DrawFn) -> Voters:
    k = draw(st.integers(1, 6))
    m = draw(st.integers(1, min(k, 4)))
    nodes = draw(st.permutations(NODES))[: k + m]
    return Voters(tuple(nodes), k, m)


electorates = st.lists(voters(), min_size=1, max_size=3).map(lambda sets: Electorate(tuple(sets)))
some_nodes = st.sets(st.sampled_from(NODES))


@given(electorates, some_nodes, some_nodes)
def test_every_read_meets_every_write(electorate: Electorate, wrote: set[int], answered: set[int]) -> None:
    if electorate.is_established_by(wrote) and electorate.is_heard_from(answered):
        for held in electorate.sets:
            assert wrote & answered & set(held.nodes)


@given(electorates, voters(), some_nodes, some_nodes)
def test_a_read_at_the_next_epoch_meets_a_write_at_this_one(
    electorate: Electorate, added: Voters, wrote: set[int], answered: set[int]
) -> None:
    following = Electorate((added, *electorate.sets))
    if electorate.is_established_by(wrote) and following.is_heard_from(answered):
        assert wrote & answered
    if following.is_established_by(wrote) and electorate.is_heard_from(answered):
        assert wrote & answered


@given(electorates, some_nodes)
def test_what_is_dead_can_never_be_established(electorate: Electorate, aborted: set[int]) -> None:
    rest = set(NODES) - aborted
    assert electorate.is_dead_by(aborted) == (not electorate.may_be_established(rest))
    if electorate.is_established_by(aborted):
        assert electorate.is_dead_by(aborted)


@given(electorates, voters(), some_nodes, some_nodes)
def test_what_was_complete_at_an_earlier_epoch_is_never_given_up_for_what_a_newer_set_lacks(
    electorate: Electorate, added: Voters, wrote: set[int], aborted: set[int]
) -> None:
    """It was complete without the newer set, so votes and absence there say nothing of it."""
    following = Electorate((added, *electorate.sets))
    if electorate.is_established_by(wrote):
        assert following.may_be_established(wrote)
        if not aborted & wrote:
            assert not following.is_dead_by(aborted)


def test_one_set_counts_as_before() -> None:
    electorate = Electorate((Voters((1, 2, 3, 4, 5, 6), 4, 2),))
    assert (electorate.k, electorate.m, electorate.shards, electorate.write, electorate.read) == (
        4,
        2,
        5,
        4,
        3,
    )
    assert not electorate.is_moving
    for count in range(7):
        for nodes in combinations(range(1, 7), count):
            assert electorate.is_established_by(nodes) == (count >= 4)
            assert electorate.is_heard_from(nodes) == (count >= 3)
            assert electorate.is_dead_by(nodes) == (count >= 3)


def test_nodes_of_no_set_do_not_count() -> None:
    electorate = Electorate((Voters((1, 2, 3), 2, 1),))
    assert not electorate.is_established_by([1, 7, 8, 9])
    assert not electorate.is_heard_from([1, 7, 8, 9])
    assert not electorate.is_dead_by([1, 7, 8, 9])


def test_a_moving_partition_needs_both_sets() -> None:
    electorate = Electorate((Voters((4, 5, 6), 2, 1), Voters((1, 2, 3), 2, 1)))
    assert electorate.is_moving
    assert electorate.primaries == (4, 5, 6)
    assert electorate.everyone == {1, 2, 3, 4, 5, 6}
    assert not electorate.is_established_by([4, 5, 6])
    assert electorate.is_established_by([1, 2, 4, 5])
    assert not electorate.is_heard_from([4, 5, 6])
    assert electorate.is_dead_by([2, 3])
    assert not electorate.is_dead_by([3, 4])
    assert not electorate.is_dead_by([4, 5, 6])
    assert electorate.may_be_established([1, 2])
    assert not electorate.may_be_established([3, 4, 5, 6])


def test_the_oldest_set_may_be_one_that_comes_again() -> None:
    before, between = Voters((1, 2, 3), 2, 1), Voters((4, 5, 6), 2, 1)
    electorate = Electorate((before, between), before)
    assert electorate.may_be_established([1, 2])
    assert electorate.is_dead_by([2, 3])
    assert not electorate.is_dead_by([4, 5, 6])


@given(electorates, some_nodes, some_nodes, some_nodes, some_nodes)
def test_what_is_kept_is_never_dead(
    electorate: Electorate, lost: set[int], locked: set[int], aborted: set[int], later: set[int]
) -> None:
    """Whoever votes later, since final votes stay, and so do those who were lost."""
    locked -= lost
    aborted -= lost | locked
    if electorate.is_kept(lost, locked, aborted):
        assert not electorate.is_dead_by(aborted | (later - lost - locked))
        oldest = set(electorate.sets[-1].nodes)
        assert electorate.may_be_established((locked | lost) & oldest)
    if electorate.is_locked_for_ever(locked):
        assert electorate.is_kept(lost, locked, aborted)
        assert not electorate.is_dead_by(electorate.everyone - locked)
    if electorate.stands(lost, locked, aborted):
        assert electorate.is_kept(lost, locked, aborted)
        assert electorate.is_established_by(locked | lost)
    if electorate.is_established_by(locked):
        assert electorate.stands(lost, locked, aborted)


def test_a_newer_set_neither_keeps_a_version_nor_kills_it() -> None:
    electorate = Electorate((Voters((4, 5, 6), 2, 1), Voters((1, 2, 3), 2, 1)))
    assert electorate.is_kept([], [1, 2], [3, 4, 5, 6])
    assert not electorate.stands([], [1, 2], [3, 4, 5, 6])
    assert electorate.stands([], [1, 2, 5, 6], [3, 4])
    assert not electorate.is_kept([], [1, 4, 5, 6], [2])
    assert electorate.is_kept([3], [1], [2])
    assert not electorate.is_kept([3], [1], [])  # 2 has not voted
    assert electorate.decisive == {1, 2, 3}


@given(st.lists(voters(), min_size=2, max_size=5), st.data())
def test_epochs_that_share_a_set_meet(sets: list[Voters], data: st.DataObject) -> None:
    """A write that is complete under one epoch is met by every read under the next, which begins or ends a move."""
    begun, settled = Electorate(tuple(sets)), Electorate(tuple(sets[1:]))
    finished = Electorate((sets[0],))
    for written, read in permutations((begun, settled, finished), 2):
        if {written, read} == {settled, finished}:
            continue  # never consecutive
        held, heard = data.draw(some_nodes), data.draw(some_nodes)
        if written.is_established_by(held) and read.is_heard_from(heard):
            assert held & heard


@given(electorates)
def test_any_m_nodes_of_a_set_may_be_lost(one: Electorate) -> None:
    for electors in one.sets:
        lost = set(electors.nodes[: electors.m])
        alone = Electorate((electors,))
        assert alone.is_heard_from(set(electors.nodes) - lost)
        assert not alone.is_established_by(lost), "a manifest would be lost"


# ------------------------------------------------------------------ of maps

FOUR_TWO = Policy("4+2", 4, 2, ("FR",), Domain.NODE)
TWO_ONE = Policy("2+1", 2, 1, ("FR",), Domain.NODE)


def node(number: int) -> MapNode:
    return MapNode(number, f"n{number}", f"10.0.0.{number}:7000", f"s{number}", "paris", "ovh", "FR", 1 << 40)


def map_of(count: int, epoch: int = 1, **changes: object) -> ClusterMap:
    nodes = tuple(node(number) for number in range(1, count + 1))
    first = ClusterMap("c0ffee", epoch, 64, nodes, (FOUR_TWO, TWO_ONE), "4+2")
    return dataclasses.replace(first, **changes)  # type: ignore[arg-type]


def test_most_partitions_of_a_map_that_moves_have_one_set() -> None:
    before, after = map_of(40), map_of(41, 2, prior=(map_of(40),))
    electorates = [Electorates(after).of("clinic", "notes", partition) for partition in range(64)]
    moving = [one for one in electorates if one.is_moving]
    assert 0 < len(moving) < 32
    for partition, one in enumerate(electorates):
        assert one.primaries == Placement(after, FOUR_TWO).primaries(partition)
        assert one.sets[-1].nodes == Placement(before, FOUR_TWO).primaries(partition) or not one.is_moving
        assert (41 in one.primaries) == one.is_moving


def test_equal_sets_count_once_in_any_order() -> None:
    """A larger node comes earlier in the order, and the six primaries of six nodes stay the same."""
    before = map_of(6)
    larger = dataclasses.replace(before.nodes[0], capacity_bytes=1 << 50)
    after = map_of(6, 2, nodes=(larger, *before.nodes[1:]), prior=(before,))
    found = [Electorates(after).of("clinic", "notes", partition) for partition in range(64)]
    assert not any(one.is_moving for one in found)
    assert all(one.primaries[0] == 1 for one in found)


def test_a_bucket_with_a_policy_of_its_own() -> None:
    before = map_of(6)
    after = map_of(6, 2, bucket_policies=(BucketPolicy("clinic", "notes", "2+1"),), prior=(before,))
    electorates = Electorates(after)
    own, others = electorates.of("clinic", "notes", 5), electorates.of("clinic", "images", 5)
    assert [(len(one.nodes), one.k) for one in own.sets] == [(3, 2), (6, 4)]
    assert not others.is_moving
    assert electorates.of("other", "notes", 5) == others
    assert electorates.placement("clinic", "notes").policy == TWO_ONE
    assert electorates.placement("clinic", "images").policy == FOUR_TWO
    assert electorates.in_partition(5) == (others, own)
    assert (electorates.silent_max("clinic", "notes"), electorates.silent_max("clinic", "images")) == (1, 3)


def test_shards_have_their_homes_by_their_own_coding() -> None:
    after = map_of(9, 2, bucket_policies=(BucketPolicy("clinic", "notes", "2+1"),))
    electorates = Electorates(after)
    homes = electorates.homes(4, 2, 5)
    assert homes == Placement(after, FOUR_TWO).primaries(5)
    assert electorates.homes(2, 1, 5) == electorates.of("clinic", "notes", 5).primaries
    assert electorates.homes(8, 3, 5) == ()
    assert electorates.codings("clinic", "notes") == ((4, 2),)
    assert electorates.codings("clinic", "images") == ()
    assert electorates.keepers("clinic", "notes", 5) > set(homes)  # and who may have stood in
    assert electorates.keepers("clinic", "images", 5) == frozenset()
    assert electorates.homes_in_partition(5) == frozenset(homes)
    assert Electorates(map_of(4)).homes(4, 2, 5) == ()  # too few nodes


def test_shards_of_another_coding_may_be_at_two_places_while_data_moves() -> None:
    own = (BucketPolicy("clinic", "notes", "2+1"),)
    before = map_of(40, bucket_policies=own)
    after = map_of(41, 2, bucket_policies=own, prior=(before,))
    places = [Electorates(after).homes_while_moving(partition)[4, 2] for partition in range(64)]
    for partition, homes in enumerate(places):
        assert homes[0] == Placement(after, FOUR_TWO).primaries(partition)
        assert homes[-1] == Placement(before, FOUR_TWO).primaries(partition)
    assert {len(homes) for homes in places} == {1, 2}


def test_a_bucket_whose_policy_is_taken_back() -> None:
    before = map_of(6, bucket_policies=(BucketPolicy("clinic", "notes", "2+1"),))
    own = Electorates(map_of(6, 2, prior=(before,))).of("clinic", "notes", 5)
    assert [one.k for one in own.sets] == [4, 2]
