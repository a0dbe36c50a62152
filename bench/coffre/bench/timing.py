"""Work that is timed in turns: what neighbours on a machine do to one, they do to the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

__all__ = ["INTERPRETER", "Operation", "Reference", "Work", "timed"]


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


ROUNDS = 61  # of a millisecond or so: short enough that some of them are left alone on a busy machine


@dataclass(frozen=True, slots=True)
class Reference:
    """Work that is none of Coffre's, of a fixed size: a millisecond or a few."""

    id: str
    work: Work


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, so many calls of it in a round, and what takes turns with it.

    A ratio that grew by more than `tolerance` counts as slower; bench/README.md says how that was found.
    """

    id: str
    reference: Reference
    run: Callable[[], object]
    calls: int = 1
    tolerance: float = 0.3
    rounds: int = ROUNDS


def _interpret() -> int:
    found = 0
    for number in range(20_000):
        found += number * number & 0xFF
    return found


INTERPRETER = Reference("interpreter", Work(_interpret))
