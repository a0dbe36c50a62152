"""What a look at a cluster finds, and how much it matters."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Level", "see_run_book"]


class Level(enum.IntEnum):
    """How much a finding matters."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an operator should know, and about whom."""

    level: Level
    subject: str  # a node's id, or the cluster
    text: str


def see_run_book(title: str) -> str:
    """Where it says what to do, in brackets behind a finding."""
    return f' (docs/operations.md, "{title}")'
