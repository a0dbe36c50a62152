"""A client's marks: they cover what is established, all of it sooner or later, and never what was given up."""

from __future__ import annotations

import random
from functools import partial

import pytest
from coffre.client.writing import Issuer
from coffre.client.writing._stamps import BLOCKED_MS, RETIRED_MAX
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ClockSkew
from coffre.cluster.versions import Stamp


def issuer(clock: ManualClock, seed: int = 1) -> Issuer:
    return Issuer(clock, random.Random(seed).randbytes)


def covered(marks: tuple[bytes, ...], stamp: Stamp) -> bool:
    """Whether a node that knows these marks takes a version for established."""
    raw = stamp.to_bytes()
    return any(mark[8:] == raw[8:] and raw <= mark for mark in marks)


def never() -> None:
    raise AssertionError("a mark says it")


def test_a_mark_follows_what_is_established_in_order() -> None:
    stamps = issuer(ManualClock())
    first, second, third = (stamps.issue() for _ in range(3))
    assert not stamps.marks()
    stamps.established(second, never)
    assert not stamps.marks()
    stamps.established(first, never)
    assert stamps.marks() == (second.to_bytes(),)
    assert not covered(stamps.marks(), third)
    stamps.established(third, never)
    assert stamps.marks() == (third.to_bytes(),)


def test_what_was_given_up_is_never_covered_and_the_rest_is_told() -> None:
    stamps = issuer(ManualClock())
    first = stamps.issue()
    stamps.established(first, never)
    given_up, above, open_ = (stamps.issue() for _ in range(3))
    told: list[str] = []
    stamps.established(above, lambda: told.append("above"))
    stamps.given_up(given_up)
    assert told == ["above"]
    stamps.established(open_, lambda: told.append("open"))
    assert told == ["above", "open"]
    later = stamps.issue()
    stamps.established(later, never)
    assert later.writer != first.writer
    assert covered(stamps.marks(), first)
    assert covered(stamps.marks(), later)
    assert not covered(stamps.marks(), given_up)


def test_a_slow_version_does_not_hide_those_above_it_for_long() -> None:
    clock = ManualClock()
    stamps = issuer(clock)
    slow, soon = stamps.issue(), stamps.issue()
    told: list[str] = []
    stamps.established(soon, lambda: told.append("soon"))
    clock.advance((BLOCKED_MS + 1) / 1000)
    late = stamps.issue()
    stamps.established(late, lambda: told.append("late"))
    assert told == ["soon", "late"]
    assert not stamps.marks()
    stamps.established(slow, never)
    assert stamps.marks() == (slow.to_bytes(),)
    assert told == ["soon", "late"]
    last = stamps.issue()
    stamps.established(last, never)
    assert stamps.marks() == (last.to_bytes(),)


def test_what_waits_behind_a_slow_version_does_not_pile_up() -> None:
    clock = ManualClock()
    stamps = issuer(clock)
    stamps.issue()
    clock.advance((BLOCKED_MS + 1) / 1000)
    told: list[Stamp] = []
    for _ in range(1000):
        stamp = stamps.issue()
        stamps.established(stamp, partial(told.append, stamp))
    assert len(told) == 1000
    assert len(stamps._open) == 1


def test_marks_stay_few_and_stamps_grow() -> None:
    stamps = issuer(ManualClock())
    last = Stamp(0, 0)
    for _ in range(3 * RETIRED_MAX):
        established, given_up = stamps.issue(), stamps.issue()
        assert last < established < given_up
        last = given_up
        stamps.established(established, never)
        stamps.given_up(given_up)
    assert len(stamps.marks()) == RETIRED_MAX


def test_any_order_of_ends_tells_of_everything_and_of_nothing_else() -> None:
    for seed in range(200):
        source = random.Random(seed)
        stamps = issuer(ManualClock(), seed)
        marks: set[bytes] = set()
        told: set[Stamp] = set()
        open_: list[Stamp] = []
        established: set[Stamp] = set()
        given_up: set[Stamp] = set()
        for _ in range(60):
            if open_ and source.random() < 0.5:
                stamp = open_.pop(source.randrange(len(open_)))
                if source.random() < 0.1:
                    stamps.given_up(stamp)
                    given_up.add(stamp)
                else:
                    established.add(stamp)
                    stamps.established(stamp, partial(told.add, stamp))
            else:
                open_.append(stamps.issue())
            marks.update(stamps.marks())
        for stamp in open_:
            established.add(stamp)
            stamps.established(stamp, partial(told.add, stamp))
        marks.update(stamps.marks())
        final = tuple(marks)
        assert all(covered(final, stamp) or stamp in told for stamp in established), seed
        assert not any(covered(final, stamp) or stamp in told for stamp in given_up), seed


# ------------------------------------------------------------------ clocks


def ahead(clock: ManualClock, seconds: float) -> Stamp:
    return Stamp(clock.unixtime_ms() + int(seconds * 1000) << 16, 99)


def test_a_stamp_from_the_future_moves_nothing() -> None:
    clock = ManualClock()
    stamps = issuer(clock)
    for stamp in (ahead(clock, 61), ahead(clock, 86_400), Stamp((1 << 64) - 1, (1 << 64) - 1)):
        stamps.observe(stamp)
        assert not stamps.is_believable(stamp.to_bytes())
    assert stamps.issue().unixtime_ms == clock.unixtime_ms()
    stamps.observe(ahead(clock, 59))
    assert stamps.issue() > ahead(clock, 59)


def test_what_must_be_above_a_stamp_of_the_future_has_a_writer_of_its_own() -> None:
    clock = ManualClock()
    stamps = issuer(clock)
    first = stamps.issue()
    lowest = ahead(clock, 600)
    high, second = stamps.issue(lowest.to_bytes()), stamps.issue()
    assert high > lowest
    assert second.unixtime_ms == clock.unixtime_ms()
    assert len({first.writer, high.writer}) == 2
    told: list[str] = []
    stamps.established(high, lambda: told.append("high"))
    assert told == ["high"]  # no mark can say it
    for stamp in (first, second):
        stamps.established(stamp, never)
    assert stamps.marks() == (second.to_bytes(),)
    with pytest.raises(ClockSkew):
        stamps.issue(b"\xff" * 16)


def test_a_clock_that_was_set_back_begins_anew_with_another_writer() -> None:
    """Else the marks of before would settle what is written now, or nothing could be written for a year."""
    clock = ManualClock()
    stamps = issuer(clock)
    clock.set_unixtime_ms(clock.unixtime_ms() + 365 * 86_400_000)
    before, open_ = stamps.issue(), stamps.issue()
    stamps.established(before, never)
    clock.set_unixtime_ms(clock.unixtime_ms() - 365 * 86_400_000)
    after = stamps.issue()
    assert after.unixtime_ms == clock.unixtime_ms()
    assert after.writer != before.writer
    assert covered(stamps.marks(), before)
    assert not covered(stamps.marks(), after)
    told: list[str] = []
    stamps.established(open_, lambda: told.append("open"))
    assert told == ["open"]
    clock.set_unixtime_ms(clock.unixtime_ms() - 30_000)  # so little is evened out, as ever
    assert stamps.issue() > after
