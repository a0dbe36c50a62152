"""Whether this node's clock may be believed: what the other nodes' clocks say, and whether it jumped since.

Age is no evidence by one clock (docs/consistency.md, "Clocks and sleep"). A node decides nothing by age unless its
clock agrees with those of most nodes that answered, and takes no new version while it is among the fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from coffre.cluster.clock import Clock
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX

__all__ = ["AHEAD_MS_MAX", "CLOCKS_APART_MS_MAX", "ClockAsking", "PeerClocks"]

_log = logging.getLogger("coffre.node")
CLOCKS_APART_MS_MAX = 120_000
"""Clocks that differ by more do not agree: far less than lies between what nodes take as new and what they call old."""
AHEAD_MS_MAX = CLOCKS_APART_MS_MAX + STAMP_AHEAD_MS_MAX
"""A stamp that is further ahead of a clock which agrees was taken by no node whose clock does."""


@dataclass(frozen=True, slots=True)
class ClockAsking:
    """When a question was sent, by both clocks of this node."""

    unixtime_ms: int
    monotonic: float

    @classmethod
    def begin(cls, clock: Clock) -> ClockAsking:
        """Read both of this node's clocks, just before the other one is asked."""
        return cls(clock.unixtime_ms(), clock.monotonic())

    @property
    def offset_ms(self) -> float:
        """Of this node's wall clock over its monotonic one."""
        return self.unixtime_ms - self.monotonic * 1000

    def ahead_ms(self, clock: Clock, their_unixtime_ms: int) -> float | None:
        """How far this node's clock is ahead of the one that answered just now; None when that cannot be told, since
        this node jumped or stood still meanwhile."""
        now_ms, waited_ms = clock.unixtime_ms(), (clock.monotonic() - self.monotonic) * 1000
        if not their_unixtime_ms or abs(now_ms - self.unixtime_ms - waited_ms) > CLOCKS_APART_MS_MAX / 2:
            return None
        if waited_ms > CLOCKS_APART_MS_MAX / 2:
            return None
        return now_ms - waited_ms / 2 - their_unixtime_ms


class PeerClocks:
    """What this node knows of its clock. In memory alone: a node that starts has compared nothing yet."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._agrees = False
        self._barred = False
        self._offset_ms: float | None = (
            None  # of the wall clock over the monotonic one, at the last comparison
        )
        self._ahead_ms = 0.0

    def compare(
        self, ahead_ms: Mapping[int, float], others: Iterable[int], asked: ClockAsking
    ) -> frozenset[int]:
        """Take note of how far this node's clock is ahead of those that answered; `others`: all that were asked.

        Returns those whose clocks agree with this one's. `asked`: when they were; a clock that has jumped since, while
        others were waited for, is not the one that was compared.
        """
        alone = not set(others)
        off = {node: ahead for node, ahead in ahead_ms.items() if abs(ahead) > CLOCKS_APART_MS_MAX}
        close = ahead_ms.keys() - off.keys()
        self._agrees = alone or 2 * len(close) > len(ahead_ms)
        if not ahead_ms and not alone:
            return frozenset()  # nobody answers: it may be the network
        self._offset_ms = asked.offset_ms
        before = self._barred
        if self._agrees:
            self._barred = False
        elif len(off) > len(close) + 1:  # this node counts, too: half against half bars nobody
            self._barred = True
            self._ahead_ms = median(off.values())
        if self._barred and not before:
            _log.error(
                "this node's clock is wrong: it takes no new versions, and decides nothing by age, until it agrees "
                "with the other nodes' (NTP)",
                extra={"ahead_seconds": round(self._ahead_ms / 1000, 1), "peers": sorted(off)},
            )
        elif before and not self._barred:
            _log.warning("this node's clock agrees with the other nodes' again")
        return frozenset(close)

    def now_ms(self) -> int | None:
        """What time it is, for decisions by age; None when this node's clock does not agree, or jumped since it was
        compared."""
        return self.clock.unixtime_ms() if self._agrees and not self._has_jumped() else None

    @property
    def is_barred(self) -> bool:
        """Whether this node takes no new version: its clock is wrong, or jumped since it was compared."""
        return self._barred or self._has_jumped()

    @property
    def ahead_seconds(self) -> float:
        """By how much this node's clock is ahead of most others, while it is barred for that; else 0."""
        return self._ahead_ms / 1000 if self._barred else 0.0

    def _offset(self) -> float:
        return self.clock.unixtime_ms() - self.clock.monotonic() * 1000

    def _has_jumped(self) -> bool:
        return self._offset_ms is not None and abs(self._offset() - self._offset_ms) > CLOCKS_APART_MS_MAX
