"""Latencies as an HdrHistogram: constant memory, three significant digits, and sums over processes and seconds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from coffre.cluster.errors import InvalidArgument
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

__all__ = ["Latencies", "total"]

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
