"""What came of the operations: counted in a client process per interval, and summed up over processes.

Latencies are HdrHistograms: constant memory, three significant digits, and sums over processes and seconds. An
operation belongs to the interval that it ended in, so an interval that is over does not change any more.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np
from coffre.bench.load.plan import Operation
from coffre.cluster.errors import InvalidArgument
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

__all__ = ["Latencies", "Recorder", "Slice", "Tally", "Timeline", "total"]

LOWEST_US = 1
HIGHEST_US = 3600 * 1_000_000
SIGNIFICANT_DIGITS = 3


class Latencies:
    """Durations in seconds, from 1 µs to one hour; a longer one counts as an hour."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._histogram.record_value(min(max(round(seconds * 1e6), LOWEST_US), HIGHEST_US))

    def add(self, other: Latencies) -> None:
        """Count everything that the other one has counted."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return int(self._histogram.get_total_count())

    def percentiles(self, wanted: Sequence[float]) -> tuple[float, ...]:
        """Seconds at each of the percentiles (0 to 100), in their order.

        Raises `InvalidArgument` when nothing was counted.
        """
        count = self.count
        if not count:
            raise InvalidArgument("nothing was counted, so there are no percentiles")
        ranks = [min(max(1, round(percentile * count / 100 + 1e-9)), count) for percentile in wanted]
        places = np.searchsorted(np.cumsum(self._counts()), ranks)
        return tuple(map(self._seconds_at, places.tolist()))

    def percentile(self, wanted: float) -> float:
        """Seconds at one percentile."""
        return self.percentiles([wanted])[0]

    @property
    def mean_s(self) -> float:
        """Mean in seconds, of the values as they are rounded here."""
        return sum(seconds * count for seconds, count in self.steps()) / self.count

    def steps(self) -> Iterator[tuple[float, int]]:
        """Every recorded value in seconds, ascending, with how often it was counted."""
        counts = self._counts()
        for place in np.flatnonzero(counts).tolist():
            yield self._seconds_at(place), int(counts[place])

    def encode(self) -> str:
        """The standard compressed form of HdrHistogram (V2), in base64."""
        return bytes(self._histogram.encode()).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Latencies:
        """The opposite. Raises `InvalidArgument` when the text is none."""
        found = cls()
        try:
            found._histogram.decode_and_add(text.encode("ascii"))
        except (
            *(ValueError, IndexError, RuntimeError, OverflowError, MemoryError),
            *(zlib.error, HdrCookieException, HdrLengthException),
        ) as error:
            raise InvalidArgument(f"not an HdrHistogram: {type(error).__name__}") from None
        return found

    def _counts(self) -> NDArray[np.int64]:
        """All counters. The library itself walks over them in Python, one by one, for every question."""
        return np.frombuffer(self._histogram.counts, dtype=np.int64)

    def _seconds_at(self, place: int) -> float:
        value = self._histogram.get_value_from_index(place)
        return min(int(self._histogram.get_highest_equivalent_value(value)), HIGHEST_US) / 1e6


def total(parts: Iterable[Latencies]) -> Latencies:
    """The sum of many."""
    found = Latencies()
    for part in parts:
        found.add(part)
    return found


_Place = tuple[int, Operation, str]
_Key = TypeVar("_Key")


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """One operation on one class of objects in one interval. `latencies` is an encoded histogram, of successes only.

    A list in JSON, since a long run has many.
    """

    interval: int
    operation: Operation
    kind: str
    size_bytes: int
    errors: dict[str, int]
    latencies: str | None

    @property
    def place(self) -> _Place:
        """What slices of several processes have in common."""
        return self.interval, self.operation, self.kind


@dataclass(slots=True)
class Tally:
    """A sum of slices. `size_bytes` are those of the successes."""

    size_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)

    def include(self, part: Slice) -> None:
        """Add one slice."""
        self.size_bytes += part.size_bytes
        self.errors.update(part.errors)
        if part.latencies is not None:
            self.latencies.add(Latencies.decode(part.latencies))

    def add(self, other: Tally) -> None:
        """Add another sum."""
        self.size_bytes += other.size_bytes
        self.errors.update(other.errors)
        self.latencies.add(other.latencies)

    def at(self, place: _Place) -> Slice:
        """As a slice of an interval, an operation and a class."""
        encoded = self.latencies.encode() if self.done else None
        return Slice(*place, self.size_bytes, dict(self.errors), encoded)

    @property
    def done(self) -> int:
        """Successes."""
        return self.latencies.count

    @property
    def failed(self) -> int:
        """Errors of all classes."""
        return self.errors.total()


def _in_time(place: _Place) -> tuple[int, str, str]:
    return place[0], place[1].value, place[2]


class Recorder:
    """Counts in one client process. Only the current interval is kept; `take` hands over those that are over."""

    def __init__(self, start: float, interval_s: float) -> None:
        """`start` is a reading of the monotonic clock."""
        self._start = start
        self._interval_s = interval_s
        self._tallies: dict[_Place, Tally] = {}
        self.lag = Latencies()  # open loop: from when an operation was due until it was begun
        self.last = start

    def _tally(self, ended: float, operation: Operation, kind: str) -> Tally:
        interval = max(0, int((ended - self._start) / self._interval_s))
        self.last = max(self.last, ended)
        return self._tallies.setdefault((interval, operation, kind), Tally())

    def succeeded(
        self, operation: Operation, kind: str, *, since: float, ended: float, size_bytes: int
    ) -> None:
        """Count a success; both times are readings of the monotonic clock."""
        tally = self._tally(ended, operation, kind)
        tally.latencies.record(ended - since)
        tally.size_bytes += size_bytes

    def failed(self, operation: Operation, kind: str, error: str, *, ended: float) -> None:
        """Count a failure by the class of the error."""
        self._tally(ended, operation, kind).errors[error] += 1

    def take(self, now: float | None = None) -> list[Slice]:
        """What is over at `now`, or everything, in the order of time. It is forgotten here."""
        current = None if now is None else int((now - self._start) / self._interval_s)
        over = [place for place in self._tallies if current is None or place[0] < current]
        return [self._tallies.pop(place).at(place) for place in sorted(over, key=_in_time)]


class Timeline:
    """The slices of all processes, those of the same place summed up. Histograms stay encoded: they are small so."""

    def __init__(self, slices: Iterable[Slice] = ()) -> None:
        self._slices: dict[_Place, Slice] = {}
        for each in slices:
            self.add(each)

    def add(self, new: Slice) -> None:
        """Sum one up with what is there."""
        if (old := self._slices.get(new.place)) is not None:
            tally = Tally()
            tally.include(old)
            tally.include(new)
            new = tally.at(new.place)
        self._slices[new.place] = new

    def slices(self) -> list[Slice]:
        """All, in the order of time."""
        return [self._slices[place] for place in sorted(self._slices, key=_in_time)]

    def cells(self) -> list[tuple[Operation, str]]:
        """Operations and classes that occur, operations in their usual order."""
        order = list(Operation)
        found = {(operation, kind) for _, operation, kind in self._slices}
        return sorted(found, key=lambda cell: (order.index(cell[0]), cell[1]))

    def tallies(self, group: Callable[[Slice], _Key | None]) -> dict[_Key, Tally]:
        """The sums of the slices that belong together; those of None are in no sum."""
        found: dict[_Key, Tally] = {}
        for each in self._slices.values():
            if (key := group(each)) is not None:
                found.setdefault(key, Tally()).include(each)
        return found

    def tally(self, chosen: Callable[[Slice], bool] = lambda _: True) -> Tally:
        """The sum of the slices that are chosen."""
        return self.tallies(lambda each: chosen(each) or None).get(True, Tally())
