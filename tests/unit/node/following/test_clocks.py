"""Whether a node may believe its clock: most of those that answered agree, it did not jump since, and no single liar
decides."""

from __future__ import annotations

import pytest
from coffre.cluster.clock import ManualClock
from coffre.node.following import ClockAsking, PeerClocks
from coffre.node.following.clocks import CLOCKS_APART_MS_MAX

OTHERS = range(2, 7)
HOUR_MS = 3_600_000.0


def compared(clock: ManualClock, *ahead_ms: float) -> PeerClocks:
    clocks = PeerClocks(clock)
    clocks.compare(dict(zip(OTHERS, ahead_ms, strict=False)), OTHERS, ClockAsking.begin(clock))
    return clocks


def test_before_anything_was_compared_nothing_is_old_and_nobody_is_barred() -> None:
    clocks = PeerClocks(ManualClock())
    assert clocks.now_ms() is None
    assert not clocks.is_barred


@pytest.mark.parametrize(
    ("ahead_ms", "agrees", "barred"),
    [
        ((0, 10, -20, 30, 5), True, False),
        ((HOUR_MS, 10, -20, 30, 5), True, False),  # one peer that lies, or is wrong, bars nobody
        ((HOUR_MS, -HOUR_MS, 0, 0, 0), True, False),
        ((HOUR_MS,) * 5, False, True),
        ((-HOUR_MS,) * 4 + (0,), False, True),
        ((HOUR_MS, HOUR_MS, HOUR_MS, 0, 0), False, False),  # three against three: nobody knows who is right
        ((HOUR_MS, 0), False, False),
        ((HOUR_MS,), False, False),  # one against one
        ((0.0,), True, False),
        ((HOUR_MS, HOUR_MS), False, True),
        ((), False, False),  # nobody answers: it may be the network
        ((CLOCKS_APART_MS_MAX,) * 5, True, False),
        ((CLOCKS_APART_MS_MAX + 1,) * 5, False, True),
    ],
)
def test_most_of_those_that_answered_decide(ahead_ms: tuple[float, ...], agrees: bool, barred: bool) -> None:
    clocks = compared(ManualClock(), *ahead_ms)
    assert (clocks.now_ms() is not None, clocks.is_barred) == (agrees, barred)
    assert bool(clocks.ahead_seconds) == barred


def test_a_cluster_of_one_believes_itself() -> None:
    clocks = PeerClocks(ManualClock())
    clocks.compare({}, [], ClockAsking.begin(clocks.clock))
    assert clocks.now_ms() is not None


def test_it_says_so_loudly_and_says_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clocks = compared(ManualClock(), *(HOUR_MS,) * 5)
    assert clocks.ahead_seconds == 3600
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    clocks.compare(dict.fromkeys(OTHERS, HOUR_MS), OTHERS, ClockAsking.begin(clocks.clock))
    assert len(caplog.records) == 1  # once
    clocks.compare({}, OTHERS, ClockAsking.begin(clocks.clock))
    assert clocks.is_barred  # that nobody answers does not make it right
    clocks.compare(dict.fromkeys(OTHERS, 0.0), OTHERS, ClockAsking.begin(clocks.clock))
    assert not clocks.is_barred
    assert clocks.ahead_seconds == 0
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@pytest.mark.parametrize("jump_seconds", [3600, -3600, 125, -125])
def test_a_clock_that_jumped_is_believed_when_it_was_compared_again(jump_seconds: int) -> None:
    """A machine that was suspended is the same: its monotonic clock stood still."""
    clock = ManualClock()
    clocks = compared(clock, 0, 0, 0, 0, 0)
    clock.advance(10_000)
    assert clocks.now_ms() == clock.unixtime_ms()
    clock.set_unixtime_ms(clock.unixtime_ms() + jump_seconds * 1000)
    assert clocks.now_ms() is None
    assert clocks.is_barred
    clocks.compare(dict.fromkeys(OTHERS, 0.0), OTHERS, ClockAsking.begin(clocks.clock))
    assert clocks.now_ms() == clock.unixtime_ms()
    assert not clocks.is_barred


@pytest.mark.parametrize("jump_seconds", [3600, -3600, 26 * 3600])
def test_a_clock_that_jumped_while_others_were_waited_for_is_not_the_one_that_was_compared(
    jump_seconds: int,
) -> None:
    """Simulator seed 216: those that answered at once agreed, and it jumped before the slowest had answered."""
    clock = ManualClock()
    asked, theirs = ClockAsking.begin(clock), clock.unixtime_ms()
    ahead_ms = {node: asked.ahead_ms(clock, theirs) for node in OTHERS}
    clock.advance(3)
    clock.set_unixtime_ms(clock.unixtime_ms() + jump_seconds * 1000)
    clocks = PeerClocks(clock)
    clocks.compare({node: ahead for node, ahead in ahead_ms.items() if ahead is not None}, OTHERS, asked)
    assert clocks.now_ms() is None
    assert clocks.is_barred
    clocks.compare(dict.fromkeys(OTHERS, 0.0), OTHERS, ClockAsking.begin(clock))
    assert clocks.now_ms() == clock.unixtime_ms()


def test_a_second_is_no_jump() -> None:
    clock = ManualClock()
    clocks = compared(clock, 0, 0, 0)
    clock.set_unixtime_ms(clock.unixtime_ms() + 1000)
    assert clocks.now_ms() == clock.unixtime_ms()


def test_those_who_agree_are_named() -> None:
    clocks = PeerClocks(ManualClock())
    assert clocks.compare({2: 0.0, 3: HOUR_MS, 4: -5.0}, OTHERS, ClockAsking.begin(clocks.clock)) == {2, 4}


def test_how_far_ahead_is_told_from_the_middle_of_the_round_trip() -> None:
    clock = ManualClock()
    asking, theirs = ClockAsking.begin(clock), clock.unixtime_ms()
    clock.advance(2)
    assert asking.ahead_ms(clock, theirs + 1000) == 0
    assert asking.ahead_ms(clock, theirs + 1000 - 3_600_000) == 3_600_000
    assert asking.ahead_ms(clock, 0) is None  # it did not say


def test_who_stood_still_while_it_asked_can_tell_nothing() -> None:
    clock = ManualClock()
    asking, theirs = ClockAsking.begin(clock), clock.unixtime_ms()
    clock.set_unixtime_ms(theirs + 3_600_000)
    assert asking.ahead_ms(clock, theirs) is None
    asking = ClockAsking.begin(clock)
    clock.advance(100)
    assert asking.ahead_ms(clock, clock.unixtime_ms()) is None
