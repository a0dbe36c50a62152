"""By when a node may say yes to what a client brings: docs/consistency.md, "Clocks and sleep"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coffre.cluster.errors import ClockSkew, InvalidArgument, Unavailable
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX, unixtime_ms_of
from coffre.node.following import PeerClocks
from coffre.node.store import Accept, Mutation, Outcome
from coffre.proto import coffre_pb2 as pb

__all__ = ["MESSAGE_AGE_MS_MAX", "NEVER_MS", "STAMP_AGE_MS_MAX", "Times"]

MESSAGE_AGE_MS_MAX = 15 * 60_000
# How old the stamp of a version may be that its writer brings: well below what repair calls old (docs/repair.md).
STAMP_AGE_MS_MAX = 30 * 60_000
NEVER_MS = 1 << 62
"""Until when a change may be answered that does not grow old."""


class Times:
    """What one node asks of time before it takes a version, and once more when it has it."""

    def __init__(self, node_id: str, now_ms: Callable[[], int], clocks: PeerClocks) -> None:
        self._node_id = node_id
        self._now_ms = now_ms
        self._clocks = clocks

    def check(self, operation: pb.Operation, mutation: Mutation, sent_ms: int) -> int:
        """Until when, by this node's clock, it may say yes to an operation that came in a message which was sent then.

        Raises `ClockSkew` when it may not now.
        """
        now_ms = self._now_ms()
        which = operation.WhichOneof("operation")
        if isinstance(mutation, Accept):
            self._check_age(sent_ms, now_ms)
            return self._check_version(operation.accept, mutation.stamp, sent_ms, now_ms)
        if which == "abort" and sent_ms:
            self._check_age(sent_ms, now_ms)
        return NEVER_MS

    def _check_age(self, sent_ms: int, now_ms: int) -> None:
        """A version may come late only while everybody still knows what happened to its object since."""
        if not sent_ms:
            raise InvalidArgument("a message that brings a version says when it was sent")
        if now_ms - sent_ms > MESSAGE_AGE_MS_MAX:
            raise ClockSkew(
                f"this message was sent {(now_ms - sent_ms) / 1000:.0f} s ago by its sender's clock, and node "
                f"{self._node_id} takes none older than {MESSAGE_AGE_MS_MAX // 1000} s: send it again, or set "
                "the clocks (NTP)"
            )

    def _check_version(self, accept: pb.Accept, stamp: bytes, sent_ms: int, now_ms: int) -> int:
        self.check_own_clock()
        ahead_ms = unixtime_ms_of(stamp) - now_ms
        if ahead_ms > STAMP_AHEAD_MS_MAX:
            raise ClockSkew(
                f"the writer's clock is {ahead_ms / 1000:.0f} s ahead of node {self._node_id}'s; "
                f"at most {STAMP_AHEAD_MS_MAX // 1000} s are allowed: set the clocks (NTP)"
            )
        if (
            accept.lock or accept.read_unixtime_ms
        ):  # somebody else completes it, and has read what became of it
            read_ms = accept.read_unixtime_ms or sent_ms
            if now_ms - read_ms > MESSAGE_AGE_MS_MAX or read_ms - now_ms > STAMP_AHEAD_MS_MAX:
                raise ClockSkew(
                    f"this rests on what was read {(now_ms - read_ms) / 1000:.0f} s ago by its reader's clock, and "
                    f"node {self._node_id} takes nothing that was read more than {MESSAGE_AGE_MS_MAX // 1000} s ago, "
                    "or in the future: read again, or set the clocks (NTP)"
                )
            return min(read_ms, sent_ms) + MESSAGE_AGE_MS_MAX
        if -ahead_ms > STAMP_AGE_MS_MAX:
            raise ClockSkew(
                f"this version was begun {-ahead_ms / 1000:.0f} s ago by its writer's clock, and node "
                f"{self._node_id} takes none older than {STAMP_AGE_MS_MAX // 1000} s: write it again, or set the "
                "clocks (NTP)"
            )
        return min(unixtime_ms_of(stamp) + STAMP_AGE_MS_MAX, sent_ms + MESSAGE_AGE_MS_MAX)

    def check_own_clock(self) -> None:
        """Raises `ClockSkew` while this node's own clock is wrong."""
        if self._clocks.is_barred:
            raise ClockSkew(
                f"node {self._node_id} takes no new versions until its own clock agrees with the other nodes' "
                f"({self._clocks.ahead_seconds:+.0f} s): set that node's clock (NTP)"
            )

    def in_time(self, results: list[Outcome], until_ms: Sequence[int]) -> list[Outcome]:
        """Take back what was done too late, as by a process that stood still with a message in its hand: repair may
        have decided meanwhile that it never will be. Nobody counts on what was not answered."""
        now_ms, barred = self._now_ms(), self._clocks.is_barred
        if not barred and now_ms <= min(until_ms, default=NEVER_MS):
            return results
        late = Outcome(
            error=Unavailable(f"node {self._node_id} stood still, or its clock jumped, while it did this")
        )
        return [
            late if latest != NEVER_MS and (barred or now_ms > latest) and result.error is None else result
            for result, latest in zip(results, until_ms, strict=True)
        ]
