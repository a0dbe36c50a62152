"""Where a reader puts the shards of a version that it completes."""

from __future__ import annotations

from coffre.client._evidence import lawful
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.placement import Placement
from coffre.proto import coffre_pb2 as pb

SITES = {1: "a", 2: "b", 3: "c", 4: "a", 5: "b", 6: "c"}


def rules() -> Placement:
    """2+1, one shard per site at most."""
    nodes = tuple(
        MapNode(number, f"n{number}", f"127.0.0.1:{7000 + number}", f"s{number}", site, "op", "FR", 1 << 40)
        for number, site in SITES.items()
    )
    policy = Policy("2+1", 2, 1, ("FR",), Domain.SITE)
    return Placement(ClusterMap("00112233445566aa", 1, 1, nodes, (policy,), policy.name), policy)


def holder(shard_index: int, *placement: int) -> pb.Version:
    return pb.Version(shard_index=shard_index, sealed=pb.SealedManifest(placement=placement))


def test_shards_stay_where_they_are() -> None:
    assert lawful(rules(), (1, 2, 3), {1: holder(0, 1, 5, 3), 5: holder(1, 1, 5, 3)}) == [1, 5, 3]


def test_a_late_holder_does_not_make_a_placement_unlawful() -> None:
    """Shards 0 and 1 moved to each other's site; and node 2, at the site of shard 0 now, had taken shard 1 after all.

    Each node refuses a placement against the policy: were all holders counted, nobody could read the object any more.
    """
    holders = {2: holder(1, 1, 2, 3), 3: holder(2, 5, 4, 3), 5: holder(0, 5, 4, 3)}
    assert lawful(rules(), (1, 2, 3), holders) == [1, 2, 3]  # two shards are where they are to be
    del holders[2]
    assert lawful(rules(), (1, 2, 3), holders) == [5, 4, 3]
