"""What a change moves, against what had to move; and when a move is finished."""

from __future__ import annotations

import dataclasses

import pytest
from coffre.bench.scale import Layout, movement_on_join, movement_on_leave, placed, synthetic_map
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.map import BucketPolicy, ClusterMap, Domain, NodeState, Placement, Policy
from coffre.cluster.membership import Move, MoveReport, add_node, drain_node, movement_between, set_policy
from coffre.cluster.membership.next_map import finish_move

FOUR_TWO = Policy("4+2", 4, 2, ("FR",), Domain.SITE)
SIX = Layout(6, 3, 3, 4096)
NINE = synthetic_map(Layout(9, 3, 3, 64), FOUR_TWO)


def join(before: ClusterMap, after: ClusterMap) -> ClusterMap:
    """`before` with the node that `after` has more, as an administrator adds it."""
    newcomer = after.nodes[-1]
    return add_node(before, newcomer.attributes, newcomer.address, newcomer.capacity_bytes)


def test_a_seventh_node_moves_hardly_more_than_it_takes() -> None:
    before = synthetic_map(SIX, FOUR_TWO)
    proposed = join(before, synthetic_map(dataclasses.replace(SIX, nodes=7), FOUR_TWO))
    movement = movement_between(before, proposed)
    assert 0 < movement.minimum <= movement.moved <= 1.1 * movement.minimum
    simulated = movement_on_join(SIX, FOUR_TWO, placed(before, FOUR_TWO))
    assert movement.moved == pytest.approx(simulated.moved * movement.courses[0].shards)
    assert movement.minimum == pytest.approx(simulated.minimum * movement.courses[0].shards)
    assert set(movement.courses[0].incoming) == {7}


def test_a_drained_node_gives_away_what_it_had() -> None:
    layout = Layout(9, 3, 3, 512)
    before = synthetic_map(layout, FOUR_TWO)
    leaver = before.nodes[layout.nodes // 2]
    movement = movement_between(before, drain_node(before, leaver.node_id))
    simulated = movement_on_leave(layout, FOUR_TWO, placed(before, FOUR_TWO))
    assert simulated is not None
    assert movement.moved == pytest.approx(simulated.moved * movement.courses[0].shards)
    assert leaver.number not in movement.courses[0].incoming
    had = sum(leaver.number in Placement(before, FOUR_TWO).primaries(p) for p in range(512))
    assert movement.courses[0].outgoing[leaver.number] == had
    assert movement.minimum <= movement.moved <= 1.1 * movement.minimum


def test_what_a_policy_change_moves_is_told_apart() -> None:
    changed = set_policy(NINE, "clinic", "notes", "2+1", Policy("2+1", 2, 1, ("FR",), Domain.SITE))
    movement = movement_between(NINE, changed)
    default, own = movement.courses
    assert (default.before, default.after, default.buckets, default.moved) == ("4+2", "4+2", None, 0)
    assert (own.before, own.after, own.buckets, own.shards) == ("4+2", "2+1", 1, 64 * 3)
    assert movement.bytes_per_shard({1: 10**9}) is None


def test_bytes_are_those_of_the_average_shard() -> None:
    movement = movement_between(NINE, drain_node(NINE, NINE.nodes[8].node_id))
    held = movement.courses[0].held
    assert sum(held.values()) == 64 * 6
    assert movement.bytes_per_shard({node: 1000 * shards for node, shards in held.items()}) == 1000
    assert movement.bytes_per_shard({1: 1000 * held[1]}) == 1000  # the others do not answer
    assert movement.bytes_per_shard({}) is None
    nothing = movement_between(NINE, NINE)
    assert (nothing.moved, nothing.minimum) == (0, 0)


# ------------------------------------------------------------------ a move under way


def reports_of(move: Move) -> dict[int, MoveReport]:
    return {node: MoveReport(move.epoch, frozenset(range(64))) for node in move.nodes}


def test_a_map_without_prior_ones_is_not_moving() -> None:
    move = Move(NINE)
    assert (move.total, list(move.nodes), move.is_finished({})) == (0, [], True)


def test_every_primary_must_report_every_partition_that_changed() -> None:
    begun = drain_node(NINE, NINE.nodes[8].node_id)
    move = Move(begun)
    placement, before = Placement(begun, FOUR_TWO), Placement(NINE, FOUR_TWO)
    changed = [p for p in range(64) if set(placement.primaries(p)) != set(before.primaries(p))]
    assert 0 < len(changed) < 64
    assert move.total == 6 * len(changed)
    assert 9 not in move.nodes
    reports = reports_of(move)
    assert move.is_finished(reports)
    for node in move.nodes:
        assert move.done(node, reports[node]) == move.expected(node)
        missing = next(p for p in changed if node in placement.primaries(p))
        short = MoveReport(move.epoch, reports[node].partitions - {missing})
        assert not move.is_finished(reports | {node: short})
        assert not move.is_finished({other: reports[other] for other in move.nodes if other != node})
        early = dataclasses.replace(reports[node], epoch=move.epoch - 1)
        assert not move.is_finished(reports | {node: early}), "a pass of an earlier epoch shows nothing"


def test_a_bucket_with_its_own_policy_counts() -> None:
    policies = (FOUR_TWO, Policy("2+1", 2, 1, ("FR",), Domain.SITE))
    own = (BucketPolicy("clinic", "notes", "4+2"),)
    before = dataclasses.replace(NINE, policies=policies, default_policy="2+1", bucket_policies=own)
    leaver = NINE.nodes[8].node_id
    begun = drain_node(before, leaver)
    assert Move(begun).total == Move(drain_node(NINE, leaver)).total
    assert Move(begun).total > Move(drain_node(dataclasses.replace(before, bucket_policies=()), leaver)).total
    assert Move(finish_move(begun)).total == 0


def test_a_move_to_where_everything_is_already() -> None:
    removed = dataclasses.replace(
        NINE, nodes=(*NINE.nodes[:8], dataclasses.replace(NINE.nodes[8], capacity_bytes=1))
    )
    smaller = dataclasses.replace(removed.nodes[8], state=NodeState.ACTIVE)
    offer = NodeAttributes(smaller.node_id, smaller.server, smaller.site, smaller.operator, "FR")
    begun = add_node(drain_node(removed, smaller.node_id), offer, smaller.address, 1)
    assert len(begun.prior) == 2
    assert Move(begun).is_finished(reports_of(Move(begun)))
