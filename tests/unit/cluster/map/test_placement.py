"""Placement: caps always hold, every member computes the same, and a join moves what it must."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
from coffre.cluster.errors import InvalidArgument, PolicyViolation
from coffre.cluster.map import ClusterMap, Domain, MapNode, NodeState, Placement, Policy
from coffre.cluster.map.placement import score
from hypothesis import given
from hypothesis import strategies as st

TIB = 1 << 40


def make_node(
    number: int, site: str = "paris", operator: str = "ovh", server: str = "", **changes: object
) -> MapNode:
    node = MapNode(
        number,
        f"n{number}",
        f"127.0.0.1:{7000 + number}",
        server or f"{site}-s{number}",
        site,
        operator,
        "FR",
        TIB,
    )
    return dataclasses.replace(node, **changes)  # type: ignore[arg-type]


def make_map(nodes: list[MapNode], policy: Policy, partitions: int = 64) -> ClusterMap:
    return ClusterMap("c0ffee", 1, partitions, tuple(nodes), (policy,), policy.name)


def policy_of(k: int, m: int, survives: Domain = Domain.SITE, **changes: object) -> Policy:
    return dataclasses.replace(Policy(f"{k}+{m}", k, m, ("FR",), survives), **changes)  # type: ignore[arg-type]


def six_nodes(**changes: object) -> list[MapNode]:
    sites = ("paris", "lille", "lyon")
    return [make_node(i + 1, site=sites[i % 3], **changes) for i in range(6)]  # type: ignore[arg-type]


# ------------------------------------------------------------------ caps


def lawful(chosen: list[MapNode], nodes: list[MapNode], policy: Policy) -> bool:
    """The rules, written a second time and naively."""
    caps = []
    if len({node.operator for node in nodes}) > 1:
        caps += [("operator", policy.k - 1)]
    if policy.survives is Domain.SITE:
        caps += [("site", policy.m), ("server", policy.m)]
    if policy.survives is Domain.SERVER:
        caps += [("server", policy.m)]
    return all(
        count <= limit
        for field, limit in caps
        for count in Counter(getattr(node, field) for node in chosen).values()
    )


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[MapNode], Policy]:
    k = draw(st.integers(1, 4))
    m = draw(st.integers(1, min(k, 2)))
    nodes = []
    for number in range(1, draw(st.integers(2, 9)) + 1):
        site = draw(st.sampled_from(["paris", "lille", "lyon"]))
        operator = draw(st.sampled_from(["ovh", "scw", "ikoula"]))
        server = f"{site}-{draw(st.integers(1, 3))}"
        state = draw(st.sampled_from([NodeState.ACTIVE] * 4 + [NodeState.DRAINING]))
        capacity = draw(st.integers(1, 64)) << 30
        nodes.append(make_node(number, site, operator, server, capacity_bytes=capacity, state=state))
    return nodes, policy_of(k, m, draw(st.sampled_from(list(Domain))))


@given(clusters())
def test_caps_hold_and_a_placement_is_found_whenever_there_is_one(
    cluster: tuple[list[MapNode], Policy],
) -> None:
    nodes, policy = cluster
    placement = Placement(make_map(nodes, policy), policy)
    by_number = {node.number: node for node in nodes}
    active = [node for node in nodes if node.state is NodeState.ACTIVE]

    feasible = any(lawful(list(some), nodes, policy) for some in itertools.combinations(active, policy.n))
    for partition in range(4):
        if not feasible:
            with pytest.raises(PolicyViolation, match="add"):
                placement.primaries(partition)
            continue
        primaries = placement.primaries(partition)
        assert len(set(primaries)) == policy.n
        assert lawful([by_number[number] for number in primaries], nodes, policy)
        assert set(primaries) <= {node.number for node in active}
        placement.check(primaries)
        for shard_index in range(policy.n):
            offered = list(placement.substitutes(partition, primaries, shard_index))
            expected = []
            for number in placement.order(partition):
                changed = list(primaries)
                changed[shard_index] = number
                if number not in primaries and lawful([by_number[other] for other in changed], nodes, policy):
                    placement.check(changed)
                    expected.append(number)
            assert offered == expected


@given(clusters(), st.data())
def test_check_agrees_with_the_rules(cluster: tuple[list[MapNode], Policy], data: st.DataObject) -> None:
    nodes, policy = cluster
    if len(nodes) < policy.n:
        return
    chosen = data.draw(st.permutations(nodes))[: policy.n]
    placement = Placement(make_map(nodes, policy), policy)
    if lawful(chosen, nodes, policy):
        placement.check([node.number for node in chosen])
    else:
        with pytest.raises(PolicyViolation):
            placement.check([node.number for node in chosen])


def test_a_placement_is_found_where_greed_runs_into_a_wall() -> None:
    """Four operators with a cap of one, two sites with a cap of two: "a" must not waste a place in Paris."""
    places = [("paris", "a"), ("lille", "a"), ("paris", "b"), ("paris", "c"), ("lille", "d")]
    policy = policy_of(2, 2, Domain.SITE)
    nodes = [make_node(i, site, operator) for i, (site, operator) in enumerate(places, 1)]
    placement = Placement(make_map(nodes, policy, 512), policy)
    for partition in range(512):
        assert set(placement.primaries(partition)) == {2, 3, 4, 5}
    nodes[1] = make_node(2, "lille", "d")
    placement = Placement(make_map(nodes, policy), policy)
    with pytest.raises(PolicyViolation, match="together leave no 4 nodes"):
        placement.primaries(0)


def test_check_refuses() -> None:
    policy = policy_of(4, 2)
    nodes = [
        *six_nodes(),
        make_node(7, "lille", jurisdiction="DE"),
        make_node(8, "lille", state=NodeState.REMOVED),
    ]
    placement = Placement(make_map(nodes, policy), policy)
    placement.check([1, 2, 3, 4, 5, 6])
    for bad, why in (
        ([1, 2, 3, 4, 5], "6 shards"),
        ([1, 2, 3, 4, 5, 5], "on one node"),
        ([1, 2, 3, 4, 5, 99], "no node 99"),
        ([1, 7, 3, 4, 5, 6], "in DE"),
        ([1, 8, 3, 4, 5, 6], "removed"),
    ):
        for _ in range(2):  # a refusal is not remembered as a yes
            with pytest.raises(PolicyViolation, match=why):
                placement.check(bad)
    nodes = [make_node(i, "paris" if i < 4 else f"s{i}") for i in range(1, 7)]
    with pytest.raises(PolicyViolation, match="3 shards of one object in site paris"):
        Placement(make_map(nodes, policy), policy).check([1, 2, 3, 4, 5, 6])


def test_draining_nodes_get_nothing_new_but_keep_what_they_have() -> None:
    policy = policy_of(4, 2)
    nodes = [*six_nodes(), make_node(7, "lille")]
    nodes[0] = dataclasses.replace(nodes[0], state=NodeState.DRAINING)
    placement = Placement(make_map(nodes, policy), policy)
    placement.check([1, 2, 3, 4, 5, 6])
    with pytest.raises(PolicyViolation):  # Lille may have two of six, not three
        placement.primaries(0)
    nodes.append(make_node(8, "nantes"))
    placement = Placement(make_map(nodes, policy), policy)
    for partition in range(64):
        assert 1 not in placement.order(partition)


def test_operator_cap_stays_while_the_other_operator_drains() -> None:
    policy = policy_of(2, 1, Domain.NODE)
    nodes = [make_node(1), make_node(2), make_node(3), make_node(4, operator="scw", state=NodeState.DRAINING)]
    placement = Placement(make_map(nodes, policy), policy)
    assert placement.operator_cap == 1
    with pytest.raises(PolicyViolation, match="operator"):
        placement.primaries(0)
    nodes[3] = dataclasses.replace(nodes[3], state=NodeState.REMOVED)
    assert Placement(make_map(nodes, policy), policy).operator_cap is None


@pytest.mark.parametrize(
    ("nodes", "policy", "why"),
    [
        (
            [make_node(1), make_node(2)],
            policy_of(4, 2),
            "needs 6 active nodes in FR, and the map has 2; add 4",
        ),
        ([make_node(i) for i in range(1, 9)], policy_of(4, 2), "in one site.*add nodes in another site"),
        (
            [make_node(i, server="s1") for i in range(1, 9)],
            policy_of(4, 2, Domain.SERVER),
            "in one server.*another server",
        ),
        (
            [make_node(i, operator="ovh" if i % 2 else "scw") for i in range(1, 9)],
            policy_of(2, 2, Domain.NODE),
            "in one operator.*another operator",
        ),
    ],
)
def test_violations_say_what_to_add(nodes: list[MapNode], policy: Policy, why: str) -> None:
    with pytest.raises(PolicyViolation, match=why):
        Placement(make_map(nodes, policy), policy).primaries(0)


def test_arguments() -> None:
    policy = policy_of(4, 2)
    placement = Placement(make_map(six_nodes(), policy), policy)
    for partition in (-1, 64):
        with pytest.raises(InvalidArgument):
            placement.primaries(partition)
    with pytest.raises(InvalidArgument):
        placement.substitutes(0, [1, 2], 0)
    with pytest.raises(InvalidArgument):
        placement.substitutes(0, [1, 2, 3, 4, 5, 6], 6)
    with pytest.raises(PolicyViolation):
        placement.substitutes(0, [1, 2, 3, 4, 5, 99], 0)


# ------------------------------------------------------------------ the hash


def test_scores_are_frozen() -> None:
    """A member that draws otherwise looks for records where they are not."""
    assert score(0, "n1", TIB) == 897113801351.9651
    assert score(4095, "node-17", 3 * TIB) == 17435166375378.016


def test_primaries_are_frozen() -> None:
    policy = policy_of(4, 2)
    placement = Placement(make_map([*six_nodes(), make_node(7, "nantes")], policy), policy)
    assert [placement.primaries(partition) for partition in range(4)] == [
        (6, 7, 2, 3, 4, 1),
        (5, 2, 4, 7, 6, 1),
        (4, 5, 2, 1, 3, 6),
        (3, 5, 2, 7, 4, 1),
    ]


def test_order_of_map_entries_does_not_matter() -> None:
    policy = policy_of(4, 2)
    nodes = [make_node(i, f"site{i % 5}") for i in range(1, 21)]
    one, other = (Placement(make_map(some, policy), policy) for some in (nodes, nodes[::-1]))
    for partition in range(64):
        assert one.order(partition) == other.order(partition)
        assert one.primaries(partition) == other.primaries(partition)


def test_balance_follows_the_weights() -> None:
    policy = policy_of(1, 1, Domain.NODE)
    weights = {i: (1 + i % 3) * TIB for i in range(1, 31)}
    nodes = [make_node(i, capacity_bytes=weight) for i, weight in weights.items()]
    placement = Placement(make_map(nodes, policy, 4096), policy)
    firsts = Counter(placement.order(partition)[0] for partition in range(4096))
    total = sum(weights.values())
    by_weight: Counter[int] = Counter()
    for number, count in firsts.items():
        by_weight[weights[number]] += count
    for weight, count in by_weight.items():
        expected = 4096 * 10 * weight / total
        assert abs(count - expected) / expected < 0.06, (weight, count, expected)


def test_a_join_moves_only_what_the_new_node_takes() -> None:
    policy = policy_of(4, 2)
    nodes = [make_node(i, f"site{i % 6}") for i in range(1, 25)]
    newcomer = make_node(25, "site1")
    before = Placement(make_map(nodes, policy, 4096), policy)
    after = Placement(make_map([*nodes, newcomer], policy, 4096), policy)
    moved = 0
    for partition in range(4096):
        old, new = before.primaries(partition), after.primaries(partition)
        if 25 not in new:
            assert old == new
            continue
        assert len(set(new) - set(old)) == 1
        moved += 1
    share = moved / (4096 * 6)
    assert abs(share - 1 / 25) / (1 / 25) < 0.10, share


def test_a_leave_moves_only_what_the_node_had() -> None:
    policy = policy_of(4, 2)
    nodes = [make_node(i, f"site{i % 6}") for i in range(1, 25)]
    before = Placement(make_map(nodes, policy, 512), policy)
    after = Placement(make_map(nodes[1:], policy, 512), policy)
    for partition in range(512):
        old, new = before.primaries(partition), after.primaries(partition)
        assert (old == new) if 1 not in old else len(set(new) - set(old)) == 1


def test_a_breach_is_of_distinct_shards_where_they_really_lie() -> None:
    nodes = six_nodes()
    policy = policy_of(4, 2)
    placement = Placement(make_map([*nodes, make_node(7, jurisdiction="US", site="x")], policy), policy)
    assert placement.breach({n: n - 1 for n in range(1, 7)}) is None
    assert placement.breach({1: 0, 4: 3}) is None, "not all of them need to be known"
    both = [*nodes, make_node(7, site="paris")]
    placement_of_seven = Placement(make_map(both, policy), policy)
    assert placement_of_seven.breach({1: 0, 4: 3, 7: 3}) is None, "handed over: one of them will go"
    assert "3 shards of an object lie in site paris" in (placement_of_seven.breach({1: 0, 4: 3, 7: 5}) or "")
    assert "US" in (placement.breach({1: 0, 7: 1}) or "")
