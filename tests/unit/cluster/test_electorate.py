"""The arithmetic of quorums over several sets of primaries (docs/consistency.md, "Changing the map")."""

from __future__ import annotations

from itertools import combinations

import pytest
from coffre.cluster.electorate import Electorate, Voters
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


@pytest.mark.parametrize(("n", "nodes"), [(3, (4, 5, 6)), (4, (1, 2, 3, 7)), (5, (4, 5, 6, 4, 5))])
def test_versions_of_an_older_coding_are_looked_for_where_they_were(n: int, nodes: tuple[int, ...]) -> None:
    electorate = Electorate((Voters((4, 5, 6), 2, 1), Voters((1, 2, 3, 7), 2, 2)))
    assert electorate.primaries_of(n) == nodes
