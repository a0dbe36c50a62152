"""A token bucket over the clock seam: repair never takes more of disks and network than it was given."""

from __future__ import annotations

from coffre.cluster.clock import Clock

__all__ = ["Pace"]

_BURST_SECONDS = 0.25


class Pace:
    """`spend` what was done; it returns when the next thing may be. Debt is carried, so large pieces even out."""

    def __init__(self, clock: Clock, bytes_per_second: float) -> None:
        self._clock = clock
        self.bytes_per_second = bytes_per_second
        self._free_at = clock.monotonic() - _BURST_SECONDS

    async def spend(self, size_bytes: int) -> None:
        """Wait until these bytes may be spent."""
        now = self._clock.monotonic()
        start = max(self._free_at, now - _BURST_SECONDS)
        self._free_at = start + size_bytes / self.bytes_per_second
        if self._free_at > now:
            await self._clock.sleep(self._free_at - now)
