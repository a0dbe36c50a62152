"""Memory that is used again is nobody else's."""

from __future__ import annotations

import random

from coffre.client.sealing import MessageMemory
from coffre.client.sealing._memory import KEPT_SEGMENTS_MAX, SegmentMemory


def test_what_somebody_looks_at_is_not_given_out() -> None:
    memory = SegmentMemory()
    rng = random.Random(5)
    held: dict[int, memoryview] = {}
    for number in range(2000):
        view = memory.take(rng.choice((64, 64, 64, 100)))
        view[:] = bytes((number % 256,)) * len(view)
        held[number] = view[: rng.randrange(1, 64)].toreadonly()  # a part, and read-only, holds it as well
        del view
        if len(held) > rng.randrange(3 * KEPT_SEGMENTS_MAX):
            del held[rng.choice(list(held))]
        if number % 100 == 0:
            assert all(set(part) == {place % 256} for place, part in held.items())


def test_memory_comes_back_once_nobody_looks_at_it() -> None:
    memory = SegmentMemory()
    first = memory.take(1000)
    first[:4] = b"seen"
    second = memory.take(1000)
    assert bytes(second[:4]) == bytes(4)
    del first
    assert bytes(memory.take(1000)[:4]) == b"seen"


def test_sizes_may_change() -> None:
    """Compressed segments are of all sizes: what is too small is let go, and what is larger serves."""
    memory = SegmentMemory()
    for size in (10, 1000, 0, 7, 1000, 1001, 3):
        assert len(memory.take(size)) == size
    assert [len(buffer) for buffer in memory._kept] == [1001]


def test_no_more_is_kept_than_said() -> None:
    memory = SegmentMemory()
    views = [memory.take(10) for _ in range(5 * KEPT_SEGMENTS_MAX)]
    views[:4] = [memory.take(11), memory.take(12), memory.take(13), memory.take(14)]
    assert len(memory._kept) <= KEPT_SEGMENTS_MAX + 1


def test_messages_take_turns_and_never_change_what_was_given_out() -> None:
    memory = MessageMemory(3)
    taken = [memory.take() for _ in range(7)]
    assert taken[0] is taken[3] is taken[6]
    assert len({id(one) for one in taken}) == 3
    taken[0].write(b"first")
    given = taken[0].getvalue()
    with taken[0].getbuffer() as view:
        view[:] = b"other"
    assert given == b"first"
    assert taken[0].getvalue() == b"other"
