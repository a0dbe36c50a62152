"""Says in the log when this node's certificate, or its authority's, ends soon, and when it has ended."""

from __future__ import annotations

import logging

from coffre.cluster.clock import Clock

__all__ = ["CertificateWatch"]

_log = logging.getLogger("coffre.node")
LOOK_SECONDS = 600.0
_DAY_MS = 86_400_000
_SAID_DAYS = (30, 14, 7, 3, 2, 1)  # left; from the last one on, each day


class CertificateWatch:
    """Looks again and again; a line for each threshold that is passed."""

    def __init__(self, node_id: str, ends: dict[str, int], clock: Clock) -> None:
        """`ends`: by what it is called, when each certificate ends, in Unix ms."""
        self._node_id = node_id
        self.ends = ends
        self._clock = clock
        self._said: dict[str, int] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Compare with the clock once."""
        for what, end_ms in self.ends.items():
            left_ms = end_ms - self._clock.unixtime_ms()
            threshold = _threshold(left_ms)
            if threshold is None or self._said.get(what) == threshold:
                continue
            self._said[what] = threshold
            about = {"node": self._node_id, "certificate": what, "days_left": round(left_ms / _DAY_MS, 1)}
            if left_ms < 0:
                _log.error("a certificate has expired: nobody talks to this node any more", extra=about)
            else:
                _log.warning(
                    "a certificate runs out: renew it (coffre pki request --renew), and restart this node with it",
                    extra=about,
                )


def _threshold(left_ms: int) -> int | None:
    """The last threshold that was passed, in days; below 0 once it has ended, another one each day."""
    if left_ms < 0:
        return -1 - -left_ms // _DAY_MS
    passed = [days for days in _SAID_DAYS if left_ms <= days * _DAY_MS]
    return min(passed, default=None)
