"""Operations against a cluster in this process: counted, verified, and looked back on; damage is told from refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from coffre.bench.load.operations import Fate, Housekeeping, Ledger, Objects, Operations
from coffre.bench.load.plan import Operation
from coffre.bench.load.recorder import Recorder, Timeline
from coffre.client import AsyncClient
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import ResourceExhausted
from coffre.dev.in_process import InProcessCluster, in_process_cluster

from tests.unit.bench.load_results import PLAN

SMALL = replace(
    PLAN, workload="fixed", size_bytes=3_000, texture="record", objects=130, processes=1, range_bytes=500
)
CLOCK = SystemClock()


class Rig:
    """One client process's parts, over one client."""

    def __init__(self, client: AsyncClient, mix: str, **changes: object) -> None:
        self.plan = replace(SMALL, mix=mix, **changes)  # type: ignore[arg-type]
        self.client = client
        self.ledger = Ledger()
        self.recorder = Recorder(CLOCK.monotonic(), 1e9)
        self.operations = Operations(client, self.plan, 0, self.recorder, self.ledger, CLOCK)
        self.objects = Objects(self.plan, CLOCK)
        self.advanced = 0
        self.housekeeping = Housekeeping(client, self.plan, 0, self.ledger, CLOCK, self._advance)

    def _advance(self, size_bytes: int) -> None:
        self.advanced += size_bytes

    async def perform(self, times: int) -> Timeline:
        for _ in range(times):
            await self.operations.perform()
        return Timeline(self.recorder.take())


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    made = in_process_cluster(4, 2)
    yield made
    await made.aclose()


async def test_every_operation_counts_verifies_and_looks_back(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "put=1,get=1,range=1,head=1,list=1,delete=1")
    await rig.housekeeping.fill()
    assert rig.advanced == 130 * 3_000
    timeline = await rig.perform(120)
    tally = timeline.tally()
    assert tally.done == 120
    assert not tally.errors
    assert {operation for operation, _ in timeline.cells()} == set(Operation)
    assert dict(timeline.cells())[Operation.LIST] == "listing"
    ranges = timeline.tally(lambda each: each.operation is Operation.RANGE)
    assert ranges.size_bytes == 500 * ranges.done
    fates = [fate for _, fate in rig.ledger.fates()]
    assert Fate.DELETED in fates
    assert Fate.ACKNOWLEDGED in fates
    checked = await rig.housekeeping.check()
    assert checked.checked == len(rig.ledger) > 0
    assert checked.errors == {}


async def test_large_objects_are_streamed_and_verified(cluster: InProcessCluster) -> None:
    rig = Rig(
        cluster.client(),
        "put=1,get=1,range=1",
        objects=2,
        size_bytes=2_500_000,
        range_bytes=1_300_000,
        texture="image",
    )
    await rig.housekeeping.fill()
    tally = (await rig.perform(12)).tally()
    assert tally.done == 12
    assert not tally.errors
    assert (await rig.housekeeping.check()).errors == {}


async def test_other_bytes_and_a_lost_object_are_damage(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "get=1", objects=1)
    await rig.housekeeping.fill()
    key = rig.objects.base(0)
    await rig.client.put(rig.plan.bucket, key, bytes(3_000))
    assert (await rig.perform(1)).tally().errors == {"WrongBytes": 1}
    await rig.client.put(rig.plan.bucket, key, b"short")
    assert (await rig.perform(1)).tally().errors == {"WrongBytes": 1}
    await rig.client.delete(rig.plan.bucket, key)
    assert (await rig.perform(1)).tally().errors == {"Lost": 1}
    assert [line.split(": ")[1] for line in rig.operations.examples] == ["WrongBytes", "WrongBytes", "Lost"]


async def test_a_wrong_head_and_an_incomplete_listing_are_damage(cluster: InProcessCluster) -> None:
    heads = Rig(cluster.client(), "head=1", objects=1)
    await heads.client.put(heads.plan.bucket, heads.objects.base(0), b"short")
    assert (await heads.perform(1)).tally().errors == {"WrongBytes": 1}
    lists = Rig(cluster.client(), "list=1")
    await lists.housekeeping.fill()
    assert not (await lists.perform(5)).tally().errors
    await lists.client.delete(lists.plan.bucket, lists.objects.base(7))
    await lists.client.delete(lists.plan.bucket, lists.objects.base(107))
    assert (await lists.perform(1)).tally().errors == {"Lost": 1}


async def test_the_look_back_finds_what_is_lost_and_what_has_come_back(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "put=1")
    await rig.perform(4)
    keys = [rig.objects.own(0, number) for number in range(4)]
    await rig.client.delete(rig.plan.bucket, keys[0])  # acknowledged, and gone
    await rig.client.put(rig.plan.bucket, keys[1], b"other")
    rig.ledger.settle(2, Fate.DELETED)  # deleted, and there
    rig.ledger.settle(3, Fate.REFUSED)
    checked = await rig.housekeeping.check()
    assert checked.errors == {"Lost": 1, "WrongBytes": 1, "Resurrected": 2}
    assert len(checked.examples) == 4


async def test_a_refused_put_must_not_be_there_and_one_of_unknown_outcome_may(
    cluster: InProcessCluster,
) -> None:
    rig = Rig(cluster.client(), "put=1")
    cluster.network.down.update({1, 2, 3})
    tally = (await rig.perform(3)).tally()
    cluster.network.heal()
    assert tally.failed == 3
    assert tally.done == 0
    assert Fate.ACKNOWLEDGED not in {fate for _, fate in rig.ledger.fates()}
    unknown = rig.ledger.begin()  # as if nobody had answered
    assert (await rig.housekeeping.check()).errors == {}
    await rig.objects.put(rig.client, rig.objects.own(0, unknown))
    assert (await rig.housekeeping.check()).errors == {}


async def test_errors_are_counted_by_class_and_the_load_goes_on(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "get=1", objects=3)
    await rig.housekeeping.fill()
    cluster.network.down.update({1, 2, 3, 4})
    assert (await rig.perform(2)).tally().errors == {"Unavailable": 2}
    cluster.network.heal()
    assert (await rig.perform(2)).tally().done == 2


async def test_with_nothing_to_delete_there_is_a_put(cluster: InProcessCluster) -> None:
    timeline = await Rig(cluster.client(), "delete=1").perform(6)
    assert timeline.tally(lambda each: each.operation is Operation.PUT).done == 3
    assert timeline.tally(lambda each: each.operation is Operation.DELETE).done == 3
    assert timeline.tally().done == 6


async def test_cleaning_leaves_nothing(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "put=3,delete=1")
    await rig.housekeeping.fill()
    await rig.perform(20)
    assert (await rig.client.list_page(rig.plan.bucket)).objects
    await rig.housekeeping.clean()
    assert (await rig.client.list_page(rig.plan.bucket)).objects == ()


async def test_latency_counts_from_when_it_was_due(cluster: InProcessCluster) -> None:
    rig = Rig(cluster.client(), "get=1", objects=1)
    await rig.housekeeping.fill()
    await rig.operations.perform(CLOCK.monotonic() - 5.0)
    await rig.operations.perform()
    latencies = Timeline(rig.recorder.take()).tally().latencies
    assert 5.0 <= latencies.percentile(100) < 6.0
    assert latencies.percentile(50) < 1.0
    assert 5.0 <= rig.recorder.lag.percentile(100) < 6.0


def test_a_ledger_gives_each_object_to_one_delete_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coffre.bench.load.operations.OBJECTS_MAX", 3)
    ledger = Ledger()
    assert [ledger.begin() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ResourceExhausted):
        ledger.begin()
    ledger.settle(1, Fate.ACKNOWLEDGED)
    assert ledger.take_oldest() == 1
    assert ledger.take_oldest() is None
    assert [fate for _, fate in ledger.fates()] == [Fate.UNKNOWN] * 3
