"""Work that is timed in turns: what neighbours on a machine do to one, they do to the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

__all__ = ["Work", "timed"]


class Work(NamedTuple):
    """What is done in one turn: so many calls."""

    run: Callable[[], object]
    calls: int = 1


def timed(
    works: Sequence[Work], rounds: int, clock: Callable[[], float] = perf_counter
) -> list[tuple[float, ...]]:
    """Seconds of a turn of each, round by round, after one call each to warm up."""
    for work in works:
        work.run()
    found = []
    gc.disable()
    try:
        for _ in range(rounds):
            durations = []
            for run, calls in works:
                start = clock()
                for _ in range(calls):
                    run()
                durations.append(clock() - start)
            found.append(tuple(durations))
    finally:
        gc.enable()
    return found
