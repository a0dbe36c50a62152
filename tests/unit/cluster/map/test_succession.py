"""Maps that consult earlier ones: their bytes, what makes one valid, and which may follow which."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from coffre.cluster.errors import IntegrityError, InvalidArgument
from coffre.cluster.map import (
    BucketPolicy,
    ClusterMap,
    Domain,
    MapNode,
    NodeState,
    Policy,
    newer_map,
    same_placements,
)
from coffre.cluster.map.signed import decode_map, encode_map
from coffre.proto import coffre_pb2 as pb

ONE_ONE = Policy("1+1", 1, 1, ("FR",), Domain.NODE)
TWO_ONE = Policy("2+1", 2, 1, ("FR",), Domain.NODE)


def node(number: int) -> MapNode:
    return MapNode(number, f"n{number}", f"10.0.0.{number}:7000", f"s{number}", "paris", "ovh", "FR", 1 << 40)


FIRST = ClusterMap("c0ffee", 1, 64, (node(1), node(2), node(3)), (ONE_ONE, TWO_ONE), "2+1")


def after(current: ClusterMap, **changes: object) -> ClusterMap:
    """The next epoch, which moves data."""
    prior = (current.as_prior(), *current.prior)
    return dataclasses.replace(current, epoch=current.epoch + 1, prior=prior, **changes)  # type: ignore[arg-type]


def replaced(cluster_map: ClusterMap, number: int, **changes: object) -> tuple[MapNode, ...]:
    return tuple(
        dataclasses.replace(one, **changes) if one.number == number else one  # type: ignore[arg-type]
        for one in cluster_map.nodes
    )


JOINED = after(
    FIRST, nodes=(*FIRST.nodes, node(4)), bucket_policies=(BucketPolicy("clinic", "notes", "1+1"),)
)
DRAINING = after(
    JOINED,
    nodes=replaced(JOINED, 1, state=NodeState.DRAINING, address="10.0.0.9:7000"),
    bucket_policies=(BucketPolicy("clinic", "images", "1+1"),),
    coordinators=(2, 3),
)
FINISHED = dataclasses.replace(DRAINING, epoch=4, prior=())


# ------------------------------------------------------------------ validity


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"coordinators": (2, 2)}, "coordinator 2 is in the map twice"),
        ({"coordinators": (9,)}, "coordinator 9"),
        ({"nodes": replaced(DRAINING, 2, state=NodeState.REMOVED)}, "coordinator 2"),
        ({"prior": (FIRST.as_prior(), JOINED.as_prior())}, "epoch 2 must come before epoch 1"),
        ({"prior": (JOINED,)}, "prior maps or coordinators of its own"),
        ({"prior": (dataclasses.replace(FIRST, coordinators=(1,)),)}, "prior maps or coordinators"),
        ({"epoch": 2}, "epoch 2 must come before"),
        ({"prior": (dataclasses.replace(FIRST, cluster_id="other"),)}, "another cluster"),
        ({"prior": (dataclasses.replace(FIRST, partitions=128),)}, "other partitions"),
        ({"prior": (dataclasses.replace(FIRST, nodes=(*FIRST.nodes, node(5))),)}, "lists nodes"),
        ({"prior": (dataclasses.replace(FIRST, nodes=FIRST.nodes[::-1]),)}, "lists nodes"),
        ({"bucket_policies": (BucketPolicy("clinic", "notes", "8+3"),)}, "not among the policies"),
        ({"bucket_policies": (BucketPolicy("b", "b", "1+1"), BucketPolicy("a", "b", "1+1"))}, "rising"),
        ({"bucket_policies": (BucketPolicy("b", "b", "1+1"),) * 2}, "rising"),
        (
            {"epoch": 9, "prior": tuple(dataclasses.replace(FIRST, epoch=8 - i) for i in range(5))},
            "at most 4 prior",
        ),
    ],
)
def test_maps_that_cannot_be(change: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        dataclasses.replace(DRAINING, **change)  # type: ignore[arg-type]


def test_too_many_buckets() -> None:
    many = tuple(BucketPolicy("clinic", f"{i:06}", "1+1") for i in range(10_001))
    with pytest.raises(InvalidArgument, match="10000 buckets"):
        dataclasses.replace(FIRST, bucket_policies=many)
    message = pb.ClusterMap.FromString(encode_map(FIRST))
    for one in many:
        message.bucket_policies.add(tenant=one.tenant, bucket=one.bucket, policy="?")
    with pytest.raises(InvalidArgument, match="at most 10000 policies of buckets"):
        decode_map(message.SerializeToString())


def test_policies_of_buckets() -> None:
    assert JOINED.policy_of("clinic", "notes") == ONE_ONE
    assert JOINED.policy_of("clinic", "images") == TWO_ONE
    assert JOINED.policies_in_use == ("2+1", "1+1")
    assert FIRST.policies_in_use == ("2+1",)


# ------------------------------------------------------------------ bytes


@pytest.mark.parametrize("cluster_map", [FIRST, JOINED, DRAINING, FINISHED])
def test_bytes_give_the_map_back(cluster_map: ClusterMap) -> None:
    assert decode_map(encode_map(cluster_map)) == cluster_map


def test_the_bytes_of_the_new_fields_are_frozen() -> None:
    """Node 1 as it was, node 4 that was not there, and the buckets whose policies were others."""
    node_1 = (
        "080112026e311a0d31302e302e302e313a37303030220273312a05706172697332036f76683a024652408080808080204801"
    )
    policies = "22110a03312b311001180122024652280138012211"  # 1+1, and the beginning of 2+1
    policies += "0a03322b31100218012202465228013801" + "2a03322b31"
    message = pb.ClusterMap.FromString(encode_map(DRAINING))
    assert message.prior[0].SerializeToString(deterministic=True).hex() == (
        f"08021232{node_1}{policies}"
        "32100a06636c696e69631206696d61676573" + "32140a06636c696e696312056e6f7465731a03312b31"
    )
    assert message.prior[1].SerializeToString(deterministic=True).hex() == (
        f"08011232{node_1}1a0104{policies}32100a06636c696e69631206696d61676573"
    )
    for name in ("prior", "nodes", "policies"):
        message.ClearField(name)
    assert message.SerializeToString(deterministic=True).hex() == (
        "08011206633066666565180320403a03322b31"
        + "42020203"
        + "52150a06636c696e69631206696d616765731a03312b31"
    )


def test_a_prior_map_is_its_difference() -> None:
    """Four epochs of a cluster of a thousand nodes fit into half as much again as one."""
    nodes = tuple(
        dataclasses.replace(
            node(1), number=i, node_id=f"n{i}", server=f"s{i}", address=f"h{i}.example.org:7000"
        )
        for i in range(1, 1001)
    )
    grown = first = dataclasses.replace(FIRST, nodes=nodes)
    for number in range(1001, 1005):
        grown = after(
            grown,
            nodes=(
                *grown.nodes,
                dataclasses.replace(
                    node(1),
                    number=number,
                    node_id=f"n{number}",
                    server=f"s{number}",
                    address=f"h{number}:7000",
                ),
            ),
        )
    assert len(grown.prior) == 4
    assert len(encode_map(grown)) < 1.5 * len(encode_map(first))
    assert decode_map(encode_map(grown)) == grown


def _prior_of(message: pb.ClusterMap) -> pb.PriorMap:
    return message.prior[0]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda prior: prior.absent.append(9), "names nodes"),
        (lambda prior: prior.absent.append(1), "names nodes"),  # which it describes, too
        (lambda prior: prior.nodes.add().CopyFrom(prior.nodes[0]), "twice"),
        (lambda prior: prior.bucket_policies.add(tenant="clinic", bucket="other"), "without"),
        (lambda prior: prior.bucket_policies.add().CopyFrom(prior.bucket_policies[0]), "twice"),
        (lambda prior: prior.absent.extend(range(10_001)), "too much"),
        (lambda prior: prior.policies.pop(), "not among the policies"),
        (lambda prior: prior.ClearField("epoch"), "epoch"),
    ],
)
def test_prior_maps_that_cannot_be_read(spoil: object, why: str) -> None:
    message = pb.ClusterMap.FromString(encode_map(DRAINING))
    assert callable(spoil)
    spoil(_prior_of(message))
    with pytest.raises(InvalidArgument, match=why):
        decode_map(message.SerializeToString())


def test_too_many_prior_maps_are_refused_before_they_are_read() -> None:
    message = pb.ClusterMap.FromString(encode_map(FIRST))
    for _ in range(5):
        message.prior.add()
    with pytest.raises(InvalidArgument, match="at most 4 prior"):
        decode_map(message.SerializeToString())


# ------------------------------------------------------------------ succession


def test_a_move_and_its_end() -> None:
    for current, candidate in itertools.pairwise((FIRST, JOINED, DRAINING, FINISHED)):
        assert newer_map(current, candidate) is candidate
    assert newer_map(FIRST, DRAINING) is DRAINING  # a member that missed an epoch
    assert newer_map(JOINED, FINISHED) is FINISHED
    assert newer_map(JOINED, dataclasses.replace(JOINED, coordinators=(2,), epoch=3)).coordinators == (2,)


@pytest.mark.parametrize(
    ("current", "candidate"),
    [
        (FIRST, dataclasses.replace(JOINED, prior=())),  # moves without consulting who has the data
        (JOINED, dataclasses.replace(DRAINING, prior=(JOINED.as_prior(),))),  # drops the oldest
        (JOINED, dataclasses.replace(DRAINING, prior=(FIRST,))),  # drops the newest
        (JOINED, dataclasses.replace(DRAINING, prior=())),  # ends one move and begins another
        (DRAINING, dataclasses.replace(FINISHED, prior=(FIRST,))),  # ends a half
        (DRAINING, dataclasses.replace(FINISHED, prior=(JOINED.as_prior(),))),
        (
            JOINED,
            dataclasses.replace(JOINED, epoch=3, prior=(dataclasses.replace(FIRST, default_policy="1+1"),)),
        ),
        (JOINED, dataclasses.replace(DRAINING, epoch=4, prior=(JOINED.as_prior(),))),  # an epoch was missed
        (
            JOINED,
            dataclasses.replace(
                DRAINING, epoch=4, prior=(dataclasses.replace(JOINED.as_prior(), nodes=FIRST.nodes), FIRST)
            ),
        ),
    ],
)
def test_no_set_is_dropped_that_may_hold_what_others_lack(current: ClusterMap, candidate: ClusterMap) -> None:
    with pytest.raises(IntegrityError):
        newer_map(current, candidate)


def test_a_policy_stays() -> None:
    for policies in ((TWO_ONE,), (dataclasses.replace(ONE_ONE, k=3), TWO_ONE)):
        with pytest.raises(IntegrityError, match=r"forgets policy 1\+1"):
            newer_map(FIRST, dataclasses.replace(FIRST, epoch=2, policies=policies))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"nodes": replaced(FIRST, 1, address="10.9.9.9:1")}, True),
        ({"coordinators": (1,)}, True),
        ({"policies": (TWO_ONE, dataclasses.replace(ONE_ONE, survives=Domain.SITE))}, True),  # nobody uses it
        ({"nodes": replaced(FIRST, 1, capacity_bytes=1)}, False),
        ({"nodes": replaced(FIRST, 1, state=NodeState.DRAINING)}, False),
        ({"nodes": (*FIRST.nodes, node(4))}, False),
        (
            {"nodes": (*FIRST.nodes, dataclasses.replace(node(4), jurisdiction="DE"))},
            True,
        ),  # nothing goes there
        ({"default_policy": "1+1"}, False),
        ({"bucket_policies": (BucketPolicy("clinic", "notes", "1+1"),)}, False),
        ({"policies": (ONE_ONE, dataclasses.replace(TWO_ONE, operator_cap=1))}, False),
    ],
)
def test_what_placements_follow_from(change: dict[str, object], same: bool) -> None:
    changed = dataclasses.replace(FIRST, **change)  # type: ignore[arg-type]
    assert same_placements(FIRST, changed) is same
    assert same_placements(changed, FIRST) is same


def test_a_certificate_that_was_shut_out_stays_so() -> None:
    renewed = dataclasses.replace(FIRST, epoch=2, nodes=replaced(FIRST, 2, generation=1))
    assert newer_map(FIRST, renewed) is renewed
    assert same_placements(FIRST, renewed)
    assert decode_map(encode_map(renewed)) == renewed
    assert pb.ClusterMap.FromString(encode_map(FIRST)).format == 1
    assert pb.ClusterMap.FromString(encode_map(renewed)).format == 2  # so that no earlier release takes it
    for epoch in (3, 9):
        back = dataclasses.replace(renewed, epoch=epoch, nodes=FIRST.nodes)
        with pytest.raises(IntegrityError, match="takes back a certificate of n2"):
            newer_map(renewed, back)
