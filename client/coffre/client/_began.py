"""Since when a client knows what it acts on: a process may stand still between reading and writing."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.clock import Clock

__all__ = ["EVIDENCE_MS_MAX", "Began"]

EVIDENCE_MS_MAX = 600_000  # older answers are asked for again; nodes put up with a little more


@dataclass(frozen=True, slots=True)
class Began:
    """When a reader began to ask, by both clocks of its machine: what it sends rests on answers since then."""

    unixtime_ms: int
    monotonic: float

    @classmethod
    def now(cls, clock: Clock) -> Began:
        """Since this moment."""
        return cls(clock.unixtime_ms(), clock.monotonic())

    def is_stale(self, clock: Clock) -> bool:
        """Whether this machine stood still since, or its clock jumped."""
        passed_ms = clock.unixtime_ms() - self.unixtime_ms
        return not -EVIDENCE_MS_MAX < passed_ms < EVIDENCE_MS_MAX or (
            (clock.monotonic() - self.monotonic) * 1000 > EVIDENCE_MS_MAX
        )
