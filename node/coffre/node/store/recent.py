"""What the newest versions add to the digests of partitions, so that two nodes can compare what is older.

Nodes take writes at different moments, so digests of everything differ for as long as anything is written. Digests
of what is older than a few seconds do not, unless something is missing. docs/repair.md, "Digests".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from coffre.cluster.versions import unixtime_ms_of
from coffre.node.store.limits import digest_of

__all__ = ["WINDOW_MS", "Change", "Recent", "change_of", "window_start_ms"]

WINDOW_MS = 4096
_KEPT_MS = 90_000  # well above what anybody leaves out, and clocks that are behind
_AHEAD_MS = 120_000  # above how far stamps may be ahead, and clocks behind

Change = tuple[int, bytes, int]  # partition, stamp of the newest version of the name, XOR of digests


def window_start_ms(unixtime_ms: int) -> int:
    """The begin of the window that a time lies in: what is left out of digests begins with a window."""
    return unixtime_ms - unixtime_ms % WINDOW_MS


def change_of(
    partition: int, context: bytes, before: set[tuple[bytes, int]], after: set[tuple[bytes, int]]
) -> Change:
    """How one row changes the digest of its partition: `votes.kinds` before and after, which differ."""
    delta = 0
    for stamp, kind in before ^ after:
        delta ^= digest_of(context, stamp, kind)
    return partition, max(before | after)[0], delta


class Recent:
    """Changes of digests by window of time, for a bounded time; in memory alone.

    A change counts at the time of the newest version of its name: when an older version is trimmed because of it, that
    belongs to the newer one. What is not known any more (or was before a start) is not left out, so digests may differ
    although nothing is missing; they never agree although something is.

    `lock`: hold it for the commit with `add`, and to begin a read transaction with `since`.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._windows: dict[int, dict[int, int]] = {}  # window, partition: XOR

    def add(self, changes: Iterable[Change], now_ms: int) -> None:
        """Count what a batch changed in the digests; what is older than the windows is dropped."""
        windows = self._windows
        kept = (now_ms - _KEPT_MS) // WINDOW_MS
        for partition, stamp, delta in changes:
            number = unixtime_ms_of(stamp) // WINDOW_MS
            window = windows.get(number)
            if window is None:
                if number < kept:
                    continue
                for old in [one for one in windows if one < kept]:
                    del windows[old]
                window = windows[number] = {}
            window[partition] = window.get(partition, 0) ^ delta

    def since(self, unixtime_ms: int, now_ms: int) -> dict[int, int]:
        """By partition: the XOR of what changed in the windows that begin at this time or later; but not of what is
        stamped with a time of the future, which must be looked at. `now_ms`: what time it is."""
        found: dict[int, int] = {}
        for number, window in self._windows.items():
            if unixtime_ms <= number * WINDOW_MS <= now_ms + _AHEAD_MS:
                for partition, delta in window.items():
                    found[partition] = found.get(partition, 0) ^ delta
        return found
