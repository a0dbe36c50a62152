"""The order of repairs, what is set aside and for how long, the rate, the scrub's memory, and the settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c
from coffre.node.config import load_node_config
from coffre.node.memory import MemoryStore
from coffre.node.repair import RepairOptions, queue
from coffre.node.repair.pace import Pace
from coffre.node.repair.queue import RepairQueue
from coffre.node.repair.scene import Task
from coffre.node.repair.scrub import Scrub
from coffre.node.store import Accept
from coffre.proto import coffre_pb2 as pb


def task(key: str, survivors: int = 5) -> Task:
    return Task(ObjectName("clinic", "b", key), 1, survivors)


def keys(tasks: list[Task]) -> list[str]:
    return [each.name.key for each in tasks]


def test_fewest_survivors_first_and_then_in_turn() -> None:
    waiting = RepairQueue(ManualClock())
    for key, survivors in (("a", 5), ("b", 4), ("c", 6), ("d", 4)):
        assert waiting.push(task(key, survivors))
    assert waiting.push(task("a", 1))  # its name waits already
    assert waiting.by_spare_shards(4) == {1: 1, 0: 2, 2: 1}
    assert keys(waiting.pop(3)) == ["b", "d", "a"]
    assert keys(waiting.pop(3)) == ["c"]
    assert len(waiting) == 0


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUEUE_MAX", 2)
    monkeypatch.setattr(queue, "PARKED_MAX", 2)
    waiting = RepairQueue(ManualClock())
    assert [waiting.push(task(key)) for key in "abc"] == [True, True, False]
    for key in "abc":
        waiting.park(task(key), "why")
    assert waiting.parked_by_reason() == {"why": 2}


def test_what_is_parked_waits_twice_as_long_each_time() -> None:
    clock = ManualClock()
    waiting = RepairQueue(clock)
    for seconds in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        waiting.park(task("a"), "why")
        clock.advance(seconds - 1)
        assert waiting.is_parked(task("a").name)
        assert waiting.push(task("a"))
        assert len(waiting) == 0
        clock.advance(1)
        assert not waiting.is_parked(task("a").name)
    assert waiting.push(task("a"))
    assert keys(waiting.pop(1)) == ["a"]
    waiting.done(task("a"))
    assert waiting.parked_by_reason() == {}


async def test_the_rate_is_kept_over_pieces_of_any_size() -> None:
    clock = ManualClock()
    pace = Pace(clock, 1000)
    spent = 0

    async def work() -> None:
        nonlocal spent
        for size_bytes in [10] * 100 + [3000] + [10] * 100:
            await pace.spend(size_bytes)
            spent += size_bytes

    working = asyncio.create_task(work())
    for turn in range(1, 60):
        for _ in range(300):
            await asyncio.sleep(0)
        assert spent <= 1000 * 0.1 * turn + 250 + 10
        clock.advance(0.1)
    assert spent == 5000
    await working


async def test_scrub_goes_on_where_it_stopped_and_takes_the_time_it_has() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    for number in range(10):
        name = ObjectName("clinic", "b", str(number))
        cell = b"c" * 100
        accept = Accept(
            name,
            number,
            b"s" * 16,
            False,
            bytes(16),
            b"manifest",
            b"m" * 16,
            (1,),
            0,
            cell,
            crc32c(cell),
            blake3_128(cell),
        )
        await store.apply([accept])
    store.flip_cell(ObjectName("clinic", "b", "7"), b"s" * 16)
    options = RepairOptions(scrub_seconds=1000.0)
    scrub = Scrub(store, options, clock)
    passing = asyncio.create_task(scrub.one_pass())
    told = pb.RepairStatusReply()
    for second in range(0, 520, 20):
        for _ in range(20):
            await asyncio.sleep(0)
        scrub.tell(told)
        assert told.scrub_done == pytest.approx(second // 100 / 10 + 0.1)
        clock.advance(20)
    passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)
    again = Scrub(store, options, clock)
    passing = asyncio.create_task(again.one_pass())
    for _ in range(60):
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(20)
    await passing
    again.tell(told)
    assert told.scrub_damaged == 1
    assert told.scrub_finished_unixtime_ms > 0
    assert [repair.name.key async for repair in store.repair_queue()] == ["7"]
    assert again._next == 0


NODE = 'listen = "127.0.0.1:1"\ndata = "d"\nmap = "m"\n[tls]\nauthority = "a"\ncertificate = "c"\nkey = "k"\n[repair]\n'


def test_settings_of_repair(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE + "paused = true\nbytes_per_second = 5\nscrub_seconds = 7\n")
    found = load_node_config(path).repair
    assert (found.paused, found.bytes_per_second, found.scrub_seconds) == (True, 5, 7)
    path.write_text(NODE)
    assert load_node_config(path).repair == RepairOptions()


@pytest.mark.parametrize(
    "text",
    [
        "paused = 1",
        "speed = 3",
        "bytes_per_second = 0",
        "retention_seconds = 60",
        "unfinished_seconds = 60",
        "round_seconds = true",
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE + text + "\n")
    with pytest.raises(ConfigurationError, match=r"repair\."):
        load_node_config(path)
