"""Failure detection: what one member makes of the answers of the others. It judges, and never acts.

Pure but for the clock it is given. Who reads moves no data because of it: a node that is down is only `is_lost` after
a grace that an administrator sets, and even then an administrator decides.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from coffre.cluster.clock import Clock
from coffre.cluster.errors import InvalidArgument

__all__ = ["Health", "HealthLimits", "HealthTracker"]

_LATENCIES_KEPT = 32  # of each peer


class Health(enum.Enum):
    """What a peer looks like from here."""

    UNKNOWN = "unknown"  # never asked
    UP = "up"
    SLOW = "slow"  # answers, much later than the others
    FLAPPING = "flapping"  # answers now, and kept going away
    DOWN = "down"

    @property
    def is_set_aside(self) -> bool:
        """Whether others should be asked first."""
        return self in (Health.SLOW, Health.FLAPPING, Health.DOWN)


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a peer is called what. Seconds are of the monotonic clock."""

    failures: int = 2  # in a row: down
    grace_seconds: float = 900.0  # down for so long: lost
    flaps: int = 3  # so often down within the window: flapping
    flap_window_seconds: float = 600.0
    slow_factor: float = 5.0  # median latency, relative to the median of all peers' medians
    slow_seconds: float = 0.1  # and no peer is slow below this
    slow_window_seconds: float = 60.0  # older answers say nothing of now
    slow_answers: int = 3  # and fewer say nothing at all
    stall_seconds: float = 1.0  # an answer that took so long counts as if the peer had been down

    def __post_init__(self) -> None:
        whole = min(self.failures, self.flaps, self.slow_answers) >= 1
        positive = (
            min(self.grace_seconds, self.flap_window_seconds, self.slow_seconds, self.slow_window_seconds)
            >= 0
        )
        if not whole or not positive or self.slow_factor < 1:
            raise InvalidArgument(
                "limits of health are not below 0; failures, flaps, answers and the slow factor at least 1"
            )


@dataclass(slots=True)
class _Peer:
    falls: deque[float]  # when it went down, stalled or restarted, the latest ones
    latencies: deque[tuple[float, float]] = field(  # when it answered, and how late
        default_factory=lambda: deque(maxlen=_LATENCIES_KEPT)
    )
    failures: int = 0  # in a row
    failing_since: float | None = None
    stalled_until: float = -math.inf
    fallen: bool = False  # since its last answer in time: what shows the same fall again is not counted


class HealthTracker:
    """Counts answers and failures of peers, and says what each looks like. It keeps a few hundred bytes of each."""

    def __init__(self, clock: Clock, limits: HealthLimits | None = None) -> None:
        self._clock = clock
        self.limits = limits or HealthLimits()
        self._peers: dict[int, _Peer] = {}

    def answered(self, peer: int, latency_seconds: float) -> None:
        """The peer answered, so much later."""
        seen, now = self._peer(peer), self._clock.monotonic()
        seen.failures = 0
        seen.failing_since = None
        seen.latencies.append((now, latency_seconds))
        self._note_wait(seen, now, latency_seconds)
        seen.fallen = latency_seconds >= self.limits.stall_seconds

    def failed(self, peer: int, waited_seconds: float = 0.0) -> None:
        """The peer could not be reached, or gave no answer in time, after so long a wait."""
        seen, now = self._peer(peer), self._clock.monotonic()
        self._note_wait(seen, now, waited_seconds)
        seen.failures += 1
        if seen.failing_since is None:
            seen.failing_since = now
        if seen.failures == self.limits.failures:
            self._count_fall(seen, now)

    def restarted(self, peer: int, *, planned: bool = False) -> None:
        """The peer is another process than when it answered last: a fall, if none was noticed meanwhile.

        `planned`: the process before had ended as it was told, so what was noticed is no fall. To be told before the
        answer that showed it.
        """
        seen = self._peer(peer)
        if not planned:
            self._count_fall(seen, self._clock.monotonic())
        elif seen.fallen and seen.falls:
            seen.falls.pop()

    def forget(self, peers: Iterable[int]) -> None:
        """Peers that left the map."""
        for peer in peers:
            self._peers.pop(peer, None)

    def health(self, peer: int) -> Health:
        """What is thought of a peer now; UNKNOWN of one that was never heard of."""
        seen = self._peers.get(peer)
        if seen is None:
            return Health.UNKNOWN
        if seen.failures >= self.limits.failures:
            return Health.DOWN
        if self._is_flapping(seen):
            return Health.FLAPPING
        return Health.SLOW if self._is_slow(seen) else Health.UP

    def down_seconds(self, peer: int) -> float:
        """For how long a peer has been down, since its first failure in a row; 0 when it is not down."""
        seen = self._peers.get(peer)
        if seen is None or seen.failing_since is None or seen.failures < self.limits.failures:
            return 0.0
        return self._clock.monotonic() - seen.failing_since

    def is_lost(self, peer: int) -> bool:
        """Whether a peer is down for longer than an outage that is waited for."""
        return self.health(peer) is Health.DOWN and self.down_seconds(peer) >= self.limits.grace_seconds

    def latency_seconds(self, peer: int) -> float | None:
        """The median of the latest answers."""
        seen = self._peers.get(peer)
        return self._median(seen) if seen is not None else None

    def falls(self, peer: int) -> int:
        """How often a peer went away within the window, as far as is kept: `flaps` at most."""
        seen = self._peers.get(peer)
        return min(self._recent_falls(seen), self.limits.flaps) if seen is not None else 0

    def set_aside(self) -> frozenset[int]:
        """Peers that are to be asked last."""
        return frozenset(peer for peer in self._peers if self.health(peer).is_set_aside)

    def _peer(self, peer: int) -> _Peer:
        seen = self._peers.get(peer)
        if seen is None:
            seen = self._peers[peer] = _Peer(
                falls=deque(maxlen=self.limits.flaps + 1)
            )  # one may be taken back
        return seen

    def _note_wait(self, seen: _Peer, now: float, waited_seconds: float) -> None:
        """A wait so long is a fall; what waited through the same stall is one, however many messages that were."""
        if waited_seconds < self.limits.stall_seconds:
            return
        if now - waited_seconds > seen.stalled_until:
            self._count_fall(seen, now)
        seen.stalled_until = now

    @staticmethod
    def _count_fall(seen: _Peer, now: float) -> None:
        if not seen.fallen:
            seen.falls.append(now)
            seen.fallen = True

    def _recent_falls(self, seen: _Peer) -> int:
        since = self._clock.monotonic() - self.limits.flap_window_seconds
        return sum(fall >= since for fall in seen.falls)

    def _is_flapping(self, seen: _Peer) -> bool:
        return self._recent_falls(seen) >= self.limits.flaps

    def _recent_latencies(self, seen: _Peer) -> list[float]:
        since = self._clock.monotonic() - self.limits.slow_window_seconds
        return [latency for when, latency in seen.latencies if when >= since]

    def _median(self, seen: _Peer) -> float | None:
        latencies = self._recent_latencies(seen)
        return statistics.median(latencies) if latencies else None

    def _is_slow(self, seen: _Peer) -> bool:
        latencies = self._recent_latencies(seen)
        if len(latencies) < self.limits.slow_answers:
            return False
        own = statistics.median(latencies)
        if own < self.limits.slow_seconds:
            return False
        others = [
            median
            for one in self._peers.values()
            if one is not seen and one.failures < self.limits.failures
            for median in (self._median(one),)
            if median is not None
        ]
        return bool(others) and own > self.limits.slow_factor * statistics.median(others)
