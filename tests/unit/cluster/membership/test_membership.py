"""What a wish makes of a map: the next one, the same one, or a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from coffre.cluster.errors import Conflict, InvalidArgument, NotFound, PolicyViolation
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.map import (
    BucketPolicy,
    ClusterMap,
    Domain,
    Electorates,
    MapNode,
    NodeState,
    Placement,
    Policy,
)
from coffre.cluster.membership import (
    add_node,
    drain_node,
    remove_node,
    renew_node,
    replace_node,
    set_capacity,
    set_coordinators,
    set_policy,
)
from coffre.cluster.membership.next_map import finish_move

FOUR_TWO = Policy("4+2", 4, 2, ("FR",))
SITES = ("rennes", "lille", "marseille")
OPERATORS = ("ovh", "scaleway", "ikoula")
TB = 10**12


def attributes(number: int, site: int | None = None) -> NodeAttributes:
    place = number % 3 if site is None else site
    return NodeAttributes(f"n{number}", f"server-{number}", SITES[place], OPERATORS[place], "FR")


def node(number: int) -> MapNode:
    of = attributes(number)
    return MapNode(number, of.node_id, f"h{number}:7000", of.server, of.site, of.operator, "FR", 8 * TB)


def map_of(count: int) -> ClusterMap:
    nodes = tuple(node(number) for number in range(1, count + 1))
    return ClusterMap("c0ffee", 1, 64, nodes, (FOUR_TWO,), "4+2")


SIX, NINE = map_of(6), map_of(9)


def join(current: ClusterMap, number: int) -> ClusterMap:
    return add_node(current, attributes(number), f"h{number}:7000", 8 * TB)


def state_of(cluster_map: ClusterMap, number: int) -> NodeState:
    return cluster_map.node(number).state


# ------------------------------------------------------------------ add


def test_a_node_joins() -> None:
    joined = join(SIX, 7)
    assert (joined.epoch, len(joined.nodes), joined.node(7)) == (2, 7, node(7))
    assert joined.prior == (SIX,)
    finished = finish_move(joined)
    assert (finished.epoch, finished.prior, finished.nodes) == (3, (), joined.nodes)


def test_a_node_of_any_size_joins_alone() -> None:
    for capacity in (1, 1000 * TB):
        joined = add_node(SIX, attributes(7), "h7:7000", capacity)
        assert Placement(joined, FOUR_TWO).primaries(0)


def test_a_node_that_joined_joins_once() -> None:
    joined = join(SIX, 7)
    assert join(joined, 7) is joined
    finished = finish_move(joined)
    assert join(finished, 7) is finished
    assert finish_move(finished) is finished


def test_a_drain_can_be_taken_back() -> None:
    draining = drain_node(NINE, "n9")
    back = join(draining, 9)
    assert state_of(back, 9) is NodeState.ACTIVE
    assert back.prior == (draining.as_prior(), NINE)


@pytest.mark.parametrize(
    ("offer", "address", "capacity"),
    [
        (attributes(6), "other:7000", 8 * TB),
        (attributes(6), "h6:7000", 9 * TB),
        (attributes(6, site=1), "h6:7000", 8 * TB),
        (attributes(7), "h6:7000", 8 * TB),  # an address that is taken
    ],
)
def test_a_name_or_address_that_is_taken(offer: NodeAttributes, address: str, capacity: int) -> None:
    with pytest.raises(InvalidArgument):
        add_node(SIX, offer, address, capacity)


def test_a_removed_node_never_comes_back() -> None:
    removed = remove_node(finish_move(drain_node(NINE, "n9")), "n9", shards_held=0)
    with pytest.raises(InvalidArgument, match="no node comes back"):
        join(removed, 9)
    assert join(removed, 10).node(10) == node(10)  # a new number


def test_a_second_operator_that_breaks_the_cap_says_so() -> None:
    same = tuple(dataclasses.replace(one, operator="ovh") for one in SIX.nodes)
    alone = dataclasses.replace(SIX, nodes=same)
    with pytest.raises(PolicyViolation, match="may lie in one operator"):
        add_node(alone, attributes(7), "h7:7000", 8 * TB)


# ------------------------------------------------------------------ drain, remove


def test_a_node_drains_and_is_removed() -> None:
    draining = drain_node(NINE, "n9")
    assert state_of(draining, 9) is NodeState.DRAINING
    assert draining.prior == (NINE,)
    assert drain_node(draining, "n9") is draining
    with pytest.raises(PolicyViolation, match="being moved"):
        remove_node(draining, "n9", shards_held=0)
    finished = finish_move(draining)
    with pytest.raises(PolicyViolation, match="still holds 5 shards"):
        remove_node(finished, "n9", shards_held=5)
    with pytest.raises(PolicyViolation, match="does not answer"):
        remove_node(finished, "n9", shards_held=None)
    removed = remove_node(finished, "n9", shards_held=0)
    assert state_of(removed, 9) is NodeState.REMOVED
    assert (removed.epoch, removed.prior) == (4, ())  # nothing moves
    assert remove_node(removed, "n9", shards_held=None) is removed
    assert drain_node(removed, "n9") is removed


def test_a_node_in_use_is_not_removed() -> None:
    with pytest.raises(PolicyViolation, match="drain it first"):
        remove_node(NINE, "n9", shards_held=0)


def test_a_cluster_that_would_be_too_small() -> None:
    with pytest.raises(PolicyViolation, match="needs 6 active nodes in FR, and the map has 5; add 1"):
        drain_node(SIX, "n6")
    with pytest.raises(PolicyViolation, match="one site"):
        drain_node(map_of(7), "n2")  # leaves one node at marseille
    with pytest.raises(NotFound):
        drain_node(SIX, "n99")


def test_a_coordinator_is_not_removed() -> None:
    finished = finish_move(drain_node(dataclasses.replace(NINE, coordinators=(9,)), "n9"))
    with pytest.raises(InvalidArgument, match="coordinator"):
        remove_node(finished, "n9", shards_held=0)
    with pytest.raises(InvalidArgument, match="set-coordinators"):
        replace_node(finished, "n9", attributes(10), "h10:7000", 8 * TB, lost=True)
    assert (
        state_of(remove_node(set_coordinators(finished, ["n1"]), "n9", shards_held=0), 9) is NodeState.REMOVED
    )


def test_coordinators_change_and_nothing_moves() -> None:
    moving = drain_node(dataclasses.replace(NINE, coordinators=(9,)), "n9")
    changed = set_coordinators(moving, ["n3", "n1"])
    assert (changed.coordinators, changed.epoch, changed.prior) == ((3, 1), moving.epoch + 1, moving.prior)
    assert set_coordinators(changed, ["n3", "n1"]) is changed
    removed = remove_node(NINE, "n9", shards_held=None, lost=True)
    for node_ids, error in (
        ([], InvalidArgument),
        (["n3", "n3"], InvalidArgument),
        (["n99"], NotFound),
        (["n9"], InvalidArgument),
    ):
        with pytest.raises(error):
            set_coordinators(removed, node_ids)


# ------------------------------------------------------------------ nodes that are gone


def test_a_lost_node_is_removed_with_its_set_still_consulted() -> None:
    lost = remove_node(NINE, "n9", shards_held=None, lost=True)
    assert state_of(lost, 9) is NodeState.REMOVED
    assert lost.prior == (NINE,)
    found = [Electorates(lost).of("clinic", "notes", partition) for partition in range(64)]
    assert any(9 in one.everyone for one in found)
    assert not any(9 in one.primaries for one in found)


def test_the_last_copies_are_never_removed() -> None:
    """Two lost nodes of 4+2 leave four shards; a third one is refused until their data has moved."""
    once = remove_node(NINE, "n9", shards_held=None, lost=True)
    twice = remove_node(once, "n8", shards_held=None, lost=True)
    with pytest.raises(PolicyViolation, match=r"too few nodes would be left"):
        remove_node(twice, "n7", shards_held=None, lost=True)
    with pytest.raises(PolicyViolation, match=r"too few nodes would be left"):
        replace_node(twice, "n7", attributes(10), "h10:7000", 8 * TB, lost=True)
    moved = finish_move(twice)
    assert state_of(drain_node(join(join(join(moved, 10), 11), 12), "n7"), 7) is NodeState.DRAINING
    assert state_of(remove_node(moved, "n7", shards_held=None, lost=True), 7) is NodeState.REMOVED


def test_a_node_is_replaced() -> None:
    replaced = replace_node(SIX, "n6", attributes(9), "h9:7000", 8 * TB)
    assert (state_of(replaced, 6), state_of(replaced, 7)) == (NodeState.DRAINING, NodeState.ACTIVE)
    assert replaced.node(7).node_id == "n9"
    assert replaced.prior == (SIX,)
    assert replace_node(replaced, "n6", attributes(9), "h9:7000", 8 * TB) is replaced
    removed = remove_node(finish_move(replaced), "n6", shards_held=0)
    assert replace_node(removed, "n6", attributes(9), "h9:7000", 8 * TB) is removed


def test_a_lost_node_is_replaced() -> None:
    replaced = replace_node(SIX, "n6", attributes(9), "h9:7000", 8 * TB, lost=True)
    assert state_of(replaced, 6) is NodeState.REMOVED
    assert replaced.prior == (SIX,)


def test_nobody_replaces_itself() -> None:
    with pytest.raises(InvalidArgument, match="another name"):
        replace_node(SIX, "n6", attributes(6), "h9:7000", 8 * TB)


# ------------------------------------------------------------------ capacity, policy


def test_capacity() -> None:
    larger = set_capacity(NINE, "n1", 16 * TB)
    assert larger.node(1).capacity_bytes == 16 * TB
    assert larger.prior == (NINE,)
    assert set_capacity(larger, "n1", 16 * TB) is larger
    with pytest.raises(InvalidArgument):
        set_capacity(NINE, "n1", 0)


def test_the_policy_of_a_bucket() -> None:
    two_one = Policy("2+1", 2, 1, ("FR",), Domain.SITE)
    with pytest.raises(NotFound, match="no storage policy '2\\+1'"):
        set_policy(NINE, "clinic", "notes", "2+1")
    changed = set_policy(NINE, "clinic", "notes", "2+1", two_one)
    assert changed.policy_of("clinic", "notes") == two_one
    assert changed.policy_of("clinic", "images") == FOUR_TWO
    assert changed.prior == (NINE,)
    assert set_policy(changed, "clinic", "notes", "2+1") is changed
    assert set_policy(changed, "clinic", "notes", "2+1", two_one) is changed
    with pytest.raises(InvalidArgument, match="other rules"):
        set_policy(changed, "clinic", "notes", "2+1", dataclasses.replace(two_one, versions_kept=3))
    back = set_policy(changed, "clinic", "notes", "4+2")
    assert back.policy_of("clinic", "notes") == FOUR_TWO
    assert back.bucket_policies == (BucketPolicy("clinic", "notes", "4+2"),)  # it may have objects of 2+1
    assert set_policy(back, "clinic", "notes", "4+2") is back
    assert set_policy(NINE, "clinic", "notes", "4+2") is NINE


def test_a_policy_that_the_nodes_cannot_keep() -> None:
    with pytest.raises(PolicyViolation, match="8\\+3 cannot be kept"):
        set_policy(NINE, "clinic", "notes", "8+3", Policy("8+3", 8, 3, ("FR",)))


def test_nodes_that_older_objects_need_do_not_leave() -> None:
    """Nothing would have a place any more for what is coded 4+2, though the bucket has another policy now."""
    six = map_of(6)
    two_one = Policy("2+1", 2, 1, ("FR",), Domain.SITE)
    moved = finish_move(set_policy(six, "clinic", "notes", "2+1", two_one))
    changed = dataclasses.replace(moved, default_policy="2+1")
    with pytest.raises(PolicyViolation, match="may still be coded by policy 4\\+2"):
        drain_node(changed, "n6")
    assert drain_node(dataclasses.replace(changed, bucket_policies=()), "n6").epoch == changed.epoch + 1


# ------------------------------------------------------------------ many changes


def test_changes_while_data_moves_add_up_to_four() -> None:
    current = map_of(12)
    first = current
    for number in range(13, 17):
        current = join(current, number)
    assert [prior.epoch for prior in current.prior] == [4, 3, 2, 1]
    assert current.prior[-1] == first
    with pytest.raises(Conflict, match="coffre cluster apply"):
        join(current, 17)
    assert join(current, 16) is current
    assert len(join(finish_move(current), 17).prior) == 1


@pytest.mark.parametrize(
    "wish",
    [
        lambda current: join(current, 10),
        lambda current: drain_node(current, "n9"),
        lambda current: replace_node(current, "n9", attributes(12), "h12:7000", TB),
        lambda current: remove_node(current, "n9", shards_held=None, lost=True),
        lambda current: set_capacity(current, "n9", TB),
        lambda current: set_policy(current, "clinic", "notes", "2+1", Policy("2+1", 2, 1, ("FR",))),
    ],
)
def test_every_wish_is_fulfilled_once(wish: Callable[[ClusterMap], ClusterMap]) -> None:
    begun = wish(NINE)
    assert begun.epoch == NINE.epoch + 1
    assert wish(begun) is begun
    finished = finish_move(begun)
    assert wish(finished) is finished


# ------------------------------------------------------------------ renew


def test_a_renewal_moves_nothing_and_is_not_taken_back() -> None:
    later = dataclasses.replace(attributes(2), generation=1)
    renewed = renew_node(SIX, later)
    assert (renewed.epoch, renewed.prior, renewed.node(2).attributes) == (2, (), later)
    assert renew_node(renewed, later) is renewed
    with pytest.raises(InvalidArgument, match="was shut out"):
        renew_node(renewed, attributes(2))
    with pytest.raises(InvalidArgument, match="another server, site"):
        renew_node(SIX, dataclasses.replace(later, site="elsewhere"))
    with pytest.raises(NotFound):
        renew_node(SIX, attributes(7))


def test_a_renewal_keeps_the_maps_that_are_consulted() -> None:
    moving = join(SIX, 7)
    renewed = renew_node(moving, dataclasses.replace(attributes(2), generation=1))
    assert renewed.prior == moving.prior
    assert finish_move(renewed).node(2).generation == 1
    drained = drain_node(NINE, "n9")
    later = dataclasses.replace(attributes(9), generation=3)
    assert state_of(renew_node(drained, later), 9) is NodeState.DRAINING
    removed = remove_node(NINE, "n9", shards_held=None, lost=True)
    with pytest.raises(InvalidArgument, match="was removed"):
        renew_node(removed, later)
