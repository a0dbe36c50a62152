"""A node whose disk was lost or rolled back is told so by the others, and never serves under its old name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coffre.cluster.clock import ManualClock, SystemClock
from coffre.cluster.errors import ConfigurationError, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.transport import LoopbackTransport
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.memory import MemoryStore
from coffre.node.repair import await_testimony, witness
from coffre.node.repair.testimony import judge
from coffre.node.store import StoreIdentity
from coffre.proto import coffre_pb2 as pb

NOTHING = StoreIdentity(b"", 0)
ME, OTHER = b"m" * 16, b"o" * 16


def of(commits: int, store_id: bytes = ME) -> StoreIdentity:
    return StoreIdentity(store_id, commits)


@pytest.mark.parametrize(
    ("found", "answers", "serves"),
    [
        (of(7), [of(7)], True),
        (of(7), [of(3)], True),
        (of(7), [NOTHING], True),
        (of(7), [], False),
        (None, [NOTHING, NOTHING], False),
        (None, [NOTHING, NOTHING, NOTHING], True),
    ],
)
def test_who_may_serve(found: StoreIdentity | None, answers: list[StoreIdentity], serves: bool) -> None:
    assert judge(found, of(9), 5, answers) is serves


@pytest.mark.parametrize(
    ("found", "answers", "why"),
    [
        (of(7), [of(8)], "commit 7, others have seen 8"),
        (of(7), [NOTHING, of(1), of(8)], "commit 7"),
        (of(7), [of(2, OTHER)], "another disk"),
        (None, [of(1, OTHER)], "another disk"),
        (None, [NOTHING, NOTHING, NOTHING, of(1, OTHER)], "another disk"),
    ],
)
def test_who_forgot(found: StoreIdentity | None, answers: list[StoreIdentity], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        judge(found, of(9), 5, answers)


def test_a_cluster_of_one_asks_nobody() -> None:
    assert judge(None, of(1), 0, [])


async def test_the_highest_commit_is_remembered_and_the_first_store_alone() -> None:
    store = MemoryStore(ManualClock())
    assert await witness(store, "n2", b"", 5) == NOTHING
    assert await witness(store, "n2", ME, 5) == NOTHING
    assert await witness(store, "n2", ME, 3) == of(5)
    assert await witness(store, "n2", ME, 8) == of(5)
    assert await witness(store, "n2", OTHER, 99) == of(8)
    assert await witness(store, "n2", ME, 1) == of(8)
    assert await witness(store, "n3", OTHER, 1) == NOTHING


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(2, 1)
    yield made
    await made.aclose()


def transport_of(cluster: InProcessCluster, number: int) -> LoopbackTransport:
    node = cluster.cluster_map.node(number)
    identity = Identity(cluster.cluster_map.cluster_id, Role.NODE, node.node_id, node.attributes)
    return LoopbackTransport(identity, cluster.handlers)


async def test_rounds_tell_and_starts_ask(cluster: InProcessCluster) -> None:
    cluster.stores[2]._store_id = ME
    await cluster.client().put("b", "k", b"value")
    await cluster.client().flush()
    await cluster.repairer(2).round()
    transport, clock = transport_of(cluster, 2), SystemClock()
    own = await cluster.stores[2].identity()
    await await_testimony(transport, 1, (1, 3), own, own, clock)
    with pytest.raises(ConfigurationError, match="older than it was"):
        await await_testimony(transport, 1, (1, 3), of(own.commits - 1), own, clock)
    with pytest.raises(ConfigurationError, match="another disk"):
        await await_testimony(transport, 1, (1, 3), None, of(1, OTHER), clock)
    with pytest.raises(ConfigurationError, match="another disk"):  # asking has not changed what they know
        await await_testimony(transport, 1, (1, 3), of(99, OTHER), of(99, OTHER), clock)


async def test_a_node_that_starts_testifies_and_does_nothing_else(cluster: InProcessCluster) -> None:
    starting = cluster.handlers[1]
    starting.serving = False
    transport = transport_of(cluster, 3)
    reply = await transport.digests(1, pb.DigestsRequest(epoch=1, store_id=ME, commits=4), 5.0)
    assert (reply.starting, reply.digests) == (True, b"")
    reply = await transport.digests(1, pb.DigestsRequest(epoch=1, store_id=ME, commits=4), 5.0)
    assert (reply.witnessed_store_id, reply.witnessed_commits) == (ME, 4)
    read = pb.Operation(read=pb.Read(bucket="b", key="k"))
    with pytest.raises(Unavailable, match="starting"):
        await transport.batch(1, pb.BatchRequest(epoch=1, tenant="t", operations=[read]), 5.0)
    repairer = cluster.repairer(2)
    await repairer.round()
    assert list(repairer.status().nodes_down) == [1]


async def test_a_running_node_that_hears_of_more_than_it_has_stops(cluster: InProcessCluster) -> None:
    """Who testified at its start had seen less of it than one that was down then, or asleep."""
    told: list[ConfigurationError] = []
    repairer = cluster.repairer(2)
    repairer.on_forgotten = told.append
    await repairer.round()
    assert not told
    own = await cluster.stores[2].identity()
    name = cluster.cluster_map.node(2).node_id
    await witness(cluster.stores[1], name, own.store_id, own.commits)
    await repairer.round()
    assert not told  # as much as it has is no more
    cluster.handlers[1].serving = False  # it testifies all the same
    await witness(cluster.stores[1], name, own.store_id, own.commits + 10)
    with pytest.raises(ConfigurationError, match="older than it was"):
        await repairer.round()
    assert len(told) == 1


async def test_a_running_node_that_others_know_with_another_disk_stops(cluster: InProcessCluster) -> None:
    repairer = cluster.repairer(2)
    told: list[ConfigurationError] = []
    repairer.on_forgotten = told.append
    await witness(cluster.stores[3], cluster.cluster_map.node(2).node_id, OTHER, 1)
    with pytest.raises(ConfigurationError, match="another disk"):
        await repairer.round()
    assert told


def test_a_wrong_path_is_asked_for_before_a_rebuild_is_advised() -> None:
    """An unmounted disk, or a path with a typo, looks like a lost disk: a rebuild for it would be for nothing."""
    for found, here in ((None, "is empty"), (of(7), f"holds store {ME.hex()[:8]}")):
        with pytest.raises(ConfigurationError) as refused:
            judge(found, of(9), 5, [of(2, OTHER)])
        text = str(refused.value)
        assert text.startswith("is this the right disk?")
        assert here in text
        assert OTHER.hex()[:8] in text
        assert text.index("findmnt") < text.index("gone for good") < text.index("cluster replace")
    with pytest.raises(ConfigurationError, match="is it a copy, or a snapshot"):
        judge(of(3), of(9), 5, [of(9)])
