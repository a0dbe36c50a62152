"""What is timed, and beside what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coffre.bench.timing import Work

__all__ = ["INTERPRETER", "Operation", "Reference"]

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
