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
    """What a seed draws about time.

    `spells`: mean seconds between two. `wrong`: so many of the m nodes whose clocks may be wrong are so from the
    beginning to the end of the faults. `sleeper`: a client stands still from the midst of the faults until everything
    has been repaired, and then goes on. `round_seconds`, `delay`: rounds of repair come so often, and messages take so
    long, that rounds find puts under way.
    """

    spells: dict[Spell, float]
    wrong: int
    sleeper: bool
    round_seconds: float
    delay: float


def draw_clocks(seed: int, *, hasty: bool) -> ClockPlan | None:
    rng = random.Random(f"{seed}/clocks")
    if rng.random() >= 0.3 or hasty:
        return None
    spells = {spell: rng.choice([1.0, 2.0, 5.0]) for spell in Spell if rng.random() < 0.75}
    return ClockPlan(
        spells,
        wrong=rng.choice([0, 1, 1, 2]),
        sleeper=rng.random() < 0.4,
        round_seconds=rng.choice([0.3, 1.0, 4.0]),
        delay=rng.choice([0.0, 0.05, 0.2]),
    )
