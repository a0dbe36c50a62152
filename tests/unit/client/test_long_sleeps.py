"""Processes that stand still for longer than nodes remember what was deleted: nothing of it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from coffre.client import AsyncClient
from coffre.client.puts._recoding import Pace
from coffre.client.reading import Reader
from coffre.cluster.clock import DriftingClock
from coffre.cluster.errors import NotFound, OutcomeUnknown, Unavailable
from coffre.cluster.map import Electorates, Policy
from coffre.cluster.membership import set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, Network, Traffic, in_process_cluster
from coffre.node.repair import RepairOptions
from coffre.node.store import Collect, Condemn
from coffre.proto import coffre_pb2 as pb

NAME = ObjectName("clinic", "b", "k")
SLEEP_SECONDS = 25 * 3600.0


@pytest.fixture
async def clock() -> DriftingClock:
    """Everybody's: it is right."""
    return DriftingClock(asyncio.get_running_loop().time)


@pytest.fixture
async def cluster(clock: DriftingClock) -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(4, 2, nodes=8, clock=clock)
    yield made
    await made.aclose()


async def delete_and_forget(cluster: InProcessCluster, client: AsyncClient) -> None:
    """Delete the object, and collect its tombstone everywhere, as nodes do after a day."""
    await client.delete("b", "k")
    await client.flush()
    partition = partition_of(NAME, cluster.cluster_map.partitions)
    for store in cluster.stores.values():
        for version in await store.read(NAME):
            if version.tombstone:
                done = await store.apply(
                    [step(NAME, partition, version.stamp) for step in (Condemn, Collect)]
                )
                assert [one.error for one in done] == [None, None]
    with pytest.raises(NotFound):
        await client.get("b", "k")


async def test_what_was_read_and_deleted_while_its_writer_slept_is_not_written_again(
    cluster: InProcessCluster, clock: DriftingClock
) -> None:
    """A reader completed it, so it stood; that all nodes vote against it by now shows nothing."""
    electorate = Electorates(cluster.cluster_map).of(
        "clinic", "b", partition_of(NAME, cluster.cluster_map.partitions)
    )
    took, silent = electorate.primaries[:4], electorate.primaries[4:]
    others = Network(down={silent[0]})
    reader = cluster.client(clock=clock, network=others)
    taken, slept = asyncio.Event(), asyncio.Event()
    answered: set[int] = set()

    async def answer(node: int, reply: Traffic) -> None:
        answered.add(node)
        if answered.issuperset(took):
            taken.set()

    async def sleep(node: int, request: Traffic) -> None:
        accepts = isinstance(request, pb.BatchRequest) and any(
            operation.HasField("accept") for operation in request.operations
        )
        if not accepts or node in took or slept.is_set():
            return
        if node == silent[0]:
            await taken.wait()
            assert await reader.get("b", "k") == b"value"
            others.heal()
            await delete_and_forget(cluster, reader)
            clock.set_wrong_by(SLEEP_SECONDS)
            slept.set()
        await slept.wait()
        raise Unavailable("the machine slept")

    cluster.network.before, cluster.network.after = sleep, answer
    with pytest.raises(OutcomeUnknown):
        await cluster.client(clock=clock).put("b", "k", b"value")
    assert slept.is_set()
    with pytest.raises(NotFound):
        await reader.get("b", "k")


async def test_what_was_deleted_while_who_codes_it_anew_slept_is_not_there_again(
    cluster: InProcessCluster, clock: DriftingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that were on their way to it when it fell asleep say what was, a day ago."""
    await cluster.client(clock=clock).put("b", "k", b"value")
    moving = set_policy(cluster.cluster_map, "clinic", "b", "3+1", Policy("3+1", 3, 1, ("FR",)))
    cluster.adopt(moving, clock)
    for _ in range(2):
        for number in cluster.stores:
            await cluster.repairer(number, RepairOptions(settling_seconds=-5.0), clock=clock).round()
    moved = finish_move(moving)
    cluster.adopt(moved, clock)
    client, other = (cluster.client(clock=clock, cluster_map=moved) for _ in range(2))
    original, slept = Reader.holders, False

    async def holders(self: Reader, *args):  # type: ignore[no-untyped-def]
        nonlocal slept
        answers = await original(self, *args)
        if not slept:
            slept = True
            await delete_and_forget(cluster, other)
            clock.set_wrong_by(SLEEP_SECONDS)
        return answers

    monkeypatch.setattr(Reader, "holders", holders)
    assert await client._parts.recoder.recode(NAME, Pace(clock, None)) is None
    assert slept
    with pytest.raises(NotFound):
        await other.get("b", "k")
