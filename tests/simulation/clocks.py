"""What a seed draws about time: clocks that are very wrong, and processes that stand still (spells.py makes them)."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

__all__ = ["ClockPlan", "Spell", "draw_clocks"]


class Spell(enum.Enum):
    """What can be wrong with time."""

    WRONG = "wrong"
    STILL = "still"


@dataclass(frozen=True, slots=True)
class ClockPlan:
    """What a seed draws about time. `spells`: mean seconds between two. `sleeper`: a client stands still from the midst
    of the faults until everything has been repaired, and then goes on."""

    spells: dict[Spell, float]
    sleeper: bool


def draw_clocks(seed: int, *, hasty: bool) -> ClockPlan | None:
    rng = random.Random(f"{seed}/clocks")
    if rng.random() >= 0.3 or hasty:
        return None
    spells = {spell: rng.choice([1.0, 3.0, 8.0]) for spell in Spell if rng.random() < 0.75}
    return ClockPlan(spells, sleeper=rng.random() < 0.4)
