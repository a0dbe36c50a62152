"""Clocks move when told to; stamps grow whatever the clock does."""

from __future__ import annotations

import asyncio
import time

import pytest
from coffre.cluster.clock import DriftingClock, ManualClock, SystemClock
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.versions import HybridClock, Stamp
from hypothesis import given
from hypothesis import strategies as st

_words = st.integers(0, (1 << 64) - 1)


async def test_sleepers_wake_in_order_and_not_before() -> None:
    clock = ManualClock()
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(*each)) for each in (("b", 2.0), ("a", 1.0), ("c", 3.0))]
    await asyncio.sleep(0)
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(2.0)
    await asyncio.gather(*tasks[:2])
    assert woken == ["a", "b"]
    tasks[2].cancel()
    clock.advance(5.0)  # a cancelled sleeper does no harm
    assert clock.monotonic() == 7.5
    assert clock.unixtime_ms() == 1_700_000_000_000 + 7500


def test_the_wall_clock_jumps_alone() -> None:
    clock = ManualClock()
    clock.advance(1.0)
    clock.set_unixtime_ms(5)
    assert (clock.unixtime_ms(), clock.monotonic()) == (5, 1.0)


async def test_system_clock() -> None:
    clock = SystemClock()
    assert abs(clock.unixtime_ms() / 1000 - time.time()) < 5
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before


@given(_words, _words, _words, _words)
def test_stamps_compare_as_bytes(a: int, b: int, c: int, d: int) -> None:
    one, other = Stamp(a, b), Stamp(c, d)
    assert (one < other) == (one.to_bytes() < other.to_bytes())
    assert Stamp.from_bytes(one.to_bytes()) == one
    assert Stamp.parse(str(one)) == one


@pytest.mark.parametrize("text", ["", "00", "g" * 32, "0" * 31, "0" * 34])
def test_stamps_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Stamp.parse(text)


def test_stamps_grow_when_the_clock_stands_or_goes_back() -> None:
    clock = ManualClock()
    hybrid = HybridClock(clock, 7)
    issued = [hybrid.issue()]
    for jump_ms in (0, -10_000, 0, 500):
        clock.set_unixtime_ms(clock.unixtime_ms() + jump_ms)
        issued.append(hybrid.issue())
    assert issued == sorted(set(issued))
    seen = Stamp(issued[-1].hlc + (1 << 30), 1)
    hybrid.observe(seen)
    hybrid.observe(issued[0])
    assert hybrid.issue() > seen


def test_stamps_follow_the_wall_clock() -> None:
    clock = ManualClock()
    assert HybridClock(clock, 0).issue().unixtime_ms == clock.unixtime_ms()


def test_stamps_end() -> None:
    clock = ManualClock()
    with pytest.raises(InvalidArgument):
        HybridClock(clock, -1)
    clock.set_unixtime_ms(1 << 48)
    with pytest.raises(InvalidArgument, match="clock"):
        HybridClock(clock, 0).issue()


async def test_a_drifting_clock_is_wrong_in_the_way_it_was_told() -> None:
    world = ManualClock()
    clock = DriftingClock(world.monotonic, unixtime_ms=1_000_000, rate=1.5)
    world.advance(10)
    assert (clock.unixtime_ms(), clock.monotonic()) == (1_015_000, 15)
    clock.set_wrong_by(20)
    clock.set_wrong_by(-3)
    assert (clock.unixtime_ms(), clock.monotonic()) == (1_012_000, 15)
    await clock.sleep(0)
