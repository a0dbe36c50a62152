"""What a node has met that its operator should hear of: shards that did not fit, and certificates that end."""

from __future__ import annotations

from coffre.cluster.clock import Clock
from coffre.proto import coffre_pb2 as pb

__all__ = ["Refusals", "TenantsMet"]

TENANTS_MAX = 1024
CERTIFICATES_MAX = 4  # of one tenant
LATELY_MS = 24 * 3600 * 1000


class Refusals:
    """Large shards that were refused because they did not fit above the reserve."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told = pb.SpaceRefusals()

    def note(self, size_bytes: int) -> None:
        """`size_bytes`: as far as it had come."""
        self._told.count += 1
        self._told.last_unixtime_ms = self._clock.unixtime_ms()
        self._told.last_bytes = size_bytes

    def tell(self, reply: pb.StatusReply) -> None:
        """Add them to a status."""
        reply.space_refusals.CopyFrom(self._told)


class TenantsMet:
    """When the certificates end that tenants show. Those of one tenant on several machines may differ.

    Bounded: the latest certificates of the latest tenants.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, dict[int, int]] = {}  # by tenant, then by end: when it was shown last

    def note(self, name: str, expires_ms: int) -> None:
        """A tenant has shown a certificate."""
        seen = self._seen.pop(name, None)
        if seen is None:
            seen = {}
        seen.pop(expires_ms, None)
        seen[expires_ms] = self._clock.unixtime_ms()
        if len(seen) > CERTIFICATES_MAX:
            del seen[next(iter(seen))]
        self._seen[name] = seen
        if len(self._seen) > TENANTS_MAX:
            del self._seen[next(iter(self._seen))]

    def tell(self, reply: pb.StatusReply) -> None:
        """Add to a status, of each tenant, the end that comes first of those shown lately, or else of the last one."""
        since = self._clock.unixtime_ms() - LATELY_MS
        for name, seen in self._seen.items():
            lately = [expires_ms for expires_ms, at in seen.items() if at >= since] or [next(reversed(seen))]
            reply.tenants.add(name=name, certificate_expires_unixtime_ms=min(lately))
