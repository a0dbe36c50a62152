"""Version stamps: a hybrid logical clock and a writer id, 16 bytes that compare as byte strings.

Source: Kulkarni et al., "Logical Physical Clocks", 2014. Layout: docs/formats/manifest.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.errors import InvalidArgument

__all__ = ["HLC_MAX", "STAMP_AHEAD_MS_MAX", "STAMP_BYTES", "HybridClock", "Stamp", "unixtime_ms_of"]

STAMP_BYTES = 16
STAMP_AHEAD_MS_MAX = 60_000  # no clock is moved by a stamp that is further ahead of it, and no node takes one
_COUNTER_BITS = 16
_HLC_LIMIT = 1 << 64
HLC_MAX = _HLC_LIMIT - 1


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """One version's place in the order of all versions of its object."""

    hlc: int
    writer: int

    @property
    def unixtime_ms(self) -> int:
        """The wall-clock part, in milliseconds since 1970."""
        return self.hlc >> _COUNTER_BITS

    def to_bytes(self) -> bytes:
        """16 bytes, which compare as stamps do: 8 of the clock, 8 of the writer, big-endian."""
        return self.hlc.to_bytes(8, "big") + self.writer.to_bytes(8, "big")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Stamp:
        """The reverse of `to_bytes`. Raises `InvalidArgument` when these are not 16 bytes."""
        if len(raw) != STAMP_BYTES:
            raise InvalidArgument(f"a stamp has {STAMP_BYTES} bytes, not {len(raw)}")
        return cls(int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big"))

    def __str__(self) -> str:
        return self.to_bytes().hex()

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """Read what `str` wrote: 32 hexadecimal digits."""
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) != STAMP_BYTES:
            raise InvalidArgument(f"{text!r} is not a version: 32 hexadecimal digits")
        return cls.from_bytes(raw)


def unixtime_ms_of(stamp: bytes) -> int:
    """The wall-clock part of a stamp's 16 bytes, in milliseconds since 1970."""
    return int.from_bytes(stamp[:6], "big")


class HybridClock:
    """Issues stamps that grow: above every stamp issued or observed, and close to the wall clock.

    Nothing takes it further ahead of the wall clock than `STAMP_AHEAD_MS_MAX`. When the wall clock is set back by more,
    stamps begin anew from there, and must have another writer: see `is_ahead`.
    """

    def __init__(self, clock: Clock, writer: int) -> None:
        self._clock = clock
        self._last = 0
        self.renew(writer)

    def renew(self, writer: int) -> None:
        """Go on as another writer, above every stamp so far."""
        if not 0 <= writer < _HLC_LIMIT:
            raise InvalidArgument("a writer id is an unsigned 64-bit number")
        self._writer = writer

    @property
    def is_ahead(self) -> bool:
        """Whether the wall clock was set back, so far that the next stamp would be from the future."""
        return not self._is_near(self._last)

    def begin_anew(self, writer: int) -> None:
        """Go on as another writer from what the wall clock says, below stamps of before."""
        self._last = 0
        self.renew(writer)

    def issue(self) -> Stamp:
        """Return a stamp above all seen so far."""
        self._last = max(self._last + 1, self._clock.unixtime_ms() << _COUNTER_BITS)
        if self._last >= _HLC_LIMIT:
            raise InvalidArgument("the clock is past the range of stamps; set this machine's clock")
        return Stamp(self._last, self._writer)

    def observe(self, stamp: Stamp) -> bool:
        """Move above `stamp`, which another writer issued. False, and nothing moves, when it is from the future."""
        if not self._is_near(stamp.hlc):
            return False
        self._last = max(self._last, stamp.hlc)
        return True

    def _is_near(self, hlc: int) -> bool:
        return (hlc >> _COUNTER_BITS) - self._clock.unixtime_ms() <= STAMP_AHEAD_MS_MAX
