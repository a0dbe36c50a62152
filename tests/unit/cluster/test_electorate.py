"""Who decides about an object: the arithmetic of one set of primaries, and of several."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from coffre.cluster.electorate import Electorate, Electorates, Voters
from coffre.cluster.map import BucketPolicy, ClusterMap, Domain, MapNode, Policy
from coffre.cluster.placement import Placement
from hypothesis import given
from hypothesis import strategies as st

FOUR_TWO = Policy("4+2", 4, 2, ("FR",), Domain.NODE)
TWO_ONE = Policy("2+1", 2, 1, ("FR",), Domain.NODE)
SETTLED = (1, 2, 3, 4, 5, 6)
ONE = Electorate((Voters(SETTLED, 4, 2),))
# Node 6 is replaced by node 7.
MOVING = Electorate((Voters((1, 2, 7, 3, 4, 5), 4, 2), Voters(SETTLED, 4, 2)))


def node(number: int) -> MapNode:
    return MapNode(number, f"n{number}", f"10.0.0.{number}:7000", f"s{number}", "paris", "ovh", "FR", 1 << 40)


def map_of(count: int, epoch: int = 1, **changes: object) -> ClusterMap:
    nodes = tuple(node(number) for number in range(1, count + 1))
    first = ClusterMap("c0ffee", epoch, 64, nodes, (FOUR_TWO, TWO_ONE), "4+2")
    return dataclasses.replace(first, **changes)  # type: ignore[arg-type]


def test_one_set() -> None:
    assert (ONE.write, ONE.read, ONE.shards, ONE.k, ONE.m) == (4, 3, 5, 4, 2)
    assert not ONE.is_moving
    assert ONE.everyone == {1, 2, 3, 4, 5, 6}
    assert ONE.is_established_by({1, 2, 3, 4})
    assert not ONE.is_established_by([1, 2, 3, 7, 8])  # 7 and 8 are substitutes
    assert ONE.is_heard_from({4, 5, 6})
    assert not ONE.is_heard_from({5, 6, 7})
    assert ONE.is_dead_by({4, 5, 6})
    assert not ONE.is_dead_by({5, 6, 7})
    assert not ONE.may_be_established({1, 2, 3})


def test_several_sets() -> None:
    assert MOVING.is_moving
    assert MOVING.primaries == (1, 2, 7, 3, 4, 5)
    assert MOVING.everyone == {1, 2, 3, 4, 5, 6, 7}
    assert not MOVING.is_established_by({1, 2, 3, 7})  # three of the old set
    assert MOVING.is_established_by({1, 2, 3, 7, 6})
    assert not MOVING.is_heard_from({1, 2, 7})  # two of the old set
    assert MOVING.is_heard_from({1, 2, 7, 6})
    assert MOVING.is_dead_by({4, 5, 6})  # of the old set alone
    assert MOVING.is_dead_by({4, 5, 7})  # of the new set alone
    assert not MOVING.is_dead_by({5, 6, 7})
    assert not MOVING.may_be_established({1, 2, 3, 6})


def test_where_the_shards_of_another_coding_are_looked_for() -> None:
    recoding = Electorate((Voters((1, 2, 3), 2, 1), Voters((6, 5, 4, 3, 2, 1), 4, 2)))
    assert (recoding.k, recoding.k_min, recoding.shards) == (2, 2, 3)
    assert recoding.primaries_of(3) == (1, 2, 3)
    assert recoding.primaries_of(6) == (6, 5, 4, 3, 2, 1)
    assert recoding.primaries_of(5) == (1, 2, 3, 1, 2)


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


def test_a_bucket_whose_policy_is_taken_back() -> None:
    before = map_of(6, bucket_policies=(BucketPolicy("clinic", "notes", "2+1"),))
    own = Electorates(map_of(6, 2, prior=(before,))).of("clinic", "notes", 5)
    assert [one.k for one in own.sets] == [4, 2]


# ------------------------------------------------------------------ for all sets

NODES = range(1, 13)


@st.composite
def voters(draw: st.DrawFn) -> Voters:
    k = draw(st.integers(1, 6))
    m = draw(st.integers(1, k))
    order = draw(st.permutations(NODES))
    return Voters(tuple(order[: k + m]), k, m)


electorates = st.lists(voters(), min_size=1, max_size=5).map(lambda sets: Electorate(tuple(sets)))
crowds = st.frozensets(st.sampled_from(NODES))


@given(electorates, crowds, crowds)
def test_what_establishes_meets_what_is_heard(
    one: Electorate, held: frozenset[int], heard: frozenset[int]
) -> None:
    if one.is_established_by(held) and one.is_heard_from(heard):
        for electors in one.sets:
            assert held & heard & set(electors.nodes)


@given(electorates, crowds, crowds)
def test_dead_and_established_exclude_each_other(
    one: Electorate, locked: frozenset[int], aborted: frozenset[int]
) -> None:
    if one.is_dead_by(aborted):
        assert not one.is_established_by(locked - aborted)  # votes are final: no node gives both
    elif not one.is_established_by(frozenset(NODES) - aborted):
        pytest.fail("neither dead nor able to be established")


@given(electorates, crowds, crowds)
def test_votes_only_ever_decide_more(one: Electorate, few: frozenset[int], more: frozenset[int]) -> None:
    for predicate in (one.is_established_by, one.is_heard_from, one.is_dead_by, one.may_be_established):
        assert predicate(few) <= predicate(few | more)


@given(st.lists(voters(), min_size=2, max_size=5), st.data())
def test_epochs_that_share_a_set_meet(sets: list[Voters], data: st.DataObject) -> None:
    """A write that is complete under one epoch is met by every read under the next, which begins or ends a move."""
    begun, settled = Electorate(tuple(sets)), Electorate(tuple(sets[1:]))
    finished = Electorate((sets[0],))
    for written, read in itertools.permutations((begun, settled, finished), 2):
        if {written, read} == {settled, finished}:
            continue  # never consecutive
        held, heard = data.draw(crowds), data.draw(crowds)
        if written.is_established_by(held) and read.is_heard_from(heard):
            assert held & heard


@given(electorates)
def test_any_m_nodes_of_a_set_may_be_lost(one: Electorate) -> None:
    for electors in one.sets:
        lost = set(electors.nodes[: electors.m])
        alone = Electorate((electors,))
        assert alone.is_heard_from(set(electors.nodes) - lost)
        assert not alone.is_established_by(lost), "a manifest would be lost"
