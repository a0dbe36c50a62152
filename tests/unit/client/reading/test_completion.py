"""What a reader does with a version that its writer left undecided."""

from __future__ import annotations

import asyncio
import random

import pytest
from coffre.client.reading._evidence import lawful
from coffre.cluster.clock import DriftingClock, SystemClock
from coffre.cluster.errors import ClockSkew, CoffreError, Unavailable
from coffre.cluster.map import ClusterMap, Domain, MapNode, Placement, Policy
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import InProcessCluster, Network, Traffic
from coffre.node.store import State
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


def test_where_its_writer_may_have_staged_shards_comes_first() -> None:
    holders = {1: holder(0, 1, 5, 3)}
    assert lawful(rules(), (1, 2, 3), holders) == [1, 2, 3]
    assert lawful(rules(), (1, 2, 3), holders, staged=True) == [1, 5, 3]
    del holders[1]
    assert lawful(rules(), (1, 2, 3), holders, staged=True) == [1, 2, 3]


async def states(cluster: InProcessCluster) -> dict[int, set[State]]:
    name = ObjectName("clinic", "b", "k")
    held = {number: await store.read(name) for number, store in cluster.stores.items()}
    return {number: {version.state for version in versions} for number, versions in held.items() if versions}


async def test_what_cannot_be_read_is_not_promised(cluster: InProcessCluster) -> None:
    """All shards of a larger object are staged, two nodes hold the version, and its writer is gone."""
    data = random.Random(3).randbytes((1 << 20) + 5)
    network = Network()

    async def reach_two(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest):
            if node > 2:
                raise Unavailable("lost")
            if any(operation.HasField("abort") for operation in request.operations):
                raise Unavailable("dead by then")

    network.before = reach_two
    with pytest.raises(CoffreError):
        await cluster.client(network=network).put("b", "k", data)
    assert await states(cluster) == {1: {State.ACCEPTED}, 2: {State.ACCEPTED}}
    cluster.network.down = {4, 5, 6}
    with pytest.raises(Unavailable):
        await cluster.client().get("b", "k")
    assert await states(cluster) == {
        node: {State.ACCEPTED} for node in (1, 2, 3)
    }  # a third shard is brought in
    cluster.network.down = {5, 6}
    assert await cluster.client().get("b", "k") == data
    assert await states(cluster) == {node: {State.LOCKED} for node in (1, 2, 3, 4)}


@pytest.mark.parametrize("size_bytes", [100, (1 << 20) + 5], ids=["small", "large"])
@pytest.mark.parametrize("wrong_by", [3600.0, -3600.0])
async def test_a_wrong_clock_is_named(cluster: InProcessCluster, size_bytes: int, wrong_by: float) -> None:
    """Not nodes that do not answer: all of them do."""
    data = random.Random(3).randbytes(size_bytes)
    network = Network()

    async def accepts_alone(node: int, request: Traffic) -> None:
        if isinstance(request, pb.BatchRequest) and (
            node == 6 or not any(operation.HasField("accept") for operation in request.operations)
        ):
            raise Unavailable("the writer is gone")

    network.before = accepts_alone
    await cluster.client(network=network).put("b", "k", data)
    now = SystemClock().unixtime_ms()
    clock = DriftingClock(asyncio.get_running_loop().time, unixtime_ms=now)
    clock.shift_ms(int((wrong_by - clock.monotonic()) * 1000))
    with pytest.raises(ClockSkew, match=r"set the clocks \(NTP\)"):
        await cluster.client(clock=clock).get("b", "k")
    assert await cluster.client().get("b", "k") == data
