"""The workloads: when the clock stops, whom a failure stops, and that what comes back is compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice

import pytest
from coffre.bench import _workload
from coffre.bench._workload import (
    BLOCK_BYTES,
    Blocks,
    ListedBucket,
    get_large,
    get_range,
    get_records,
    latencies,
    percentile,
    put_large,
    put_records,
    sustained_rate,
)
from coffre.bench.fhir_records import FhirRecord, fhir_records
from coffre.cluster.errors import IntegrityError, NotFound, Unavailable
from coffre.dev.in_process import InProcessCluster, in_process_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    """4+2 on six nodes."""
    made = in_process_cluster(4, 2)
    yield made
    await made.aclose()


async def test_what_operations_leave_behind_is_inside_the_measured_time() -> None:
    """The flush takes most of the time here: a clock that stops before it would show a far higher rate."""
    done: list[int] = []

    async def operation(number: int) -> None:
        done.append(number)
        await asyncio.sleep(0)

    async def flush() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.2)

    rate = await sustained_rate(operation, flush, callers=4, duration_s=0.01)
    assert sorted(done) == list(range(len(done)))
    assert rate < len(done) / 0.2


async def test_all_callers_are_busy_and_each_number_is_used_once() -> None:
    running = most = 0

    async def operation(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def flush() -> None:
        assert running == 0

    assert await sustained_rate(operation, flush, callers=8, duration_s=0.005) > 0
    assert most == 8


async def test_one_failed_operation_fails_the_measurement_and_ends_the_others() -> None:
    ended = 0

    async def operation(number: int) -> None:
        nonlocal ended
        if number == 5:
            raise Unavailable("no")
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    async def flush() -> None: ...

    with pytest.raises(Unavailable):
        await sustained_rate(operation, flush, callers=8, duration_s=60)
    assert ended == 7


async def test_payloads_come_from_the_seed_and_do_not_compress() -> None:
    one, same, other = Blocks(1), Blocks(1), Blocks(2)
    assert one.block(3) == same.block(3) != other.block(3)
    assert one.small(0) == one.block(0)[:4096]
    assert len({one.small(number) for number in range(2048)}) == 2048
    assert len({one.block(number) for number in range(16)}) == 16
    assert [piece async for piece in one.stream(17)][16] == one.block(0)


async def test_a_large_object_that_comes_back_changed_is_noticed(cluster: InProcessCluster) -> None:
    client, blocks, size_bytes = cluster.client(), Blocks(1), 3 * BLOCK_BYTES
    await put_large(client, blocks, "bench", "large", size_bytes)
    assert await get_large(client, blocks, "bench", "large", size_bytes) > 0
    assert await get_large(client, blocks, "bench", "large", size_bytes, compare_all=True) > 0
    damaged = bytearray(blocks.part(0, size_bytes))
    damaged[-1] ^= 1
    await client.put("bench", "large", bytes(damaged))
    with pytest.raises(IntegrityError, match="other bytes"):
        await get_large(client, blocks, "bench", "large", size_bytes, compare_all=True)
    damaged[0] ^= 1
    await client.put("bench", "large", bytes(damaged))
    with pytest.raises(IntegrityError, match="other bytes"):
        await get_large(client, blocks, "bench", "large", size_bytes)
    await client.put("bench", "large", bytes(blocks.part(0, 2 * BLOCK_BYTES)))
    with pytest.raises(IntegrityError, match="instead of"):
        await get_large(client, blocks, "bench", "large", size_bytes)


async def test_each_operation_has_its_latency_and_every_caller_makes_one() -> None:
    started: list[int] = []

    async def operation(number: int) -> None:
        started.append(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.02)

    found = await latencies(operation, callers=4, duration_s=0.05)
    assert sorted(started) == list(range(len(found)))
    assert len(found) >= 8
    assert min(found) >= 0.019
    assert len(await latencies(operation, callers=3, duration_s=0)) == 3


async def test_a_failed_operation_leaves_no_latencies() -> None:
    async def operation(number: int) -> None:
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        await latencies(operation, callers=2, duration_s=60)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 99) == 99.0
    assert percentile([float(number) for number in range(1, 1001)], 99) == 990.0
    assert percentile([7.0], 99) == 7.0


def test_a_part_of_a_large_object_may_lie_across_blocks() -> None:
    blocks = Blocks(1)
    whole = blocks.block(15) + blocks.block(16) + blocks.block(17)
    start = 15 * BLOCK_BYTES
    for offset, size in (
        (0, 10),
        (BLOCK_BYTES - 3, 10),
        (7, BLOCK_BYTES),
        (BLOCK_BYTES - 1, BLOCK_BYTES + 2),
    ):
        assert blocks.part(start + offset, size) == whole[offset : offset + size]


async def test_ranges_are_compared(cluster: InProcessCluster) -> None:
    client, blocks, size_bytes = cluster.client(), Blocks(1), 3 * BLOCK_BYTES
    await put_large(client, blocks, "bench", "large", size_bytes)
    for start in (0, BLOCK_BYTES - 1, size_bytes - 4096):
        await get_range(client, blocks, "bench", "large", start, 4096)
    await put_large(client, Blocks(2), "bench", "large", size_bytes)
    with pytest.raises(IntegrityError, match="other bytes"):
        await get_range(client, blocks, "bench", "large", 4096, 4096)


@pytest.fixture(scope="module")
def records() -> list[FhirRecord]:
    return list(islice(fhir_records(1), 25))


async def test_records_go_in_and_come_out_under_their_keys(
    cluster: InProcessCluster, records: list[FhirRecord]
) -> None:
    client = cluster.client()
    assert await put_records(client, "bench", "one", records, 10) > 0
    assert await get_records(cluster.client(), "bench", "one", records, 10) > 0
    for record in records:
        assert await client.get("bench", f"one/{record.key}") == record.data


async def test_a_record_that_is_not_acknowledged_makes_the_figure_void(
    cluster: InProcessCluster, records: list[FhirRecord]
) -> None:
    cluster.network.down.update((1, 2))
    with pytest.raises(Unavailable):
        await put_records(cluster.client(), "bench", "one", records, 10)


async def test_a_record_that_comes_back_changed_or_not_at_all_makes_the_figure_void(
    cluster: InProcessCluster, records: list[FhirRecord]
) -> None:
    client = cluster.client()
    await put_records(client, "bench", "one", records, 10)
    last = f"one/{records[-1].key}"
    await client.put("bench", last, records[-1].data + b" ")
    with pytest.raises(IntegrityError, match="other bytes"):
        await get_records(client, "bench", "one", records, 10)
    await client.delete("bench", last)
    with pytest.raises(NotFound):
        await get_records(client, "bench", "one", records, 10)


async def test_a_list_goes_through_the_whole_bucket_in_order(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workload, "PAGE_KEYS", 7)
    client, bucket = cluster.client(), ListedBucket("listed", 60)
    await bucket.fill(client, 0, 25)
    await bucket.fill(client, 25, 60)
    assert [entry.key async for entry in client.list("listed") if not isinstance(entry, str)] == sorted(
        bucket.key(number) for number in range(60)
    )
    positions = []
    for _ in range(12):  # one page each: more than once around
        assert await bucket.page_rate(client, 0) > 0
        positions.append(bucket._next)
    assert positions == [7, 14, 21, 28, 35, 42, 49, 56, 0, 7, 14, 21]


@pytest.mark.parametrize(("missing", "complaint"), [(3, "a list shows"), (59, "a list ends after 59 of 60")])
async def test_a_list_that_misses_a_key_makes_the_figure_void(
    missing: int, complaint: str, cluster: InProcessCluster
) -> None:
    client, bucket = cluster.client(), ListedBucket("listed", 60)
    await bucket.fill(client, 0, 60)
    await client.delete("listed", bucket.key(missing))
    with pytest.raises(IntegrityError, match=complaint):
        await bucket.page_rate(client, 0)


async def test_a_bucket_that_cannot_be_filled_is_not_listed(cluster: InProcessCluster) -> None:
    cluster.network.down.update((1, 2))
    with pytest.raises(Unavailable):
        await ListedBucket("listed", 10).fill(cluster.client(), 0, 10)
