"""Stamps of one client, and its marks: up to where everything that it wrote is established (docs/consistency.md)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.errors import ClockSkew
from coffre.cluster.versions import HLC_MAX, STAMP_AHEAD_MS_MAX, HybridClock, Stamp, unixtime_ms_of

__all__ = ["Issuer", "too_far_ahead"]

RETIRED_MAX = 16
BLOCKED_MS = 250  # how old an open version may be before those above it are settled one by one


@dataclass(slots=True)
class _Open:
    """A version under way, or established above one that is: `settle` then tells the nodes of it alone."""

    stamp: Stamp
    settle: Callable[[], None] | None = None  # None while it is under way


class Issuer:
    """Issues stamps in order, each open until it is established or given up.

    A mark is a stamp: every version of its writer up to it is established. A client that gives up a version takes a new
    writer id, so what was given up never lies below a mark.
    """

    def __init__(self, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._entropy = entropy
        self._hybrid = HybridClock(clock, self._new_writer())
        self._open: OrderedDict[Stamp, _Open] = OrderedDict()
        self._mark: Stamp | None = None
        self._retired: list[bytes] = []

    def issue(self, above: bytes = b"") -> Stamp:
        """A stamp above all seen so far, and above this one. It must end in `established` or `given_up`.

        When this machine's clock was set back by more than nodes put up with, it is below stamps of before, of another
        writer: what is in its way then, nodes say. What it must be above may be further ahead than a clock is moved:
        then it is one of a writer of its own, and the clock stays. Raises `ClockSkew` when there is none above.
        """
        if self._hybrid.is_ahead:
            self._retire()
            self._hybrid.begin_anew(self._new_writer())
        if above:
            lowest = Stamp.from_bytes(above)
            if not self._hybrid.observe(lowest):
                if lowest.hlc >= HLC_MAX:
                    raise ClockSkew(too_far_ahead(above, self._clock))
                return Stamp(lowest.hlc + 1, self._new_writer())
        stamp = self._hybrid.issue()
        self._open[stamp] = _Open(stamp)
        return stamp

    def observe(self, stamp: Stamp) -> None:
        """Move above `stamp`, which another writer issued; not when it is from the future."""
        self._hybrid.observe(stamp)

    def is_believable(self, stamp: bytes) -> bool:
        """Whether one node alone may say that a stamp is in the way: it is not too far ahead of this clock."""
        return unixtime_ms_of(stamp) - self._clock.unixtime_ms() <= STAMP_AHEAD_MS_MAX

    def marks(self) -> tuple[bytes, ...]:
        """What nodes should know: the marks of the last writer ids that this client had, the current one last."""
        if self._mark is None:
            return tuple(self._retired)
        return (*self._retired, self._mark.to_bytes())

    def established(self, stamp: Stamp, settle: Callable[[], None]) -> None:
        """The version stands. A mark will say so, or `settle` is called where none can, or not soon."""
        entry = self._open.get(stamp)
        if entry is None:
            settle()  # of a writer id that was given up meanwhile
            return
        entry.settle = settle
        while self._open:
            first = next(iter(self._open.values()))
            if first.settle is None:
                if first.stamp.unixtime_ms + BLOCKED_MS < self._clock.unixtime_ms():
                    self._settle_done()
                return
            del self._open[first.stamp]
            self._mark = first.stamp

    def given_up(self, stamp: Stamp) -> None:
        """The version does not stand, or nobody knows: no mark may ever cover it."""
        if self._open.pop(stamp, None) is None:
            return  # its writer id is gone already
        self._retire()
        self._hybrid.renew(self._new_writer())

    def _retire(self) -> None:
        """The writer id ends here: no mark of it moves any more."""
        self._settle_done()
        self._open.clear()
        if self._mark is not None:
            self._retired = [*self._retired, self._mark.to_bytes()][-RETIRED_MAX:]
            self._mark = None

    def _settle_done(self) -> None:
        """Tell of what is established and waits for a mark. A later mark may pass over it: it stands."""
        for entry in list(self._open.values()):
            if entry.settle is not None:
                del self._open[entry.stamp]
                entry.settle()

    def _new_writer(self) -> int:
        return int.from_bytes(self._entropy(8), "big")


def too_far_ahead(stamp: bytes, clock: Clock) -> str:
    """What to say of a stamp from the future."""
    seconds = (unixtime_ms_of(stamp) - clock.unixtime_ms()) / 1000
    return (
        f"a version of this object is stamped {seconds:.0f} s ahead of this machine's clock: one of the two is wrong, "
        "set the clocks (NTP)"
    )
