"""What a member makes of the answers of the others."""

from __future__ import annotations

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.health import Health, HealthLimits, HealthTracker

LIMITS = HealthLimits(
    failures=2, grace_seconds=900, flaps=3, flap_window_seconds=600, slow_factor=5, slow_seconds=0.1
)


def tracker() -> tuple[HealthTracker, ManualClock]:
    clock = ManualClock()
    found = HealthTracker(clock, LIMITS)
    for peer in range(1, 7):
        found.answered(peer, 0.002)
    return found, clock


def fall(found: HealthTracker, peer: int) -> None:
    for _ in range(LIMITS.failures):
        found.failed(peer)


def test_one_lost_answer_is_nothing() -> None:
    found, clock = tracker()
    found.failed(1)
    clock.advance(10_000)
    assert found.health(1) is Health.UP
    assert found.down_seconds(1) == 0
    assert not found.is_lost(1)
    assert found.health(99) is Health.UNKNOWN
    assert found.set_aside() == frozenset()


def test_a_short_outage_is_waited_for() -> None:
    found, clock = tracker()
    found.failed(1)
    clock.advance(5)
    found.failed(1)
    assert found.health(1) is Health.DOWN
    clock.advance(LIMITS.grace_seconds - 5.5)
    assert not found.is_lost(1)
    clock.advance(0.5)
    assert found.is_lost(1)
    assert found.down_seconds(1) == LIMITS.grace_seconds
    assert found.set_aside() == {1}
    found.answered(1, 0.002)
    assert found.health(1) is Health.UP
    assert not found.is_lost(1)


def test_a_clock_that_jumps_makes_no_node_lost() -> None:
    found, clock = tracker()
    fall(found, 1)
    clock.set_unixtime_ms(clock.unixtime_ms() + 10**9)
    assert not found.is_lost(1)


def test_who_keeps_going_away_is_set_aside_until_it_stays() -> None:
    found, clock = tracker()
    for _ in range(LIMITS.flaps):
        assert found.health(1) is Health.UP
        clock.advance(60)
        fall(found, 1)
        assert found.health(1) is Health.DOWN
        found.answered(1, 0.002)
    assert found.health(1) is Health.FLAPPING
    assert found.set_aside() == {1}
    clock.advance(LIMITS.flap_window_seconds - 2 * 60 + 1)
    assert found.health(1) is Health.UP


def test_a_long_outage_is_one_fall() -> None:
    found, _ = tracker()
    for _ in range(100):
        found.failed(1)
    found.answered(1, 0.002)
    assert found.health(1) is Health.UP


def test_slow_is_relative_to_the_others() -> None:
    found, _ = tracker()
    for _ in range(32):
        found.answered(1, 0.5)
    assert found.health(1) is Health.SLOW
    assert found.set_aside() == {1}
    assert found.latency_seconds(1) == 0.5
    for peer in range(2, 7):
        for _ in range(32):
            found.answered(peer, 0.4)  # a distant cluster, or a busy member: nobody stands out
    assert {found.health(peer) for peer in range(1, 7)} == {Health.UP}


def test_nobody_is_slow_below_the_limit() -> None:
    found, _ = tracker()
    for _ in range(32):
        found.answered(1, 0.09)  # 45 times the others
    assert found.health(1) is Health.UP


def test_one_late_answer_is_not_slow() -> None:
    found, _ = tracker()
    for _ in range(3):
        found.answered(1, 0.002)
    found.answered(1, 5.0)
    assert found.health(1) is Health.UP


def test_old_answers_say_nothing_of_now() -> None:
    found, clock = tracker()
    for _ in range(8):
        found.answered(1, 0.5)
    assert found.health(1) is Health.SLOW
    clock.advance(LIMITS.slow_window_seconds + 1)
    for peer in range(2, 7):
        found.answered(peer, 0.002)
    assert found.health(1) is Health.UP
    assert found.latency_seconds(1) is None


def test_one_of_two_can_be_slow() -> None:
    clock = ManualClock()
    found = HealthTracker(clock, LIMITS)
    for _ in range(3):
        assert found.health(1) in (Health.UNKNOWN, Health.UP)
        found.answered(1, 0.5)
        found.answered(2, 0.002)
    assert found.health(1) is Health.SLOW
    assert found.health(2) is Health.UP


def test_who_stops_again_and_again_is_flapping_though_every_answer_comes() -> None:
    found, clock = tracker()
    for _ in range(LIMITS.flaps):
        assert found.health(1) is Health.UP
        clock.advance(30)
        for _ in range(5):
            found.answered(1, 2.0)  # all of one stall
        clock.advance(30)
        for _ in range(32):
            found.answered(1, 0.002)
    assert found.health(1) is Health.FLAPPING
    assert found.falls(1) == LIMITS.flaps
    clock.advance(LIMITS.flap_window_seconds)
    found.answered(1, 0.002)
    assert found.health(1) is Health.UP


def test_a_node_that_restarts_again_and_again_is_flapping() -> None:
    found, clock = tracker()
    for _ in range(LIMITS.flaps):
        assert found.health(1) is Health.UP
        clock.advance(10)
        found.restarted(1)
        found.answered(1, 0.002)
    assert found.health(1) is Health.FLAPPING


def test_one_outage_is_counted_once_however_it_shows() -> None:
    found, clock = tracker()
    for _ in range(LIMITS.failures + 1):
        clock.advance(5)
        found.failed(1, 2.0)  # it waited in vain each time
    clock.advance(5)
    found.restarted(1)
    found.answered(1, 0.002)
    assert found.falls(1) == 1
    clock.advance(5)
    found.failed(1, 2.0)
    assert found.falls(1) == 2, "one wait in vain is another stall"


def test_who_left_is_forgotten() -> None:
    found, _ = tracker()
    fall(found, 1)
    found.forget([1, 99])
    assert found.health(1) is Health.UNKNOWN


@pytest.mark.parametrize(
    "change",
    [{"failures": 0}, {"flaps": 0}, {"grace_seconds": -1}, {"slow_factor": 0.5}, {"slow_answers": 0}],
)
def test_limits_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        HealthLimits(**change)  # type: ignore[arg-type]
